//! Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), like transformers' `Adafactor` with the settings of its `Trainer`:
//! without momentum, with the given learning rate (`scale_parameter` and `relative_step` are off).

use arithmo_backends::TrainBackend;
use burn::tensor::Tensor;

use super::{Update, UpdateRule, Updated, shrink};

/// Term added to squared gradients.
const EPSILON: f64 = 1e-30;

/// Largest root mean square of an update before the learning rate.
const CLIP_THRESHOLD: f64 = 1.0;

/// Exponent of the step in the decay of the averages.
const DECAY_RATE: f64 = -0.8;

/// Adafactor. Of a matrix, it keeps the means of squared gradients of each row and of each column. Of a vector, which is a
/// matrix of one row here, it keeps the mean of each value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl UpdateRule for Adafactor {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg_sq_row", "exp_avg_sq_col"]
    }

    fn state_dims(&self, [rows, columns]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, 1], [1, columns]]
    }

    fn step<B: TrainBackend>(&self, lr: f64, updates: Vec<Update<B>>) -> Vec<Updated<B>> {
        let updated = updates.into_iter().map(|update| {
            let decay = 1.0 - (update.step as f64).powf(DECAY_RATE);
            let squares = update.grad.clone().square() + EPSILON;
            let mut means = [squares.clone().mean_dim(1), squares.mean_dim(0)];
            for (mean, old) in means.iter_mut().zip(update.state) {
                *mean = old * decay + mean.clone() * (1.0 - decay);
            }
            let [rows, columns] = means;
            let step = update.grad.clone() * inverse_root(rows.clone(), columns.clone());
            let root_mean_square = step.clone().square().mean().sqrt();
            let excess = (root_mean_square / CLIP_THRESHOLD).clamp_min(1.0);
            let step = step / excess.unsqueeze();
            let param = update.param * shrink(lr, self.weight_decay, update.decays);
            Updated { param: param - step * lr, state: vec![rows, columns] }
        });
        updated.collect()
    }
}

/// Returns the factors that are applied to the gradient: the inverse root of the estimated mean of squared gradients, which
/// is `rows[i] * columns[j] / mean(rows)`. For a matrix of one row, this is `columns[j]`.
fn inverse_root<B: TrainBackend>(rows: Tensor<B, 2>, columns: Tensor<B, 2>) -> Tensor<B, 2> {
    let mean = rows.clone().mean_dim(0);
    (rows / mean).sqrt().recip() * columns.sqrt().recip()
}
