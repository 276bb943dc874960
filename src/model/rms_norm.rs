//! RMSNorm (arXiv 1910.07467), with Hugging Face's order of casts.

use arithmo_backends::{TrainBackend, ops::rms_norm::rms_norm};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use super::linear::{frozen_param, in_dtype};

/// `y = x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Module, Debug)]
pub struct RmsNorm<B: TrainBackend> {
    /// `[D]`
    pub weight: Param<Tensor<B, 1>>,
    /// The copy of the weight that an adapter trains in full ([`crate::adapter::saved`]), used in its place.
    pub trained: Option<Param<Tensor<B, 1>>>,
    /// Added to the mean square for numerical stability (`rms_norm_eps`).
    #[module(skip)]
    pub epsilon: f64,
    /// Whether the factor on the normalized values is `1 + weight`.
    #[module(skip)]
    pub unit_offset: bool,
}

impl<B: TrainBackend> RmsNorm<B> {
    /// Creates a norm with the frozen `weight` `[D]`.
    pub fn frozen(weight: Tensor<B, 1>, epsilon: f64, unit_offset: bool) -> Self {
        Self { weight: frozen_param(weight), trained: None, epsilon, unit_offset }
    }

    /// Returns the weight in use, `[D]`; if it is a trained copy, in the copy's dtype.
    pub fn val(&self) -> Tensor<B, 1> {
        self.trained.as_ref().unwrap_or(&self.weight).val()
    }

    /// Returns the factors on the normalized values, `[D]`, in `dtype`.
    pub(super) fn factors(&self, dtype: DType) -> Tensor<B, 1> {
        let weight = if self.unit_offset { self.val() + 1.0 } else { self.val() };
        in_dtype(weight, dtype)
    }

    /// Normalizes each token `[T, D]` to `[T, D]`, with statistics in f32 and the result in x's dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let weight = self.factors(x.dtype());
        rms_norm(x, weight, self.epsilon)
    }
}
