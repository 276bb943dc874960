//! What a configuration may not say.

use std::fmt::Display;

use serde::Serialize;

use super::RunConfig;
use super::options::{
    FDivergence, InitLoraWeights, LossType, Method, ModelDtype, Quantization, TargetModules,
};
use super::sections::{DataSection, DpoSection, LoraSection, ModelSection, TrainSection};
use crate::data::encode::Compat;
use crate::data::prompt::PromptTemplate;
use crate::error::{Error, Result};

/// The projections of a Mistral decoder layer.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The losses that can be trained with; the others are known by name only.
const BUILT_LOSSES: [LossType; 3] = [LossType::Sigmoid, LossType::SigmoidNorm, LossType::Sft];

/// An error at `key` unless `holds`.
fn ensure(holds: bool, key: &str, problem: impl Display, remedy: impl Display) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::invalid(key, problem, remedy)),
    }
}

/// An error at `key` unless the option keeps its default.
fn built(is_default: bool, key: &str, value: impl Serialize) -> Result<()> {
    let shown = serde_json::to_string(&value).unwrap_or_default();
    let problem = format!("{shown} is not built yet");
    ensure(is_default, key, problem, "remove the key to take the default")
}

fn at_least_one(value: usize, key: &str) -> Result<()> {
    ensure(value >= 1, key, "must be at least 1, is 0", "set it to 1 or more")
}

fn not_negative(value: f64, key: &str) -> Result<()> {
    let problem = format!("must be a finite number, 0 or more, is {value}");
    let holds = value.is_finite() && value >= 0.0;
    ensure(holds, key, problem, "correct the value, or remove the key to take the default")
}

fn positive(value: f64, key: &str) -> Result<()> {
    let problem = format!("must be a finite number above 0, is {value}");
    let holds = value.is_finite() && value > 0.0;
    ensure(holds, key, problem, "correct the value, or remove the key to take the default")
}

/// `0 <= value < end`.
fn below(value: f64, end: f64, key: &str) -> Result<()> {
    let problem = format!("must be at least 0 and less than {end}, is {value}");
    ensure((0.0..end).contains(&value), key, problem, "correct the value")
}

impl RunConfig {
    /// Refuses what contradicts itself, is out of range, or cannot be honoured.
    ///
    /// # Errors
    /// The first key that is wrong; the place is the dotted key, to which [`RunConfig::load`] adds file and line.
    pub fn validate(&self) -> Result<()> {
        ensure(
            !self.output_dir.as_os_str().is_empty(),
            "output_dir",
            "is empty",
            "name the folder the run is written to, as \"runs/dpo\"",
        )?;
        self.model.validate()?;
        self.data.validate()?;
        self.lora.validate()?;
        self.dpo.validate(self.data.compat)?;
        self.train.validate()?;
        self.validate_method()?;
        self.validate_loftq()?;
        ensure(
            self.train.eval_steps == 0 || self.data.eval_file.is_some(),
            "train.eval_steps",
            "there is nothing to evaluate: data.eval_file is not given",
            "give data.eval_file, or remove the key",
        )
    }

    /// LoftQ makes up for packing, and is a start.
    fn validate_loftq(&self) -> Result<()> {
        let (lora, key) = (&self.lora, "lora.init_lora_weights");
        let bits = &lora.loftq_config.loftq_bits;
        built(*bits == 4, "lora.loftq_config.loftq_bits", bits)?;
        let times = &lora.loftq_config.loftq_iter;
        ensure(
            *times == 1,
            "lora.loftq_config.loftq_iter",
            format!(
                "is {times}: each iteration after the first packs a base of its own, without which the adapter could be \
                 neither merged, resumed nor used; only 1, which keeps the base, is built"
            ),
            "set it to 1, or remove the key; a larger lora.r brings the start nearer to the full weights",
        )?;
        if lora.init_lora_weights != InitLoraWeights::LoftQ {
            return Ok(());
        }
        let four_bits = matches!(self.model.quantization, Quantization::Nf4 | Quantization::Fp4);
        ensure(
            four_bits,
            key,
            "\"loftq\" makes up for what 4 bits take from the weights, and model.quantization is neither \"nf4\" nor \"fp4\"",
            "set model.quantization = \"nf4\", or remove the key",
        )?;
        ensure(
            lora.adapter.is_none(),
            key,
            "has no effect: lora.adapter brings its own weights",
            "remove the key, or lora.adapter",
        )
    }

