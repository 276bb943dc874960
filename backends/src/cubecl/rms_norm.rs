//! Root-mean-square norm and its gradient; one block per row, statistics in f32. See [`crate::ops::rms_norm`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, block_sum, dense_rows, empty, vector_size, vector_sum};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;

/// Queues the forward kernel: see [`crate::TrainBackend::rms_norm`].
pub(crate) fn rms_norm<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: BurnTensor<B, 1>,
    epsilon: f64,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued_tensor(&x), queued_tensor(&weight)];
    let [y] = into_array(queue(Forward { epsilon }, inputs, &[output]));
    burn_tensor(y)
}

/// Queues the backward kernel: see [`crate::TrainBackend::rms_norm_backward`].
pub(crate) fn rms_norm_backward<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: BurnTensor<B, 1>,
    epsilon: f64,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued_tensor(&x), queued_tensor(&weight), queued_tensor(&grad)];
    let [d_x] = into_array(queue(BackwardPass { epsilon }, inputs, &[output]));
    burn_tensor(d_x)
}

#[derive(Debug)]
struct Forward {
    epsilon: f64,
}

impl Kernel for Forward {
    const NAME: &'static str = "rms_norm";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight] = into_array(inputs).map(dense_rows);
        let [tokens, width] = x.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let dtype = x.dtype.into();
        forward::launch::<R>(
            &output.client,
            block_grid(tokens),
            CubeDim::new_1d(THREADS as u32),
            vector_size(&[&x, &weight], &[width]),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.epsilon as f32,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

#[derive(Debug)]
struct BackwardPass {
    epsilon: f64,
}

impl Kernel for BackwardPass {
    const NAME: &'static str = "rms_norm_backward";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight, grad] = into_array(inputs).map(dense_rows);
        let [tokens, width] = x.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let dtype = x.dtype.into();
        backward::launch::<R>(
            &output.client,
            block_grid(tokens),
            CubeDim::new_1d(THREADS as u32),
            vector_size(&[&x, &weight, &grad], &[width]),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            grad.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.epsilon as f32,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

/// Normalizes one row per block and multiplies it by the weight.
#[cube(launch)]
fn forward<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let thread = UNIT_POS as usize;
    let width = x.shape(1);
    let vectors = width / N::value();
    let x_start = row * x.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = thread;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[x_start + i]);
        squares += v * v;
        i += threads;
    }
    let mean = block_sum(vector_sum(squares), threads) / f32::cast_from(width);
    let rms = Vector::<f32, N>::new((mean + epsilon).sqrt());
    let output_start = row * vectors;
    let mut i = thread;
    while i < vectors {
        // The quotient is rounded to the dtype before the multiplication by the weight, as Hugging Face does.
        let normed = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(x[x_start + i]) / rms);
        let scaled = Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(weight[i]);
        output[output_start + i] = Vector::<F, N>::cast_from(scaled);
        i += threads;
    }
}

/// Computes the gradient of `x`, one row per block.
///
/// With `g = grad * weight`: `dx = (g - x * mean(g x) / rms^2) / rms`.
#[cube(launch)]
fn backward<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let thread = UNIT_POS as usize;
    let width = x.shape(1);
    let vectors = width / N::value();
    let x_start = row * x.stride(0) / N::value();
    let grad_start = row * grad.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut dot_products = Vector::<f32, N>::new(0.0f32);
    let mut i = thread;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[x_start + i]);
        let g = Vector::<f32, N>::cast_from(grad[grad_start + i])
            * Vector::<f32, N>::cast_from(weight[i]);
        squares += v * v;
        dot_products += v * g;
        i += threads;
    }
    let count = f32::cast_from(width);
    let mean = block_sum(vector_sum(squares), threads) / count + epsilon;
    let projection = block_sum(vector_sum(dot_products), threads) / count / mean;
    let rms = Vector::<f32, N>::new(mean.sqrt());
    let projection = Vector::<f32, N>::new(projection);
    let output_start = row * vectors;
    let mut i = thread;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[x_start + i]);
        let g = Vector::<f32, N>::cast_from(grad[grad_start + i])
            * Vector::<f32, N>::cast_from(weight[i]);
        output[output_start + i] = Vector::<F, N>::cast_from((g - v * projection) / rms);
        i += threads;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        for width in [5, 48, 100] {
            let [x, grad] = [(); 2].map(|()| KernelInput::Floats([7, width]));
            let weight = || KernelInput::Vector(width);
            assert_same_when_pitched(&Forward { epsilon: 1e-3 }, &[x, weight()]);
            let x = KernelInput::Floats([7, width]);
            assert_same_when_pitched(&BackwardPass { epsilon: 1e-3 }, &[x, weight(), grad]);
        }
    }
}
