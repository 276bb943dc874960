//! Cross-entropy of the chosen completions, averaged over the tokens of the micro-batch as in TRL (arXiv 2404.19733,
//! equation 1, averages over each completion). It keeps chosen answers likely when `log p` of both sides would decrease.

use burn::tensor::{Tensor, backend::Backend};

use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: false, label_smoothing: false, batch: false };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    pairs.cross_entropy.clone()
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    None
}
