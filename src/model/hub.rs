//! Downloads models and data sets from the Hugging Face hub into its usual cache folder, and pushes results to it.
//!
//! The cache has the layout of `huggingface_hub` and `hf-hub` (`blobs/`, `snapshots/<commit>/`, `refs/`), so that
//! files are shared with them. Only the types `Repo` and `RepoType` come from hf-hub, version 0.5.
//!
//! The download is implemented here because 16 of the 28 tests in `tests/library/hub.rs` and `hub/` fail with hf-hub
//! 1.0.0 (blocking). It does not resume broken downloads (`an_interrupted_*`, `a_copied_*`, `one_call_*`), checks
//! neither the status nor the SHA-256 of a body (`answers_*`, `bad_redirects_*`, `damaged_*`), requires a commit from
//! the server and uses it unchecked in paths (`a_server_*`, `a_commit_*`), names blobs by the unchecked ETag alone
//! (`etags_*`, `shard_names_*`, `a_download_*`), writes through links (`links_*`, `an_unfinished_*`), limits neither
//! size nor duration of a response (`bodies_*`, `silence_*`), and ignores a malformed token (`a_token_*`).
//!
//! A hub, a mirror or an attacker on the network can send anything. Every name is therefore checked before it becomes
//! part of a path (`names`), every path written lies in the cache (`local`), the token goes only to the endpoint
//! (`client`), and response bodies, waiting times and retries are limited (`download`, `incoming`, `retries`).

mod address;
mod client;
mod config;
mod data_sets;
mod download;
mod incoming;
mod listing;
mod local;
mod names;
mod push;
mod retries;
mod verify;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use self::client::{Client, Failure};
pub use self::config::HubConfig;
use self::data_sets::{parse_url, select};
use self::listing::{Listing, MAX_JSON};
use self::local::LocalRepo;
pub use self::push::{Destination, PushFile, PushTarget, Pushed};
use crate::data::chat::TOOL_USE_FILE;
use crate::data::tokenizer::TOKENIZER_FILES;
use crate::error::{Error, Result};
use crate::input_file;
use crate::progress::ProgressMode;

