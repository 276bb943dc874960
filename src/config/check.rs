//! Checks configurations for values that are out of range, contradictory or not built yet.

mod dpo;
mod train;

use std::fmt::Display;

use serde::Serialize;

use super::RunConfig;
use super::options::{InitLoraWeights, IntervalStrategy, ModelDtype, Quantization, TargetModules};
use super::ranges::{self, check_number};
use super::sections::{DataSection, LoraSection, ModelSection};
use crate::adapter::peft;
use crate::data::encode::Compat;
use crate::data::prompt::PromptTemplate;
use crate::error::{Error, Result};
use crate::model::names::projection_names;
use crate::train::policy::lora_config;

/// Returns an error at `key` unless `holds`.
pub(super) fn ensure(
    holds: bool,
    key: &str,
    problem: impl Display,
    remedy: impl Display,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::invalid(key, problem, remedy)) }
}

/// Returns an error at `key` that `value` is not built yet, unless `is_built`.
fn ensure_built(is_built: bool, key: &str, value: impl Serialize) -> Result<()> {
    let shown = serde_json::to_string(&value).unwrap_or_default();
    let problem = format!("{shown} is not built yet");
    ensure(is_built, key, problem, "remove the key to use the default")
}

fn at_least_one(value: usize, key: &str) -> Result<()> {
    ensure(value >= 1, key, "must be at least 1, is 0", "set it to 1 or more")
}

fn not_negative(value: f64, key: &str) -> Result<()> {
    let problem = format!("must be a finite number, 0 or more, is {value}");
    let holds = value.is_finite() && value >= 0.0;
    ensure(holds, key, problem, "correct the value, or remove the key to use the default")
}

fn positive(value: f64, key: &str) -> Result<()> {
    let problem = format!("must be a finite number above 0, is {value}");
    let holds = value.is_finite() && value > 0.0;
    ensure(holds, key, problem, "correct the value, or remove the key to use the default")
}

impl RunConfig {
    /// Checks that no value is out of range, contradicts another one or is not built yet.
    ///
    /// # Errors
    /// The first wrong key. The place is the dotted key, to which [`RunConfig::load`] adds file and line.
    pub fn validate(&self) -> Result<()> {
        ensure(
            !self.output_dir.as_os_str().is_empty(),
            "output_dir",
            "is empty",
            "name the folder for the results, such as \"runs/dpo\"",
        )?;
        self.model.validate()?;
        self.data.validate()?;
        self.lora.validate()?;
        self.dpo.validate(self.data.compat)?;
        self.train.validate()?;
        self.validate_methods()?;
        self.validate_full_training()?;
        self.validate_loftq()?;
        self.validate_residual()?;
        ranges::check(self)?;
        self.validate_modules()?;
        self.validate_lora_plus()?;
        self.train.validate_strategies()?;
        self.train.validate_optimizer()?;
        self.train.validate_hub()?;
        self.train.validate_control(self.data.eval_file.is_some())?;
        let evaluated = [
            ("train.eval_steps", self.train.eval_steps > 0),
            ("train.eval_strategy", self.train.eval_strategy == IntervalStrategy::Epoch),
        ];
        evaluated.into_iter().try_for_each(|(key, given)| {
            ensure(
                !given || self.data.eval_file.is_some(),
                key,
                "there is nothing to evaluate: data.eval_file is not given",
                "set data.eval_file, or remove the key",
            )
        })
    }

    /// Checks the choice of layers, every regular expression for modules, and the combination of biases with DoRA.
    fn validate_modules(&self) -> Result<()> {
        let lora = lora_config(self);
        lora.check_layers(|key| format!("lora.{key}"))?;
        lora.check_bias(|key| format!("lora.{key}"))?;
        lora.check_expressions().map_err(|error| error.within("lora."))
    }

