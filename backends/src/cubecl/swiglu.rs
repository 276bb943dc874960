//! `silu(gate) * up` and its gradient, a vector a unit. See [`crate::ops::swiglu`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty, rows, vector_size};
use super::queue::{CubeGpu, Kernel, fixed, queue, queued, tensor};

/// [`crate::TrainBackend::swiglu`].
pub(crate) fn swiglu<B: CubeGpu>(gate_up: BurnTensor<B, 2>) -> BurnTensor<B, 2> {
    let [tokens, width] = gate_up.dims();
    let output = ([tokens, width / 2].into(), gate_up.dtype());
    let [y] = fixed(queue(Forward, vec![queued(&gate_up)], &[output]));
    tensor(y)
}

/// [`crate::TrainBackend::swiglu_backward`].
pub(crate) fn swiglu_backward<B: CubeGpu>(
    gate_up: BurnTensor<B, 2>,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (gate_up.shape(), gate_up.dtype());
    let inputs = vec![queued(&gate_up), queued(&grad)];
    let [d] = fixed(queue(BackwardPass, inputs, &[output]));
    tensor(d)
}

#[derive(Debug)]
struct Forward;

impl Kernel for Forward {
    const NAME: &'static str = "swiglu";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [gate_up] = fixed(inputs).map(rows);
        let [tokens, width] = gate_up.meta.shape().dims();
        let output = empty(&gate_up, [tokens, width / 2], gate_up.dtype);
        let vector = vector_size(&[&gate_up], &[width / 2]);
        let dtype = gate_up.dtype.into();
        forward::launch::<R>(
            &output.client,
            cubes((tokens * width / 2 / vector).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            gate_up.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            UNITS,
            dtype,
        );
        vec![output]
    }
}

#[derive(Debug)]
struct BackwardPass;

impl Kernel for BackwardPass {
    const NAME: &'static str = "swiglu_backward";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [gate_up, grad] = fixed(inputs).map(rows);
        let [tokens, width] = gate_up.meta.shape().dims();
        let output = empty(&gate_up, [tokens, width], gate_up.dtype);
        let vector = vector_size(&[&gate_up, &grad], &[width / 2]);
        let dtype = gate_up.dtype.into();
        backward::launch::<R>(
            &output.client,
            cubes((tokens * width / 2 / vector).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            gate_up.into_tensor_arg(),
            grad.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            UNITS,
            dtype,
        );
        vec![output]
    }
}

#[cube(launch)]
fn forward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let index = CUBE_POS * units + UNIT_POS as usize;
    let half = gate_up.shape(1) / 2 / N::value();
    let row = index / half;
    let column = index % half;
    if row >= gate_up.shape(0) {
        terminate!();
    }
    let from = row * gate_up.stride(0) / N::value() + column;
    let gate = Vector::<f32, N>::cast_from(gate_up[from]);
    let up = Vector::<f32, N>::cast_from(gate_up[from + half]);
    // Rounded to the dtype before the product, as Hugging Face does.
    let gated = Vector::<F, N>::cast_from(gate * sigmoid(gate));
    output[index] = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(gated) * up);
}

#[cube(launch)]
fn backward<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let index = CUBE_POS * units + UNIT_POS as usize;
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

/// `1 / (1 + exp(-x))`: 0 where the exponential overflows.
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (-x).exp())
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        for width in [5, 48, 100] {
            let gate_up = || Given::Floats([7, 2 * width]);
            same_when_pitched(&Forward, &[gate_up()]);
            same_when_pitched(&BackwardPass, &[gate_up(), Given::Floats([7, width])]);
        }
    }
}
