//! SPPO with hard labels: `(r_chosen - 1 / (2 β))^2 + (r_rejected + 1 / (2 β))^2`. Wu et al. 2024, arXiv 2405.00675,
//! equation 4.7 with probabilities 1 and 0.

use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: false, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let target = 0.5 / pairs.settings.beta;
    let ratios = pairs.ratios.clone();
    (ratios.chosen - target).square() + (ratios.rejected + target).square()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(settings: &LossSettings) -> Option<f64> {
    Some(0.5 / settings.beta.powi(2))
}
