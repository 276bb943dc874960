//! The settings of `[train]` by which evaluations control a run: the best step, early stopping, and the learning rate.

use super::check::ensure;
use super::options::{IntervalStrategy, SaveStrategy};
use super::sections::TrainSection;
use crate::error::Result;
use crate::train::schedule::SchedulerType;

impl TrainSection {
    /// Returns the key of the metric by which evaluations are compared, such as `eval_loss`. `None` if they are not compared.
    pub fn best_metric(&self) -> Option<String> {
        let name = match &self.metric_for_best_model {
            Some(name) => name,
            None if self.compares_evaluations() => "loss",
            None => return None,
        };
        Some(if name.starts_with("eval_") { name.to_string() } else { format!("eval_{name}") })
    }

    /// Returns whether larger values of the metric are better.
    pub fn prefers_greater(&self) -> bool {
        let is_loss = self.best_metric().is_none_or(|metric| metric.ends_with("loss"));
        self.greater_is_better.unwrap_or(!is_loss)
    }

    /// Returns whether a setting needs evaluations during training.
    pub(super) fn compares_evaluations(&self) -> bool {
        self.load_best_model_at_end
            || self.early_stopping_patience.is_some()
            || self.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau
    }

    /// Checks that every setting that needs evaluations has them, and that the steps of evaluations and checkpoints match,
    /// as transformers demands for `load_best_model_at_end`.
    pub(super) fn validate_control(&self, has_eval_file: bool) -> Result<()> {
        for (key, given) in [
            ("train.load_best_model_at_end", self.load_best_model_at_end),
            ("train.early_stopping_patience", self.early_stopping_patience.is_some()),
            ("train.lr_scheduler_type", self.lr_scheduler_type == SchedulerType::ReduceLrOnPlateau),
            ("train.metric_for_best_model", self.metric_for_best_model.is_some()),
        ] {
            if given {
                self.validate_evaluated(key, has_eval_file)?;
            }
        }
        ensure(
            !self.eval_on_start || has_eval_file,
            "train.eval_on_start",
            "there is nothing to evaluate: data.eval_file is not given",
            "set data.eval_file, or remove the key",
        )?;
        ensure(
            self.eval_delay == 0.0 || self.eval_strategy != IntervalStrategy::No,
            "train.eval_delay",
            "has no effect: train.eval_strategy is \"no\"",
            "remove the key, or set train.eval_strategy = \"steps\"",
        )?;
        ensure(
            self.greater_is_better.is_none() || self.best_metric().is_some(),
            "train.greater_is_better",
            "has no effect: no setting compares evaluations",
            "remove the key, or set train.metric_for_best_model",
        )?;
        ensure(
            self.early_stopping_threshold == 0.0 || self.early_stopping_patience.is_some(),
            "train.early_stopping_threshold",
            "has no effect: train.early_stopping_patience is not set",
            "remove the key, or set train.early_stopping_patience",
        )?;
        ensure(
            self.save_strategy != SaveStrategy::Best || self.metric_for_best_model.is_some(),
            "train.save_strategy",
            "\"best\" needs a metric by which evaluations are compared, and train.metric_for_best_model is not set",
            "set train.metric_for_best_model, such as \"loss\" or \"rewards/margins\"",
        )?;
        self.validate_best_is_saved()
    }

    /// Checks that the held-out data is evaluated during training, which the setting at `key` needs.
    fn validate_evaluated(&self, key: &str, has_eval_file: bool) -> Result<()> {
        ensure(
            has_eval_file,
            key,
            "needs evaluations, and data.eval_file is not given",
            "set data.eval_file, or remove the key",
        )?;
        let during = match self.eval_strategy {
            IntervalStrategy::No => false,
            IntervalStrategy::Steps => self.eval_steps > 0,
            IntervalStrategy::Epoch => true,
        };
        ensure(
            during,
            key,
            "needs evaluations during training, and there are none before the last step",
            "set train.eval_steps to a number of steps, or train.eval_strategy = \"epoch\"; or remove the key",
        )
    }

    /// Checks that `load_best_model_at_end` finds the best step among the checkpoints.
    fn validate_best_is_saved(&self) -> Result<()> {
        if !self.load_best_model_at_end {
            return Ok(());
        }
        let Some(saves) = self.save_strategy.fixed() else {
            return Ok(());
        };
        ensure(
            saves == self.eval_strategy,
            "train.save_strategy",
            "is not train.eval_strategy, and train.load_best_model_at_end needs a checkpoint of each evaluated step",
            "set it to \"best\", set both to \"steps\" or both to \"epoch\", or remove train.load_best_model_at_end",
        )?;
        let (save, eval) = (self.save_steps, self.eval_steps);
        ensure(
            saves != IntervalStrategy::Steps || (save > 0 && save.is_multiple_of(eval)),
            "train.save_steps",
            format!(
                "is {save}, no multiple of train.eval_steps = {eval}, which train.load_best_model_at_end needs"
            ),
            format!("set train.save_steps = {eval}, or a multiple of it"),
        )
    }
}