    /// Checks that each weight decay has an effect, with LoRA+ or without.
    fn validate_lora_plus(&self) -> Result<()> {
        let used = self.lora.loraplus_lr_ratio.is_some();
        ensure(
            used || self.lora.loraplus_weight_decay == 0.0,
            "lora.loraplus_weight_decay",
            "has no effect without lora.loraplus_lr_ratio",
            "set train.weight_decay instead, or lora.loraplus_lr_ratio",
        )?;
        ensure(
            !used || self.train.weight_decay == 0.0,
            "train.weight_decay",
            "has no effect with lora.loraplus_lr_ratio, as in PEFT",
            "set lora.loraplus_weight_decay instead",
        )
    }

    /// Checks that LoftQ has the supported settings, a base quantized to 4 bits, and no adapter to start from.
    fn validate_loftq(&self) -> Result<()> {
        let (lora, key) = (&self.lora, "lora.init_lora_weights");
        let bits = &lora.loftq_config.loftq_bits;
        ensure_built(*bits == 4, "lora.loftq_config.loftq_bits", bits)?;
        let times = &lora.loftq_config.loftq_iter;
        ensure(
            *times == 1,
            "lora.loftq_config.loftq_iter",
            format!(
                "is {times}: each iteration after the first would quantize another base, without which the adapter could \
                 not be merged, resumed or used; only 1, which keeps the base, is built"
            ),
            "set it to 1, or remove the key; a larger lora.r starts closer to the full-precision weights",
        )?;
        if lora.init_lora_weights != InitLoraWeights::LoftQ {
            return Ok(());
        }
        let four_bits = matches!(self.model.quantization, Quantization::Nf4 | Quantization::Fp4);
        ensure(
            four_bits,
            key,
            "\"loftq\" corrects the error of 4-bit quantization, and model.quantization is neither \"nf4\" nor \"fp4\"",
            "set model.quantization = \"nf4\", or remove the key",
        )?;
        ensure(
            lora.adapter.is_none(),
            key,
            "has no effect: lora.adapter brings its own weights",
            "remove the key, or lora.adapter",
        )
    }

    /// Checks that an initialization that changes the base has a base that it can change, and no adapter to start from.
    fn validate_residual(&self) -> Result<()> {
        let key = "lora.init_lora_weights";
        if !self.lora.init_lora_weights.changes_base() {
            return Ok(());
        }
        ensure(
            self.model.quantization == Quantization::None,
            key,
            "moves a part of each weight into the adapter, and a quantized weight (model.quantization) cannot hold the rest",
            "remove model.quantization, or set the key to \"loftq\"",
        )?;
        ensure(
            self.lora.adapter.is_none(),
            key,
            "has no effect: lora.adapter brings its own weights",
            "remove the key, or lora.adapter",
        )
    }

    /// Checks that no key is set that has no effect on training all weights.
    fn validate_full_training(&self) -> Result<()> {
        if self.model.use_peft {
            return Ok(());
        }
        ensure(
            self.lora == LoraSection::default(),
            "lora",
            "has no effect: model.use_peft is false, so all weights are trained",
            "remove the table, or model.use_peft",
        )?;
        let full = matches!(self.model.dtype, ModelDtype::Auto | ModelDtype::F32);
        ensure(
            full,
            "model.dtype",
            "must be \"f32\" if all weights are trained (model.use_peft = false): small updates would be lost in 16 bits",
            "remove the key",
        )
    }
}

impl ModelSection {
    fn validate(&self) -> Result<()> {
        ensure(
            !self.model_name_or_path.is_empty(),
            "model.model_name_or_path",
            "is empty",
            "give a folder in Hugging Face layout or a hub id (owner/name)",
        )?;
        let quantized = self.quantization != Quantization::None;
        ensure(
            quantized || !self.double_quant,
            "model.double_quant",
            "is true, but model.quantization is \"none\"",
            "remove the key",
        )?;
        ensure(
            !quantized || self.use_peft,
            "model.quantization",
            "quantized weights cannot be trained themselves, and model.use_peft is false",
            "remove the key; or set model.use_peft = true to train an adapter on them",
        )?;
        ensure(
            !(self.from_scratch && self.use_peft),
            "model.from_scratch",
            "an adapter on random weights learns nothing useful",
            "set model.use_peft = false to train all weights, or remove the key",
        )
    }
}

