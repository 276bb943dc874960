//! Adagrad (Duchi et al. 2011), like `torch.optim.Adagrad`.

use arithmo_backends::TrainBackend;

use super::{Update, UpdateRule, Updated, regularized};

/// Adagrad.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adagrad {
    /// Decay of the learning rate: it is divided by `1 + (step - 1) * lr_decay`.
    pub lr_decay: f64,
    /// Term added to the root of the sum of squares.
    pub epsilon: f64,
    /// L2 regularization, added to the gradient.
    pub weight_decay: f64,
}

impl UpdateRule for Adagrad {
    fn state_names(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let updated = updates.into_iter().map(|update| {
            let grad = regularized(&update, self.weight_decay);
            let lr = lr / (1.0 + (update.step - 1) as f64 * self.lr_decay);
            let squares = grad.clone().square();
            let sum = update.state.into_iter().fold(squares, |squares, sum| sum + squares);
            let step = grad / (sum.clone().sqrt() + self.epsilon);
            Updated { param: update.param - step * lr, state: vec![sum] }
        });
        updated.collect()
    }
}
