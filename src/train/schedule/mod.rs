//! The learning-rate schedules of transformers (`get_scheduler` in `optimization.py`) as pure functions of the step.

mod kwargs;
mod plateau;

use std::f64::consts::PI;

pub use kwargs::{PhaseShape, PlateauMode, SchedulerKwargs, SchedulerType, ThresholdMode};
pub use plateau::{Plateau, PlateauState};

use crate::error::Result;

/// Returns the number of warmup steps by transformers' rules. A `warmup_steps` in (0, 1) is a fraction of `total_steps`,
/// rounded up. `warmup_ratio` is used only if `warmup_steps` is 0.
pub fn resolve_warmup(warmup_steps: f64, warmup_ratio: Option<f64>, total_steps: usize) -> usize {
    let steps = |ratio: f64| (ratio * total_steps as f64).ceil() as usize;
    if warmup_steps >= 1.0 {
        warmup_steps as usize
    } else if warmup_steps > 0.0 {
        steps(warmup_steps)
    } else {
        steps(warmup_ratio.unwrap_or(0.0))
    }
}

/// The learning rate of every optimizer step of a run.
#[derive(Clone, Debug)]
pub struct Schedule {
    kind: SchedulerType,
    base_lr: f64,
    warmup_steps: usize,
    total_steps: usize,
    kwargs: SchedulerKwargs,
}

impl Schedule {
    /// Creates the schedule `kind` with its peak at `base_lr` for `total_steps` optimizer steps, of which the first
    /// `warmup_steps` (see [`resolve_warmup`]) are the warmup.
    ///
    /// # Errors
    /// Same as [`SchedulerKwargs::check`].
    pub fn new(
        kind: SchedulerType,
        base_lr: f64,
        warmup_steps: usize,
        total_steps: usize,
        kwargs: &SchedulerKwargs,
    ) -> Result<Self> {
        kwargs.check(kind, base_lr)?;
        Ok(Self { kind, base_lr, warmup_steps, total_steps, kwargs: kwargs.clone() })
    }

    /// Returns the learning rate of optimizer step `step`, counted from 0. With warmup, step 0 has the rate 0, as in
    /// transformers. For `reduce_lr_on_plateau` this is the rate before any reduction (see [`Plateau`]).
    pub fn rate(&self, step: usize) -> f64 {
        self.base_lr * self.factor(step)
    }

    /// Returns the rate of `step` as a fraction of the peak.
    fn factor(&self, step: usize) -> f64 {
        let kwargs = &self.kwargs;
        let in_warmup = step < self.warmup_steps;
        let warmup_factor = step as f64 / self.warmup_steps.max(1) as f64;
        match self.kind {
            SchedulerType::Constant | SchedulerType::ReduceLrOnPlateau => 1.0,
            SchedulerType::WarmupStableDecay => self.three_phases(step),
            SchedulerType::CosineWarmupWithMinLr => self.cosine_shifted(step),
            _ if in_warmup => warmup_factor,
            SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => {
                let remaining = self.total_steps as f64 - step as f64;
                (remaining / self.steps_after_warmup()).max(0.0)
            }
            SchedulerType::Cosine => wave(kwargs.num_cycles.unwrap_or(0.5), self.progress(step)),
            SchedulerType::CosineWithMinLr => {
                let factor = wave(kwargs.num_cycles.unwrap_or(0.5), self.progress(step));
                with_minimum(factor, kwargs.min_factor(self.base_lr))
            }
            SchedulerType::CosineWithRestarts => {
                let progress = self.progress(step);
                if progress >= 1.0 {
                    return 0.0;
                }
                let within = (kwargs.num_cycles.unwrap_or(1.0) * progress).fract();
                (0.5 * (1.0 + (PI * within).cos())).max(0.0)
            }
            SchedulerType::Polynomial => self.polynomial(step),
            SchedulerType::InverseSqrt => {
                let default = match self.warmup_steps {
                    0 => 10_000.0,
                    warmup => warmup as f64,
                };
                let scale = kwargs.timescale.unwrap_or(default);
                let shift = scale - self.warmup_steps as f64;
                1.0 / ((step as f64 + shift) / scale).sqrt()
            }
        }
    }

    /// Returns the number of steps after the warmup, at least 1.
    fn steps_after_warmup(&self) -> f64 {
        self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64
    }

    /// Returns the progress of the steps after the warmup, from 0 at its end to 1 after the last step.
    fn progress(&self, step: usize) -> f64 {
        (step as f64 - self.warmup_steps as f64) / self.steps_after_warmup()
    }