/// Access to the hub through its cache.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl Hub {
    /// Opens the hub as the environment describes it (see [`HubConfig::from_env`]), with progress shown as `progress`
    /// says.
    pub fn open(progress: ProgressMode) -> Self {
        Self::new(HubConfig { progress, ..HubConfig::from_env() })
    }

    /// Creates a hub with these settings; nothing is contacted yet.
    pub fn new(config: HubConfig) -> Self {
        Self { client: Client::new(&config), config }
    }

    /// Returns the local folder of `model`. An existing folder is returned as it is; otherwise the hub repository
    /// `owner/name` at `revision` (branch, tag or commit) is downloaded unless it is in the cache: config, tokenizer
    /// and safetensors files.
    ///
    /// An interrupted download continues where it stopped. A complete cached commit is used without the network, and
    /// so is every cached revision when offline or when the hub cannot be reached.
    ///
    /// # Errors
    /// `model` is neither a folder nor a hub id, the repository or revision is refused or its license is not accepted
    /// (with what to do), it holds no safetensors, or the network or the disk fails.
    pub fn resolve(&self, model: &str, revision: &str) -> Result<PathBuf> {
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(folder.to_path_buf());
        }
        let (repo, local) = self.repository(model, revision)?;
        let cached = local.snapshot().filter(|folder| is_complete(folder));
        let is_commit = names::commit(revision).is_some();
        match (cached, self.config.offline) {
            (Some(folder), true) => Ok(folder),
            (Some(folder), false) if is_commit => Ok(folder),
            (None, true) => Err(offline(model, revision)),
            (cached, false) => {
                let downloaded = Fetch::start(&self.client, &repo, &local).and_then(Fetch::model);
                self.or_cached(downloaded, cached, model).map_err(|e| no_folder_either(e, model))
            }
        }
    }

    /// Returns the model repository `model` at `revision` and its part of the cache.
    fn repository(&self, model: &str, revision: &str) -> Result<(Repo, LocalRepo)> {
        let repo = names::repository(model, RepoType::Model, revision, "model")?;
        let local = LocalRepo::new(&self.config.cache_dir, &repo);
        Ok((repo, local))
    }

    /// Returns the local folder of `model` like [`resolve`](Self::resolve), but fetches only config and tokenizer,
    /// unless they are in the cache.
    ///
    /// # Errors
    /// Same as [`resolve`](Self::resolve).
    pub fn config_folder(&self, model: &str, revision: &str) -> Result<PathBuf> {
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(folder.to_path_buf());
        }
        let (repo, local) = self.repository(model, revision)?;
        let described = |folder: &PathBuf| folder.join("config.json").is_file();
        match local.snapshot().filter(described) {
            Some(folder) => Ok(folder),
            None if self.config.offline => Err(offline(model, revision)),
            None => {
                let described =
                    Fetch::start(&self.client, &repo, &local).and_then(Fetch::without_weights);
                described.map_err(|failure| no_folder_either(failure.into(), model))
            }
        }
    }

    /// Returns local copies of the files named by `hf://datasets/owner/name[@revision]/path`, sorted. `path` is a
    /// file, a folder (all its parquet, jsonl, json and xml files) or a glob (`*`, `**`, `?`, `[...]`); without a
    /// path, the whole data set.
    ///
    /// # Errors
    /// The address is not of this form, matches nothing, or a download fails as in [`resolve`](Self::resolve).
    pub fn fetch_files(&self, hf_url: &str) -> Result<Vec<PathBuf>> {
        let (repo, path) = parse_url(hf_url)?;
        let local = LocalRepo::new(&self.config.cache_dir, &repo);
        let cached = self.cached_files(&local, &path, hf_url)?;
        if self.config.offline {
            return cached.ok_or_else(|| offline(hf_url, repo.revision()));
        }
        let downloaded = Fetch::start(&self.client, &repo, &local).and_then(|fetch| {
            let names = select(fetch.listing.files.as_deref(), &path, hf_url)?;
            fetch.all(&names)
        });
        self.or_cached(downloaded, cached, hf_url)
    }

    /// Returns the files of an earlier [`fetch_files`](Self::fetch_files), if all files of its listing are in the
    /// cache.
    fn cached_files(
        &self,
        local: &LocalRepo,
        path: &str,
        hf_url: &str,
    ) -> Result<Option<Vec<PathBuf>>> {
        let Some(folder) = local.snapshot() else {
            return Ok(None);
        };
        let file = |name: &str| {
            let path = folder.join(name);
            (names::check_path(name).is_ok() && path.is_file()).then_some(path)
        };
        if let Some(path) = file(path) {
            return Ok(Some(vec![path]));
        }
        let Some(files) = local.listing() else {
            return Ok(None);
        };
        let Ok(names) = select(Some(&files), path, hf_url) else {
            return Ok(None);
        };
        Ok(names.iter().map(|name| file(name)).collect())
    }

    /// Returns the downloaded copy, or the cached one with a warning if the hub cannot be reached.
    fn or_cached<T>(
        &self,
        downloaded: std::result::Result<T, Failure>,
        cached: Option<T>,
        what: &str,
    ) -> Result<T> {
        match (downloaded, cached) {
            (Ok(downloaded), _) => Ok(downloaded),
            (Err(Failure::Unreachable(error)), Some(cached)) => {
                if self.config.progress != ProgressMode::Quiet {
                    say!("warning: {error}\n  using the copy of {what} in the cache");
                }
                Ok(cached)
            }
            (Err(failure), _) => Err(failure.into()),
        }
    }
}

/// The download of one repository.
struct Fetch<'a> {
    client: &'a Client,
    repo: &'a Repo,
    local: &'a LocalRepo,
    listing: Listing,
}

impl<'a> Fetch<'a> {
    /// Starts the download of a repository by listing its files.
    fn start(
        client: &'a Client,
        repo: &'a Repo,
        local: &'a LocalRepo,
    ) -> std::result::Result<Self, Failure> {
        Ok(Self { client, repo, local, listing: client.list(repo)? })
    }

    /// Downloads all files of a model and returns their folder. The weights come last, so that a folder with weights is
    /// complete.
    fn model(mut self) -> std::result::Result<PathBuf, Failure> {
        let folder = self.description()?;
        if self.optional("model.safetensors")?.is_none() {
            let Some(index) = self.optional("model.safetensors.index.json")? else {
                return Err(self.no_safetensors().into());
            };
            for shard in shards(&index)? {
                self.file(&shard)?;
            }
        }
        self.finish()?;
        Ok(folder)
    }

    /// Downloads all files of a model except its weights, and returns their folder.
    fn without_weights(mut self) -> std::result::Result<PathBuf, Failure> {
        let folder = self.description()?;
        self.finish()?;
        Ok(folder)
    }

