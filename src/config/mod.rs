//! The configuration of a training run, `run.toml`: reads it, fills in defaults, and checks every value before any
//! weight is loaded.

mod check;
mod control;
mod hints;
mod methods;
mod options;
mod ranges;
mod sections;
mod source;
mod steps;
mod suggest;
mod warnings;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use methods::{CpoSection, KtoSection, OrpoSection};
pub use options::{
    EvalMeans, ExcludeModules, GradientCheckpointing, HubStrategy, InitLoraWeights,
    IntervalStrategy, LoraBias, Method, ModelDtype, Optim, Quantization, Reference, SaveStrategy,
    TargetModules,
};
pub use ranges::range_in_words;
pub use sections::{DataSection, DpoSection, LoftqConfig, LoraSection, ModelSection, TrainSection};
pub use suggest::{nearest_name, toml_error};

use crate::error::{Error, Result};
use source::Source;

/// The configuration of a training run, resolved from `run.toml`, `--set` and the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// Folder for the manifest, metrics, checkpoints and adapter.
    pub output_dir: PathBuf,
    /// Seed of the adapter's initial weights, of dropout and of the order of the data.
    pub seed: u64,
    /// Training method: preference optimization (on pairs: `"dpo"`, `"orpo"`, `"cpo"`, which includes SimPO; on labeled
    /// examples: `"kto"`) or supervised fine-tuning.
    pub method: Method,
    /// Base model.
    pub model: ModelSection,
    /// Training and held-out data.
    pub data: DataSection,
    /// LoRA adapter.
    pub lora: LoraSection,
    /// DPO loss.
    pub dpo: DpoSection,
    /// KTO loss.
    pub kto: KtoSection,
    /// ORPO loss.
    pub orpo: OrpoSection,
    /// CPO loss.
    pub cpo: CpoSection,
    /// Optimizer, schedule and training loop.
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
            kto: KtoSection::default(),
            orpo: OrpoSection::default(),
            cpo: CpoSection::default(),
            train: TrainSection::default(),
        }
    }
}

/// Keys that may change when a run is resumed, because they do not change the training: where and how often results are
/// written and pushed, which step is the result, and whether activations are kept or recomputed.
const NEUTRAL_KEYS: [&str; 14] = [
    "output_dir",
    "train.logging_strategy",
    "train.save_strategy",
    "train.logging_steps",
    "train.eval_on_start",
    "train.save_steps",
    "train.save_total_limit",
    "train.load_best_model_at_end",
    "train.gradient_checkpointing",
    "train.push_to_hub",
    "train.hub_model_id",
    "train.hub_private_repo",
    "train.hub_revision",
    "train.hub_strategy",
];

/// Keys whose value is a table of the user's own names. Such a table is one value.
const OPEN_TABLES: [&str; 2] = ["lora.rank_pattern", "lora.alpha_pattern"];

/// Keys of evaluations. They may change when a run is resumed unless its evaluations are compared, because then they change
/// the best step, the end of the run or the learning rate.
const EVALUATION_KEYS: [&str; 4] = [
    "train.eval_strategy",
    "train.eval_steps",
    "train.eval_delay",
    "train.per_device_eval_batch_size",
];

/// Keys that determine the length of a run. They may change when it is resumed: completed steps stay, and the remaining
/// ones have the learning rate of a run of the new length.
const LENGTH_KEYS: [&str; 2] = ["train.max_steps", "train.num_train_epochs"];

impl RunConfig {
    /// Reads and checks a configuration file. Each of `overrides` is a `table.key=value` of `--set` and takes
    /// precedence over the file.
    ///
    /// Defaults that depend on other keys are resolved here: `data.compat = "trl-0.7.4"` sets that version's
    /// `max_length` 512, `max_prompt_length` 128 and `keep_end`; `train.num_train_epochs` without `max_steps` sets
    /// `max_steps = -1`; settings that compare evaluations set `metric_for_best_model = "loss"`; `train.warmup_ratio` without `warmup_steps` sets `warmup_steps = 0`. Relative paths stay
    /// relative to the working folder.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; or a key is unknown, has a value of the wrong type, or is refused by
    /// [`RunConfig::validate`]. The error names the file, the line and the dotted key.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_source(Source::read(path)?, overrides)
    }

    /// Applies `overrides` to `source`, fills in the defaults, and checks every value.
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

    /// Returns the configuration as TOML, with every key that has a value. [`RunConfig::load`] reads it back unchanged.
    ///
    /// # Errors
    /// The seed is above `i64::MAX`, which TOML cannot represent.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::invalid("configuration", e, "choose a seed below 2^63"))
    }

    /// Returns the differences from `other` that prevent a run of this configuration from being resumed with `other`,
    /// such as `train.learning_rate: 5e-5 -> 0.0001`.
    ///
    /// Two kinds of keys are ignored. Some do not change the training: `output_dir`, the keys that determine when to log or
    /// save, `train.save_total_limit`, `train.load_best_model_at_end`, `train.gradient_checkpointing`, those of the hub, and the keys that
    /// determine when to evaluate unless evaluations are compared. Others only change the length of the run: see
    /// [`Self::length_changes`].
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let compared = [self, other].iter().any(|config| config.train.best_metric().is_some());
        let matters = |key: &str| {
            let neutral = NEUTRAL_KEYS.contains(&key)
                || LENGTH_KEYS.contains(&key)
                || (EVALUATION_KEYS.contains(&key) && !compared);
            !neutral
        };
        self.changes(other, matters)
    }

    /// Returns the differences of `train.max_steps` and `train.num_train_epochs` from `other`.
    pub fn length_changes(&self, other: &Self) -> Vec<String> {
        self.changes(other, |key| LENGTH_KEYS.contains(&key))
    }

    /// Returns the differences from `other` in the keys for which `included` is true, with both values.
    fn changes(&self, other: &Self, included: impl Fn(&str) -> bool) -> Vec<String> {
        let (before, after) = (leaves(self), leaves(other));
        before
            .iter()
            .zip(&after)
            .filter(|((key, old), (_, new))| old != new && included(key))
            .map(|((key, old), (_, new))| {
                format!("{key}: {} -> {}", value_text(old), value_text(new))
            })
            .collect()
    }
}

/// Sets the defaults that depend on other keys, as TRL and transformers do.
fn resolve_defaults(source: &mut Source) {
    let compat = source.get("data.compat").and_then(toml::Value::as_str);
    if compat == Some("trl-0.7.4") {
        source.set_default("data.truncation_mode", "keep_end");
        source.set_default("data.max_length", 512);
        source.set_default("data.max_prompt_length", 128);
    }
    if source.get("train.num_train_epochs").is_some() {
        source.set_default("train.max_steps", -1);
    }
    let plateau = toml::Value::from("reduce_lr_on_plateau");
    if source.get("train.load_best_model_at_end") == Some(&true.into())
        || source.get("train.early_stopping_patience").is_some()
        || source.get("train.lr_scheduler_type") == Some(&plateau)
    {
        source.set_default("train.metric_for_best_model", "loss");
    }
    if source.get("train.warmup_ratio").is_some() {
        source.set_default("train.warmup_steps", 0.0);
    }
}

/// Returns every dotted key with its value, in the order of the structs. All configurations have the same keys.
fn leaves(config: &RunConfig) -> Vec<(String, Value)> {
    fn collect(prefix: &str, value: Value, out: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) if !OPEN_TABLES.contains(&prefix) => {
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

fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_string(),
        Value::Number(number) if number.is_f64() => {
            format!("{:?}", number.as_f64().unwrap_or_default())
        }
        value => value.to_string(),
    }
}
