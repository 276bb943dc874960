//! DiscoPOP: `-log σ(β Δ) (1 - m) + exp(-β Δ) m` with `m = σ(β Δ / τ)`. Lu et al. 2024, arXiv 2406.08414, equation 5.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses, sigmoid};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let logits = pairs.delta() * pairs.settings.beta;
    let scaled = logits.clone() / pairs.settings.discopop_tau;
    let logistic = log_sigmoid(logits.clone()).neg() * sigmoid(scaled.clone().neg());
    // `exp(-β Δ) m` as one exponential: the first factor alone may overflow where `m` is 0.
    logistic + (log_sigmoid(scaled) - logits).exp()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(0.5 * LN_2 + 0.5)
}
