//! Building blocks of the attention kernels on tensor cores: tiles of 16-bit values in shared memory, whose products eight planes of
//! 32 threads compute in pieces of 16 x 16 with sums in f32.
//!
//! A tile has [`ROWS`] rows and [`TILE_COLUMNS`] columns. In the forward kernel and in the gradient of the queries its rows are
//! folded rows (see the parent module) and its columns keys; in the gradient of keys and values it is the reverse.

use cubecl::cmma::{Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use crate::cubecl::attention::tiles::{KeySlice, Plan, RowSlice, TILE_COLUMNS};
use crate::cubecl::launch::THREADS;

/// Rows of a tile.
pub(super) const ROWS: usize = 64;

/// Rows and columns of the matrices that a plane multiplies.
const SIDE: usize = 16;

/// Threads of a plane.
pub(super) const PLANE: usize = 32;

/// Threads that share a row of a tile when its values are handled one by one.
pub(super) const THREADS_PER_ROW: usize = THREADS / ROWS;

/// Values of a row that one thread handles.
pub(super) const VALUES_PER_THREAD: usize = TILE_COLUMNS / THREADS_PER_ROW;

/// The alignment in bytes of what a plane loads at once (CUDA C++ Programming Guide, "Warp Matrix Functions").
const ALIGNMENT: usize = 32;

/// Values between the starts of two rows of f32 values. With four more than there are columns, rows start in different banks.
pub(super) const SUM_PITCH: usize = TILE_COLUMNS + 4;

/// The same for rows of 16-bit values.
pub(super) const WEIGHT_PITCH: usize = TILE_COLUMNS + 8;

/// Returns the features of a head with the last piece filled up by zeros: all planes have the same number of pieces.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2 * SIDE)
}

/// Returns the values between the starts of two heads in shared memory.
pub(super) fn head_pitch(head_dim: usize) -> usize {
    padded(head_dim) + 8
}

/// Returns how many pieces of the sums `[ROWS, head_dim]` a plane holds.
fn pieces(head_dim: usize) -> usize {
    padded(head_dim) / (2 * SIDE)
}

/// Allocates a tile of `rows` heads.
#[cube]
pub(super) fn new_heads<F: Float, N: Size>(
    #[comptime] rows: usize,
    #[comptime] head_dim: usize,
) -> SharedMemory<Vector<F, N>> {
    let width = N::value();
    let vectors = comptime!(rows * head_pitch(head_dim) / width);
    SharedMemory::<Vector<F, N>>::new_aligned(vectors, ALIGNMENT)
}

/// Allocates the products of a tile.
#[cube]
pub(super) fn new_sums() -> SharedMemory<f32> {
    SharedMemory::<f32>::new_aligned(comptime!(ROWS * SUM_PITCH), ALIGNMENT)
}

/// Allocates the weights of a tile.
#[cube]
pub(super) fn new_weights<F: Float>() -> SharedMemory<F> {
    SharedMemory::<F>::new_aligned(comptime!(ROWS * WEIGHT_PITCH), ALIGNMENT)
}

/// Copies `count` keys (or values) into `tile`, with zeros beyond the last key and the last feature.
#[cube]
pub(super) fn load_keys<F: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    tile: &mut SharedMemory<Vector<F, N>>,
    keys: KeySlice,
    #[comptime] head_dim: usize,
    #[comptime] count: usize,
) {
    let width = comptime!(padded(head_dim)) / N::value();
    let pitch = comptime!(head_pitch(head_dim)) / N::value();
    let mut i = UNIT_POS as usize;
    while i < count * width {
        let row = i / width;
        let vector = i % width;
        let key = keys.first + row;
        let mut value = Vector::<F, N>::new(F::from_int(0));
        if key < source.shape(0) && vector * N::value() < head_dim {
            value = source[(key * source.stride(0) + keys.column) / N::value() + vector];
        }
        tile[row * pitch + vector] = value;
        i += THREADS;
    }
}

