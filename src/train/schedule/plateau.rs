//! The schedule `reduce_lr_on_plateau`: torch's `ReduceLROnPlateau`, which lowers the learning rate when a held-out metric
//! stops improving.

use serde::{Deserialize, Serialize};

use super::kwargs::{PlateauMode, SchedulerKwargs, SchedulerType, ThresholdMode};

/// The rule by which the learning rate is lowered, with torch's names and defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    mode: PlateauMode,
    factor: f64,
    patience: usize,
    threshold: f64,
    threshold_mode: ThresholdMode,
    cooldown: usize,
    min_lr: f64,
    eps: f64,
}

/// The state of the schedule. Saved in checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// Learning rate of the next step.
    pub learning_rate: f64,
    /// Best metric so far. `None` before the first evaluation.
    best: Option<f64>,
    /// Number of evaluations without improvement.
    bad_evaluations: usize,
    /// Number of evaluations that are still not counted after the last reduction.
    cooldown: usize,
}

impl PlateauState {
    /// Creates the state before the first evaluation.
    pub fn new(learning_rate: f64) -> Self {
        Self { learning_rate, best: None, bad_evaluations: 0, cooldown: 0 }
    }
}

impl Plateau {
    /// Returns the rule with the settings `kwargs`, or `None` if `kind` is another schedule.
    pub fn of(kind: SchedulerType, kwargs: &SchedulerKwargs) -> Option<Self> {
        (kind == SchedulerType::ReduceLrOnPlateau).then(|| Self {
            mode: kwargs.mode.unwrap_or_default(),
            factor: kwargs.factor.unwrap_or(0.1),
            patience: kwargs.patience.unwrap_or(10),
            threshold: kwargs.threshold.unwrap_or(1e-4),
            threshold_mode: kwargs.threshold_mode.unwrap_or_default(),
            cooldown: kwargs.cooldown.unwrap_or(0),
            min_lr: kwargs.min_lr.unwrap_or(0.0),
            eps: kwargs.eps.unwrap_or(1e-8),
        })
    }

    /// Adds the metric of an evaluation, which may lower the learning rate of the next steps.
    pub fn add(&self, state: &mut PlateauState, metric: f64) {
        if self.improves(metric, state.best) {
            state.best = Some(metric);
            state.bad_evaluations = 0;
        } else {
            state.bad_evaluations += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad_evaluations = 0;
        }
        if state.bad_evaluations > self.patience {
            let lowered = (state.learning_rate * self.factor).max(self.min_lr);
            if state.learning_rate - lowered > self.eps {
                state.learning_rate = lowered;
            }
            state.cooldown = self.cooldown;
            state.bad_evaluations = 0;
        }
    }

    /// Returns whether `metric` is better than `best` by more than the threshold. NaN never is.
    fn improves(&self, metric: f64, best: Option<f64>) -> bool {
        let Some(best) = best else {
            return metric.is_finite();
        };
        match (self.mode, self.threshold_mode) {
            (PlateauMode::Min, ThresholdMode::Rel) => metric < best * (1.0 - self.threshold),
            (PlateauMode::Min, ThresholdMode::Abs) => metric < best - self.threshold,
            (PlateauMode::Max, ThresholdMode::Rel) => metric > best * (1.0 + self.threshold),
            (PlateauMode::Max, ThresholdMode::Abs) => metric > best + self.threshold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: the metric improves twice, then the third evaluation in a row without improvement, one more than the
    /// patience of 2, lowers the rate, and the minimum stops the next reduction. NaN counts as no improvement.
    #[test]
    fn the_rate_falls_after_more_evaluations_than_the_patience() {
        let kwargs = SchedulerKwargs {
            factor: Some(0.25),
            patience: Some(2),
            min_lr: Some(1e-2),
            ..SchedulerKwargs::default()
        };
        let rule = Plateau::of(SchedulerType::ReduceLrOnPlateau, &kwargs).unwrap();
        let mut state = PlateauState::new(0.1);
        let metrics = [f64::NAN, 2.0, 1.0, 1.0, f64::NAN, 1.0, 1.5, 1.5, 1.5];
        let rates = metrics.map(|metric| {
            rule.add(&mut state, metric);
            state.learning_rate
        });
        assert_eq!(rates, [0.1, 0.1, 0.1, 0.1, 0.1, 0.025, 0.025, 0.025, 0.01]);
        assert_eq!(Plateau::of(SchedulerType::Cosine, &kwargs), None);
    }
}
