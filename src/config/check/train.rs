//! Checks `[train]`.

use super::{at_least_one, ensure, not_negative, positive};
use crate::config::options::IntervalStrategy;
use crate::config::ranges::check_number;
use crate::config::sections::TrainSection;
use crate::error::Result;
use crate::train::optimizer::Rule;

impl TrainSection {
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one(self.per_device_train_batch_size, "train.per_device_train_batch_size")?;
        at_least_one(self.per_device_eval_batch_size, "train.per_device_eval_batch_size")?;
        at_least_one(self.gradient_accumulation_steps, "train.gradient_accumulation_steps")?;
        at_least_one(self.logging_steps, "train.logging_steps")?;
        at_least_one(self.max_tokens_per_pass.unwrap_or(1), "train.max_tokens_per_pass")?;
        not_negative(self.learning_rate, "train.learning_rate")?;
        not_negative(self.weight_decay, "train.weight_decay")?;
        not_negative(self.max_grad_norm, "train.max_grad_norm")?;
        check_number(self.adam_beta1, "train.adam_beta1")?;
        check_number(self.adam_beta2, "train.adam_beta2")?;
        positive(self.adam_epsilon, "train.adam_epsilon")?;
        self.validate_length()?;
        self.validate_warmup()?;
        self.lr_scheduler_kwargs.check(self.lr_scheduler_type, self.learning_rate)
    }

    /// Checks that no key is set that the optimizer does not have.
    pub(super) fn validate_optimizer(&self) -> Result<()> {
        Rule::of(self)?;
        let default = Self::default();
        let has_epsilon = self.optim.is_adamw() || self.optim.is_ademamix();
        let has_betas = has_epsilon || self.optim.is_lion();
        let keys = [
            ("train.adam_beta1", has_betas, self.adam_beta1 == default.adam_beta1),
            ("train.adam_beta2", has_betas, self.adam_beta2 == default.adam_beta2),
            ("train.adam_epsilon", has_epsilon, self.adam_epsilon == default.adam_epsilon),
        ];
        keys.into_iter().try_for_each(|(key, is_used, is_default)| {
            ensure(
                is_used || is_default,
                key,
                "has no effect on this train.optim",
                "remove the key, or set train.optim = \"adamw_torch\"",
            )
        })
    }

    /// Checks that no interval in steps is set for a strategy other than `"steps"`.
    pub(super) fn validate_strategies(&self) -> Result<()> {
        let strategies = [
            ("logging", Some(self.logging_strategy), self.logging_steps, 1),
            ("eval", Some(self.eval_strategy), self.eval_steps, 0),
            ("save", self.save_strategy.fixed(), self.save_steps, 0),
        ];
        strategies.into_iter().try_for_each(|(name, strategy, steps, default)| {
            ensure(
                strategy == Some(IntervalStrategy::Steps) || steps == default,
                &format!("train.{name}_steps"),
                format!("has no effect: train.{name}_strategy is not \"steps\""),
                format!("remove the key, or set train.{name}_strategy = \"steps\""),
            )
        })
    }

    /// Checks that no setting of the hub is given without a push.
    pub(super) fn validate_hub(&self) -> Result<()> {
        let given = [
            ("train.hub_model_id", self.hub_model_id.is_some()),
            ("train.hub_private_repo", self.hub_private_repo.is_some()),
            ("train.hub_revision", self.hub_revision.is_some()),
        ];
        given.into_iter().try_for_each(|(key, given)| {
            ensure(
                !given || self.push_to_hub,
                key,
                "has no effect: train.push_to_hub is false",
                "set train.push_to_hub = true, or remove the key",
            )
        })
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
            format!(
                "must be a whole number of steps, or a fraction of all steps below 1, is {steps}"
            ),
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
