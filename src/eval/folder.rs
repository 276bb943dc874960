//! The output folder of an evaluation: its files, and whether a new evaluation may write to it or continue it.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde_json::Value;

use super::problems::Problem;
use super::settings::{ResultKey, Settings};
use super::task::Task;
use crate::error::{Error, Result};
use crate::input_file;
use crate::model::identity::ModelIdentity;
use crate::model::quantize::Quantization;
use crate::output::{refuse_inputs_among, remove};

/// The output folder of an evaluation.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// All files an evaluation writes, in the order in which they are removed. The files that mark the folder as an
    /// evaluation's are removed last, so that a process killed before that leaves a folder that the same command accepts.
    pub const FILES: [&'static str; 8] = [
        "predictions.json",
        "verdicts.jsonl",
        "programs.json",
        "programs.partial.jsonl",
        "index.html",
        "answers.partial.jsonl",
        "pair-scores.jsonl",
        "results.json",
    ];

    /// Returns the path of the file that keeps answers until all are complete.
    pub fn partial(&self) -> PathBuf {
        self.0.join("answers.partial.jsonl")
    }

    /// Returns the path of the file with all answers.
    pub fn predictions(&self) -> PathBuf {
        self.0.join("predictions.json")
    }

    /// Returns the path of the file `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Checks that the files `names` may be written to this folder.
    ///
    /// # Errors
    /// One of the files is an input, or it exists and no evaluation of this program is known to have written it.
    pub fn check<'a>(
        &self,
        names: &[&str],
        inputs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<()> {
        let files: Vec<PathBuf> = names.iter().map(|name| self.0.join(name)).collect();
        // The folder may be that of the model or adapter, because no file of a model has the name of an evaluation's file.
        refuse_inputs_among(&files, inputs.into_iter().filter(|input| !input.is_dir()))?;
        if self.is_evaluation() {
            return Ok(());
        }
        match files.iter().find(|file| file.exists()) {
            Some(file) if *file == self.predictions() => Err(unknown_predictions(file)),
            Some(file) => Err(Error::file(
                file,
                "exists, and nothing shows that an evaluation of this program wrote it",
                "give another --output",
            )),
            None => Ok(()),
        }
    }

    /// Returns whether this program evaluated here: there are complete results, or answers of a stopped evaluation.
    fn is_evaluation(&self) -> bool {
        let results = self.results().ok().flatten();
        let complete =
            results.is_some_and(|old| old["task"].is_string() && old["scorers"].is_object());
        let has_head = |path: PathBuf| {
            let text = input_file::read_to_string(path).unwrap_or_default();
            let head = text.lines().next().unwrap_or_default();
            serde_json::from_str(head).is_ok_and(|head: Value| head["settings"].is_object())
        };
        complete || has_head(self.partial()) || has_head(self.file("pair-scores.jsonl"))
    }

    /// Removes the files of an earlier evaluation.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        Self::FILES.iter().try_for_each(|name| remove(&self.0.join(name)))
    }

    /// Returns for how many rows a complete evaluation with this `key` is in the folder: all, fewer, or 0 if there is none.
    ///
    /// # Errors
    /// The folder has the results of another evaluation, or predictions of unknown origin.
    pub fn rows_done(&self, key: &ResultKey) -> Result<usize> {
        match self.settings()? {
            Some(old) => key.check(&self.file("results.json"), &old),
            None if self.predictions().exists() && !self.partial().exists() => {
                Err(unknown_predictions(&self.predictions()))
            }
            None => Ok(0),
        }
    }

    /// Returns the settings in `results.json`, or `None` if there is no such file.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn settings(&self) -> Result<Option<Settings>> {
        let settings = |results: Value| results.get("settings").cloned().unwrap_or_default();
        let settings = self.results()?.map(settings);
        Ok(settings.map(|settings| serde_json::from_value(settings).unwrap_or_default()))
    }

    /// Reads `results.json`. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// The file cannot be read or is not JSON.
    pub fn results(&self) -> Result<Option<Value>> {
        let path = self.file("results.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = input_file::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let damaged = |e| {
            Error::file(
                &path,
                format!("is damaged: {e}"),
                "move it elsewhere, or give another --output",
            )
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Returns the task named in `results.json`, or `None` if there is no such file or task.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn task(&self) -> Result<Option<Task>> {
        let results = self.results()?;
        Ok(results.and_then(|results| Task::from_name(results["task"].as_str()?)))
    }
}

fn unknown_predictions(file: &Path) -> Error {
    let problem = "exists already, and nothing says which model and data it comes from";
    Error::file(file, problem, "score it with --predictions, or give another --output")
}

/// The model that is evaluated, with everything that identifies its results.
#[derive(Clone, Copy, Debug)]
pub struct EvaluatedModel<'a> {
    /// Name or path that the user gave.
    pub name: &'a str,
    /// Folder of the model.
    pub folder: &'a Path,
    /// Folder of the adapter, if there is one.
    pub adapter: Option<&'a Path>,
    /// Quantization applied to the weights.
    pub packed: Option<Quantization>,
    /// Requested dtype of the weights, or `None` for the stored one.
    pub dtype: Option<DType>,
}

impl EvaluatedModel<'_> {
    /// Returns the settings that identify the model: hashes of its files, its quantization and its dtype.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn settings(&self) -> Result<Settings> {
        self.settings_on(ModelIdentity::read(self.folder)?)
    }

    /// Does the same as [`Self::settings`] with the already known identity `base` of the model without its adapter.
    ///
    /// # Errors
    /// The adapter cannot be read.
    pub fn settings_on(&self, mut base: ModelIdentity) -> Result<Settings> {
        let mut settings = Settings::default().with("model", self.name);
        if let Some(adapter) = self.adapter {
            base = base.with_adapter(adapter)?;
            settings = settings.with("adapter", adapter.display().to_string());
        }
        if let Some(packed) = self.packed {
            settings = settings
                .with("quantization", packed.name())
                .with("double_quant", packed.double_quant);
        }
        let dtype = self.dtype.map(|dtype| format!("{dtype:?}").to_lowercase());
        let dtype = dtype.unwrap_or_else(|| "auto".to_string());
        Ok(settings.with("dtype", dtype).with_identity(&base))
    }
}

/// Returns the key that identifies answers of at most `max_new_tokens` tokens to `problems`, read from the file `data`.
pub fn answers_key(
    settings: Settings,
    data: &Path,
    problems: &[Problem],
    max_new_tokens: usize,
) -> ResultKey {
    let settings =
        settings.with("data", data.display().to_string()).with("max_new_tokens", max_new_tokens);
    let row = |problem: &Problem| [&problem.question, "\0", &problem.ground_truth].concat();
    ResultKey::new(settings, "problems", problems.iter().map(row))
}
