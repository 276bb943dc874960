//! SwiGLU, `silu(gate) * up`, and its gradient; one vector per thread. See [`crate::ops::swiglu`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, dense_rows, empty, vector_size};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;

/// Queues the forward kernel: see [`crate::TrainBackend::swiglu`].
pub(crate) fn swiglu<B: CubeGpu>(gate_up: BurnTensor<B, 2>) -> BurnTensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    let output = ([tokens, width / 2].into(), gate_up.dtype());
    let [y] = into_array(queue(Forward, vec![queued_tensor(&gate_up)], &[output]));
    burn_tensor(y)
}

/// Queues the backward kernel: see [`crate::TrainBackend::swiglu_backward`].
pub(crate) fn swiglu_backward<B: CubeGpu>(
    gate_up: BurnTensor<B, 2>,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (gate_up.shape(), gate_up.dtype());
    let inputs = vec![queued_tensor(&gate_up), queued_tensor(&grad)];
    let [d_gate_up] = into_array(queue(BackwardPass, inputs, &[output]));
    burn_tensor(d_gate_up)
}

#[derive(Debug)]
struct Forward;

impl Kernel for Forward {
    const NAME: &'static str = "swiglu";

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
            THREADS,
            dtype,
        );
        vec![output]
    }
}

#[derive(Debug)]
struct BackwardPass;

impl Kernel for BackwardPass {
    const NAME: &'static str = "swiglu_backward";

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
            THREADS,
            dtype,
        );
        vec![output]
    }
}

/// Computes `silu(gate) * up`; one vector per thread.
#[cube(launch)]
fn forward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
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
    let gated = Vector::<F, N>::cast_from(gate * sigmoid(gate));
    output[index] = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(gated) * up);
}

/// Computes the gradients of gate and up side by side; one vector of each per thread.
#[cube(launch)]
fn backward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
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
    let s = sigmoid(gate);
    let one = Vector::<f32, N>::new(1.0f32);
    let slope = ((one - s) * gate + one) * s;
    let to = row * 2 * half + column;
    output[to] = Vector::<F, N>::cast_from(g * up * slope);
    output[to + half] = Vector::<F, N>::cast_from(g * gate * s);
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
            assert_same_when_pitched(&Forward, &[gate_up()]);
            assert_same_when_pitched(&BackwardPass, &[gate_up(), KernelInput::Floats([7, width])]);
        }
    }
}
