//! `gelu(gate) * up` with the tanh approximation of GELU (arXiv 1606.08415): the element-wise product in GeGLU
//! (arXiv 2002.05202). Since `(1 + tanh(u)) / 2 = sigmoid(2 u)`, `gelu(x) = x sigmoid(2 u(x))` with
//! `u(x) = sqrt(2 / pi) (x + 0.044715 x^3)`.
//!
//! It is one operation for the reasons of [`super::swiglu`].

use burn::tensor::{Tensor, backend::Backend};

use super::accumulator;
use super::swiglu::{halves, sigmoid};
use crate::TrainBackend;

/// `2 sqrt(2 / pi)`.
pub(crate) const TWICE_ROOT: f64 = 1.595_769_121_605_730_7;

/// Coefficient of the cube.
pub(crate) const CUBIC: f64 = 0.044_715;

/// Computes `gelu(gate) * up`, in f32 (f64 for f64 input).
///
/// # Shapes
/// - gate_up: `[T, 2 I]`, with the gate in the first half of each row
/// - returns `[T, I]`, in the same dtype
///
/// # Panics
/// If the width is odd.
pub fn geglu<B: TrainBackend>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    assert!(width.is_multiple_of(2), "geglu: the width of [{tokens}, {width}] is odd");
    B::geglu(gate_up)
}

/// The reference body of [`TrainBackend::geglu`].
pub fn reference<B: Backend>(gate_up: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up);
    let gate = gate.cast(accumulator(dtype));
    (gate.clone() * sigmoid(twice_u(gate))).cast(dtype) * up
}

/// The reference body of [`TrainBackend::geglu_backward`]: the gradients of gate and up side by side, `[T, 2 I]`.
///
/// With `s = sigmoid(2 u)`: `d up = grad * gate s`, `d gate = grad * up * s (1 + gate (1 - s) 2 u')`.
pub fn reference_backward<B: Backend>(gate_up: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up).map(|t| t.cast(accumulator(dtype)));
    let grad = grad.cast(accumulator(dtype));
    let s = sigmoid(twice_u(gate.clone()));
    let twice_slope = (gate.clone().square() * (3.0 * CUBIC) + 1.0) * TWICE_ROOT;
    let slope = ((s.clone().neg() + 1.0) * gate.clone() * twice_slope + 1.0) * s.clone();
    let d_gate = grad.clone() * up * slope;
    let d_up = grad * gate * s;
    Tensor::cat(vec![d_gate, d_up], 1).cast(dtype)
}

/// Computes `2 u(x)`.
fn twice_u<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    (x.clone().square() * CUBIC + 1.0) * x * TWICE_ROOT
}