    /// Refuses tables and keys that the chosen method, or training all weights, does not have.
    fn validate_method(&self) -> Result<()> {
        if self.method == Method::Sft {
            ensure(
                self.dpo == DpoSection::default(),
                "dpo",
                "has no effect: method is \"sft\"",
                "remove the table, or set method = \"dpo\"",
            )?;
            ensure(
                self.data.compat == Compat::Trl1,
                "data.compat",
                "is not built for method = \"sft\"",
                "remove the key",
            )?;
        }
        if self.model.use_peft {
            return Ok(());
        }
        ensure(
            self.lora == LoraSection::default(),
            "lora",
            "has no effect: model.use_peft is false, all weights are trained",
            "remove the table, or model.use_peft",
        )?;
        let full = matches!(self.model.dtype, ModelDtype::Auto | ModelDtype::F32);
        ensure(
            full,
            "model.dtype",
            "must be \"f32\" where all weights are trained (model.use_peft = false): small updates would be lost in 16 bits",
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
            "packed weights cannot be trained themselves, and model.use_peft is false",
            "remove the key; or set model.use_peft = true to train an adapter on them",
        )?;
        ensure(
            !(self.from_scratch && self.use_peft),
            "model.from_scratch",
            "an adapter on random weights learns nothing of use",
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
            format!("must hold a prompt and a completion token, is {}", self.max_length),
            "set it to what the longest pairs need and memory allows, as 1024",
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
            "TRL 1.x has no such option: data.max_length cuts prompt and completion together",
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
            "lower it (the original default is 128), or set data.allow_empty_completions = true to train so anyway",
        )
    }
}

impl LoraSection {
    fn validate(&self) -> Result<()> {
        at_least_one(self.r, "lora.r")?;
        positive(self.lora_alpha, "lora.lora_alpha")?;
        below(self.lora_dropout, 1.0, "lora.lora_dropout")?;
        self.validate_targets()?;
        let empty = self.adapter.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        ensure(!empty, "lora.adapter", "is empty", "give a PEFT folder, or remove the key")?;
        built(!self.use_dora, "lora.use_dora", self.use_dora)?;
        built(!self.lora_bias, "lora.lora_bias", self.lora_bias)?;
        built(self.modules_to_save.is_none(), "lora.modules_to_save", &self.modules_to_save)
    }

    fn validate_targets(&self) -> Result<()> {
        let key = "lora.target_modules";
        let TargetModules::Names(names) = &self.target_modules else {
            return Ok(());
        };
        let known = format!("choose from {}, or \"all-linear\"", PROJECTIONS.join(", "));
        ensure(!names.is_empty(), key, "is empty: nothing would be trained", &known)?;
        for (index, name) in names.iter().enumerate() {
            let exists = PROJECTIONS.contains(&name.as_str());
            ensure(
                exists,
                key,
                format!("`{name}` is not a projection of Mistral's layers"),
                &known,
            )?;
            let twice = names.iter().take(index).any(|earlier| earlier == name);
            ensure(!twice, key, format!("`{name}` is named twice"), "name it once")?;
        }
        Ok(())
    }
}

