//! Checks the gradients of every operation through autodiff, with the results that `arithmo_backends::conformance` computes
//! in f64. `backends/tests/kernels/main.rs` checks the operations themselves, forward and backward, on many more cases.

use arithmo_backends::conformance::{
    AdaptedLinear, Geglu, HeadNorm, Linear, LogProbs, Operation, RmsNorm, Rope, Rule,
    SelfAttention, Swiglu, check_gradients, check_saturated_gates,
};
use arithmo_backends::ops::dropout;
use arithmo_backends::{DropoutMask, TrainBackend};
use burn::tensor::Element;

/// Frozen projections by floats, by packed and by split weights.
pub fn linear<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, Linear>(Rule::Operation, Linear::quick(), device);
}

/// Projections with branches, dropout and a residual.
pub fn adapted_linear<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, AdaptedLinear>(Rule::Operation, AdaptedLinear::quick(), device);
}

/// Dropout masks: the operation and its reference equal the words of the generator on the host.
pub fn dropout_masks<B: TrainBackend>(device: &B::Device) {
    let dtype = B::FloatElem::dtype();
    for (shape, p, seed) in
        [([7, 5], 0.5, 3), ([1, 1], 0.05, u64::MAX), ([33, 64], 0.3, 1 << 40), ([130, 129], 0.9, 0)]
    {
        let mask = DropoutMask { shape, p, seed, stream: 77, dtype };
        let count = shape[0] * shape[1];
        let expected = (0..count.div_ceil(4)).flat_map(|block| mask.block(block));
        let expected: Vec<f32> = expected.take(count).collect();
        for ours in [B::dropout_mask(&mask, device), dropout::reference::<B>(&mask, device)] {
            assert_eq!(ours.dims(), shape);
            let ours: Vec<f32> = ours.into_data().iter::<f32>().collect();
            assert_eq!(ours, expected, "{mask:?}");
        }
    }
}

/// RMSNorm, also of each head, rotary embedding, SwiGLU and GeGLU.
pub fn row_wise<B: TrainBackend>(device: &B::Device) {
    check_gradients::<B, RmsNorm>(Rule::Operation, RmsNorm::quick(), device);
    check_gradients::<B, HeadNorm>(Rule::Operation, HeadNorm::quick(), device);
    check_gradients::<B, Rope>(Rule::Operation, Rope::quick(), device);
    check_gradients::<B, Swiglu>(Rule::Operation, Swiglu::quick(), device);
    check_gradients::<B, Geglu>(Rule::Operation, Geglu::quick(), device);
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
