//! A kernel that adds a low-rank branch and a residual to a GEMM's result and writes the sum into a range of columns
//! of a wider tensor. It computes in f32 and rounds once.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{THREADS, dense_rows};

/// Threads along each side of a block.
const SIDE: usize = 16;

/// Rows and columns of a block's tile.
const TILE: usize = 4 * SIDE;

/// Terms of the branch (of its rank) in shared memory at once.
const CHUNK: usize = 32;

/// Values between the starts of two rows of a tile. It is odd so that rows start in different banks.
const PITCH: usize = CHUNK + 1;

/// A low-rank branch, `scaling * low right^T`, multiplied element-wise by `factor` if there is one.
pub(super) struct Branch<R: CubeRuntime> {
    /// `[T, r]` in f32.
    pub(super) low: CubeTensor<R>,
    /// `[columns, r]` in f32.
    pub(super) right: CubeTensor<R>,
    pub(super) scaling: f32,
    /// `[T, columns]` in f32.
    pub(super) factor: Option<CubeTensor<R>>,
}

/// Writes `base + residual + scaling * low right^T` into the columns of `output` from `column` on.
///
/// # Shapes
/// - base: `[T, columns]`
/// - residual: as wide as `output`; the same columns of it are added
pub(super) fn write_columns<R: CubeRuntime>(
    base: CubeTensor<R>,
    branch: Option<Branch<R>>,
    residual: Option<CubeTensor<R>>,
    output: &CubeTensor<R>,
    column: usize,
) {
    let [tokens, width] = base.meta.shape().dims();
    let dtype = output.dtype;
    assert_eq!(base.dtype, dtype, "write_columns: base and output must have one dtype");
    let rank = branch.as_ref().map_or(0, |b| b.low.meta.shape()[1]);
    let has_residual = residual.is_some();
    let base = dense_rows(base);
    // Absent inputs are bound to `base` or to the branch's tensors; the kernel never reads them.
    let residual = residual.map_or_else(|| base.clone(), dense_rows);
    let (low, right, scaling, factor) = match branch {
        Some(branch) => (dense_rows(branch.low), branch.right, branch.scaling, branch.factor),
        None => (base.clone(), base.clone(), 0.0, None),
    };
    let has_factor = factor.is_some();
    let factor = factor.map_or_else(|| low.clone(), dense_rows);
    let tiles = [tokens, width].map(|side| side.div_ceil(TILE) as u32);
    // Without a branch, its placeholders have the dtype of `base`, and the kernel is compiled for that.
    let branch_dtype = if rank == 0 { dtype.into() } else { low.dtype.into() };
    write_tile::launch::<R>(
        &output.client,
        CubeCount::Static(tiles[0], tiles[1], 1),
        CubeDim::new_1d(THREADS as u32),
        base.into_tensor_arg(),
        low.into_tensor_arg(),
        right.into_tensor_arg(),
        factor.into_tensor_arg(),
        residual.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        scaling,
        column,
        width,
        Terms { rank, factor: has_factor, residual: has_residual },
        [dtype.into(), branch_dtype],
    );
}

/// Which terms the kernel adds to `base`, and the rank of the branch (0 without one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Terms {
    rank: usize,
    factor: bool,
    residual: bool,
}

/// Adds the terms of one tile and writes it. The grid is tiles of rows by tiles of columns.
#[cube(launch)]
fn write_tile<F: Float, L: Float>(
    base: &Tensor<F>,
    low: &Tensor<L>,
    right: &Tensor<L>,
    factor: &Tensor<L>,
    residual: &Tensor<F>,
    output: &mut Tensor<F>,
    scaling: f32,
    column: usize,
    width: usize,
    #[comptime] terms: Terms,
    #[define(F, L)] _dtypes: [StorageType; 2],
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let first_row = CUBE_POS_X as usize * TILE;
    let first_column = CUBE_POS_Y as usize * TILE;
    let mut sums = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16usize {
        sums[i] = 0.0f32;
    }
    if comptime!(terms.rank > 0) {
        multiply(low, right, &mut sums, first_row, first_column, terms.rank);
    }
    #[unroll]
    for i in 0..4usize {
        let row = first_row + y + i * SIDE;
        #[unroll]
        for j in 0..4usize {
            let branch_column = first_column + x + j * SIDE;
            if row < base.shape(0) && branch_column < width {
                let mut branch = sums[i * 4 + j] * scaling;
                if comptime!(terms.factor) {
                    branch *= f32::cast_from(factor[row * factor.stride(0) + branch_column]);
                }
                let mut sum = f32::cast_from(base[row * base.stride(0) + branch_column]) + branch;
                if comptime!(terms.residual) {
                    let residual_value =
                        residual[row * residual.stride(0) + column + branch_column];
                    sum += f32::cast_from(residual_value);
                }
                output[row * output.stride(0) + column + branch_column] = F::cast_from(sum);
            }
        }
    }
}

/// Computes `low right^T` of one tile: a thread holds rows `y, y + 16, ..` and columns `x, x + 16, ..`.
#[cube]
fn multiply<L: Float>(
    low: &Tensor<L>,
    right: &Tensor<L>,
    sums: &mut Array<f32>,
    first_row: usize,
    first_column: usize,
    #[comptime] rank: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let mut left_tile = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    let mut right_tile = SharedMemory::<f32>::new(comptime!(TILE * PITCH));
    for chunk in 0..comptime!(rank.div_ceil(CHUNK)) {
        let first_term = chunk * CHUNK;
        load(low, &mut left_tile, first_row, first_term, rank);
        load(right, &mut right_tile, first_column, first_term, rank);
        sync_cube();
        for k in 0..comptime!(if rank < CHUNK { rank } else { CHUNK }) {
            #[unroll]
            for j in 0..4usize {
                let b = right_tile[(x + j * SIDE) * PITCH + k];
                #[unroll]
                for i in 0..4usize {
                    sums[i * 4 + j] += left_tile[(y + i * SIDE) * PITCH + k] * b;
                }
            }
        }
        sync_cube();
    }
}

/// Copies a chunk of [`TILE`] rows into shared memory, with zeros beyond the last row and beyond the rank.
#[cube]
fn load<L: Float>(
    from: &Tensor<L>,
    tile: &mut SharedMemory<f32>,
    first_row: usize,
    first_term: usize,
    #[comptime] rank: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(TILE * CHUNK) {
        let row = first_row + i / CHUNK;
        let k = first_term + i % CHUNK;
        let mut value = 0.0f32;
        if row < from.shape(0) && k < rank {
            value = f32::cast_from(from[row * from.stride(0) + k * from.stride(1)]);
        }
        tile[i / CHUNK * PITCH + i % CHUNK] = value;
        i += THREADS;
    }
}
