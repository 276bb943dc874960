//! Selects the best step of a run by a held-out metric and stops a run that no longer improves, as transformers' `Trainer`
//! and its `EarlyStoppingCallback` do.

use serde::{Deserialize, Serialize};

use crate::config::TrainSection;

/// The rule by which evaluations are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Key of the metric in the log, such as `eval_loss`.
    pub metric: String,
    greater_is_better: bool,
    /// Number of evaluations without improvement after which the run stops.
    patience: Option<usize>,
    /// The improvement that early stopping asks for.
    threshold: f64,
}

/// The evaluation with the best metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestStep {
    /// Number of optimizer steps done.
    pub step: usize,
    /// Value of the metric.
    pub metric: f64,
}

/// What the evaluations of a run have shown so far. Saved in checkpoints, so that a resumed run decides the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Selected {
    /// The best evaluation so far.
    pub best: Option<BestStep>,
    /// Number of evaluations since the last one that improved by more than the threshold: `early_stopping_patience_counter` of
    /// transformers.
    pub without_improvement: usize,
}

impl Selection {
    /// Returns the rule of the configuration, or `None` if no setting compares evaluations.
    pub fn of(train: &TrainSection) -> Option<Self> {
        let metric = train.best_metric()?;
        Some(Self {
            greater_is_better: train.prefers_greater(),
            metric,
            patience: train.early_stopping_patience,
            threshold: train.early_stopping_threshold,
        })
    }

    /// Adds the evaluation after `step` and returns whether it is the best so far.
    ///
    /// Early stopping compares with the best evaluation before this one and needs an improvement of more than the threshold;
    /// the best step needs any improvement. NaN never improves.
    pub fn add(&self, selected: &mut Selected, step: usize, metric: f64) -> bool {
        let improvement = selected.best.map_or(f64::INFINITY, |best| {
            if self.greater_is_better { metric - best.metric } else { best.metric - metric }
        });
        let is_best = metric.is_finite() && improvement > 0.0;
        if is_best && improvement > self.threshold {
            selected.without_improvement = 0;
        } else {
            selected.without_improvement += 1;
        }
        if is_best {
            selected.best = Some(BestStep { step, metric });
        }
        is_best
    }

    /// Returns whether the run stops now.
    pub fn stops(&self, selected: &Selected) -> bool {
        self.patience.is_some_and(|patience| selected.without_improvement >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(greater_is_better: bool, patience: usize, threshold: f64) -> Selection {
        let metric = "eval_rewards/margins".to_string();
        Selection { metric, greater_is_better, patience: Some(patience), threshold }
    }

    /// Adds one metric after every third step until the run stops. Returns the best step and the last one.
    fn run(rule: &Selection, metrics: &[f64]) -> (usize, usize) {
        let (mut selected, mut step) = (Selected::default(), 0);
        for metric in metrics {
            step += 3;
            rule.add(&mut selected, step, *metric);
            if rule.stops(&selected) {
                break;
            }
        }
        (selected.best.unwrap().step, step)
    }

    #[test]
    fn equal_metrics_are_no_improvement() {
        let metrics = [0.5, 0.7, 0.7, 0.6, 0.8];
        assert_eq!(run(&selection(true, 2, 0.0), &metrics), (6, 12));
        assert_eq!(run(&selection(true, 3, 0.0), &metrics), (15, 15));
        // Lower is better: nothing improves on the first.
        assert_eq!(run(&selection(false, 3, 0.0), &metrics), (3, 12));
    }

    /// Small improvements move the best step, and the next one is compared with it: 0.5, 0.54, 0.58 never improve by 0.05.
    #[test]
    fn the_threshold_is_for_early_stopping_alone() {
        assert_eq!(run(&selection(true, 2, 0.05), &[0.5, 0.54, 0.58, 0.7]), (9, 9));
        assert_eq!(run(&selection(true, 2, 0.03), &[0.5, 0.54, 0.58, 0.7]), (12, 12));
    }

    #[test]
    fn nan_never_improves() {
        let rule = selection(false, 2, 0.0);
        assert_eq!(run(&rule, &[f64::NAN, 0.5, f64::NAN, f64::NAN, 0.1]), (6, 12));
    }

    #[test]
    fn the_rule_follows_the_configuration() {
        let mut train = TrainSection::default();
        assert_eq!(Selection::of(&train), None);
        train.load_best_model_at_end = true;
        let rule = Selection::of(&train).unwrap();
        assert_eq!((rule.metric.as_str(), rule.greater_is_better), ("eval_loss", false));
        train.metric_for_best_model = Some("rewards/margins".into());
        let rule = Selection::of(&train).unwrap();
        assert_eq!((rule.metric.as_str(), rule.greater_is_better), ("eval_rewards/margins", true));
        train.greater_is_better = Some(false);
        assert!(!Selection::of(&train).unwrap().greater_is_better);
    }
}
