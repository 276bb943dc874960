//! The folder an evaluation leaves: what is in it, what may go on in it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::store::{Settings, refuse_others, sha256};
use super::task::Task;
use crate::error::{Error, Result};
use crate::lora::adapter;
use crate::model::quantize::Quantization;
use crate::output::remove;

/// An evaluation's folder.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    const FILES: [&'static str; 7] = [
        "answers.partial.jsonl",
        "predictions.json",
        "results.json",
        "verdicts.jsonl",
        "programs.json",
        "pair-scores.jsonl",
        "index.html",
    ];

    /// Answers as they come.
    pub fn partial(&self) -> PathBuf {
        self.0.join("answers.partial.jsonl")
    }

    /// All answers.
    pub fn predictions(&self) -> PathBuf {
        self.0.join("predictions.json")
    }

    /// A file of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes what an evaluation wrote here before.
    ///
    /// # Errors
    /// The system refuses.
    pub fn clear(&self) -> Result<()> {
        Self::FILES.iter().try_for_each(|name| remove(&self.0.join(name)))
    }

    /// Whether an evaluation with these `settings` is complete here.
    ///
    /// # Errors
    /// Another one is, or there are predictions nobody knows the origin of.
    pub fn is_complete(&self, settings: &Settings) -> Result<bool> {
        let path = self.file("results.json");
        match self.results()? {
            Some(results) => {
                let old = serde_json::from_value(results["settings"].clone()).unwrap_or_default();
                refuse_others(&path, &old, settings)?;
                Ok(true)
            }
            None if self.predictions().exists() && !self.partial().exists() => Err(Error::file(
                &self.predictions(),
                "is there already, and nothing says which model and data it comes from",
                "score it with --predictions; give another --output, or --overwrite",
            )),
            None => Ok(false),
        }
    }

    /// `results.json`, if it is there.
    ///
    /// # Errors
    /// It is not readable JSON.
    pub fn results(&self) -> Result<Option<Value>> {
        let path = self.file("results.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let damaged =
            |e| Error::file(&path, format!("is damaged: {e}"), "evaluate again with --overwrite");
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// The task whose results are here.
    ///
    /// # Errors
    /// As [`Self::results`].
    pub fn task(&self) -> Result<Option<Task>> {
        let results = self.results()?;
        Ok(results.and_then(|results| Task::named(results["task"].as_str()?)))
    }
}

/// What names a model: its folder's shape and size, what it is packed as, and the adapter's weights.
///
/// # Errors
/// A file cannot be read.
pub fn model_settings(
    name: &str,
    folder: &Path,
    packed: Option<Quantization>,
    adapter: Option<&Path>,
) -> Result<Settings> {
    let mut bytes = 0;
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "read", e))?;
    for entry in entries.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            // Through links: the hub's cache is made of them.
            bytes += fs::metadata(entry.path()).map_or(0, |data| data.len());
        }
    }
    let mut settings = Settings::default()
        .with("model", name)
        .with("model_config_sha256", sha256(&folder.join("config.json"))?)
        .with("model_bytes", bytes);
    if let Some(packed) = packed {
        settings =
            settings.with("quantization", packed.name()).with("double_quant", packed.double_quant);
    }
    Ok(match adapter {
        Some(adapter) => settings
            .with("adapter", adapter.display().to_string())
            .with("adapter_sha256", sha256(&adapter.join(adapter::WEIGHTS))?),
        None => settings,
    })
}
