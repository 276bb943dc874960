//! EXO: `σ(β Δ) (log σ(β Δ) - log(1 - ε)) + σ(-β Δ) (log σ(-β Δ) - log ε)`, the divergence of the policy's preference from
//! the smoothed label. Ji et al. 2024, arXiv 2402.00856, equation 16. ε must be above 0.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses, sigmoid};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: true, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let logits = pairs.delta() * pairs.settings.beta;
    let epsilon = pairs.settings.label_smoothing;
    let term = |logits: Tensor<B, 1>, log_label: f64| {
        sigmoid(logits.clone()) * (log_sigmoid(logits) - log_label)
    };
    term(logits.clone(), (-epsilon).ln_1p()) + term(logits.neg(), epsilon.ln())
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(settings: &LossSettings) -> Option<f64> {
    Some(-LN_2 - 0.5 * ((-settings.label_smoothing).ln_1p() + settings.label_smoothing.ln()))
}
