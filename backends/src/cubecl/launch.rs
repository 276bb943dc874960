//! Helpers for kernel launches: row strides, vector widths, grid sizes, GEMMs and block-wide reductions.

use std::ops::Range;

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{into_contiguous, matmul as burn_matmul, slice};
use burn_cubecl::ops::numeric::mul_scalar;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::CubeCount;
use cubecl::prelude::*;
use cubecl::tf32;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::runtime::{Gemm, GpuRuntime};

/// Threads per block.
pub(crate) const THREADS: usize = 256;

/// The most buffers that a kernel of this crate reads and writes, the one of shapes and scalars included. Kernels over many tensors
/// take as many as there may be.
pub const MAX_BUFFERS: usize = 10;

/// Bytes of shared memory of the block that takes the most, in whole KiB, on GPUs without matrix instructions.
pub const MAX_SHARED_BYTES: usize = 23 << 10;

/// The largest number of blocks along one dimension of the grid that every Vulkan driver accepts.
const MAX_GRID_WIDTH: usize = 65_535;

/// Returns whether the kernels accept inputs of `dtype`, for which they accumulate in f32.
pub(crate) fn accumulates_in_f32(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// Returns a grid of at least `count` blocks, spread over two dimensions. A kernel that derives its index from
/// `CUBE_POS` must check the bound, because the grid may be larger.
pub(crate) fn block_grid(count: usize) -> CubeCount {
    let rows = count.div_ceil(MAX_GRID_WIDTH).max(1);
    CubeCount::Static(count.div_ceil(rows).max(1) as u32, rows as u32, 1)
}

/// Returns `tensor` with a stride of 1 along its last dimension. It is returned unchanged, whatever its other strides,
/// if it has that already or if that dimension has one value; otherwise a contiguous copy is returned.
pub(crate) fn dense_rows<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let last = tensor.meta.num_dims() - 1;
    match tensor.meta.strides()[last] {
        1 => tensor,
        _ if tensor.meta.shape()[last] == 1 => tensor,
        _ => into_contiguous(tensor),
    }
}

/// Allocates a contiguous tensor on the device of `like`. (CUDA's own allocations would pad each row.)
pub(crate) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let shape = shape.into();
    let memory = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, memory, dtype)
}

/// The alignment in bytes of the start of a view: that of the largest load of one thread.
const VIEW_ALIGNMENT: usize = 16;

/// Returns a range of the columns of a matrix: a view where a vendor's library multiplies matrices, because it reads them where
/// they are, and otherwise a copy.
pub(crate) fn columns<R: GpuRuntime>(tensor: CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    let [rows, width] = tensor.meta.shape().dims();
    if range == (0..width) {
        return tensor;
    }
    let is_aligned = (range.start * tensor.elem_size()).is_multiple_of(VIEW_ALIGNMENT);
    if is_aligned && R::has_library(&tensor.device) {
        view_columns(tensor, range)
    } else {
        slice(tensor, &[0..rows, range])
    }
}

/// Returns a view of a range of the columns of a matrix.
pub(crate) fn view_columns<R: CubeRuntime>(
    mut tensor: CubeTensor<R>,
    range: Range<usize>,
) -> CubeTensor<R> {
    let [rows, width] = tensor.meta.shape().dims();
    assert!(range.end <= width, "columns {range:?} of {width}");
    let offset = range.start * tensor.meta.strides()[1] * tensor.elem_size();
    *tensor.meta.shape_mut() = [rows, range.len()].into();
    tensor.handle = tensor.handle.offset_start(offset as u64);
    tensor
}

/// Transposes a matrix by swapping its strides, without a copy.
pub(crate) fn transposed<R: CubeRuntime>(mut tensor: CubeTensor<R>) -> CubeTensor<R> {
    tensor.meta.swap(0, 1);
    tensor
}

/// Computes `left right` into `output`: see [`scaled_matmul_into`].
pub(crate) fn matmul_into<R: GpuRuntime>(
    left: CubeTensor<R>,
    right: CubeTensor<R>,
    output: CubeTensor<R>,
) {
    scaled_matmul_into(left, right, 1.0, output);
}

