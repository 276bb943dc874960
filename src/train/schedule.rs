//! Learning-rate schedules of transformers (`get_scheduler`).

use serde::{Deserialize, Serialize};

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
    /// One over the square root of the step.
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
    /// Time scale of `inverse_sqrt`, in steps (default: the warmup, or 10000 without).
    pub timescale: Option<usize>,
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

/// Steps of warmup as transformers resolves them: `warmup_steps` in (0, 1) is a share of `total_steps`, rounded up;
/// `warmup_ratio` counts only where `warmup_steps` is 0.
pub fn resolve_warmup(warmup_steps: f64, warmup_ratio: Option<f64>, total_steps: usize) -> usize {
    let share = |ratio: f64| (ratio * total_steps as f64).ceil() as usize;
    if warmup_steps >= 1.0 {
        warmup_steps as usize
    } else if warmup_steps > 0.0 {
        share(warmup_steps)
    } else {
        share(warmup_ratio.unwrap_or(0.0))
    }
}