    /// Returns the factor of `polynomial`.
    fn polynomial(&self, step: usize) -> f64 {
        let end = self.kwargs.lr_end() / self.base_lr;
        if step > self.total_steps || self.total_steps <= self.warmup_steps {
            return end;
        }
        let remaining = 1.0 - self.progress(step);
        (1.0 - end) * remaining.powf(self.kwargs.power.unwrap_or(1.0)) + end
    }

    /// Returns the factor of `cosine_warmup_with_min_lr`. It is one step ahead of the other cosines, so that step 0 is not
    /// at 0 and the last step is at the minimum.
    fn cosine_shifted(&self, step: usize) -> f64 {
        let kwargs = &self.kwargs;
        if step < self.warmup_steps {
            return match kwargs.warmup_lr_rate {
                None => (step as f64 + 1.0) / self.warmup_steps as f64,
                Some(first) => {
                    let progress = step as f64 / self.warmup_steps.saturating_sub(1).max(1) as f64;
                    first + (1.0 - first) * progress
                }
            };
        }
        let cycles = kwargs.num_cycles.unwrap_or(0.5);
        with_minimum(wave(cycles, self.progress(step + 1)), kwargs.min_factor(self.base_lr))
    }

    /// Returns the factor of `warmup_stable_decay`, with its phases warmup, plateau and decay.
    fn three_phases(&self, step: usize) -> f64 {
        let kwargs = &self.kwargs;
        let min = kwargs.min_lr_ratio.unwrap_or(0.0);
        let (step, warmup) = (step as f64, self.warmup_steps as f64);
        let decay = kwargs.num_decay_steps.unwrap_or(0) as f64;
        let stable = match kwargs.num_stable_steps {
            Some(steps) => steps as f64,
            None => self.total_steps as f64 - warmup - decay,
        };
        if step < warmup {
            let progress = step / warmup.max(1.0);
            let factor = match kwargs.warmup_type.unwrap_or(PhaseShape::Linear) {
                PhaseShape::Linear => progress,
                PhaseShape::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                PhaseShape::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            };
            with_minimum(factor, min)
        } else if step < warmup + stable {
            1.0
        } else if step < warmup + stable + decay {
            let progress = (step - warmup - stable) / decay.max(1.0);
            let factor = match kwargs.decay_type.unwrap_or(PhaseShape::Cosine) {
                PhaseShape::Linear => 1.0 - progress,
                PhaseShape::Cosine => wave(kwargs.num_cycles.unwrap_or(0.5), progress),
                PhaseShape::OneMinusSqrt => 1.0 - progress.sqrt(),
            };
            with_minimum(factor, min)
        } else {
            min
        }
    }
}

/// Returns a cosine wave between 1 and 0, which starts at 1 and has `cycles` waves over a progress from 0 to 1.
fn wave(cycles: f64, progress: f64) -> f64 {
    (0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())).max(0.0)
}

