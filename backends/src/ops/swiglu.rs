//! `silu(gate) * up`, with `silu(x) = x * sigmoid(x)`: the product inside SwiGLU (arXiv 2002.05202).
//!
//! One operation because Burn's sigmoid computes in f32 whatever it is given, and because backward needs no more than
//! gate and up, where the separate operations would keep four tensors of their size.

use burn::tensor::{Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Gates `up`. The sigmoid is computed in f32 (f64 for f64 input).
///
/// # Shapes
/// - gate, up: `[B, S, I]`, of one dtype
/// - returns `[B, S, I]`, of that dtype
///
/// # Panics
/// If shapes or dtypes differ.
pub fn swiglu<B: TrainBackend>(gate: Tensor<B, 3>, up: Tensor<B, 3>) -> Tensor<B, 3> {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "swiglu: gate and up must have one shape"
    );
    assert_eq!(
        gate.dtype(),
        up.dtype(),
        "swiglu: gate and up must have one dtype"
    );
    B::swiglu(gate, up)
}

/// The reference body of [`TrainBackend::swiglu`].
pub fn reference<B: Backend>(gate: Tensor<B, 3>, up: Tensor<B, 3>) -> Tensor<B, 3> {
    let dtype = gate.dtype();
    let gate = gate.cast(accumulator(dtype));
    (gate.clone() * sigmoid(gate)).cast(dtype) * up
}

/// The reference body of [`TrainBackend::swiglu_backward`]: the gradients of gate and up. With `s = sigmoid(gate)`:
/// `d up = grad * gate s`, `d gate = grad * up * s (1 + gate (1 - s))`.
pub fn reference_backward<B: Backend>(
    gate: Tensor<B, 3>,
    up: Tensor<B, 3>,
    grad: Tensor<B, 3>,
) -> [Tensor<B, 3>; 2] {
    let dtype = gate.dtype();
    let [gate, up, grad] = [gate, up, grad].map(|t| t.cast(accumulator(dtype)));
    let sigmoid = sigmoid(gate.clone());
    let slope = ((sigmoid.clone().neg() + 1.0) * gate.clone() + 1.0) * sigmoid.clone();
    let d_gate = grad.clone() * up * slope;
    let d_up = grad * gate * sigmoid;
    [d_gate.cast(dtype), d_up.cast(dtype)]
}

/// `1 / (1 + exp(-x))`: 0 where the exponential overflows.
fn sigmoid<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    (x.neg().exp() + 1.0).recip()
}
