//! `silu(gate) * up`, with `silu(x) = x * sigmoid(x)`: the element-wise product in SwiGLU (arXiv 2002.05202).
//!
//! It is one operation because Burn's sigmoid computes in f32 for any input dtype, and because its backward needs
//! only gate and up, whereas the separate operations would keep four tensors of that size. Gate and up lie side by
//! side, as the projections of one input return them.

use burn::tensor::{Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Computes `silu(gate) * up`. The sigmoid is computed in f32 (f64 for f64 input).
///
/// # Shapes
/// - gate_up: `[T, 2 I]`, with the gate in the first half of each row
/// - returns `[T, I]`, in the same dtype
///
/// # Panics
/// If the width is odd.
pub fn swiglu<B: TrainBackend>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    assert!(width.is_multiple_of(2), "swiglu: the width of [{tokens}, {width}] is odd");
    B::swiglu(gate_up)
}

/// The reference body of [`TrainBackend::swiglu`].
pub fn reference<B: Backend>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up);
    let gate = gate.cast(accumulator(dtype));
    (gate.clone() * sigmoid(gate)).cast(dtype) * up
}

/// The reference body of [`TrainBackend::swiglu_backward`]: the gradients of gate and up side by side, `[T, 2 I]`.
///
/// With `s = sigmoid(gate)`: `d up = grad * gate s`, `d gate = grad * up * s (1 + gate (1 - s))`.
pub fn reference_backward<B: Backend>(gate_up: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up).map(|t| t.cast(accumulator(dtype)));
    let grad = grad.cast(accumulator(dtype));
    let sigmoid = sigmoid(gate.clone());
    let slope = ((sigmoid.clone().neg() + 1.0) * gate.clone() + 1.0) * sigmoid.clone();
    let d_gate = grad.clone() * up * slope;
    let d_up = grad * gate * sigmoid;
    Tensor::cat(vec![d_gate, d_up], 1).cast(dtype)
}

/// Returns the gate and up columns.
pub(super) fn halves<B: Backend>(gate_up: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    let half = gate_up.dims()[1] / 2;
    [gate_up.clone().narrow(1, 0, half), gate_up.narrow(1, half, half)]
}

/// Computes `1 / (1 + exp(-x))`, which is 0 where the exponential overflows.
pub(super) fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    (x.neg().exp() + 1.0).recip()
}
