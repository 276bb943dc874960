//! RMSNorm (arXiv 1910.07467), with Hugging Face's order of casts.

use arithmo_backends::TrainBackend;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::linear::{accumulator, frozen_param};

/// `y = x / sqrt(mean(x^2) + eps) * weight`, with a frozen weight.
#[derive(Module, Debug)]
pub struct RmsNorm<B: TrainBackend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square (`rms_norm_eps`).
    #[module(skip)]
    pub epsilon: f64,
}

impl<B: TrainBackend> RmsNorm<B> {
    /// A norm with `weight` `[D]`.
    pub fn frozen(weight: Tensor<B, 1>, epsilon: f64) -> Self {
        Self {
            weight: frozen_param(weight),
            epsilon,
        }
    }

    /// Normalises the last dimension: `[B, S, D]` to `[B, S, D]`, statistics in f32, result in x's dtype.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let dtype = x.dtype();
        let x = x.clone().cast(accumulator(&x));
        let mean_square = x.clone().square().mean_dim(2);
        let normed = x / (mean_square + self.epsilon).sqrt();
        normed.cast(dtype) * self.weight.val().unsqueeze()
    }
}
