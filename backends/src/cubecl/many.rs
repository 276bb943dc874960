//! Kernels over many tensors at once: each of them would take a launch of its own otherwise, and an adapter has hundreds.
//!
//! The grid is blocks by tensors, and the blocks of a tensor share its values.

use burn::tensor::Tensor as BurnTensor;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{dense_rows, vector_size};
use super::queue::CubeGpu;

/// The most tensors of one launch. The kernel has a branch for each of them.
const MAX_TENSORS: usize = 16;

/// Blocks that share the values of a tensor.
pub(super) const BLOCKS: usize = 32;

/// Returns how many tensors one launch takes, if it reads and writes `buffers` buffers for each of them.
pub(super) fn tensors_per_launch<B: CubeGpu>(device: &B::Device, buffers: usize) -> usize {
    let client = B::Runtime::client(device);
    let all = client.properties().hardware.max_bindings as usize;
    // One is for the factor of all tensors or for their sums, one for shapes and scalars.
    (all.saturating_sub(2) / buffers).clamp(1, MAX_TENSORS)
}

/// Returns the grid for this many tensors.
pub(super) fn grid(tensors: usize) -> CubeCount {
    CubeCount::Static(BLOCKS as u32, tensors as u32, 1)
}

/// Returns the tensors with dense rows, and how many of their values a thread may load at once.
pub(super) fn prepare<R: CubeRuntime>(tensors: Vec<CubeTensor<R>>) -> (Vec<CubeTensor<R>>, usize) {
    let tensors: Vec<_> = tensors.into_iter().map(dense_rows).collect();
    let widths: Vec<usize> = tensors.iter().map(|tensor| tensor.meta.shape()[1]).collect();
    let size = vector_size(&tensors.iter().collect::<Vec<_>>(), &widths);
    (tensors, size)
}

/// Returns every `step`-th of `tensors` from the one at `first` on, as a kernel's argument.
pub(super) fn every<R: CubeRuntime, E: CubePrimitive>(
    tensors: &[CubeTensor<R>],
    first: usize,
    step: usize,
) -> SequenceArg<R, Tensor<E>> {
    let tensors = tensors.iter().skip(first).step_by(step);
    tensors.map(|tensor| tensor.clone().into_tensor_arg()).collect()
}

/// Returns whether all tensors are f32, which the kernels compute in.
pub(crate) fn are_f32<'a, B: CubeGpu>(
    tensors: impl IntoIterator<Item = &'a BurnTensor<B, 2>>,
) -> bool {
    tensors.into_iter().all(|tensor| tensor.dtype() == burn::tensor::DType::F32)
}

/// Returns where the vector `i` of a matrix lies in it, in vectors.
#[cube]
pub(super) fn place<N: Size>(matrix: &Tensor<Vector<f32, N>>, i: usize) -> usize {
    let vectors = matrix.shape(1) / N::value();
    i / vectors * (matrix.stride(0) / N::value()) + i % vectors
}