/// Copies `count` folded rows of a key head into `tile`, with zeros beyond the last row and the last feature. With `gather`, query
/// `i` is row `queries[i]` of the tensor.
#[cube]
pub(super) fn load_rows<F: Float, I: Int, N: Size>(
    source: &Tensor<Vector<F, N>>,
    queries: &Tensor<I>,
    tile: &mut SharedMemory<Vector<F, N>>,
    rows: RowSlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
    #[comptime] count: usize,
) {
    let width = comptime!(padded(plan.head_dim)) / N::value();
    let pitch = comptime!(head_pitch(plan.head_dim)) / N::value();
    let mut i = UNIT_POS as usize;
    while i < count * width {
        let row = i / width;
        let vector = i % width;
        let folded = rows.first + row;
        let mut value = Vector::<F, N>::new(F::from_int(0));
        if folded < rows.row_count && vector * N::value() < plan.head_dim {
            let mut token = folded / plan.group;
            if comptime!(gather) {
                token = usize::cast_from(queries[token]);
            }
            let head = folded % plan.group;
            let start = token * source.stride(0) + rows.column + head * plan.head_dim;
            value = source[start / N::value() + vector];
        }
        tile[row * pitch + vector] = value;
        i += THREADS;
    }
}

/// Returns the first row and the first column of the running plane's piece: four planes lie below one another, twice.
#[cube]
fn piece() -> (usize, usize) {
    let plane = UNIT_POS as usize / PLANE;
    (plane % comptime!(ROWS / SIDE) * SIDE, plane / comptime!(ROWS / SIDE) * SIDE)
}

/// Returns a matrix of a product that is not loaded yet.
#[cube]
fn factor<F: Float>(#[comptime] ident: MatrixIdent, #[comptime] layout: MatrixLayout) -> Matrix<F> {
    Matrix::<F>::from_value(ident, SIDE, SIDE, SIDE, layout, F::from_int(0))
}

/// Returns sums of zero.
#[cube]
fn zero() -> Matrix<f32> {
    Matrix::<f32>::from_value(
        MatrixIdent::Accumulator,
        SIDE,
        SIDE,
        SIDE,
        MatrixLayout::Undefined,
        0.0f32,
    )
}

/// Computes `sums = left right^T`: `left` has [`ROWS`] heads, `right` [`TILE_COLUMNS`].
#[cube]
pub(super) fn multiply<F: Float, N: Size>(
    left: &SharedMemory<Vector<F, N>>,
    right: &SharedMemory<Vector<F, N>>,
    sums: &mut SharedMemory<f32>,
    #[comptime] head_dim: usize,
) {
    let pitch = comptime!(head_pitch(head_dim));
    let (row, column) = piece();
    let sum = zero();
    let a = factor::<F>(MatrixIdent::A, MatrixLayout::RowMajor);
    let b = factor::<F>(MatrixIdent::B, MatrixLayout::ColMajor);
    #[unroll]
    for step in 0..comptime!(padded(head_dim) / SIDE) {
        let feature = comptime!(step * SIDE);
        let from_left = (row * pitch + feature) / N::value();
        let from_right = (column * pitch + feature) / N::value();
        cmma::load(&a, &left.slice(from_left, left.len()), pitch as u32);
        cmma::load(&b, &right.slice(from_right, right.len()), pitch as u32);
        cmma::execute::<F, F, f32, f32>(&a, &b, &sum, &sum);
    }
    let end = sums.len();
    let mut target = sums.slice_mut(row * SUM_PITCH + column, end);
    cmma::store(&mut target, &sum, SUM_PITCH as u32, MatrixLayout::RowMajor);
}

/// Creates a plane's pieces of sums `[ROWS, head_dim]`, set to zero.
#[cube]
pub(super) fn zero_pieces(#[comptime] head_dim: usize) -> Sequence<Matrix<f32>> {
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(pieces(head_dim)) {
        sums.push(zero());
    }
    sums
}

