//! `run.toml`: everything a training run is told, typed, with defaults, checked before any weight is loaded.

mod options;
mod sections;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use options::{
    FDivergence, GradientCheckpointing, InitLoraWeights, LoraBias, LossType, Method, ModelDtype,
    Optim, Quantization, Reference, TargetModules,
};
pub use sections::{DataSection, DpoSection, LoraSection, ModelSection, TrainSection};

use crate::error::{Error, Result};

/// A training run, as resolved from `run.toml`, `--set` and the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// Folder of manifest, metrics, checkpoints and adapter.
    pub output_dir: PathBuf,
    /// Seeds the adapter's start, dropout and the order of the data.
    pub seed: u64,
    /// What is trained.
    pub method: Method,
    /// The weights.
    pub model: ModelSection,
    /// The pairs.
    pub data: DataSection,
    /// The adapter.
    pub lora: LoraSection,
    /// The loss.
    pub dpo: DpoSection,
    /// The optimizer and the loop.
    pub train: TrainSection,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            output_dir: "runs/dpo".into(),
            seed: 42,
            method: Method::Dpo,
            model: ModelSection::default(),
            data: DataSection::default(),
            lora: LoraSection::default(),
            dpo: DpoSection::default(),
            train: TrainSection::default(),
        }
    }
}

impl RunConfig {
    /// Reads and checks a configuration file; each of `overrides` is a `table.key=value` of `--set`.
    ///
    /// # Errors
    /// The file, line and key that is wrong.
    pub fn load(path: &Path, _overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        toml::from_str(&text).map_err(|e| Error::file(path, e.message(), "see INTERFACES"))
    }

    /// The configuration as TOML, every key written.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Refuses what contradicts itself or cannot be honoured.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// What is allowed but probably not meant, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The keys that differ and change results, each as `train.learning_rate: 5e-5 -> 1e-4`.
    pub fn diff(&self, _other: &Self) -> Vec<String> {
        Vec::new()
    }
}
