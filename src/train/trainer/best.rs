//! The end of a run: the best step becomes the result.

use std::path::Path;

use arithmo_backends::TrainBackend;

use super::Trainer;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::progress::Progress;
use crate::train::checkpoint::Checkpoint;
use crate::train::folder::RunFolder;
use crate::train::selection::BestStep;
use crate::train::steps::{Retention, clear_unfinished, prune};

impl<B: TrainBackend, O: Objective<B>> Trainer<'_, B, O> {
    /// Returns which checkpoints stay when one is saved.
    pub(super) fn retention(&self) -> Retention {
        let best = self.state.selected.best.filter(|_| self.selection.is_some());
        Retention { limit: self.config.train.save_total_limit, best: best.map(|best| best.step) }
    }

    /// Returns the best step if it is the result and not the last step.
    pub fn restored(&self) -> Option<BestStep> {
        let best = self.state.selected.best.filter(|_| self.config.train.load_best_model_at_end);
        best.filter(|best| best.step != self.state.step)
    }

    /// Says why the run ended and which step is the best, restores the best step under `load_best_model_at_end`, and then
    /// removes all other checkpoints if `save_total_limit` is 1, as transformers' `Trainer` does.
    ///
    /// # Errors
    /// The checkpoint of the best step is missing or damaged.
    pub(super) fn end(&mut self, progress: &Progress) -> Result<()> {
        let Some((selection, best)) = self.selection.as_ref().zip(self.state.selected.best) else {
            return Ok(());
        };
        let (metric, train) = (selection.metric.clone(), &self.config.train);
        if self.stopped_early() {
            progress.println(&format!(
                "note: stopped early after step {} of {}: {metric} has not improved in {} evaluations (train.early_stopping_patience)",
                self.state.step, self.total_steps, self.state.selected.without_improvement
            ));
        }
        let is_result = if train.load_best_model_at_end { ", which is the result" } else { "" };
        progress.println(&format!(
            "note: the best evaluation is that of step {}: {metric} {:.4}{is_result}",
            best.step, best.metric
        ));
        let folder = RunFolder::new(&self.config.output_dir).checkpoints();
        let saved = Checkpoint::open(&folder, best.step);
        if train.load_best_model_at_end && best.step != self.state.step {
            let checkpoint = saved.as_ref().map_err(|reason| {
                let path = folder.join(format!("step-{}", best.step));
                not_restored(&path, train.metric_for_best_model.as_deref(), best, reason)
            })?;
            self.weights.restore(&mut self.learner.policy, checkpoint, &self.device)?;
        }
        if train.save_total_limit == 1 && saved.is_ok() {
            prune(&folder, best.step, self.state.step, self.retention())?;
            clear_unfinished(&folder)?;
        }
        Ok(())
    }
}

/// Returns the error for a best step whose checkpoint cannot be restored. `metric` is `metric_for_best_model`.
fn not_restored(path: &Path, metric: Option<&str>, best: BestStep, reason: &str) -> Error {
    let metric = metric.unwrap_or("loss");
    Error::file(
        path,
        format!(
            "cannot be restored, though its step is the best ({metric} {}): {reason}",
            best.metric
        ),
        format!(
            "restore the folder; or take the last step: --resume --set train.load_best_model_at_end=false \
             --set train.metric_for_best_model={metric}"
        ),
    )
}