impl DpoSection {
    fn validate(&self, compat: Compat) -> Result<()> {
        ensure(
            !self.loss_type.is_empty(),
            "dpo.loss_type",
            "is empty: nothing would be trained",
            "set loss_type = \"sigmoid\"",
        )?;
        for loss in &self.loss_type {
            built(BUILT_LOSSES.contains(loss), "dpo.loss_type", loss)?;
        }
        // One preference loss, and perhaps the chosen side's cross-entropy beside it.
        let of_sft = self.loss_type.iter().filter(|loss| **loss == LossType::Sft);
        let others = self.loss_type.len() - of_sft.clone().count();
        let fits = others == 1 && of_sft.count() <= 1;
        built(fits, "dpo.loss_type", &self.loss_type)?;
        self.validate_weights()?;
        positive(self.beta, "dpo.beta")?;
        below(self.label_smoothing, 0.5, "dpo.label_smoothing")?;
        ensure(
            self.label_smoothing == 0.0 || compat == Compat::Trl1,
            "dpo.label_smoothing",
            "TRL 0.7.4 has no label smoothing",
            "remove the key",
        )?;
        let plain = self.f_divergence_type == FDivergence::ReverseKl;
        built(plain, "dpo.f_divergence_type", self.f_divergence_type)?;
        let coefficient = self.f_alpha_divergence_coef;
        built(coefficient == 0.5, "dpo.f_alpha_divergence_coef", coefficient)?;
        if let Some(size) = self.precompute_ref_batch_size {
            at_least_one(size, "dpo.precompute_ref_batch_size")?;
        }
        built(self.ld_alpha.is_none(), "dpo.ld_alpha", self.ld_alpha)?;
        built(!self.use_weighting, "dpo.use_weighting", self.use_weighting)?;
        built(self.discopop_tau == 0.05, "dpo.discopop_tau", self.discopop_tau)?;
        built(!self.sync_ref_model, "dpo.sync_ref_model", self.sync_ref_model)
    }

    fn validate_weights(&self) -> Result<()> {
        let key = "dpo.loss_weights";
        let Some(weights) = &self.loss_weights else {
            return Ok(());
        };
        let (given, wanted) = (weights.len(), self.loss_type.len());
        let problem = format!("has {given} weights for {wanted} losses");
        ensure(given == wanted, key, problem, "give one weight a loss, or remove the key")?;
        weights.iter().try_for_each(|weight| not_negative(*weight, key))
    }
}

impl TrainSection {
    fn validate(&self) -> Result<()> {
        at_least_one(self.per_device_train_batch_size, "train.per_device_train_batch_size")?;
        at_least_one(self.per_device_eval_batch_size, "train.per_device_eval_batch_size")?;
        at_least_one(self.gradient_accumulation_steps, "train.gradient_accumulation_steps")?;
        at_least_one(self.logging_steps, "train.logging_steps")?;
        at_least_one(self.max_tokens_per_pass.unwrap_or(1), "train.max_tokens_per_pass")?;
        not_negative(self.learning_rate, "train.learning_rate")?;
        not_negative(self.weight_decay, "train.weight_decay")?;
        not_negative(self.max_grad_norm, "train.max_grad_norm")?;
        below(self.adam_beta1, 1.0, "train.adam_beta1")?;
        below(self.adam_beta2, 1.0, "train.adam_beta2")?;
        positive(self.adam_epsilon, "train.adam_epsilon")?;
        self.validate_length()?;
        self.validate_warmup()?;
        self.lr_scheduler_kwargs.check(self.lr_scheduler_type, self.learning_rate)
    }

    fn validate_length(&self) -> Result<()> {
        let steps = self.max_steps;
        ensure(
            steps == -1 || steps >= 1,
            "train.max_steps",
            format!("must be 1 or more, or -1 to count by epochs, is {steps}"),
            "correct the value, or give num_train_epochs instead",
        )?;
        match self.num_train_epochs {
            Some(epochs) => positive(epochs, "train.num_train_epochs"),
            None => Ok(()),
        }
    }

    fn validate_warmup(&self) -> Result<()> {
        let steps = self.warmup_steps;
        not_negative(steps, "train.warmup_steps")?;
        ensure(
            steps < 1.0 || steps.fract() == 0.0,
            "train.warmup_steps",
            format!("must be a whole number of steps, or a share of all steps below 1, is {steps}"),
            "correct the value",
        )?;
        match self.warmup_ratio {
            Some(ratio) => {
                let problem = format!("must be from 0 to 1, is {ratio}");
                let holds = (0.0..=1.0).contains(&ratio);
                ensure(holds, "train.warmup_ratio", problem, "correct the value")
            }
            None => Ok(()),
        }
    }
}
