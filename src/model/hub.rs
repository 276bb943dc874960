//! Models and data sets from the Hugging Face hub, kept in its usual cache folder.
//!
//! The cache is laid out as `huggingface_hub` and `hf-hub` do (`blobs/`, `snapshots/<commit>/`, `refs/`), so that files
//! are shared with them. Downloading is done here because hf-hub 0.5 knows neither `HF_TOKEN` nor `HF_HUB_OFFLINE`, does
//! not check what it received, and cannot be stopped between two blocks.

mod download;
mod local;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};

use self::download::{Client, Failure, Listing};
use self::local::LocalRepo;
use crate::data::tokenizer::TOKENIZER_FILES;
use crate::error::{Error, Result};
use crate::progress::ProgressMode;

/// Endings of the files [`Hub::fetch_files`] takes from a folder of a data set.
const DATA_EXTENSIONS: [&str; 4] = ["parquet", "jsonl", "json", "xml"];

/// Where the hub is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Address without a slash at the end, `https://huggingface.co`.
    pub endpoint: String,
    /// The cache, usually `~/.cache/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// Access token for private and gated repositories.
    pub token: Option<String>,
    /// Never use the network.
    pub offline: bool,
    /// How often a broken connection is taken up again without any progress in between.
    pub retries: u32,
    /// Where download progress goes.
    pub progress: ProgressMode,
}

impl HubConfig {
    /// What the environment says, as `huggingface_hub` reads it: `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME` or
    /// `XDG_CACHE_HOME`; `HF_TOKEN`, or the token file a login left; `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok(), env::home_dir())
    }

    /// As [`from_env`](Self::from_env), from any source of variables.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, user_home: Option<PathBuf>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let on = |name: &str| {
            let value = var(name).unwrap_or_default().to_ascii_uppercase();
            matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.unwrap_or_else(|| user_home.unwrap_or_default().join(".cache"));
        let home = var("HF_HOME").map_or_else(|| caches.join("huggingface"), PathBuf::from);
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_file).ok());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache_dir: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            retries: 5,
            progress: ProgressMode::detect(false),
        }
    }
}

/// The hub, seen through its cache.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl Hub {
    /// The hub as the environment describes it (see [`HubConfig::from_env`]), with progress shown as `progress` says.
    pub fn open(progress: ProgressMode) -> Self {
        Self::new(HubConfig { progress, ..HubConfig::from_env() })
    }

    /// A hub with these settings; nothing is contacted yet.
    pub fn new(config: HubConfig) -> Self {
        Self { client: Client::new(&config), config }
    }

    /// The local folder of `model`: an existing folder as it is, else the hub repository `owner/name` at `revision`
    /// (branch, tag or commit), downloaded as far as it is not in the cache: config, tokenizer and safetensors files.
    ///
    /// An interrupted download is taken up where it stopped. A commit that is wholly in the cache, and every cached
    /// revision when offline or when the hub cannot be reached, is used without the network.
    ///
    /// # Errors
    /// `model` is neither a folder nor a hub id, the repository, revision or licence is refused (with what to do), it
    /// holds no safetensors, or the network or the disk fails.
    pub fn resolve(&self, model: &str, revision: &str) -> Result<PathBuf> {
        let folder = Path::new(model);
        if folder.is_dir() {
            return Ok(folder.to_path_buf());
        }
        let (repo, local) = self.repository(model, revision)?;
        let cached = local.snapshot().filter(|folder| is_complete(folder));
        let is_commit = revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
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

    /// The model repository `model` at `revision`, and what the cache has of it.
    fn repository(&self, model: &str, revision: &str) -> Result<(Repo, LocalRepo)> {
        check_id(model, "--model")?;
        let repo = Repo::with_revision(model.to_string(), RepoType::Model, revision.to_string());
        let local = LocalRepo::new(&self.config.cache_dir, &repo);
        Ok((repo, local))
    }

    /// As [`resolve`](Self::resolve), of a model whose weights are not needed: config and tokenizer, from the cache if they
    /// are there.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
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
                    Fetch::start(&self.client, &repo, &local).and_then(Fetch::described);
                described.map_err(|failure| no_folder_either(failure.into(), model))
            }
        }
    }

    /// Local copies of the files `hf://datasets/owner/name[@revision]/path` names, sorted. `path` is a file, a folder (all
    /// its parquet, jsonl, json and xml files) or a glob (`*`, `**`, `?`, `[...]`); without a path, the whole data set.
    ///
    /// # Errors
    /// The address is not of this form, names nothing, or a download fails as in [`resolve`](Self::resolve).
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

    /// The files of an earlier [`fetch_files`](Self::fetch_files), if all that the listing of then names are there.
    fn cached_files(
        &self,
        local: &LocalRepo,
        path: &str,
        hf_url: &str,
    ) -> Result<Option<Vec<PathBuf>>> {
        let Some(folder) = local.snapshot() else {
            return Ok(None);
        };
        if folder.join(path).is_file() {
            return Ok(Some(vec![folder.join(path)]));
        }
        let Some(files) = local.listing() else {
            return Ok(None);
        };
        let Ok(names) = select(Some(&files), path, hf_url) else {
            return Ok(None);
        };
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        Ok(paths.iter().all(|path| path.is_file()).then_some(paths))
    }

    /// What was downloaded, or what is in the cache if the hub cannot be reached.
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
                    eprintln!("warning: {error}\n  using the copy of {what} in the cache");
                }
                Ok(cached)
            }
            (Err(failure), _) => Err(failure.into()),
        }
    }
}

/// One repository being downloaded.
struct Fetch<'a> {
    client: &'a Client,
    repo: &'a Repo,
    local: &'a LocalRepo,
    listing: Listing,
}

