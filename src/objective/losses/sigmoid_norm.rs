//! DPO on scores averaged over tokens: `-log σ(β (s_chosen / tokens - s_rejected / tokens))`.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    log_sigmoid(pairs.scores_per_token().difference() * pairs.settings.beta).neg()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(LN_2)
}
