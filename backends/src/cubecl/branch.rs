//! One kernel for what stands beside a product of matrices: a low-rank branch, a residual, a place among the columns of
//! a wider result. Computed in f32, rounded once.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, rows};

/// Units along each side of a cube.
const SIDE: usize = 16;

/// Rows and columns of a cube's tile.
const TILE: usize = 4 * SIDE;

/// Terms of the branch that are in shared memory at once.
const CHUNK: usize = 32;

/// Values from one row of a tile to the next: odd, so that rows start in different banks.
const PITCH: usize = CHUNK + 1;

/// `low right^T`, times `factor` value by value.
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
/// - residual: as wide as `output`, of which the same columns are taken
pub(super) fn put<R: CubeRuntime>(
    base: CubeTensor<R>,
    branch: Option<Branch<R>>,
    residual: Option<CubeTensor<R>>,
    output: &CubeTensor<R>,
    column: usize,
) {
    let [tokens, width] = base.meta.shape().dims();
    let dtype = output.dtype;
    assert_eq!(base.dtype, dtype, "put: one dtype");
    let rank = branch.as_ref().map_or(0, |b| b.low.meta.shape()[1]);
    let has_residual = residual.is_some();
    let base = rows(base);
    // What is not there is stood for by what is, unread.
    let residual = residual.map_or_else(|| base.clone(), rows);
    let (low, right, scaling, factor) = match branch {
        Some(branch) => (rows(branch.low), branch.right, branch.scaling, branch.factor),
        None => (base.clone(), base.clone(), 0.0, None),
    };
    let has_factor = factor.is_some();
    let factor = factor.map_or_else(|| low.clone(), rows);
    let tiles = [tokens, width].map(|side| side.div_ceil(TILE) as u32);
    // Without a branch its tensors are not read, and the kernel must not be compiled as if they were.
    let of_branch = if rank == 0 { dtype.into() } else { low.dtype.into() };
    put_tile::launch::<R>(
        &output.client,
        CubeCount::Static(tiles[0], tiles[1], 1),
        CubeDim::new_1d(UNITS as u32),
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
        [dtype.into(), of_branch],
    );
}

/// What is added to the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Terms {
    rank: usize,
    factor: bool,
    residual: bool,
}

/// Cubes: tiles of rows, tiles of columns.
#[cube(launch)]
fn put_tile<F: Float, L: Float>(
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
            let at = first_column + x + j * SIDE;
            if row < base.shape(0) && at < width {
                let mut branch = sums[i * 4 + j] * scaling;
                if comptime!(terms.factor) {
                    branch *= f32::cast_from(factor[row * factor.stride(0) + at]);
                }
                let mut sum = f32::cast_from(base[row * base.stride(0) + at]) + branch;
                if comptime!(terms.residual) {
                    let other = residual[row * residual.stride(0) + column + at];
                    sum += f32::cast_from(other);
                }
                output[row * output.stride(0) + column + at] = F::cast_from(sum);
            }
        }
    }
}

/// `low right^T` of one tile: a unit holds rows `y, y + 16, ..` and columns `x, x + 16, ..`.
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
        let first = chunk * CHUNK;
        load(low, &mut left_tile, first_row, first, rank);
        load(right, &mut right_tile, first_column, first, rank);
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

/// Copies a chunk of [`TILE`] rows, zeros beyond the last and beyond the rank.
#[cube]
fn load<L: Float>(
    from: &Tensor<L>,
    tile: &mut SharedMemory<f32>,
    first_row: usize,
    first: usize,
    #[comptime] rank: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(TILE * CHUNK) {
        let row = first_row + i / CHUNK;
        let k = first + i % CHUNK;
        let mut value = 0.0f32;
        if row < from.shape(0) && k < rank {
            value = f32::cast_from(from[row * from.stride(0) + k * from.stride(1)]);
        }
        tile[i / CHUNK * PITCH + i % CHUNK] = value;
        i += UNITS;
    }
}
