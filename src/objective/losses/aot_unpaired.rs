//! AOT, unpaired: cDPO's loss of `δ = sort(r_chosen) - sort(r_rejected)`, both sorted within the micro-batch. Melnyk et al.
//! 2024, arXiv 2406.05882.

use std::f64::consts::LN_2;

use burn::tensor::{Tensor, backend::Backend};

use super::cdpo::smoothed;
use super::sort::sorted;
use super::{LossInput, LossSettings, Uses};

/// The settings that change this loss.
pub(super) const USES: Uses = Uses { scores: false, label_smoothing: true, batch: true };

/// Computes the loss of each pair, `[N]`.
pub(super) fn losses<B: Backend>(pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
    let sorted = pairs.ratios.clone().map(|ratios| sorted(ratios, pairs.micro_batches));
    smoothed(sorted.difference(), pairs.settings)
}

/// Returns the loss of a policy that equals its reference.
pub(super) fn at_zero(_settings: &LossSettings) -> Option<f64> {
    Some(LN_2)
}