impl<'a> Fetch<'a> {
    fn start(
        client: &'a Client,
        repo: &'a Repo,
        local: &'a LocalRepo,
    ) -> std::result::Result<Self, Failure> {
        Ok(Self { client, repo, local, listing: client.list(repo)? })
    }

    /// All files a model needs; the weights last, so that a folder with weights has everything else too.
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

    /// What says what the model is: all but its weights.
    fn described(mut self) -> std::result::Result<PathBuf, Failure> {
        let folder = self.description()?;
        self.finish()?;
        Ok(folder)
    }

    fn description(&mut self) -> std::result::Result<PathBuf, Failure> {
        let config = self.file("config.json")?;
        for name in TOKENIZER_FILES.into_iter().chain(["generation_config.json"]) {
            self.optional(name)?;
        }
        Ok(config.parent().unwrap_or(Path::new(".")).to_path_buf())
    }

    fn all(mut self, names: &[String]) -> std::result::Result<Vec<PathBuf>, Failure> {
        let paths =
            names.iter().map(|name| self.file(name)).collect::<std::result::Result<_, _>>()?;
        self.finish()?;
        Ok(paths)
    }

    fn file(&mut self, name: &str) -> std::result::Result<PathBuf, Failure> {
        self.client.fetch(self.repo, self.local, &mut self.listing.commit, name)
    }

    /// A file that need not exist.
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

    /// Everything is there: the revision now means this commit.
    fn finish(&self) -> Result<()> {
        match &self.listing.commit {
            Some(commit) => self.local.set_revision(commit, self.listing.files.as_deref()),
            None => Ok(()),
        }
    }

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

/// The shards a downloaded index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let bytes = fs::read(index).map_err(|e| Error::io(index, "read", e))?;
    let bad = |problem: String| Error::file(index, problem, "report it to the repository's owner");
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| bad("has no weight_map".to_string()))?;
    let names = map.values().map(|name| name.as_str().map(str::to_string));
    names.collect::<Option<_>>().ok_or_else(|| bad("names a shard that is no text".to_string()))
}

/// Whether a snapshot holds a config and all of its weights.
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

/// A model may have been meant as a folder: errors about the hub say that there is none.
fn no_folder_either(error: Error, model: &str) -> Error {
    match error {
        Error::Invalid { place, problem, remedy } => {
            let problem = format!("{problem}; nor is there a folder {model:?}");
            Error::Invalid { place, problem, remedy }
        }
        other => other,
    }
}

fn offline(what: &str, revision: &str) -> Error {
    Error::invalid(
        what,
        format!(
            "revision {revision} is not (wholly) in the cache, and the hub may not be used (HF_HUB_OFFLINE)"
        ),
        "run once without HF_HUB_OFFLINE, or point HF_HOME to the right cache",
    )
}

/// Refuses what can be neither a folder nor `owner/name`.
fn check_id(id: &str, place: &str) -> Result<()> {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() <= 2 && parts.iter().all(|name| part(name)) {
        return Ok(());
    }
    Err(Error::invalid(
        place,
        format!("{id:?} is neither an existing folder nor a hub id"),
        "give the path of a model folder, or owner/name",
    ))
}

/// `hf://datasets/owner/name[@revision]/path` as repository and path.
fn parse_url(hf_url: &str) -> Result<(Repo, String)> {
    let wrong = || {
        Error::invalid(
            hf_url,
            "is not an address of a data set",
            "write hf://datasets/owner/name/path, or hf://datasets/owner/name@revision/path",
        )
    };
    let rest = hf_url.strip_prefix("hf://datasets/").ok_or_else(wrong)?;
    let mut parts = rest.splitn(3, '/');
    let (owner, name) = (parts.next().ok_or_else(wrong)?, parts.next().ok_or_else(wrong)?);
    let path = parts.next().unwrap_or_default().trim_matches('/');
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    let id = format!("{owner}/{name}");
    check_id(&id, hf_url)?;
    if revision.is_empty() || path.split('/').any(|part| part == "..") {
        return Err(wrong());
    }
    // As in Python, a revision with slashes is written refs%2Fconvert%2Fparquet.
    let revision = revision.replace("%2F", "/").replace("%2f", "/");
    Ok((Repo::with_revision(id, RepoType::Dataset, revision), path.to_string()))
}

/// Which of the repository's `files` (`None`: not known) `path` means.
fn select(files: Option<&[String]>, path: &str, hf_url: &str) -> Result<Vec<String>> {
    let Some(files) = files else {
        return Ok(vec![path.to_string()]);
    };
    let is_glob = path.contains(['*', '?', '[']);
    let pattern = glob::Pattern::new(path)
        .map_err(|e| Error::invalid(hf_url, format!("is not a valid pattern: {e}"), "mend it"))?;
    let options = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let is_data = |name: &str| {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        extension.is_some_and(|extension| DATA_EXTENSIONS.contains(&extension.as_str()))
    };
    let inside = |name: &str| {
        let below = name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        (path.is_empty() || below) && is_data(name)
    };
    let wanted = |name: &&String| match is_glob {
        true => pattern.matches_with(name, options),
        false => name.as_str() == path || inside(name),
    };
    let mut names: Vec<String> = files.iter().filter(wanted).cloned().collect();
    names.sort();
    if names.is_empty() {
        let folders: BTreeSet<&str> =
            files.iter().filter_map(|f| Some(f.rsplit_once('/')?.0)).collect();
        let some: Vec<&str> = folders.into_iter().take(8).collect();
        return Err(Error::invalid(
            hf_url,
            format!("names no file; the data set has {} files", files.len()),
            format!("check the path; some of its folders: {}", some.join(", ")),
        ));
    }
    Ok(names)
}