/// Computes `sums += weights heads`.
#[cube]
pub(super) fn accumulate<F: Float, N: Size>(
    weights: &SharedMemory<F>,
    heads: &SharedMemory<Vector<F, N>>,
    sums: &Sequence<Matrix<f32>>,
    #[comptime] head_dim: usize,
) {
    let pitch = comptime!(head_pitch(head_dim));
    let (row, column) = piece();
    let a = factor::<F>(MatrixIdent::A, MatrixLayout::RowMajor);
    let b = factor::<F>(MatrixIdent::B, MatrixLayout::RowMajor);
    #[unroll]
    for step in 0..comptime!(TILE_COLUMNS / SIDE) {
        let inner = comptime!(step * SIDE);
        cmma::load(
            &a,
            &weights.slice(row * WEIGHT_PITCH + inner, weights.len()),
            WEIGHT_PITCH as u32,
        );
        #[unroll]
        for i in 0..comptime!(pieces(head_dim)) {
            let from = (inner * pitch + column + comptime!(i * 2 * SIDE)) / N::value();
            cmma::load(&b, &heads.slice(from, heads.len()), pitch as u32);
            let sum = sums.index(i);
            cmma::execute::<F, F, f32, f32>(&a, &b, sum, sum);
        }
    }
}

/// Copies one piece of every plane, [`TILE_COLUMNS`] features of all rows from feature `2 * SIDE * i` on, into shared memory.
#[cube]
fn store_piece(sums: &Sequence<Matrix<f32>>, shared: &mut SharedMemory<f32>, #[comptime] i: usize) {
    let (row, column) = piece();
    let end = shared.len();
    let mut target = shared.slice_mut(row * SUM_PITCH + column, end);
    cmma::store(&mut target, sums.index(i), SUM_PITCH as u32, MatrixLayout::RowMajor);
}

/// Writes sums to the folded rows: the inverse of `load_rows`. `shared` is overwritten.
#[cube]
pub(super) fn store_rows<F: Float, I: Int, N: Size>(
    sums: &Sequence<Matrix<f32>>,
    shared: &mut SharedMemory<f32>,
    target: &mut Tensor<Vector<F, N>>,
    queries: &Tensor<I>,
    rows: RowSlice,
    #[comptime] plan: Plan,
    #[comptime] gather: bool,
) {
    let row = UNIT_POS as usize / THREADS_PER_ROW;
    let folded = rows.first + row;
    #[unroll]
    for i in 0..comptime!(pieces(plan.head_dim)) {
        sync_cube();
        store_piece(sums, shared, i);
        sync_cube();
        if folded < rows.row_count {
            let mut token = folded / plan.group;
            if comptime!(gather) {
                token = usize::cast_from(queries[token]);
            }
            let head = folded % plan.group;
            let start = token * target.stride(0) + rows.column + head * plan.head_dim;
            write_features::<F, N>(shared, target, start, row, i, plan.head_dim);
        }
    }
}

/// Writes sums to the keys: the inverse of `load_keys`. `shared` is overwritten.
#[cube]
pub(super) fn store_keys<F: Float, N: Size>(
    sums: &Sequence<Matrix<f32>>,
    shared: &mut SharedMemory<f32>,
    target: &mut Tensor<Vector<F, N>>,
    keys: KeySlice,
    #[comptime] head_dim: usize,
) {
    let row = UNIT_POS as usize / THREADS_PER_ROW;
    let key = keys.first + row;
    #[unroll]
    for i in 0..comptime!(pieces(head_dim)) {
        sync_cube();
        store_piece(sums, shared, i);
        sync_cube();
        if key < target.shape(0) {
            let start = key * target.stride(0) + keys.column;
            write_features::<F, N>(shared, target, start, row, i, head_dim);
        }
    }
}

/// Writes a thread's features of piece `i` to the head that begins at value `start` of `target`.
#[cube]
fn write_features<F: Float, N: Size>(
    shared: &SharedMemory<f32>,
    target: &mut Tensor<Vector<F, N>>,
    start: usize,
    row: usize,
    #[comptime] i: usize,
    #[comptime] head_dim: usize,
) {
    let width = N::value();
    let part = UNIT_POS as usize % THREADS_PER_ROW;
    #[unroll]
    for j in 0..comptime!(VALUES_PER_THREAD / width) {
        let column = part * VALUES_PER_THREAD + j * width;
        let feature = comptime!(i * TILE_COLUMNS) + column;
        if feature < head_dim {
            let mut value = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for lane in 0..N::value() {
                value[lane] = shared[row * SUM_PITCH + column + lane];
            }
            target[(start + feature) / N::value()] = Vector::<F, N>::cast_from(value);
        }
    }
}
