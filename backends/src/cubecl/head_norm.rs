//! Root-mean-square norm of each head of queries and keys, and its gradient; one block per head, statistics in f32. See
//! [`crate::ops::head_norm`].

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{block_grid, block_sum, dense_rows, empty, vector_size, vector_sum};
use super::queue::{CubeGpu, Kernel, QueuedTensor, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;
use crate::HeadNorm;

/// Threads of a block. A head of 128 values is 32 vectors.
const THREADS: usize = 32;

/// Queues the forward kernel: see [`crate::TrainBackend::head_norm`].
pub(crate) fn head_norm<B: CubeGpu>(qkv: BurnTensor<B, 2>, norm: &HeadNorm<B>) -> BurnTensor<B, 2> {
    let output = (qkv.shape(), qkv.dtype());
    let mut inputs = vec![queued_tensor(&qkv)];
    inputs.extend(weights(norm));
    let kernel = Forward { heads: norm.heads, epsilon: norm.epsilon };
    let [y] = into_array(queue(kernel, inputs, &[output]));
    burn_tensor(y)
}

/// Queues the backward kernel: see [`crate::TrainBackend::head_norm_backward`].
pub(crate) fn head_norm_backward<B: CubeGpu>(
    qkv: BurnTensor<B, 2>,
    norm: &HeadNorm<B>,
    grad: BurnTensor<B, 2>,
) -> BurnTensor<B, 2> {
    let output = (qkv.shape(), qkv.dtype());
    let mut inputs = vec![queued_tensor(&qkv), queued_tensor(&grad)];
    inputs.extend(weights(norm));
    let kernel = BackwardPass { heads: norm.heads, epsilon: norm.epsilon };
    let [d_qkv] = into_array(queue(kernel, inputs, &[output]));
    burn_tensor(d_qkv)
}

fn weights<B: CubeGpu>(norm: &HeadNorm<B>) -> [QueuedTensor<B::Runtime>; 2] {
    norm.weights.each_ref().map(queued_tensor)
}

#[derive(Debug)]
struct Forward {
    /// Numbers of query heads and key heads.
    heads: [usize; 2],
    epsilon: f64,
}

impl Kernel for Forward {
    const NAME: &'static str = "head_norm";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [qkv, query_weight, key_weight] = into_array(inputs).map(dense_rows);
        let [tokens, width] = qkv.meta.shape().dims();
        let [head_dim] = query_weight.meta.shape().dims();
        let output = empty(&qkv, [tokens, width], qkv.dtype);
        let dtype = qkv.dtype.into();
        forward::launch::<R>(
            &output.client,
            block_grid(tokens * width.div_ceil(head_dim)),
            CubeDim::new_1d(THREADS as u32),
            vector_size(&[&qkv, &query_weight, &key_weight], &[head_dim, width]),
            qkv.into_tensor_arg(),
            query_weight.into_tensor_arg(),
            key_weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.heads[0],
            self.heads[1],
            self.epsilon as f32,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

#[derive(Debug)]
struct BackwardPass {
    /// Numbers of query heads and key heads.
    heads: [usize; 2],
    epsilon: f64,
}

impl Kernel for BackwardPass {
    const NAME: &'static str = "head_norm_backward";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [qkv, grad, query_weight, key_weight] = into_array(inputs).map(dense_rows);
        let [tokens, width] = qkv.meta.shape().dims();
        let [head_dim] = query_weight.meta.shape().dims();
        let output = empty(&qkv, [tokens, width], qkv.dtype);
        let dtype = qkv.dtype.into();
        backward::launch::<R>(
            &output.client,
            block_grid(tokens * width.div_ceil(head_dim)),
            CubeDim::new_1d(THREADS as u32),
            vector_size(&[&qkv, &grad, &query_weight, &key_weight], &[head_dim, width]),
            qkv.into_tensor_arg(),
            grad.into_tensor_arg(),
            query_weight.into_tensor_arg(),
            key_weight.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            self.heads[0],
            self.heads[1],
            self.epsilon as f32,
            THREADS,
            dtype,
        );
        vec![output]
    }
}

/// Normalizes one head per block and multiplies it by the weight of queries or of keys; copies what lies behind the keys.
#[cube(launch)]
fn forward<F: Float, N: Size>(
    qkv: &Tensor<Vector<F, N>>,
    query_weight: &Tensor<Vector<F, N>>,
    key_weight: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    queries: usize,
    keys: usize,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let head_vectors = query_weight.shape(0) / N::value();
    let vectors = qkv.shape(1) / N::value();
    let heads = vectors.div_ceil(head_vectors);
    let (row, head) = (CUBE_POS / heads, CUBE_POS % heads);
    if row >= qkv.shape(0) {
        terminate!();
    }
    let first = head * head_vectors;
    // The last part of a row may be shorter than a head.
    let end = select(first + head_vectors < vectors, first + head_vectors, vectors);
    let start = row * qkv.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = first + UNIT_POS as usize;
    while i < end {
        let v = Vector::<f32, N>::cast_from(qkv[start + i]);
        squares += v * v;
        i += threads;
    }
    let width = f32::cast_from(query_weight.shape(0));
    let mean = block_sum(vector_sum(squares), threads) / width;
    let rms = Vector::<f32, N>::new((mean + epsilon).sqrt());
    let output_start = row * vectors;
    let mut i = first + UNIT_POS as usize;
    while i < end {
        if head < queries + keys {
            let mut weight = query_weight[i - first];
            if head >= queries {
                weight = key_weight[i - first];
            }
            // The quotient is rounded to the dtype before the multiplication by the weight, as Hugging Face does.
            let normed =
                Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(qkv[start + i]) / rms);
            let scaled = Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(weight);
            output[output_start + i] = Vector::<F, N>::cast_from(scaled);
        } else {
            output[output_start + i] = qkv[start + i];
        }
        i += threads;
    }
}

/// Computes the gradient of `qkv`, one head per block; copies that of what lies behind the keys.
///
/// With `g = grad * weight`: `dx = (g - x * mean(g x) / rms^2) / rms`.
#[cube(launch)]
fn backward<F: Float, N: Size>(
    qkv: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    query_weight: &Tensor<Vector<F, N>>,
    key_weight: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    queries: usize,
    keys: usize,
    epsilon: f32,
    #[comptime] threads: usize,
    #[define(F)] _dtype: StorageType,
) {
    let head_vectors = query_weight.shape(0) / N::value();
    let vectors = qkv.shape(1) / N::value();
    let heads = vectors.div_ceil(head_vectors);
    let (row, head) = (CUBE_POS / heads, CUBE_POS % heads);
    if row >= qkv.shape(0) {
        terminate!();
    }
    let first = head * head_vectors;
    // The last part of a row may be shorter than a head.
    let end = select(first + head_vectors < vectors, first + head_vectors, vectors);
    let start = row * qkv.stride(0) / N::value();
    let grad_start = row * grad.stride(0) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut dot_products = Vector::<f32, N>::new(0.0f32);
    let mut i = first + UNIT_POS as usize;
    while i < end {
        let mut weight = query_weight[i - first];
        if head >= queries {
            weight = key_weight[i - first];
        }
        let v = Vector::<f32, N>::cast_from(qkv[start + i]);
        let g =
            Vector::<f32, N>::cast_from(grad[grad_start + i]) * Vector::<f32, N>::cast_from(weight);
        squares += v * v;
        dot_products += v * g;
        i += threads;
    }
    let width = f32::cast_from(query_weight.shape(0));
    let mean = block_sum(vector_sum(squares), threads) / width + epsilon;
    let projection = block_sum(vector_sum(dot_products), threads) / width / mean;
    let rms = Vector::<f32, N>::new(mean.sqrt());
    let projection = Vector::<f32, N>::new(projection);
    let output_start = row * vectors;
    let mut i = first + UNIT_POS as usize;
    while i < end {
        if head < queries + keys {
            let mut weight = query_weight[i - first];
            if head >= queries {
                weight = key_weight[i - first];
            }
            let v = Vector::<f32, N>::cast_from(qkv[start + i]);
            let g = Vector::<f32, N>::cast_from(grad[grad_start + i])
                * Vector::<f32, N>::cast_from(weight);
            output[output_start + i] = Vector::<F, N>::cast_from((g - v * projection) / rms);
        } else {
            output[output_start + i] = grad[grad_start + i];
        }
        i += threads;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        // Heads of one, of some and of many vectors per thread; values behind the keys that are no whole heads.
        for (head_dim, rest) in [(3, 7), (48, 96), (160, 160)] {
            let heads = [3, 2];
            let qkv = || KernelInput::Floats([5, 5 * head_dim + rest]);
            let weight = || KernelInput::Vector(head_dim);
            let forward = Forward { heads, epsilon: 1e-3 };
            assert_same_when_pitched(&forward, &[qkv(), weight(), weight()]);
            let backward = BackwardPass { heads, epsilon: 1e-3 };
            assert_same_when_pitched(&backward, &[qkv(), qkv(), weight(), weight()]);
        }
    }
}
