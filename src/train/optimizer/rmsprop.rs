//! RMSprop, the optimizer of the DPO paper (arXiv 2305.18290, appendix B), like `torch.optim.RMSprop`.

use arithmo_backends::TrainBackend;

use super::{Update, UpdateRule, Updated, regularized};

/// RMSprop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// Decay of the running mean of squared gradients, in `[0, 1)`.
    pub alpha: f64,
    /// Term added to the root of that mean.
    pub epsilon: f64,
    /// Decay of the running sum of steps; 0 for none.
    pub momentum: f64,
    /// Whether the squared gradients are taken around their running mean.
    pub centered: bool,
    /// L2 regularization, added to the gradient.
    pub weight_decay: f64,
}

impl UpdateRule for RmsProp {
    fn state_names(&self) -> &'static [&'static str] {
        match (self.centered, self.momentum != 0.0) {
            (false, false) => &["square_avg"],
            (false, true) => &["square_avg", "momentum_buffer"],
            (true, false) => &["square_avg", "grad_avg"],
            (true, true) => &["square_avg", "grad_avg", "momentum_buffer"],
        }
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let updated = updates.into_iter().map(|update| {
            let grad = regularized(&update, self.weight_decay);
            let mut state = update.state.into_iter();
            let mut next = || state.next().unwrap_or_else(|| grad.zeros_like());
            let square_avg = next() * self.alpha + grad.clone().square() * (1.0 - self.alpha);
            let mut kept = vec![square_avg.clone()];
            let mean = if self.centered {
                let grad_avg = next() * self.alpha + grad.clone() * (1.0 - self.alpha);
                kept.push(grad_avg.clone());
                square_avg - grad_avg.square()
            } else {
                square_avg
            };
            let mut step = grad.clone() / (mean.sqrt() + self.epsilon);
            if self.momentum != 0.0 {
                step = next() * self.momentum + step;
                kept.push(step.clone());
            }
            Updated { param: update.param - step * lr, state: kept }
        });
        updated.collect()
    }
}
