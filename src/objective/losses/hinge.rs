//! SLiC's hinge loss: `max(0, 1 - β Δ)`. Zhao et al. 2023, arXiv 2305.10425, with log-ratios to the reference as in
//! arXiv 2309.06657.

use burn::tensor::activation::relu;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    relu((pairs.delta() * pairs.settings.beta).neg() + 1.0)
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(1.0)
}
