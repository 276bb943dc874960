//! What a configuration may say but probably does not mean.

use super::{InitLoraWeights, Method, Reference, RunConfig};

impl RunConfig {
    /// What is allowed but probably not meant, one sentence each, beginning with the key.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |applies: bool, sentence: String| {
            if applies {
                warnings.push(sentence);
            }
        };
        let (train, data) = (&self.train, &self.data);
        if let Some(sentence) = self.warn_of_reference() {
            warn(true, sentence.into());
        }
        warn(
            self.dpo.label_smoothing > 0.0,
            format!(
                "dpo.label_smoothing: {} has no effect: TRL 1.x ignores it for this loss",
                self.dpo.label_smoothing
            ),
        );
        warn(
            self.lora.lora_dropout > 0.0 && train.disable_dropout,
            format!(
                "lora.lora_dropout: {} is inactive, as in TRL, while train.disable_dropout is true",
                self.lora.lora_dropout
            ),
        );
        warn(
            train.max_steps > 0 && train.num_train_epochs.is_some(),
            format!(
                "train.num_train_epochs: has no effect: train.max_steps = {} wins, as in TrainingArguments",
                train.max_steps
            ),
        );
        warn(
            train.warmup_steps > 0.0 && train.warmup_ratio.is_some(),
            format!(
                "train.warmup_ratio: has no effect: train.warmup_steps = {} wins, as in TrainingArguments",
                train.warmup_steps
            ),
        );
        warn(
            train.max_steps > 0
                && train.lr_scheduler_type.has_warmup()
                && train.warmup_steps >= train.max_steps as f64,
            format!(
                "train.warmup_steps: {} is not less than max_steps = {}: the learning rate never reaches its peak",
                train.warmup_steps, train.max_steps
            ),
        );
        warn(
            data.max_prompt_length.is_some_and(|longest| longest >= data.max_length),
            "data.max_prompt_length: is not less than max_length: every pair longer than max_length trains on nothing"
                .into(),
        );
        warnings
    }

    /// A reference that is not what the adapter's start suggests.
    fn warn_of_reference(&self) -> Option<&'static str> {
        let loftq = self.lora.init_lora_weights == InitLoraWeights::LoftQ;
        match (self.dpo.reference, loftq) {
            (Reference::Initial, false) if self.lora.adapter.is_none() => Some(
                "dpo.reference: \"initial\" without lora.adapter is the base model: a new adapter changes nothing",
            ),
            (Reference::Auto | Reference::Base, true) if self.method == Method::Dpo => Some(
                "dpo.reference: the policy starts nearer to the full weights than the packed base it is compared \
                 with; reference = \"initial\" compares it with its start",
            ),
            _ => None,
        }
    }
}
