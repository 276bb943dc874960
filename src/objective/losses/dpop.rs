//! DPO-Positive: `-log σ(β (Δ - λ max(0, -r_chosen)))`, which keeps chosen completions from becoming less likely. Pal et al.
//! 2024, arXiv 2402.13228, equation 3.

use std::f64::consts::LN_2;

use burn::tensor::activation::{log_sigmoid, relu};
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let penalty = relu(pairs.ratios.chosen.clone().neg()) * pairs.settings.dpop_lambda;
    log_sigmoid((pairs.delta() - penalty) * pairs.settings.beta).neg()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(LN_2)
}