impl DataSection {
    fn validate(&self) -> Result<()> {
        for (path, key) in [
            (Some(&self.train_file), "data.train_file"),
            (self.eval_file.as_ref(), "data.eval_file"),
        ] {
            let empty = path.is_some_and(|path| path.as_os_str().is_empty());
            ensure(!empty, key, "is empty", "give a .jsonl, .json or .parquet file")?;
        }
        PromptTemplate::new(&self.prompt_template)?;
        ensure(
            self.max_length >= 2,
            "data.max_length",
            format!(
                "must have room for a prompt token and a completion token, is {}",
                self.max_length
            ),
            "set it to the length of the longest pairs if memory allows, for example 1024",
        )?;
        ensure(
            !(self.allow_empty_completions && self.skip_untrainable),
            "data.skip_untrainable",
            "contradicts data.allow_empty_completions: pairs that train on nothing cannot be both kept and left out",
            "keep one of the two",
        )?;
        self.validate_max_prompt_length()
    }

    fn validate_max_prompt_length(&self) -> Result<()> {
        let key = "data.max_prompt_length";
        let Some(longest) = self.max_prompt_length else {
            return Ok(());
        };
        ensure(
            self.compat == Compat::Trl074,
            key,
            "TRL 1.x has no such option: data.max_length truncates prompt and completion together",
            "remove the key, or set data.compat = \"trl-0.7.4\"",
        )?;
        at_least_one(longest, key)?;
        ensure(
            longest < self.max_length || self.allow_empty_completions,
            key,
            format!(
                "{longest} is not less than data.max_length = {}: every pair longer than that would lose both \
                 completions and train on nothing",
                self.max_length
            ),
            "lower it (the original default is 128), or set data.allow_empty_completions = true to train anyway",
        )
    }
}

impl LoraSection {
    fn validate(&self) -> Result<()> {
        at_least_one(self.r, "lora.r")?;
        positive(self.lora_alpha, "lora.lora_alpha")?;
        check_number(self.lora_dropout, "lora.lora_dropout")?;
        self.validate_targets()?;
        let name = &self.adapter_name;
        if let Some(problem) = peft::name_problem(name) {
            let problem = format!("{name:?} {problem}");
            return Err(Error::invalid("lora.adapter_name", problem, "choose another name"));
        }
        ensure(
            name != peft::REFERENCE_NAME,
            "lora.adapter_name",
            "\"ref\" is the name of the reference that dpo.sync_ref_model saves",
            "choose another name",
        )?;
        let empty = self.adapter.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        ensure(!empty, "lora.adapter", "is empty", "give a PEFT folder, or remove the key")?;
        ensure(
            !self.lora_bias || self.init_lora_weights == InitLoraWeights::KaimingUniform,
            "lora.lora_bias",
            "is only possible with lora.init_lora_weights = true, as in PEFT",
            "remove one of the keys",
        )
    }

    fn validate_targets(&self) -> Result<()> {
        let key = "lora.target_modules";
        let names = match &self.target_modules {
            TargetModules::AllLinear => return Ok(()),
            TargetModules::Pattern(pattern) => {
                return ensure(
                    projection_names().all(|name| name != pattern),
                    key,
                    format!(
                        "\"{pattern}\" is a regular expression for whole names, and matches none"
                    ),
                    format!("write [\"{pattern}\"]"),
                );
            }
            TargetModules::Names(names) => names,
        };
        let known = projection_names().collect::<Vec<_>>().join(", ");
        let known = format!("choose from {known}, or \"all-linear\"");
        ensure(!names.is_empty(), key, "is empty: nothing would be trained", &known)?;
        for (index, name) in names.iter().enumerate() {
            let last = name.rsplit('.').next().unwrap_or_default();
            let exists = projection_names().any(|known| known == last);
            ensure(exists, key, format!("`{name}` is not a projection of a layer"), &known)?;
            let twice = names.iter().take(index).any(|earlier| earlier == name);
            ensure(!twice, key, format!("`{name}` is named twice"), "name it once")?;
        }
        Ok(())
    }
}