/// Maps a factor from `[0, 1]` to `[min, 1]`.
fn with_minimum(factor: f64, min: f64) -> f64 {
    (factor * (1.0 - min) + min).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulerType::*;

    fn schedule(kind: SchedulerType, warmup: usize, total: usize, kwargs: &str) -> Schedule {
        let kwargs = toml::from_str(kwargs).unwrap();
        Schedule::new(kind, 2e-4, warmup, total, &kwargs).unwrap()
    }

    fn assert_rates<const N: usize>(schedule: &Schedule, steps: [usize; N], factors: [f64; N]) {
        for (step, factor) in steps.into_iter().zip(factors) {
            let (rate, expected) = (schedule.rate(step), 2e-4 * factor);
            let error = (rate - expected).abs();
            assert!(error <= 1e-16, "{:?} step {step}: {rate}, expected {expected}", schedule.kind);
        }
    }

    #[test]
    fn warmup_climbs_from_zero_then_each_shape_falls() {
        // With 4 + 8 steps, two of the eight are a progress of 1/4, and cos(pi/4) = 1/sqrt(2).
        let quarter = 0.5 * (1.0 + 0.5_f64.sqrt());
        assert_rates(
            &schedule(Cosine, 4, 12, ""),
            [0, 1, 4, 6, 8, 12],
            [0.0, 0.25, 1.0, quarter, 0.5, 0.0],
        );
        assert_rates(&schedule(Linear, 4, 12, ""), [3, 4, 6, 12, 13], [0.75, 1.0, 0.75, 0.0, 0.0]);
        assert_rates(&schedule(Constant, 4, 12, ""), [0, 20], [1.0, 1.0]);
        assert_rates(&schedule(ConstantWithWarmup, 4, 12, ""), [0, 2, 4, 20], [0.0, 0.5, 1.0, 1.0]);
        assert_rates(&schedule(InverseSqrt, 4, 12, ""), [0, 2, 4, 16], [0.0, 0.5, 1.0, 0.5]);
        assert_rates(&schedule(InverseSqrt, 0, 12, ""), [0, 30_000], [1.0, 0.5]);
    }

    #[test]
    fn cycles_and_restarts() {
        // Three half waves over 12 steps have 4 steps each and are halfway down at the second.
        let restarts = schedule(CosineWithRestarts, 0, 12, "num_cycles = 3");
        assert_rates(&restarts, [0, 2, 4, 6, 8, 12], [1.0, 0.5, 1.0, 0.5, 1.0, 0.0]);
        // A whole wave comes back up.
        assert_rates(
            &schedule(Cosine, 0, 8, "num_cycles = 1.0"),
            [0, 2, 4, 8],
            [1.0, 0.5, 0.0, 1.0],
        );
    }

    #[test]
    fn polynomial_ends_at_lr_end() {
        // The peak is 2e-4 and the end 1e-4. Halfway, the square of the remaining half is a quarter.
        let squared = schedule(Polynomial, 2, 10, "lr_end = 1e-4\npower = 2.0");
        assert_rates(&squared, [1, 2, 6, 10, 11], [0.5, 1.0, 0.5 + 0.5 * 0.25, 0.5, 0.5]);
        // A warmup as long as the run gives the end value, not a division by zero.
        assert_rates(&schedule(Polynomial, 10, 10, "lr_end = 1e-4"), [9, 10], [0.9, 0.5]);
    }

    #[test]
    fn cosines_with_a_minimum() {
        for kwargs in ["min_lr = 5e-5", "min_lr_rate = 0.25"] {
            let plain = schedule(CosineWithMinLr, 2, 10, kwargs);
            assert_rates(&plain, [0, 1, 2, 6, 10], [0.0, 0.5, 1.0, 0.625, 0.25]);
            // This one is a step ahead of `plain`, so that the last step (9) has the minimum.
            let shifted = schedule(CosineWarmupWithMinLr, 2, 10, kwargs);
            assert_rates(&shifted, [0, 1, 5, 9], [0.5, 1.0, 0.625, 0.25]);
        }
        let first = schedule(CosineWarmupWithMinLr, 5, 10, "min_lr = 0.0\nwarmup_lr_rate = 0.2");
        assert_rates(&first, [0, 1, 4], [0.2, 0.4, 1.0]);
    }

    #[test]
    fn warmup_stable_decay_has_three_phases() {
        let linear = schedule(
            WarmupStableDecay,
            4,
            20,
            "num_decay_steps = 8\ndecay_type = \"linear\"\nmin_lr_ratio = 0.5",
        );
        assert_rates(
            &linear,
            [0, 2, 4, 11, 12, 14, 20, 99],
            [0.5, 0.75, 1.0, 1.0, 1.0, 0.875, 0.5, 0.5],
        );
        let roots = "num_decay_steps = 4\nnum_stable_steps = 3\nwarmup_type = \"1-sqrt\"\ndecay_type = \"1-sqrt\"";
        let roots = schedule(WarmupStableDecay, 4, 99, roots);
        assert_rates(&roots, [3, 4, 6, 7, 8, 11, 50], [0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]);
        let cosine =
            schedule(WarmupStableDecay, 4, 12, "num_decay_steps = 4\nwarmup_type = \"cosine\"");
        assert_rates(&cosine, [2, 8, 10, 12], [0.5, 1.0, 0.5, 0.0]);
        // If warmup and decay overlap, the plateau is negative, as in transformers, and nothing panics.
        assert_rates(
            &schedule(WarmupStableDecay, 4, 6, "num_decay_steps = 4\ndecay_type = \"linear\""),
            [4, 5],
            [0.5, 0.25],
        );
    }

    #[test]
    fn warmup_given_as_a_fraction_is_rounded_up() {
        assert_eq!(resolve_warmup(0.1, None, 61), 7);
        assert_eq!(resolve_warmup(1.0, None, 61), 1);
        assert_eq!(resolve_warmup(0.0, Some(0.1), 61), 7);
        assert_eq!(resolve_warmup(3.0, Some(0.1), 61), 3);
        assert_eq!(resolve_warmup(0.0, None, 61), 0);
    }
}
