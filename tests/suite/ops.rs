//! Checks the gradients of every operation through autodiff, with the results that `arithmo_backends::conformance` computes
//! in f64. `backends/tests/kernels.rs` checks the operations themselves, forward and backward, on many more cases.

use arithmo_backends::TrainBackend;
use arithmo_backends::conformance::{
    AdaptedLinear, Linear, LogProbs, Operation, RmsNorm, Rope, Rule, SelfAttention, Swiglu,
    check_gradients, check_saturated_gates,
};

/// Frozen projections by floats, by packed and by split weights.
pub fn linear<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, Linear>(Rule::Operation, Linear::quick(), device);
}

/// Projections with branches, dropout and a residual.
pub fn adapted_linear<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, AdaptedLinear>(Rule::Operation, AdaptedLinear::quick(), device);
}

/// RMSNorm, rotary embedding and SwiGLU.
pub fn row_wise<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, RmsNorm>(Rule::Operation, RmsNorm::quick(), device);
    check_gradients::<B, Rope>(Rule::Operation, Rope::quick(), device);
    check_gradients::<B, Swiglu>(Rule::Operation, Swiglu::quick(), device);
    check_saturated_gates::<B>(device);
}

/// Attention: grouped queries, padding, shared prompts, hidden keys, windows, selected queries.
pub fn attention<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, SelfAttention>(Rule::Operation, SelfAttention::quick(), device);
}

/// Log-probabilities of targets with their statistics.
pub fn log_probs<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, LogProbs>(Rule::Operation, LogProbs::quick(), device);
}
