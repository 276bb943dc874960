//! RMSNorm (arXiv 1910.07467), with Hugging Face's order of casts.

use arithmo_backends::{TrainBackend, ops::rms_norm::rms_norm};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::linear::frozen_param;

/// `y = x / sqrt(mean(x^2) + eps) * weight`, with a frozen weight.
#[derive(Module, Debug)]
pub struct RmsNorm<B: TrainBackend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square for numerical stability (`rms_norm_eps`).
    #[module(skip)]
    pub epsilon: f64,
}

impl<B: TrainBackend> RmsNorm<B> {
    /// Creates a norm with the frozen `weight` `[D]`.
    pub fn frozen(weight: Tensor<B, 1>, epsilon: f64) -> Self {
        Self { weight: frozen_param(weight), epsilon }
    }

    /// Normalizes each token `[T, D]` to `[T, D]`, with statistics in f32 and the result in x's dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rms_norm(x, self.weight.val(), self.epsilon)
    }
}
