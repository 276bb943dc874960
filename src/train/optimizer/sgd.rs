//! Stochastic gradient descent, with momentum and Nesterov's form of it, like `torch.optim.SGD`.

use arithmo_backends::TrainBackend;

use super::{Update, UpdateRule, Updated, regularized};

/// Stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Decay of the running sum of gradients; 0 for none.
    pub momentum: f64,
    /// Fraction of the gradient that is left out of the running sum after the first step.
    pub dampening: f64,
    /// Whether to use Nesterov momentum.
    pub nesterov: bool,
    /// L2 regularization, added to the gradient.
    pub weight_decay: f64,
}

impl UpdateRule for Sgd {
    fn state_names(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let updated = updates.into_iter().map(|update| {
            let grad = regularized(&update, self.weight_decay);
            let Some(buffer) = update.state.into_iter().next() else {
                return Updated { param: update.param - grad * lr, state: Vec::new() };
            };
            let share = if update.step == 1 { 1.0 } else { 1.0 - self.dampening };
            let buffer = buffer * self.momentum + grad.clone() * share;
            let step =
                if self.nesterov { grad + buffer.clone() * self.momentum } else { buffer.clone() };
            Updated { param: update.param - step * lr, state: vec![buffer] }
        });
        updated.collect()
    }
}
