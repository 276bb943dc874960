//! The steps after which a run logs, evaluates and saves.

use crate::config::{IntervalStrategy, TrainSection};

/// Says after which steps a run logs, evaluates and saves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timetable<'a> {
    train: &'a TrainSection,
    /// Number of training samples.
    samples: usize,
    total_steps: usize,
}

impl<'a> Timetable<'a> {
    /// Creates the timetable of a run of `total_steps` over `samples` training samples.
    pub(super) fn new(train: &'a TrainSection, samples: usize, total_steps: usize) -> Self {
        Self { train, samples, total_steps }
    }

    /// Returns whether metrics are logged after `step`: at the interval and after the last step.
    pub(super) fn logs(&self, step: usize) -> bool {
        self.is_at(step, self.train.logging_interval(self.samples))
    }

    /// Returns whether the held-out samples are evaluated after `step`: at the interval and after the last step, but not
    /// before `eval_delay` steps, or epochs if the strategy is `epoch`.
    pub(super) fn evaluates(&self, step: usize) -> bool {
        let done = match self.train.eval_strategy {
            IntervalStrategy::No => return false,
            IntervalStrategy::Steps => step as f64,
            IntervalStrategy::Epoch => {
                step as f64 / self.train.steps_per_epoch(self.samples) as f64
            }
        };
        done >= self.train.eval_delay && self.is_at(step, self.train.eval_interval(self.samples))
    }

    /// Returns whether a checkpoint is saved after `step` whatever the evaluations show: at the interval and after the last
    /// step.
    pub(super) fn saves(&self, step: usize) -> bool {
        self.train.save_strategy.saves_regularly()
            && self.is_at(step, self.train.save_interval(self.samples))
    }

    /// Returns whether `step` is the last one or a multiple of `interval`; 0 has no multiples.
    fn is_at(&self, step: usize, interval: usize) -> bool {
        step == self.total_steps || step.is_multiple_of(interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps of transformers' golden run `eval_on_start_delay`, and epochs of 3 steps with a delay of 2 epochs.
    #[test]
    fn evaluations_begin_after_the_delay() {
        let mut train = TrainSection { eval_steps: 3, eval_delay: 5.0, ..TrainSection::default() };
        let evaluated = |train: &TrainSection, total: usize| -> Vec<usize> {
            let timetable = Timetable::new(train, 12, total);
            (1..=total).filter(|step| timetable.evaluates(*step)).collect()
        };
        assert_eq!(evaluated(&train, 12), [6, 9, 12]);
        assert_eq!(evaluated(&train, 7), [6, 7]);
        assert_eq!(evaluated(&train, 4), [0; 0]);
        train.eval_strategy = IntervalStrategy::Epoch;
        train.eval_delay = 2.0;
        assert_eq!(evaluated(&train, 11), [6, 9, 11]);
        train.eval_strategy = IntervalStrategy::No;
        assert_eq!(evaluated(&train, 11), [0; 0]);
    }
}
