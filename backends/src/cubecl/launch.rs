//! How kernels meet tensors: rows with strides, vectors of values, enough cubes.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{into_contiguous, matmul as cube_matmul};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::CubeCount;
use cubecl::prelude::*;

/// Units of a cube that work on one row together.
pub(crate) const UNITS: usize = 256;

/// Cubes along one dimension at most: what every Vulkan driver takes.
const MOST_CUBES: usize = 65_535;

/// Whether kernels compute in f32 what comes in `dtype`.
pub(crate) fn accumulates_in_f32(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Enough cubes, spread over two dimensions: a kernel that takes its number from `CUBE_POS` must check it.
pub(crate) fn cubes(count: usize) -> CubeCount {
    let rows = count.div_ceil(MOST_CUBES).max(1);
    CubeCount::Static(count.div_ceil(rows).max(1) as u32, rows as u32, 1)
}

/// `tensor` with the values of its last dimension next to each other; other strides stay as they are.
pub(crate) fn rows<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let last = tensor.meta.num_dims() - 1;
    match tensor.meta.strides()[last] {
        1 => tensor,
        _ if tensor.meta.shape()[last] == 1 => tensor,
        _ => into_contiguous(tensor),
    }
}

/// A new tensor on the device of `like`, without gaps between its rows (which CUDA's own allocations have).
pub(crate) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let shape = shape.into();
    let memory = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, memory, dtype)
}

/// `[rows, columns]` looked at the other way round.
pub(crate) fn transposed<R: CubeRuntime>(mut tensor: CubeTensor<R>) -> CubeTensor<R> {
    tensor.meta.swap(0, 1);
    tensor
}

/// `left right` into `product`: by the device maker's library where there is one that takes it, else by the kernel that
/// Burn finds best for the shapes, in the product's type or wider accumulators.
///
/// # Panics
/// If no kernel takes the shapes: Burn's own fallback takes all.
pub(crate) fn matmul<R: CubeRuntime>(
    left: CubeTensor<R>,
    right: CubeTensor<R>,
    product: CubeTensor<R>,
) {
    let dtype = product.dtype;
    // Burn reads the right side as what the left is.
    assert_eq!(left.dtype, right.dtype, "matmul: one dtype");
    if by_library([&left, &right, &product]) {
        return;
    }
    let strategy = cube_matmul::MatmulStrategy::default();
    if let Err(error) = cube_matmul::matmul(left, right, Some(product), strategy, dtype) {
        panic!("matmul: {error:?}");
    }
}

/// Whether CUDA's library computes the product of the first two into the third. Kernels are written for any runtime;
/// which it is shows here.
#[cfg(feature = "cuda")]
fn by_library<R: CubeRuntime>(tensors: [&CubeTensor<R>; 3]) -> bool {
    let of_cuda = tensors.map(|tensor| {
        let tensor: &dyn std::any::Any = tensor;
        tensor.downcast_ref::<CubeTensor<cubecl::cuda::CudaRuntime>>()
    });
    match of_cuda {
        [Some(left), Some(right), Some(product)] => {
            crate::cuda::products::multiply(left, right, product)
        }
        _ => false,
    }
}

/// No other backend has one.
#[cfg(not(feature = "cuda"))]
fn by_library<R: CubeRuntime>(_tensors: [&CubeTensor<R>; 3]) -> bool {
    false
}

/// How many values to read at once from all `tensors`: at most 4, so that the largest type still fits one load. The
/// rest of each row must come in the same numbers: `widths` are what a kernel takes for a row.
pub(crate) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>], widths: &[usize]) -> usize {
    let fits = |size: usize| {
        let in_widths = widths.iter().all(|width| width.is_multiple_of(size));
        let in_tensor = |tensor: &&CubeTensor<R>| {
            let outer = tensor.meta.num_dims() - 1;
            let strides = &tensor.meta.strides()[..outer];
            let offset = tensor.handle.offset_start.unwrap_or(0) as usize;
            strides.iter().all(|stride| stride.is_multiple_of(size))
                && offset.is_multiple_of(size * tensor.elem_size())
        };
        in_widths && tensors.iter().all(in_tensor)
    };
    let most = tensors.iter().map(|tensor| tensor.client.properties().hardware.max_vector_size);
    let most = most.min().unwrap_or(1);
    let size = [4, 2].into_iter().find(|size| *size <= most && fits(*size));
    size.unwrap_or(1)
}

/// The sum of `value` over all units of a cube, for each of them.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        if unit < step {
            let other = shared[unit + step];
            shared[unit] += other;
        }
        sync_cube();
        step /= 2;
    }
    shared[0]
}

/// The largest `value` of all units of a cube, for each of them.
#[cube]
pub(crate) fn cube_max(value: f32, #[comptime] units: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    let mut step = comptime!(units / 2).runtime();
    while step > 0 {
        if unit < step {
            let other = shared[unit + step];
            let here = shared[unit];
            shared[unit] = select(other > here, other, here);
        }
        sync_cube();
        step /= 2;
    }
    shared[0]
}

/// The sum of the values of a vector.
#[cube]
pub(crate) fn vector_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector[0];
    #[unroll]
    for lane in 1..N::value() {
        sum += vector[lane];
    }
    sum
}
