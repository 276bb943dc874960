//! Warns about settings that are valid but probably not intended.

use crate::data::template_text::literal_escape;
use crate::objective::losses::LossType;
use crate::train::policy::lora_config;
use crate::train::schedule::{PlateauMode, SchedulerType};

use super::{DpoSection, InitLoraWeights, Method, Reference, RunConfig};

/// Learning rates of at least this value cause a warning.
const LARGE_RATE: f64 = 0.1;

impl RunConfig {
    /// Returns one sentence for each setting that is valid but probably not intended. The sentence begins with the key.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.loss_warnings();
        let mut warn = |applies: bool, sentence: String| {
            if applies {
                warnings.push(sentence);
            }
        };
        let (train, data) = (&self.train, &self.data);
        if let Some(sentence) = self.reference_warning() {
            warn(true, sentence);
        }
        warn(
            self.lora.lora_dropout > 0.0 && train.disable_dropout,
            format!(
                "lora.lora_dropout: {} is inactive, as in TRL, while train.disable_dropout is true",
                self.lora.lora_dropout
            ),
        );
        let rises = train.lr_scheduler_kwargs.mode == Some(PlateauMode::Max);
        warn(
            train.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau
                && rises != train.prefers_greater(),
            format!(
                "train.lr_scheduler_kwargs.mode: \"{}\" does not fit {}, of which {} values are better",
                if rises { "max" } else { "min" },
                train.best_metric().unwrap_or_default(),
                if train.prefers_greater() { "larger" } else { "smaller" },
            ),
        );
        warn(
            train.max_steps > 0 && train.num_train_epochs.is_some(),
            format!(
                "train.num_train_epochs: has no effect: train.max_steps = {} takes precedence, as in TrainingArguments",
                train.max_steps
            ),
        );
        warn(
            train.warmup_steps > 0.0 && train.warmup_ratio.is_some(),
            format!(
                "train.warmup_ratio: has no effect: train.warmup_steps = {} takes precedence, as in TrainingArguments",
                train.warmup_steps
            ),
        );
        if let Ok(total @ 1..) = usize::try_from(train.max_steps)
            && let Some(sentence) = self.warmup_warning(total)
        {
            warn(true, sentence);
        }
        warnings.extend(self.typo_warnings());
        warnings.extend(self.vllm_warning());
        let mut warn = |applies: bool, sentence: String| {
            if applies {
                warnings.push(sentence);
            }
        };
        warn(
            data.max_prompt_length.is_some_and(|longest| longest >= data.max_length),
            "data.max_prompt_length: is not less than max_length: every pair longer than max_length trains on nothing"
                .into(),
        );
        warnings
    }

    /// Returns warnings about settings of the preference loss that have no effect.
    fn loss_warnings(&self) -> Vec<String> {
        let (dpo, mut warnings) = (&self.dpo, Vec::new());
        if dpo.label_smoothing > 0.0 && !dpo.loss_type.iter().any(|l| l.uses().label_smoothing) {
            warnings.push(format!(
                "dpo.label_smoothing: {} has no effect: TRL 1.x ignores it for this loss; dpo.loss_type = \"cdpo\" is DPO \
                 with label smoothing",
                dpo.label_smoothing
            ));
        }
        if self.cpo.label_smoothing > 0.0 && !self.cpo.loss_type.uses_label_smoothing() {
            warnings.push(format!(
                "cpo.label_smoothing: {} has no effect: TRL ignores it for this loss",
                self.cpo.label_smoothing
            ));
        }
        let only_sft = dpo.loss_type == [LossType::Sft];
        if self.method == Method::Dpo && only_sft && dpo.rpo_alpha.is_none() {
            let default = DpoSection::default();
            let keys = [
                ("dpo.beta", dpo.beta != default.beta),
                ("dpo.reference", dpo.reference != default.reference),
                ("dpo.reference_free", dpo.reference_free),
                ("dpo.precompute_ref_log_probs", dpo.precompute_ref_log_probs),
                ("dpo.sync_ref_model", dpo.sync_ref_model),
            ];
            let given = keys.into_iter().filter(|(_, given)| *given);
            warnings.extend(given.map(|(key, _)| {
                format!(
                    "{key}: changes only the logged rewards: the loss \"sft\" alone has neither beta nor reference; \
                     method = \"sft\" trains the same without a reference"
                )
            }));
        }
        let sorts = dpo.loss_type.iter().any(|loss| loss.uses().batch);
        if sorts && self.train.per_device_train_batch_size == 1 {
            warnings.push(
                "train.per_device_train_batch_size: is 1: the loss sorts the pairs of a micro-batch, and one pair is sorted already"
                    .into(),
            );
        }
        warnings
    }

    /// Returns warnings about values that are probably typos: a learning rate that is 0 or very large, a prompt
    /// template with literal escapes.
    fn typo_warnings(&self) -> Vec<String> {
        let rate = self.train.learning_rate;
        let mut warnings = Vec::new();
        if rate == 0.0 {
            warnings.push("train.learning_rate: is 0: nothing is learned".into());
        }
        if rate >= LARGE_RATE {
            warnings.push(format!(
                "train.learning_rate: {rate} is very large (1e-6 to 1e-3 are usual): weights soon become infinite or NaN"
            ));
        }
        if let Some(literal) = literal_escape(&self.data.prompt_template) {
            warnings.push(format!(
                "data.prompt_template: contains a backslash and a letter ({literal}) instead of a line break or a tab: write \
                 it in double quotes in TOML, such as \"Question: {{prompt}}\\n\\nAnswer:\""
            ));
        }
        warnings
    }

    /// Returns a warning if vLLM will not serve the adapter as it is trained.
    fn vllm_warning(&self) -> Option<String> {
        let obstacles = lora_config(self).obstacles_in_vllm();
        if !self.model.use_peft || obstacles.is_empty() {
            return None;
        }
        // An adapter with biases of its own cannot be merged.
        let remedy =
            if self.lora.lora_bias { "" } else { "; `arithmo merge` makes a model that it serves" };
        let obstacles = obstacles.join(", ");
        Some(format!("lora: vLLM does not serve such an adapter: {obstacles}{remedy}"))
    }

    /// Returns a warning if the warmup takes more than half of a run of `total_steps`.
    pub fn warmup_warning(&self, total_steps: usize) -> Option<String> {
        let train = &self.train;
        let warmup = train.resolved_warmup_steps(total_steps);
        if !train.lr_scheduler_type.has_warmup() || 2 * warmup <= total_steps {
            return None;
        }
        let key =
            if train.warmup_steps > 0.0 { "train.warmup_steps" } else { "train.warmup_ratio" };
        let length = match train.max_steps {
            steps if steps > 0 => format!("max_steps = {steps}"),
            _ => format!("the {total_steps} steps of this run"),
        };
        Some(if warmup >= total_steps {
            format!(
                "{key}: {warmup} is not less than {length}: the learning rate never reaches its peak"
            )
        } else {
            format!(
                "{key}: {warmup} is more than half of {length}: the learning rate rises for most of the run"
            )
        })
    }

    /// Returns a warning if the reference does not suit the initial adapter.
    fn reference_warning(&self) -> Option<String> {
        if self.method == Method::Dpo && self.dpo.sync_ref_model {
            return None;
        }
        let loftq = self.lora.init_lora_weights == InitLoraWeights::LoftQ;
        let changes_base = self.lora.changes_base();
        let warning = match (self.reference()?, loftq) {
            (Reference::Initial, false) if self.lora.adapter.is_none() && !changes_base => {
                "\"initial\" without lora.adapter is the same as the base model, because a new adapter has no effect"
            }
            (Reference::Auto | Reference::Base, true) => {
                "LoftQ starts the policy closer to the full-precision weights than the quantized base, which is the \
                 reference; reference = \"initial\" uses the initial policy instead"
            }
            (Reference::Auto | Reference::Base, _) if changes_base => {
                "PiSSA and OLoRA move a part of the base into the adapter, and the reference is what they leave of it, as in \
                 TRL; reference = \"initial\" uses the original model instead"
            }
            _ => return None,
        };
        Some(format!("{}.reference: {warning}", self.method.name()))
    }
}
