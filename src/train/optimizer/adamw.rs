//! AdamW (arXiv 1711.05101) with torch's order of operations, for all parameters at once.

use arithmo_backends::{AdamWFactors, AdamWTensor, TrainBackend};

use super::{Update, UpdateRule, Updated, shrink};

/// AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Term added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl UpdateRule for AdamW {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    /// See [`arithmo_backends::ops::adamw`].
    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let tensors = updates.into_iter().map(|update| {
            let step = update.step as f64;
            let factors = AdamWFactors {
                beta1: self.beta1,
                beta2: self.beta2,
                epsilon: self.epsilon,
                shrink: shrink(lr, self.weight_decay, update.decays),
                step_size: lr / (1.0 - self.beta1.powf(step)),
                root_correction: (1.0 - self.beta2.powf(step)).sqrt(),
            };
            let [exp_avg, exp_avg_sq] = <[_; 2]>::try_from(update.state)
                .unwrap_or_else(|state| unreachable!("{} moments", state.len()));
            AdamWTensor { param: update.param, grad: update.grad, exp_avg, exp_avg_sq, factors }
        });
        let updates = B::adamw(tensors.collect()).into_iter();
        let updated = updates.map(|update| Updated {
            param: update.param,
            state: vec![update.exp_avg, update.exp_avg_sq],
        });
        updated.collect()
    }
}
