//! Pushes the result of a run, an adapter or a model to the hub: its weights, settings, tokenizer and card, but no
//! checkpoints, no state of an optimizer and no log.

use std::path::{Path, PathBuf};

use crate::adapter::peft;
use crate::config::RunConfig;
use crate::data::tokenizer::TOKENIZER_FILES;
use crate::error::{Error, Result, first_few};
use crate::message::shell;
use crate::model::hub::{Destination, Hub, PushFile, PushTarget, Pushed};
use crate::model::save::is_model_file;
use crate::progress::ProgressMode;
use crate::train::card::CARD;

/// A push to the hub, whose settings are checked before the work that it publishes begins.
#[derive(Debug)]
pub struct Push {
    hub: Hub,
    target: PushTarget,
    /// The repository once it is known to exist.
    destination: Option<Destination>,
    mode: ProgressMode,
}

impl Push {
    /// Creates a push to `target`. Nothing is contacted.
    ///
    /// # Errors
    /// The name or the branch is not valid, there is no access token, or the network must not be used.
    pub fn new(target: PushTarget, mode: ProgressMode) -> Result<Self> {
        let hub = Hub::open(mode);
        hub.check_push(&target)?;
        Ok(Self { hub, target, destination: None, mode })
    }

    /// Creates the push that the configuration of a run asks for, if any.
    ///
    /// # Errors
    /// Same as [`new`](Self::new).
    pub fn from_config(config: &RunConfig, mode: ProgressMode) -> Result<Option<Self>> {
        let train = &config.train;
        if !train.push_to_hub {
            return Ok(None);
        }
        let folder = std::path::absolute(&config.output_dir).unwrap_or_default();
        let folder = folder.file_name().unwrap_or_default().to_string_lossy();
        let target = PushTarget {
            repo: train.hub_model_id.clone().unwrap_or(folder.into_owned()),
            revision: train.hub_revision.clone().unwrap_or("main".to_string()),
            private: train.hub_private_repo,
            place: "train.hub_model_id",
        };
        Self::new(target, mode).map(Some)
    }

    /// Creates the repository unless it exists, so that a token that may not write is noticed before the work begins.
    ///
    /// # Errors
    /// The hub cannot be reached, or refuses the token or the repository.
    pub fn prepare(&mut self) -> Result<()> {
        self.destination = Some(self.hub.create_repository(&self.target)?);
        Ok(())
    }

    /// Pushes the files of the folder that [`result_files`] finds in `folder`, with a commit message.
    ///
    /// # Errors
    /// The folder holds no result, or a file cannot be read; or same as [`Hub::push`].
    pub fn send(&mut self, folder: &Path, message: Option<&str>) -> Result<Pushed> {
        let result = result_files(folder)?;
        if !result.left_out.is_empty() && self.mode != ProgressMode::Quiet {
            let names = first_few(&result.left_out, ", ");
            say!("note: {}: not pushed: {names}", result.folder.display());
        }
        if self.destination.is_none() {
            self.prepare()?;
        }
        let default = format!("Upload {} with arithmo", result.kind);
        let message = message.unwrap_or(&default);
        let to = self.destination.clone().unwrap_or_else(|| Destination {
            repo: self.target.repo.clone(),
            revision: self.target.revision.clone(),
        });
        let pushed = self.hub.push(&to, &result.files, message)?;
        if self.mode != ProgressMode::Quiet {
            say!("{}", summary(&pushed));
        }
        Ok(pushed)
    }

    /// Pushes the finished result in `folder`.
    ///
    /// # Errors
    /// Same as [`send`](Self::send). The error says that the result is complete, and how to push it again.
    pub fn result(&mut self, folder: &Path) -> Result<Pushed> {
        self.send(folder, None).map_err(|error| self.after_work(folder, error))
    }

    /// Adds to the error of a push that the result is complete, and how to push it again.
    fn after_work(&self, folder: &Path, error: Error) -> Error {
        let repo = self.destination.as_ref().map_or(&self.target.repo, |to| &to.repo);
        let branch = match self.target.revision.as_str() {
            "main" => String::new(),
            branch => format!(" --revision {}", shell(Path::new(branch))),
        };
        let again = format!("`arithmo push {} {repo}{branch}`", shell(folder));
        let complete = format!("{} is complete", folder.display());
        match error {
            Error::Interrupted { .. } => {
                Error::Interrupted { note: format!("{complete}; {again} continues the push") }
            }
            Error::Invalid { place, problem, remedy } => Error::run(
                format!("{complete}, but the push failed: {place}: {problem}"),
                format!("{remedy}; then {again} pushes it"),
            ),
            error => Error::run(
                format!("{complete}, but the push failed: {error}"),
                format!("{again} pushes it"),
            ),
        }
    }
}

/// Says what a push did.
fn summary(pushed: &Pushed) -> String {
    let Pushed { url, commit, files, .. } = pushed;
    match commit {
        Some(commit) => format!("pushed {files} files to {url} (commit {commit:.8})"),
        None => format!("{url} has all files already: nothing to push"),
    }
}

/// The files of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultFiles {
    /// The folder of the result itself.
    pub folder: PathBuf,
    /// `"adapter"` or `"model"`.
    pub kind: &'static str,
    /// The files that belong to it.
    pub files: Vec<PushFile>,
    /// The names of other files in the folder, except hidden ones.
    pub left_out: Vec<String>,
}

