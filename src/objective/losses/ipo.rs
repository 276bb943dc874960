//! IPO: `(s_chosen / tokens - s_rejected / tokens - 1 / (2 β))^2`. Azar et al. 2023, arXiv 2310.12036, equation 17, with
//! scores averaged over tokens as its authors recommend.

use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    (pairs.scores_per_token().difference() - 0.5 / pairs.settings.beta).square()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(settings: &LossSettings) -> Option<f64> {
    Some((0.5 / settings.beta).powi(2))
}
