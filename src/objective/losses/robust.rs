//! Robust DPO: `(-(1 - ε) log σ(β Δ) + ε log σ(-β Δ)) / (1 - 2 ε)`, an unbiased estimate of DPO's loss if a share ε of the
//! labels is flipped. Chowdhury et al. 2024, arXiv 2403.00409.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: true, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    // With `log σ(-x) = log σ(x) - x`, nothing is divided by the small difference of two large terms.
    let logits = pairs.delta() * pairs.settings.beta;
    let epsilon = pairs.settings.label_smoothing;
    log_sigmoid(logits.clone()).neg() - logits * (epsilon / (1.0 - 2.0 * epsilon))
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(LN_2)
}