/// Computes `factor left right` into `output`, and returns it.
///
/// The vendor's library is used if there is one and it accepts the operands; otherwise Burn's own kernel for these
/// shapes, which is chosen by rule or by autotuning. Sums are accumulated in the output's dtype or a wider one, and f32
/// factors are never rounded.
///
/// # Panics
/// If no kernel accepts the shapes. Burn's own fallback accepts all of them.
pub(crate) fn scaled_matmul_into<R: GpuRuntime>(
    left: CubeTensor<R>,
    right: CubeTensor<R>,
    factor: f32,
    output: CubeTensor<R>,
) -> CubeTensor<R> {
    let dtype = output.dtype;
    // Burn reads the right operand as if it had the left one's dtype.
    assert_eq!(left.dtype, right.dtype, "matmul: both operands must have one dtype");
    let gemm = Gemm { left: &left, right: &right, factor, addend: None, product: &output };
    if R::multiply_by_library(&gemm) {
        return output;
    }
    let product = output.clone();
    let multiplied = if left.dtype == DType::F32 && has_tf32::<R>(&output.device) {
        multiply_by_units(left, right, output)
    } else {
        let strategy = if R::autotunes(&output.device) {
            burn_matmul::MatmulStrategy::default()
        } else {
            burn_matmul::MatmulStrategy::Cube
        };
        burn_matmul::matmul(left, right, Some(output), strategy, dtype).map(|_| ())
    };
    if let Err(error) = multiplied {
        panic!("matmul: {error:?}");
    }
    if factor == 1.0 { product } else { mul_scalar(product, InputScalar::new(factor, dtype)) }
}

/// Returns whether the device has TF32. Burn's kernels for tensor cores then round f32 factors to its 11 bits.
pub(crate) fn has_tf32<R: Runtime>(device: &R::Device) -> bool {
    let tf32 = tf32::as_type_native_unchecked().storage_type();
    R::client(device).properties().supports_type(tf32)
}

/// Computes `left right` into `output`, all f32, without tensor cores.
fn multiply_by_units<R: CubeRuntime>(
    left: CubeTensor<R>,
    right: CubeTensor<R>,
    output: CubeTensor<R>,
) -> Result<(), MatmulSetupError> {
    let float = DType::F32.into();
    let mut dtypes =
        MatmulElems::from_globals(&MatmulGlobalElems { lhs: float, rhs: float, out: float });
    let client = output.client.clone();
    let [left, right] = [left, right].map(|factor| InputBinding::new(factor.binding(), float));
    let strategy = Strategy::SimpleUnit(Default::default());
    launch_ref(&strategy, &client, left, right, output.binding(), &mut dtypes)
}

/// Returns how many values a thread may load at once from all `tensors`: 4, 2 or 1, so that even the largest type
/// fits one load. See [`vector_size_up_to`].
pub(crate) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>], widths: &[usize]) -> usize {
    vector_size_up_to(4, tensors, widths)
}

/// Returns how many values a thread may load at once from all `tensors`: the largest power of two up to `most` of which every
/// stride, every offset and every one of `widths` (the row lengths that the kernel processes) is a multiple.
pub(crate) fn vector_size_up_to<R: CubeRuntime>(
    most: usize,
    tensors: &[&CubeTensor<R>],
    widths: &[usize],
) -> usize {
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
    let hardware_max =
        tensors.iter().map(|tensor| tensor.client.properties().hardware.max_vector_size);
    let max = hardware_max.min().unwrap_or(1).min(most);
    let size = [8, 4, 2].into_iter().find(|size| *size <= max && fits(*size));
    size.unwrap_or(1)
}

/// Sums `value` over all threads of a block. Every thread receives the sum.
#[cube]
pub(crate) fn block_sum(value: f32, #[comptime] threads: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(threads);
    let thread = UNIT_POS as usize;
    shared[thread] = value;
    sync_cube();
    let mut step = comptime!(threads / 2).runtime();
    while step > 0 {
        if thread < step {
            let other = shared[thread + step];
            shared[thread] += other;
        }
        sync_cube();
        step /= 2;
    }
    shared[0]
}

/// Returns the largest `value` of all threads of a block, to every thread.
#[cube]
pub(crate) fn block_max(value: f32, #[comptime] threads: usize) -> f32 {
    let mut shared = SharedMemory::<f32>::new(threads);
    let thread = UNIT_POS as usize;
    shared[thread] = value;
    sync_cube();
    let mut step = comptime!(threads / 2).runtime();
    while step > 0 {
        if thread < step {
            let other = shared[thread + step];
            let current = shared[thread];
            shared[thread] = select(other > current, other, current);
        }
        sync_cube();
        step /= 2;
    }
    shared[0]
}

/// Sums the values of a vector.
#[cube]
pub(crate) fn vector_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector[0];
    #[unroll]
    for lane in 1..N::value() {
        sum += vector[lane];
    }
    sum
}
