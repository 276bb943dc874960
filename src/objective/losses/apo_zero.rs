//! APO-zero: `1 - σ(β r_chosen) + σ(β r_rejected)`, for chosen completions that are better than the model's own.
//! D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7.

use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses, sigmoid};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: false, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let rewards = pairs.ratios.clone().map(|ratios| ratios * pairs.settings.beta);
    sigmoid(rewards.rejected) - sigmoid(rewards.chosen) + 1.0
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(1.0)
}
