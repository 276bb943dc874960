//! `run.toml`: everything a training run is told, typed, with defaults, checked before any weight is loaded.

mod check;
mod options;
mod sections;
mod source;
mod warnings;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use check::PROJECTIONS;
pub use options::{
    FDivergence, GradientCheckpointing, InitLoraWeights, LoraBias, LossType, Method, ModelDtype,
    Optim, Quantization, Reference, TargetModules,
};
pub use sections::{DataSection, DpoSection, LoftqConfig, LoraSection, ModelSection, TrainSection};

use crate::error::{Error, Result};
use source::Source;

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

/// Keys that may change between a run and its resumption, because the weights that come out are the same:
/// where and how often things are written, and whether activations are kept or recomputed.
const FREE_TO_CHANGE: [&str; 5] = [
    "output_dir",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.gradient_checkpointing",
];

impl RunConfig {
    /// Reads and checks a configuration file; each of `overrides` is a `table.key=value` of `--set` and wins over it.
    ///
    /// Defaults that depend on other keys are resolved here: `data.compat = "trl-0.7.4"` brings that version's
    /// `max_length` 512, `max_prompt_length` 128 and `keep_end`; `train.num_train_epochs` without `max_steps` means
    /// `max_steps = -1`; `train.warmup_ratio` without `warmup_steps` means `warmup_steps = 0`. Relative paths stay
    /// relative to the current folder.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; a key is unknown, of the wrong type or refused by
    /// [`RunConfig::validate`]. The error names file, line and dotted key.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_source(Source::read(path)?, overrides)
    }

    fn from_source(mut source: Source, overrides: &[String]) -> Result<Self> {
        for setting in overrides {
            source.set(setting)?;
        }
        source.check()?;
        resolve_defaults(&mut source);
        let config: Self = source.typed()?;
        config.validate().map_err(|error| match error {
            Error::Invalid { place, problem, remedy } => {
                Error::invalid(source.place(&place), problem, remedy)
            }
            other => other,
        })?;
        Ok(config)
    }

    /// The configuration as TOML, every key that has a value written; [`RunConfig::load`] reads it back unchanged.
    ///
    /// # Errors
    /// A number that TOML cannot hold: a seed above `i64::MAX`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::invalid("configuration", e, "choose a seed below 2^63"))
    }

    /// What stands in the way of continuing a run of this configuration with `other`: each key that differs, as
    /// `train.learning_rate: 5e-5 -> 0.0001`.
    ///
    /// Keys that do not change the weights that come out are left out: `output_dir`, `train.logging_steps`,
    /// `train.save_steps`, `train.save_total_limit`, `train.gradient_checkpointing`.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let (before, after) = (leaves(self), leaves(other));
        before
            .iter()
            .zip(&after)
            .filter(|((key, old), (_, new))| old != new && !FREE_TO_CHANGE.contains(&key.as_str()))
            .map(|((key, old), (_, new))| format!("{key}: {} -> {}", show(old), show(new)))
            .collect()
    }
}

/// Defaults that depend on other keys, as the libraries whose names they bear resolve them.
fn resolve_defaults(source: &mut Source) {
    let compat = source.get("data.compat").and_then(toml::Value::as_str);
    if compat == Some("trl-0.7.4") {
        source.default_to("data.truncation_mode", "keep_end");
        source.default_to("data.max_length", 512);
        source.default_to("data.max_prompt_length", 128);
    }
    if source.get("train.num_train_epochs").is_some() {
        source.default_to("train.max_steps", -1);
    }
    if source.get("train.warmup_ratio").is_some() {
        source.default_to("train.warmup_steps", 0.0);
    }
}

/// Every dotted key with its value, in the order of the structs; the same keys for every configuration.
fn leaves(config: &RunConfig) -> Vec<(String, Value)> {
    fn collect(prefix: &str, value: Value, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    collect(&format!("{prefix}{dot}{name}"), field, out);
                }
            }
            leaf => out.push((prefix.to_string(), leaf)),
        }
    }
    let mut out = Vec::new();
    collect("", serde_json::to_value(config).unwrap_or_default(), &mut out);
    out
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_string(),
        Value::Number(number) if number.is_f64() => {
            format!("{:?}", number.as_f64().unwrap_or_default())
        }
        value => value.to_string(),
    }
}