    /// Downloads config, tokenizer and generation config, and returns their folder.
    fn description(&mut self) -> std::result::Result<PathBuf, Failure> {
        let config = self.file("config.json")?;
        for name in TOKENIZER_FILES.into_iter().chain(["generation_config.json"]) {
            self.optional(name)?;
        }
        // Few models have it: it is not asked for where the repository's files are unknown.
        if self.listing.files.is_some() {
            self.optional(TOOL_USE_FILE)?;
        }
        Ok(config.parent().unwrap_or(Path::new(".")).to_path_buf())
    }

    /// Downloads the given files, and returns their paths.
    fn all(mut self, names: &[String]) -> std::result::Result<Vec<PathBuf>, Failure> {
        let paths =
            names.iter().map(|name| self.file(name)).collect::<std::result::Result<_, _>>()?;
        self.finish()?;
        Ok(paths)
    }

    /// Downloads one file unless it is in the cache, and returns its path.
    fn file(&mut self, name: &str) -> std::result::Result<PathBuf, Failure> {
        self.client.fetch(self.repo, self.local, &mut self.listing, name)
    }

    /// Downloads a file that may be absent from the repository.
    fn optional(&mut self, name: &str) -> std::result::Result<Option<PathBuf>, Failure> {
        let files = self.listing.files.as_ref();
        if files.is_some_and(|files| !files.iter().any(|file| file == name)) {
            return Ok(None);
        }
        match self.file(name) {
            Err(Failure::NotFound(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Records that the revision is this commit, now that all its files are in the cache.
    fn finish(&self) -> Result<()> {
        match &self.listing.commit {
            Some(commit) => self.local.set_revision(commit, self.listing.files.as_deref()),
            None => Ok(()),
        }
    }

    /// Returns the error for a repository without safetensors.
    fn no_safetensors(&self) -> Error {
        let files = self.listing.files.as_deref().unwrap_or_default();
        let pickled = files.iter().find(|name| name.starts_with("pytorch_model"));
        let only =
            pickled.map(|name| format!(", only pickled weights ({name})")).unwrap_or_default();
        Error::invalid(
            self.repo.url(),
            format!("holds no model.safetensors{only}"),
            "choose a repository with safetensors, or convert it with save_pretrained in transformers",
        )
    }
}

/// Returns the shards that a downloaded index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let bad = |problem: String| Error::file(index, problem, "report it to the repository's owner");
    let length = fs::metadata(index).map_err(|e| Error::io(index, "read", e))?;
    if length.len() > MAX_JSON {
        return Err(bad(format!("is larger than {} MiB", MAX_JSON >> 20)));
    }
    let bytes = input_file::read(index).map_err(|e| Error::io(index, "read", e))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| bad("has no weight_map".to_string()))?;
    map.values()
        .map(|name| {
            let name = name
                .as_str()
                .ok_or_else(|| bad("names a shard that is not a string".to_string()))?;
            match names::check_path(name) {
                Ok(()) => Ok(name.to_string()),
                Err(problem) => {
                    let name = names::quoted(name);
                    Err(bad(format!("names the shard {name}: {problem}")))
                }
            }
        })
        .collect()
}

/// Returns whether a snapshot holds a config and all of its weights.
fn is_complete(folder: &Path) -> bool {
    let index = folder.join("model.safetensors.index.json");
    let sharded = || {
        index.is_file()
            && shards(&index)
                .is_ok_and(|names| names.iter().all(|name| folder.join(name).is_file()))
    };
    folder.join("config.json").is_file()
        && (folder.join("model.safetensors").is_file() || sharded())
}

/// Adds to a hub error that no folder of this name exists either, since a folder may have been meant.
fn no_folder_either(error: Error, model: &str) -> Error {
    match error {
        Error::Invalid { place, problem, remedy } => {
            let problem = format!("{problem}; nor is there a folder {model:?}");
            Error::Invalid { place, problem, remedy }
        }
        other => other,
    }
}

/// Returns the error for files that are not in the cache while offline.
fn offline(what: &str, revision: &str) -> Error {
    Error::invalid(
        what,
        format!(
            "revision {revision} is not completely in the cache, and HF_HUB_OFFLINE forbids asking the hub"
        ),
        "run once without HF_HUB_OFFLINE, or point HF_HOME to the right cache",
    )
}
