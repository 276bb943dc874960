//! NCA: `-log σ(β r_chosen) - ½ log σ(-β r_chosen) - ½ log σ(-β r_rejected)`. Chen et al. 2024, arXiv 2402.05369.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: false, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let rewards = pairs.ratios.clone().map(|ratios| ratios * pairs.settings.beta);
    let noise = log_sigmoid(rewards.chosen.clone().neg()) + log_sigmoid(rewards.rejected.neg());
    log_sigmoid(rewards.chosen).neg() - noise * 0.5
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(2.0 * LN_2)
}
