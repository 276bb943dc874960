//! The types and parameters of learning-rate schedules, under their names in transformers' `TrainingArguments`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The type of a schedule: `lr_scheduler_type` of TrainingArguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Linear decay to 0 at the last step.
    Linear,
    /// Decay to 0 along half a cosine wave.
    #[default]
    Cosine,
    /// Decay along several half cosine waves, each starting at the peak (`num_cycles`, default 1).
    CosineWithRestarts,
    /// Decay by a power of the remaining fraction of steps, to `lr_end` (default 1e-7; `power` defaults to 1).
    Polynomial,
    /// The peak throughout, without warmup.
    Constant,
    /// The peak after warmup.
    ConstantWithWarmup,
    /// The peak times the square root of warmup steps over step (of 10000 over step if there is no warmup), or of `timescale`.
    InverseSqrt,
    /// Decay along half a cosine wave to `min_lr` or `min_lr_rate`.
    CosineWithMinLr,
    /// Same as `CosineWithMinLr`, with a warmup that starts at `warmup_lr_rate`.
    CosineWarmupWithMinLr,
    /// Warmup, a plateau, and a decay (`num_decay_steps`).
    WarmupStableDecay,
    /// Reduction when the held-out metric `metric_for_best_model` stops improving, without warmup: torch's
    /// `ReduceLROnPlateau`.
    ReduceLrOnPlateau,
}

impl SchedulerType {
    /// Returns whether the schedule has a warmup, as all but `constant` and `reduce_lr_on_plateau` do.
    pub fn has_warmup(self) -> bool {
        !matches!(self, Self::Constant | Self::ReduceLrOnPlateau)
    }

    /// Returns the `lr_scheduler_kwargs` that the schedule uses.
    fn kwargs(self) -> &'static [&'static str] {
        match self {
            Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::InverseSqrt => &["timescale"],
            Self::ReduceLrOnPlateau => &[
                "mode",
                "factor",
                "patience",
                "threshold",
                "threshold_mode",
                "cooldown",
                "min_lr",
                "eps",
            ],
            Self::Cosine | Self::CosineWithRestarts => &["num_cycles"],
            Self::Polynomial => &["lr_end", "power"],
            Self::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
            Self::CosineWarmupWithMinLr => {
                &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"]
            }
            Self::WarmupStableDecay => &[
                "num_cycles",
                "num_decay_steps",
                "num_stable_steps",
                "warmup_type",
                "decay_type",
                "min_lr_ratio",
            ],
        }
    }
}

/// The parameters of a schedule: `lr_scheduler_kwargs` of TrainingArguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerKwargs {
    /// Number of cosine waves. Half a wave is one decay (default 0.5, and 1 for restarts).
    pub num_cycles: Option<f64>,
    /// Last learning rate of `polynomial`.
    pub lr_end: Option<f64>,
    /// Exponent of `polynomial`.
    pub power: Option<f64>,
    /// Minimum learning rate of a cosine, or of `reduce_lr_on_plateau` (default 0).
    pub min_lr: Option<f64>,
    /// Minimum learning rate of a cosine as a fraction of the peak.
    pub min_lr_rate: Option<f64>,
    /// First learning rate of `cosine_warmup_with_min_lr` as a fraction of the peak.
    pub warmup_lr_rate: Option<f64>,
    /// Number of steps of the decay of `warmup_stable_decay`.
    pub num_decay_steps: Option<usize>,
    /// Number of steps of the plateau of `warmup_stable_decay` (default: all steps without warmup and decay).
    pub num_stable_steps: Option<usize>,
    /// Shape of the warmup of `warmup_stable_decay`.
    pub warmup_type: Option<PhaseShape>,
    /// Shape of the decay of `warmup_stable_decay`.
    pub decay_type: Option<PhaseShape>,
    /// Minimum learning rate of `warmup_stable_decay` as a fraction of the peak.
    pub min_lr_ratio: Option<f64>,
    /// Number of steps by which `inverse_sqrt` divides (default: the warmup steps, or 10000 if there are none).
    pub timescale: Option<f64>,
    /// Whether `reduce_lr_on_plateau` expects the metric to fall (`"min"`, the default) or to rise (`"max"`).
    pub mode: Option<PlateauMode>,
    /// Factor by which `reduce_lr_on_plateau` multiplies the learning rate (default 0.1).
    pub factor: Option<f64>,
    /// Number of evaluations without improvement that `reduce_lr_on_plateau` allows (default 10).
    pub patience: Option<usize>,
    /// Smallest improvement that `reduce_lr_on_plateau` counts (default 1e-4).
    pub threshold: Option<f64>,
    /// Whether `threshold` is relative to the best metric (`"rel"`, the default) or absolute (`"abs"`).
    pub threshold_mode: Option<ThresholdMode>,
    /// Number of evaluations after a reduction that `reduce_lr_on_plateau` does not count (default 0).
    pub cooldown: Option<usize>,
    /// Smallest reduction of the learning rate that `reduce_lr_on_plateau` makes (default 1e-8).
    pub eps: Option<f64>,
}

