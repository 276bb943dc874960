//! SwiGLU, `silu(gate) * up`, GeGLU, `gelu(gate) * up`, and their gradients; one vector per thread. See
//! [`crate::ops::swiglu`] and [`crate::ops::geglu`].
//!
//! Both gates are `x sigmoid(v(x))`, with `v(x) = x` for SiLU and `v(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3)` for GELU. The
//! slope of the gate is `s (1 + x (1 - s) v'(x))` with `s = sigmoid(v(x))`.

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, dense_rows, empty, vector_size};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;
use crate::ops::geglu::{CUBIC, TWICE_ROOT};

/// The activation that is applied to the first half of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU by its approximation with tanh.
    GeluTanh,
}

/// Queues the forward kernel: see [`crate::TrainBackend::swiglu`] and [`crate::TrainBackend::geglu`].
pub(crate) fn gated<B: CubeGpu>(gate: Gate, gate_up: BurnTensor<B, 2>) -> BurnTensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    let output = ([tokens, width / 2].into(), gate_up.dtype());
    let [y] = into_array(queue(Forward(gate), vec![queued_tensor(&gate_up)], &[output]));
    burn_tensor(y)
}

/// Queues the backward kernel: see [`crate::TrainBackend::swiglu_backward`] and
/// [`crate::TrainBackend::geglu_backward`].
pub(crate) fn gated_backward<B: CubeGpu>(
    gate: Gate,
    gate_up: BurnTensor<B, 2>,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (gate_up.shape(), gate_up.dtype());
    let inputs = vec![queued_tensor(&gate_up), queued_tensor(&grad)];
    let [d_gate_up] = into_array(queue(BackwardPass(gate), inputs, &[output]));
    burn_tensor(d_gate_up)
}

#[derive(Debug)]
struct Forward(Gate);

impl Kernel for Forward {
    const NAME: &'static str = "gated";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [gate_up] = into_array(inputs).map(dense_rows);
        let [tokens, width] = gate_up.meta.shape().dims();
        let output = empty(&gate_up, [tokens, width / 2], gate_up.dtype);
        let vector = vector_size(&[&gate_up], &[width / 2]);
        let dtype = gate_up.dtype.into();
        forward::launch::<R>(
            &output.client,
            block_grid((tokens * width / 2 / vector).div_ceil(THREADS)),
            CubeDim::new_1d(THREADS as u32),
            vector,
            gate_up.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.0 == Gate::GeluTanh,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

#[derive(Debug)]
struct BackwardPass(Gate);

impl Kernel for BackwardPass {
    const NAME: &'static str = "gated_backward";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [gate_up, grad] = into_array(inputs).map(dense_rows);
        let [tokens, width] = gate_up.meta.shape().dims();
        let output = empty(&gate_up, [tokens, width], gate_up.dtype);
        let vector = vector_size(&[&gate_up, &grad], &[width / 2]);
        let dtype = gate_up.dtype.into();
        backward::launch::<R>(
            &output.client,
            block_grid((tokens * width / 2 / vector).div_ceil(THREADS)),
            CubeDim::new_1d(THREADS as u32),
            vector,
            gate_up.into_tensor_arg(),
            grad.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.0 == Gate::GeluTanh,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

/// Computes the gate times `up`; one vector per thread.
#[cube(launch)]
fn forward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] is_gelu: bool,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let index = CUBE_POS * threads + UNIT_POS as usize;
    let half = gate_up.shape(1) / 2 / N::value();
    let row = index / half;
    let column = index % half;
    if row >= gate_up.shape(0) {
        terminate!();
    }
    let from = row * gate_up.stride(0) / N::value() + column;
    let gate = Vector::<f32, N>::cast_from(gate_up[from]);
    let up = Vector::<f32, N>::cast_from(gate_up[from + half]);
    // The gate is rounded to the dtype before the multiplication, as Hugging Face does.
    let gated = Vector::<F, N>::cast_from(gate * sigmoid(exponent(gate, is_gelu)));
    output[index] = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(gated) * up);
}

/// Computes the gradients of gate and up side by side; one vector of each per thread.
#[cube(launch)]
fn backward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] is_gelu: bool,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let index = CUBE_POS * threads + UNIT_POS as usize;
    let half = gate_up.shape(1) / 2 / N::value();
    let row = index / half;
    let column = index % half;
    if row >= gate_up.shape(0) {
        terminate!();
    }
    let from = row * gate_up.stride(0) / N::value() + column;
    let gate = Vector::<f32, N>::cast_from(gate_up[from]);
    let up = Vector::<f32, N>::cast_from(gate_up[from + half]);
    let g = Vector::<f32, N>::cast_from(grad[row * grad.stride(0) / N::value() + column]);
    let s = sigmoid(exponent(gate, is_gelu));
    let one = Vector::<f32, N>::new(1.0f32);
    let slope = ((one - s) * gate * exponent_slope(gate, is_gelu) + one) * s;
    let to = row * 2 * half + column;
    output[to] = Vector::<F, N>::cast_from(g * up * slope);
    output[to + half] = Vector::<F, N>::cast_from(g * gate * s);
}

/// Computes `v(x)`: see the module.
#[cube]
fn exponent<N: Size>(x: Vector<f32, N>, #[comptime] is_gelu: bool) -> Vector<f32, N> {
    let mut v = x;
    if comptime!(is_gelu) {
        let cubic = Vector::<f32, N>::new(comptime!(CUBIC as f32));
        let one = Vector::<f32, N>::new(1.0f32);
        v = (x * x * cubic + one) * x * Vector::new(comptime!(TWICE_ROOT as f32));
    }
    v
}

/// Computes `v'(x)`.
#[cube]
fn exponent_slope<N: Size>(x: Vector<f32, N>, #[comptime] is_gelu: bool) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let mut slope = one;
    if comptime!(is_gelu) {
        let cubic = Vector::<f32, N>::new(comptime!(3.0 * CUBIC as f32));
        slope = (x * x * cubic + one) * Vector::new(comptime!(TWICE_ROOT as f32));
    }
    slope
}

/// Computes `1 / (1 + exp(-x))`, which is 0 where the exponential overflows.
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    // CubeCL 0.10 translates the negation of a vector to C++ that CUDA's compiler refuses.
    let minus_x = Vector::new(0.0f32) - x;
    one / (one + minus_x.exp())
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        for width in [5, 48, 100] {
            let gate_up = || KernelInput::Floats([7, 2 * width]);
            for gate in [Gate::Silu, Gate::GeluTanh] {
                let grad = KernelInput::Floats([7, width]);
                assert_same_when_pitched(&Forward(gate), &[gate_up()]);
                assert_same_when_pitched(&BackwardPass(gate), &[gate_up(), grad]);
            }
        }
    }
}
