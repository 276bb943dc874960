//! The names and numbers of a schedule, by their names in transformers' `TrainingArguments`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// TrainingArguments' `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Straight down to 0 at the last step.
    Linear,
    /// Half a cosine wave down to 0.
    #[default]
    Cosine,
    /// Several half waves, each starting at the peak (`num_cycles`, default 1).
    CosineWithRestarts,
    /// A power of the remaining share, down to `lr_end` (default 1e-7; `power` default 1).
    Polynomial,
    /// The peak throughout, no warmup.
    Constant,
    /// The peak after warmup.
    ConstantWithWarmup,
    /// The square root of warmup over step (of 10000 over step, without warmup).
    InverseSqrt,
    /// A cosine wave down to `min_lr` or `min_lr_rate`.
    CosineWithMinLr,
    /// The same, with warmup starting at `warmup_lr_rate`.
    CosineWarmupWithMinLr,
    /// Warmup, a plateau, a decay (`num_decay_steps`).
    WarmupStableDecay,
    /// Follows a metric. Not built yet.
    ReduceLrOnPlateau,
}

impl SchedulerType {
    /// Whether the warmup steps count: all but `constant`.
    pub fn has_warmup(self) -> bool {
        self != Self::Constant
    }

    /// The `lr_scheduler_kwargs` the schedule has a use for.
    fn kwargs(self) -> &'static [&'static str] {
        match self {
            Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::InverseSqrt | Self::ReduceLrOnPlateau => &[],
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

/// TrainingArguments' `lr_scheduler_kwargs`: the numbers of a schedule, by their names in transformers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerKwargs {
    /// Waves: a half is one way down (default 0.5; for restarts 1).
    pub num_cycles: Option<f64>,
    /// Last learning rate of `polynomial`.
    pub lr_end: Option<f64>,
    /// Exponent of `polynomial`.
    pub power: Option<f64>,
    /// Lowest learning rate of a cosine.
    pub min_lr: Option<f64>,
    /// The same as a share of the peak.
    pub min_lr_rate: Option<f64>,
    /// First learning rate of `cosine_warmup_with_min_lr`, as a share of the peak.
    pub warmup_lr_rate: Option<f64>,
    /// Steps of the last phase of `warmup_stable_decay`.
    pub num_decay_steps: Option<usize>,
    /// Steps of its middle phase (default: what warmup and decay leave).
    pub num_stable_steps: Option<usize>,
    /// Shape of its first phase.
    pub warmup_type: Option<PhaseShape>,
    /// Shape of its last phase.
    pub decay_type: Option<PhaseShape>,
    /// Its lowest learning rate, as a share of the peak.
    pub min_lr_ratio: Option<f64>,
}

impl SchedulerKwargs {
    /// Refuses what `kind` has no use for, what it lacks, and numbers out of range.
    ///
    /// # Errors
    /// The key, as `train.lr_scheduler_kwargs.num_cycles`.
    pub fn check(&self, kind: SchedulerType, base_lr: f64) -> Result<()> {
        let at = |key: &str| match key {
            "" => "train.lr_scheduler_kwargs".to_string(),
            key => format!("train.lr_scheduler_kwargs.{key}"),
        };
        let shown = serde_json::to_string(&kind).unwrap_or_default();
        if kind == SchedulerType::ReduceLrOnPlateau {
            let remedy = "choose a schedule that depends on the step alone, as \"cosine\"";
            let problem = format!("{shown} is not built yet");
            return Err(Error::invalid("train.lr_scheduler_type", problem, remedy));
        }
        for (key, number) in self.given() {
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
            SchedulerType::WarmupStableDecay if self.num_decay_steps.is_none() => {
                lacks("num_decay_steps", "is missing: the schedule needs it")
            }
            _ => Ok(()),
        }
    }

    /// Names and values of what is set; a shape counts as 0.
    fn given(&self) -> Vec<(&'static str, f64)> {
        let steps = |value: Option<usize>| value.map(|steps| steps as f64);
        let shape = |value: Option<PhaseShape>| value.map(|_| 0.0);
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
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }

    pub(super) fn lr_end(&self) -> f64 {
        self.lr_end.unwrap_or(1e-7)
    }

    /// Lowest rate of a cosine as a share of the peak.
    pub(super) fn min_share(&self, base_lr: f64) -> f64 {
        match self.min_lr {
            Some(lowest) => lowest / base_lr,
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
    /// One minus a square root.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulerType::*;

    #[test]
    fn kwargs_a_schedule_cannot_honour_are_refused() {
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
        assert!(refused(ReduceLrOnPlateau, "").contains("not built yet"));
    }
}