impl SchedulerKwargs {
    /// Checks that the parameters fit the schedule `kind` with its peak at `base_lr`.
    ///
    /// # Errors
    /// A parameter is not used by `kind`, is missing, or is out of range. The error names the key, as in
    /// `train.lr_scheduler_kwargs.num_cycles`.
    pub fn check(&self, kind: SchedulerType, base_lr: f64) -> Result<()> {
        let at = |key: &str| match key {
            "" => "train.lr_scheduler_kwargs".to_string(),
            key => format!("train.lr_scheduler_kwargs.{key}"),
        };
        let shown = serde_json::to_string(&kind).unwrap_or_default();
        for (key, number) in self.named_values() {
            let known = kind.kwargs();
            if !known.contains(&key) {
                let problem = format!("{shown} does not use it");
                let remedy = match known {
                    [] => "remove the key: this schedule takes none".to_string(),
                    known => format!("remove the key: this schedule takes {}", known.join(", ")),
                };
                return Err(Error::invalid(at(key), problem, remedy));
            }
            if !(number.is_finite() && number >= 0.0) {
                let problem = format!("must be a finite number, 0 or more, is {number}");
                return Err(Error::invalid(at(key), problem, "correct the value"));
            }
        }
        let lacks = |key: &str, why: &str| Err(Error::invalid(at(key), why, "correct the key"));
        match kind {
            SchedulerType::Polynomial if base_lr <= self.lr_end() => lacks(
                "lr_end",
                &format!("{} is not below learning_rate = {base_lr}", self.lr_end()),
            ),
            SchedulerType::CosineWithMinLr | SchedulerType::CosineWarmupWithMinLr => {
                match (self.min_lr, self.min_lr_rate) {
                    (None, None) => lacks("", "needs min_lr or min_lr_rate"),
                    (Some(_), Some(_)) => lacks("min_lr", "contradicts min_lr_rate: give one"),
                    (Some(_), None) if base_lr == 0.0 => {
                        lacks("min_lr", "needs a learning_rate above 0")
                    }
                    _ => Ok(()),
                }
            }
            SchedulerType::ReduceLrOnPlateau if self.factor.is_some_and(|factor| factor >= 1.0) => {
                lacks("factor", "must be below 1, so that the learning rate falls")
            }
            SchedulerType::InverseSqrt if self.timescale == Some(0.0) => {
                lacks("timescale", "must be above 0: the schedule divides by it")
            }
            SchedulerType::WarmupStableDecay if self.num_decay_steps.is_none() => {
                lacks("num_decay_steps", "is missing: the schedule needs it")
            }
            _ => Ok(()),
        }
    }

    /// Returns the names and values of the parameters that are set. A name has the value 0.
    fn named_values(&self) -> Vec<(&'static str, f64)> {
        let steps = |value: Option<usize>| value.map(|steps| steps as f64);
        let shape = |value: Option<PhaseShape>| value.map(|_| 0.0);
        let threshold_mode = self.threshold_mode.map(|_| 0.0);
        [
            ("num_cycles", self.num_cycles),
            ("lr_end", self.lr_end),
            ("power", self.power),
            ("min_lr", self.min_lr),
            ("min_lr_rate", self.min_lr_rate),
            ("warmup_lr_rate", self.warmup_lr_rate),
            ("num_decay_steps", steps(self.num_decay_steps)),
            ("num_stable_steps", steps(self.num_stable_steps)),
            ("warmup_type", shape(self.warmup_type)),
            ("decay_type", shape(self.decay_type)),
            ("min_lr_ratio", self.min_lr_ratio),
            ("timescale", self.timescale),
            ("mode", self.mode.map(|_| 0.0)),
            ("factor", self.factor),
            ("patience", steps(self.patience)),
            ("threshold", self.threshold),
            ("threshold_mode", threshold_mode),
            ("cooldown", steps(self.cooldown)),
            ("eps", self.eps),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }

    pub(super) fn lr_end(&self) -> f64 {
        self.lr_end.unwrap_or(1e-7)
    }

    /// Returns the minimum rate of a cosine as a fraction of the peak.
    pub(super) fn min_factor(&self, base_lr: f64) -> f64 {
        match self.min_lr {
            Some(min_lr) => min_lr / base_lr,
            None => self.min_lr_rate.unwrap_or(0.0),
        }
    }
}

/// Shape of a phase of `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseShape {
    /// A straight line.
    Linear,
    /// Half a cosine wave.
    Cosine,
    /// One minus the square root of the progress.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Direction in which the metric of `reduce_lr_on_plateau` improves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMode {
    /// Smaller is better.
    #[default]
    Min,
    /// Larger is better.
    Max,
}

/// How `reduce_lr_on_plateau` compares an improvement with its threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// As a fraction of the best metric.
    #[default]
    Rel,
    /// As a difference.
    Abs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulerType::*;

    #[test]
    fn kwargs_that_a_schedule_does_not_use_are_refused() {
        let refused = |kind, kwargs: &str| {
            let kwargs: SchedulerKwargs = toml::from_str(kwargs).unwrap();
            kwargs.check(kind, 2e-4).unwrap_err().to_string()
        };
        assert!(
            refused(Linear, "num_cycles = 2")
                .contains("kwargs.num_cycles: \"linear\" does not use it")
        );
        assert!(refused(Cosine, "num_cycles = nan").contains("finite"));
        assert!(refused(Cosine, "num_cycles = -1").contains("0 or more"));
        assert!(refused(Polynomial, "lr_end = 1e-3").contains("not below learning_rate"));
        assert!(refused(CosineWithMinLr, "").contains("needs min_lr or min_lr_rate"));
        assert!(refused(CosineWithMinLr, "min_lr = 1e-5\nmin_lr_rate = 0.1").contains("give one"));
        assert!(refused(WarmupStableDecay, "").contains("num_decay_steps: is missing"));
        assert!(refused(ReduceLrOnPlateau, "factor = 1.0").contains("below 1"));
        assert!(refused(InverseSqrt, "timescale = 0.0").contains("above 0"));
        assert!(refused(ReduceLrOnPlateau, "num_cycles = 1").contains("takes mode, factor"));
        assert!(
            refused(Cosine, "patience = 3").contains("kwargs.patience: \"cosine\" does not use")
        );
    }
}
