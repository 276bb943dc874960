//! Root-mean-square norm and its gradient: one cube a row, statistics in f32. See [`crate::ops::rms_norm`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cube_sum, cubes, empty, rows, vector_size, vector_sum};
use super::queue::{CubeGpu, Kernel, fixed, queue, queued, tensor};

/// [`crate::TrainBackend::rms_norm`].
pub(crate) fn rms_norm<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: BurnTensor<B, 1>,
    epsilon: f64,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued(&x), queued(&weight)];
    let [y] = fixed(queue(Forward { epsilon }, inputs, &[output]));
    tensor(y)
}

/// [`crate::TrainBackend::rms_norm_backward`].
pub(crate) fn rms_norm_backward<B: CubeGpu>(
    x: BurnTensor<B, 2>,
    weight: BurnTensor<B, 1>,
    epsilon: f64,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (x.shape(), x.dtype());
    let inputs = vec![queued(&x), queued(&weight), queued(&grad)];
    let [d_x] = fixed(queue(BackwardPass { epsilon }, inputs, &[output]));
    tensor(d_x)
}

#[derive(Debug)]
struct Forward {
    epsilon: f64,
}

impl Kernel for Forward {
    const NAME: &'static str = "rms_norm";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight] = fixed(inputs).map(rows);
        let [tokens, width] = x.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let dtype = x.dtype.into();
        forward::launch::<R>(
            &output.client,
            cubes(tokens),
            CubeDim::new_1d(UNITS as u32),
            vector_size(&[&x, &weight], &[width]),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.epsilon as f32,
            UNITS,
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

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight, grad] = fixed(inputs).map(rows);
        let [tokens, width] = x.meta.shape().dims();
        let output = empty(&x, [tokens, width], x.dtype);
        let dtype = x.dtype.into();
        backward::launch::<R>(
            &output.client,
            cubes(tokens),
            CubeDim::new_1d(UNITS as u32),
            vector_size(&[&x, &weight, &grad], &[width]),
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            grad.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.epsilon as f32,
            UNITS,
            dtype,
        );
        vec![output]
    }
}

#[cube(launch)]
fn forward<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let width = x.shape(1);
    let vectors = width / N::value();
    let from = row * x.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[from + i]);
        squares += v * v;
        i += units;
    }
    let mean = cube_sum(vector_sum(squares), units) / f32::cast_from(width);
    let rms = Vector::<f32, N>::new((mean + epsilon).sqrt());
    let to = row * vectors;
    let mut i = unit;
    while i < vectors {
        // Rounded to the dtype before the weight, as Hugging Face does.
        let normed = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(x[from + i]) / rms);
        let scaled = Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(weight[i]);
        output[to + i] = Vector::<F, N>::cast_from(scaled);
        i += units;
    }
}

/// With `g = grad * weight`: `dx = (g - x * mean(g x) / rms^2) / rms`.
#[cube(launch)]
fn backward<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let width = x.shape(1);
    let vectors = width / N::value();
    let from = row * x.stride(0) / N::value();
    let grads = row * grad.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[from + i]);
        let g =
            Vector::<f32, N>::cast_from(grad[grads + i]) * Vector::<f32, N>::cast_from(weight[i]);
        squares += v * v;
        products += v * g;
        i += units;
    }
    let count = f32::cast_from(width);
    let mean = cube_sum(vector_sum(squares), units) / count + epsilon;
    let along = cube_sum(vector_sum(products), units) / count / mean;
    let rms = Vector::<f32, N>::new(mean.sqrt());
    let along = Vector::<f32, N>::new(along);
    let to = row * vectors;
    let mut i = unit;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[from + i]);
        let g =
            Vector::<f32, N>::cast_from(grad[grads + i]) * Vector::<f32, N>::cast_from(weight[i]);
        output[to + i] = Vector::<F, N>::cast_from((g - v * along) / rms);
        i += units;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        for width in [5, 48, 100] {
            let [x, grad] = [(); 2].map(|()| Given::Floats([7, width]));
            let weight = || Given::Vector(width);
            same_when_pitched(&Forward { epsilon: 1e-3 }, &[x, weight()]);
            let x = Given::Floats([7, width]);
            same_when_pitched(&BackwardPass { epsilon: 1e-3 }, &[x, weight(), grad]);
        }
    }
}
