//! Conservative DPO: `-(1 - ε) log σ(β Δ) - ε log σ(-β Δ)`, for labels of which a share ε is flipped. Mitchell 2023,
//! "A note on DPO with noisy preferences"; `label_smoothing` of TRL up to 0.28, which TRL 1.x ignores for `sigmoid`.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: true, label_smoothing: true, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    smoothed(pairs.delta(), pairs.settings)
}

/// Computes `-(1 - ε) log σ(β δ) - ε log σ(-β δ)`.
pub(in crate::objective) fn smoothed<B: Backend>(
    delta: Tensor<B, 1>,
    settings: &LossSettings,
) -> Tensor<B, 1> {
    let (logits, epsilon) = (delta * settings.beta, settings.label_smoothing);
    let flipped = log_sigmoid(logits.clone().neg()) * epsilon;
    (log_sigmoid(logits) * (1.0 - epsilon) + flipped).neg()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(LN_2)
}
