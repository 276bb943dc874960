//! Numbers of steps that follow from `[train]` and the number of samples: the length of a run, its epochs and intervals.

use super::sections::TrainSection;
use crate::train::sampler::steps_per_epoch;

impl TrainSection {
    /// Returns the optimizer steps of one epoch of `samples` pairs. An incomplete last group of micro-batches counts as
    /// a step.
    pub fn steps_per_epoch(&self, samples: usize) -> usize {
        let (batch_size, accumulation) =
            (self.per_device_train_batch_size, self.gradient_accumulation_steps);
        steps_per_epoch(samples, batch_size, accumulation)
    }

    /// Returns the optimizer steps between log lines in a run over `samples` pairs; 0 means only after the last step.
    pub fn logging_interval(&self, samples: usize) -> usize {
        self.logging_strategy.interval(self.logging_steps, self.steps_per_epoch(samples))
    }

    /// Returns the optimizer steps between evaluations in a run over `samples` pairs; 0 means none before the last
    /// step.
    pub fn eval_interval(&self, samples: usize) -> usize {
        self.eval_strategy.interval(self.eval_steps, self.steps_per_epoch(samples))
    }

    /// Returns the optimizer steps between checkpoints in a run over `samples` pairs; 0 means none before the last
    /// step, or that evaluations decide.
    pub fn save_interval(&self, samples: usize) -> usize {
        let strategy = self.save_strategy.fixed();
        strategy.map_or(0, |fixed| fixed.interval(self.save_steps, self.steps_per_epoch(samples)))
    }

    /// Returns the optimizer steps of a run over `samples` pairs, as transformers' `Trainer` counts them.
    pub fn total_steps(&self, samples: usize) -> usize {
        match usize::try_from(self.max_steps) {
            Ok(steps) => steps,
            Err(_) => {
                let epochs = self.num_train_epochs.unwrap_or(3.0);
                (epochs * self.steps_per_epoch(samples) as f64).ceil() as usize
            }
        }
    }

    /// Returns the warmup steps of a run of `total_steps`.
    pub fn resolved_warmup_steps(&self, total_steps: usize) -> usize {
        crate::train::schedule::resolve_warmup(self.warmup_steps, self.warmup_ratio, total_steps)
    }

    /// Returns whether LoRA's dropout is active in training.
    pub fn dropout_is_active(&self) -> bool {
        !self.disable_dropout
    }
}
