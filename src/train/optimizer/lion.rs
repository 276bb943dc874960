//! Lion (Chen et al. 2023, arXiv 2302.06675), like bitsandbytes' `Lion` in 32 bits.

use arithmo_backends::TrainBackend;

use super::{Update, UpdateRule, Updated, shrink};

/// Lion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// Weight of the momentum in the direction of the update, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the momentum, in `[0, 1)`.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl UpdateRule for Lion {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg"]
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let updated = updates.into_iter().map(|update| {
            let mut state = update.state.into_iter();
            let momentum = state.next().unwrap_or_else(|| update.grad.zeros_like());
            let direction =
                momentum.clone() * self.beta1 + update.grad.clone() * (1.0 - self.beta1);
            let param = update.param * shrink(lr, self.weight_decay, update.decays);
            let momentum = momentum * self.beta2 + update.grad * (1.0 - self.beta2);
            Updated { param: param - direction.sign() * lr, state: vec![momentum] }
        });
        updated.collect()
    }
}
