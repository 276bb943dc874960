//! The sum of the squares of many tensors, and many tensors times a factor. See [`crate::ops::clip`].

use burn::tensor::{DType, Tensor as BurnTensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_sum, empty, vector_sum};
use super::many::{BLOCKS, every, grid, place, prepare, tensors_per_launch};
use super::queue::{CubeGpu, Kernel, burn_tensor, into_array, queue, queued_tensor};
use super::runtime::GpuRuntime;

/// Queues the kernels: see [`crate::TrainBackend::sum_of_squares`].
pub(crate) fn sum_of_squares<B: CubeGpu>(tensors: &[BurnTensor<B, 2>]) -> BurnTensor<B, 1> {
    let device = tensors[0].device();
    let sums = tensors.chunks(tensors_per_launch::<B>(&device, 1)).map(|tensors| {
        let output = ([tensors.len() * BLOCKS].into(), DType::F32);
        let inputs = tensors.iter().map(queued_tensor).collect();
        let [sums] = into_array(queue(SumOfSquares, inputs, &[output]));
        burn_tensor::<B, 1>(sums)
    });
    BurnTensor::cat(sums.collect(), 0).sum()
}

/// Queues the kernels: see [`crate::TrainBackend::scale_all`].
pub(crate) fn scale_all<B: CubeGpu>(
    tensors: Vec<BurnTensor<B, 2>>,
    factor: BurnTensor<B, 1>,
) -> Vec<BurnTensor<B, 2>> {
    let per_launch = tensors_per_launch::<B>(&factor.device(), 2);
    let scaled = tensors.chunks(per_launch).flat_map(|tensors| {
        let outputs: Vec<_> = tensors.iter().map(|tensor| (tensor.shape(), DType::F32)).collect();
        let mut inputs: Vec<_> = tensors.iter().map(queued_tensor).collect();
        inputs.push(queued_tensor(&factor));
        queue(Scale, inputs, &outputs)
    });
    scaled.map(burn_tensor).collect()
}

#[derive(Debug)]
struct SumOfSquares;

impl Kernel for SumOfSquares {
    const NAME: &'static str = "sum_of_squares";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let (tensors, vector_size) = prepare(inputs);
        let output = empty(&tensors[0], [tensors.len() * BLOCKS], DType::F32);
        partial_sums::launch::<R>(
            &output.client,
            grid(tensors.len()),
            CubeDim::new_1d(THREADS as u32),
            vector_size,
            every(&tensors, 0, 1),
            output.clone().into_tensor_arg(),
        );
        vec![output]
    }
}

#[derive(Debug)]
struct Scale;

impl Kernel for Scale {
    const NAME: &'static str = "scale_all";

    fn run<R: GpuRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let factor = inputs.pop().unwrap_or_else(|| unreachable!("no factor"));
        let (tensors, vector_size) = prepare(inputs);
        let outputs: Vec<_> = (tensors.iter())
            .map(|tensor| empty(tensor, tensor.meta.shape().clone(), DType::F32))
            .collect();
        scale::launch::<R>(
            &factor.client,
            grid(tensors.len()),
            CubeDim::new_1d(THREADS as u32),
            vector_size,
            every(&tensors, 0, 1),
            factor.clone().into_tensor_arg(),
            every(&outputs, 0, 1),
        );
        outputs
    }
}

/// Writes the sum of the squares that each block of each tensor reads.
#[cube(launch)]
fn partial_sums<N: Size>(tensors: &Sequence<Tensor<Vector<f32, N>>>, output: &mut Tensor<f32>) {
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for tensor in 0..tensors.len() {
        if CUBE_POS_Y as usize == tensor {
            squares = squares_of_block(tensors.index(tensor));
        }
    }
    let sum = block_sum(vector_sum(squares), THREADS);
    if UNIT_POS == 0 {
        output[CUBE_POS_Y as usize * BLOCKS + CUBE_POS_X as usize] = sum;
    }
}

/// Returns the sum of the squares that a thread reads.
#[cube]
fn squares_of_block<N: Size>(tensor: &Tensor<Vector<f32, N>>) -> Vector<f32, N> {
    let count = tensor.shape(0) * tensor.shape(1) / N::value();
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = CUBE_POS_X as usize * THREADS + UNIT_POS as usize;
    while i < count {
        let value = tensor[place(tensor, i)];
        squares += value * value;
        i += BLOCKS * THREADS;
    }
    squares
}

/// Multiplies every tensor by a factor.
#[cube(launch)]
fn scale<N: Size>(
    tensors: &Sequence<Tensor<Vector<f32, N>>>,
    factor: &Tensor<f32>,
    outputs: &mut Sequence<Tensor<Vector<f32, N>>>,
) {
    let factor = Vector::<f32, N>::new(factor[0]);
    #[unroll]
    for tensor in 0..tensors.len() {
        if CUBE_POS_Y as usize == tensor {
            scale_block(tensors.index(tensor), factor, outputs.index_mut(tensor));
        }
    }
}

/// Multiplies the values that a thread reads by a factor.
#[cube]
fn scale_block<N: Size>(
    tensor: &Tensor<Vector<f32, N>>,
    factor: Vector<f32, N>,
    output: &mut Tensor<Vector<f32, N>>,
) {
    let count = tensor.shape(0) * tensor.shape(1) / N::value();
    let mut i = CUBE_POS_X as usize * THREADS + UNIT_POS as usize;
    while i < count {
        output[i] = tensor[place(tensor, i)] * factor;
        i += BLOCKS * THREADS;
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        // No more values than a block has threads, so that it sums all of them.
        for widths in [[5, 36], [12, 16]] {
            let tensors = || widths.map(|width| KernelInput::Floats([7, width])).into_iter();
            assert_same_when_pitched(&SumOfSquares, &tensors().collect::<Vec<_>>());
            let inputs: Vec<_> = tensors().chain([KernelInput::Vector(1)]).collect();
            assert_same_when_pitched(&Scale, &inputs);
        }
    }
}
