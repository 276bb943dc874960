//! AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137), like bitsandbytes' `AdEMAMix` without schedules for alpha and beta3.

use arithmo_backends::TrainBackend;

use super::{Update, UpdateRule, Updated, shrink};

/// AdEMAMix: AdamW with a second, slower average of the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdEmaMix {
    /// Decays of the fast average, of the squares and of the slow average, each in `[0, 1)`.
    pub betas: [f64; 3],
    /// Weight of the slow average.
    pub alpha: f64,
    /// Term added to the root of the squares.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl UpdateRule for AdEmaMix {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_slow", "exp_avg_sq"]
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let [beta1, beta2, beta3] = self.betas;
        let updated = updates.into_iter().map(|update| {
            let grad = &update.grad;
            let squares = grad.clone().square();
            let mut state = update.state.into_iter();
            let mut average = |values, beta: f64| match state.next() {
                Some(old) => old * beta + values * (1.0 - beta),
                None => values * (1.0 - beta),
            };
            let fast = average(grad.clone(), beta1);
            let slow = average(grad.clone(), beta3);
            let squares = average(squares, beta2);
            let step = update.step as f64;
            let momentum = fast.clone() / (1.0 - beta1.powf(step)) + slow.clone() * self.alpha;
            let root = squares.clone().sqrt() / (1.0 - beta2.powf(step)).sqrt() + self.epsilon;
            let param = update.param * shrink(lr, self.weight_decay, update.decays);
            Updated { param: param - momentum / root * lr, state: vec![fast, slow, squares] }
        });
        updated.collect()
    }
}