/// Finds the files of an adapter or a model in `folder`, or in its `adapter/` or `model/` if it is a run's folder.
///
/// # Errors
/// `folder` holds neither, or its weights are missing.
pub fn result_files(folder: &Path) -> Result<ResultFiles> {
    if !folder.is_dir() {
        let remedy = "check the path; relative ones start at the working folder";
        return Err(Error::file(folder, "is not a folder", remedy));
    }
    let is_model = |folder: &Path| folder.join("config.json").is_file();
    let (adapter, model) = (peft::adapter_folder(folder), folder.join("model"));
    let has_adapter =
        adapter.join(peft::CONFIG).is_file() || !peft::named_adapters(&adapter).is_empty();
    if is_model(folder) && !folder.join(peft::CONFIG).exists() {
        model_files(folder)
    } else if has_adapter {
        adapter_files(&adapter)
    } else if is_model(&model) {
        model_files(&model)
    } else {
        Err(Error::file(
            folder,
            "holds neither an adapter nor a model",
            "name the folder of a finished run, of an adapter or of a model; an unfinished run is continued with --resume",
        ))
    }
}

/// Returns the files of the adapter in `folder`, with the other named adapters in its subfolders.
fn adapter_files(folder: &Path) -> Result<ResultFiles> {
    let own = [peft::WEIGHTS, peft::CONFIG, peft::BASE_QUANTIZATION];
    let belongs =
        |name: &str| own.contains(&name) || TOKENIZER_FILES.contains(&name) || name == CARD;
    let mut result = sorted(folder, "adapter", belongs)?;
    let names = peft::named_adapters(folder);
    for name in &names {
        for file in own {
            let path = folder.join(name).join(file);
            if path.is_file() {
                result.files.push(PushFile { path, name: format!("{name}/{file}") });
            }
        }
    }
    let default = folder.join(peft::CONFIG).is_file().then(|| folder.to_path_buf());
    let adapters = default.into_iter().chain(names.iter().map(|name| folder.join(name)));
    match adapters.into_iter().find(|adapter| !adapter.join(peft::WEIGHTS).is_file()) {
        Some(adapter) => {
            let problem = format!("holds no {}", peft::WEIGHTS);
            Err(Error::file(&adapter, problem, "save the adapter again"))
        }
        None => Ok(result),
    }
}

/// Returns the files of the model in `folder`.
fn model_files(folder: &Path) -> Result<ResultFiles> {
    let result = sorted(folder, "model", |name| is_model_file(name) || name == CARD)?;
    if result.files.iter().any(|file| file.name.ends_with(".safetensors")) {
        return Ok(result);
    }
    Err(Error::file(folder, "holds no safetensors", "save the model again"))
}

/// Lists the files of `folder`, separated into those that belong to the result and others.
fn sorted(
    folder: &Path,
    kind: &'static str,
    belongs: impl Fn(&str) -> bool,
) -> Result<ResultFiles> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    let (ours, left_out) = names.into_iter().partition::<Vec<_>, _>(|name| belongs(name));
    let files = ours.into_iter().map(|name| PushFile { path: folder.join(&name), name });
    Ok(ResultFiles { folder: folder.to_path_buf(), kind, files: files.collect(), left_out })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    fn names(result: &ResultFiles) -> Vec<&str> {
        result.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn a_run_is_pushed_without_its_checkpoints() {
        let parent = tempfile::tempdir().unwrap();
        let run = parent.path();
        write(run, &["manifest.json", "metrics.jsonl", "adapter/notes.txt", "adapter/.hidden"]);
        let result = result_files(run).unwrap_err().to_string();
        assert!(result.contains("neither an adapter nor a model"), "{result}");
        write(run, &["adapter/adapter_config.json"]);
        let result = result_files(run).unwrap_err().to_string();
        assert!(result.contains("holds no adapter_model.safetensors"), "{result}");
        write(run, &["adapter/adapter_model.safetensors", "adapter/README.md"]);
        write(run, &["adapter/tokenizer.json", "adapter/optimizer.safetensors"]);
        write(run, &["adapter/ref/adapter_config.json", "adapter/ref/adapter_model.safetensors"]);
        write(run, &["adapter/other/notes.txt", "checkpoints/step-1/adapter_model.safetensors"]);
        let expected = [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "ref/adapter_model.safetensors",
            "ref/adapter_config.json",
        ];
        for folder in [run.to_path_buf(), run.join("adapter")] {
            let result = result_files(&folder).unwrap();
            assert_eq!((result.kind, names(&result)), ("adapter", expected.to_vec()));
            assert_eq!(result.left_out, ["notes.txt", "optimizer.safetensors"]);
        }
    }

    #[test]
    fn adapters_with_names_are_pushed_in_their_folders() {
        let parent = tempfile::tempdir().unwrap();
        let run = parent.path();
        write(run, &["adapter/README.md", "adapter/x/adapter_config.json"]);
        assert!(result_files(run).unwrap_err().to_string().contains("adapter/x: holds no"));
        write(run, &["adapter/x/adapter_model.safetensors"]);
        let expected = ["README.md", "x/adapter_model.safetensors", "x/adapter_config.json"];
        assert_eq!(names(&result_files(run).unwrap()), expected);
        assert_eq!(names(&result_files(&run.join("adapter/x")).unwrap()).len(), 2);
    }

    #[test]
    fn a_model_is_pushed_with_its_tokenizer_and_card() {
        let parent = tempfile::tempdir().unwrap();
        let run = parent.path();
        write(run, &["model/config.json", "model/README.md", "model/tokenizer.json"]);
        write(run, &["model/generation_config.json", "model/log.txt"]);
        assert!(result_files(run).unwrap_err().to_string().contains("holds no safetensors"));
        write(run, &["model/model-00001-of-00001.safetensors"]);
        write(run, &["model/model.safetensors.index.json"]);
        let result = result_files(run).unwrap();
        assert_eq!((result.kind, names(&result).len()), ("model", 6));
        assert_eq!(result.left_out, ["log.txt"]);
    }
}
