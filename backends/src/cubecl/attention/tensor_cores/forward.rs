//! The forward kernel: one block per tile of folded rows and key head. The keys are read twice: first for the log-sum-exp of each row,
//! then for the probabilities and the output, whose sums stay in the planes' matrices because nothing rescales them.

use cubecl::prelude::*;

use super::tiles::{
    ROWS, SUM_PITCH, THREADS_PER_ROW, VALUES_PER_THREAD, WEIGHT_PITCH, accumulate, load_keys,
    load_rows, multiply, new_heads, new_sums, new_weights, store_rows, zero_pieces,
};
use crate::cubecl::attention::mask::{
    bounding_ranges, is_visible, key_bounds, load_ranges, load_visible, may_overlap,
};
use crate::cubecl::attention::tiles::{
    BlockPosition, HIDDEN, Plan, RowSlice, TILE_COLUMNS, block_position, key_slice, row_slice,
};

/// The tiles of a block.
#[derive(CubeType)]
struct Tiles<F: Float, N: Size> {
    queries: SharedMemory<Vector<F, N>>,
    /// Keys, or values.
    keys: SharedMemory<Vector<F, N>>,
    scores: SharedMemory<f32>,
    weights: SharedMemory<F>,
    ranges: SharedMemory<i32>,
    visible: SharedMemory<i32>,
    bounds: SharedMemory<i32>,
}

/// Computes the attention output and the log-sum-exp of one tile of folded rows. The grid is tiles of rows by key heads.
#[cube(launch)]
pub(super) fn attend<F: Float, I: Int, N: Size>(
    query: &Tensor<Vector<F, N>>,
    key: &Tensor<Vector<F, N>>,
    value: &Tensor<Vector<F, N>>,
    ranges: &Tensor<I>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    lse: &mut Tensor<f32>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let position = block_position::<Vector<F, N>, I>(key, ranges, plan);
    let first = CUBE_POS_X as usize * ROWS;
    let mut tiles = new_tiles::<F, N>(plan.head_dim);
    load_ranges::<I>(ranges, &mut tiles.ranges, first, plan.group, ROWS);
    let rows = row_slice(first, position.row_count, position.query_column);
    load_rows::<F, I, N>(query, queries, &mut tiles.queries, rows, plan, plan.gather, ROWS);
    sync_cube();
    bounding_ranges(&tiles.ranges, &mut tiles.bounds, ROWS);
    sync_cube();

    let row_lse = log_sum_exp::<F, I, N>(key, hidden, &mut tiles, position, scale, plan);
    write_lse(lse, row_lse, rows, position.kv_head, plan.group);

    let sums = zero_pieces(plan.head_dim);
    let (mut start, end) = key_bounds(&tiles.bounds, position.key_count);
    while start < end {
        if may_overlap(&tiles.bounds, start, TILE_COLUMNS) {
            let first_key = start as usize;
            write_scores::<F, I, N>(key, hidden, &mut tiles, position, first_key, plan);
            write_weights::<F, N>(&mut tiles, row_lse, first_key, scale);
            let values = key_slice(first_key, position.value_column);
            load_keys::<F, N>(value, &mut tiles.keys, values, plan.head_dim, TILE_COLUMNS);
            sync_cube();
            accumulate::<F, N>(&tiles.weights, &tiles.keys, &sums, plan.head_dim);
            sync_cube();
        }
        start += TILE_COLUMNS as i32;
    }
    let rows = row_slice(first, position.row_count, position.output_column);
    store_rows::<F, I, N>(&sums, &mut tiles.scores, output, queries, rows, plan, false);
}

#[cube]
fn new_tiles<F: Float, N: Size>(#[comptime] head_dim: usize) -> Tiles<F, N> {
    Tiles::<F, N> {
        queries: new_heads::<F, N>(ROWS, head_dim),
        keys: new_heads::<F, N>(TILE_COLUMNS, head_dim),
        scores: new_sums(),
        weights: new_weights::<F>(),
        ranges: SharedMemory::<i32>::new(comptime!(ROWS * 4)),
        visible: SharedMemory::<i32>::new(TILE_COLUMNS),
        bounds: SharedMemory::<i32>::new(4usize),
    }
}

/// Computes the products of the queries with a tile of keys, and which keys are visible. All threads see them afterwards, and have used
/// the tile of keys.
#[cube]
fn write_scores<F: Float, I: Int, N: Size>(
    key: &Tensor<Vector<F, N>>,
    hidden: &Tensor<I>,
    tiles: &mut Tiles<F, N>,
    position: BlockPosition,
    first_key: usize,
    #[comptime] plan: Plan,
) {
    load_visible::<I>(
        hidden,
        &mut tiles.visible,
        first_key,
        position.key_count,
        plan.hidden,
        TILE_COLUMNS,
    );
    let keys = key_slice(first_key, position.key_column);
    load_keys::<F, N>(key, &mut tiles.keys, keys, plan.head_dim, TILE_COLUMNS);
    sync_cube();
    multiply::<F, N>(&tiles.queries, &tiles.keys, &mut tiles.scores, plan.head_dim);
    sync_cube();
}

/// Returns the log-sum-exp of the running thread's row over all keys that the row sees. For a row that sees nothing the sum counts as 1.
#[cube]
fn log_sum_exp<F: Float, I: Int, N: Size>(
    key: &Tensor<Vector<F, N>>,
    hidden: &Tensor<I>,
    tiles: &mut Tiles<F, N>,
    position: BlockPosition,
    scale: f32,
    #[comptime] plan: Plan,
) -> f32 {
    // The largest score that the thread has seen of its row, and the sum of `exp(score - max)`.
    let mut softmax = Array::<f32>::new(2usize);
    softmax[0] = HIDDEN;
    softmax[1] = 0.0f32;
    let (mut start, end) = key_bounds(&tiles.bounds, position.key_count);
    while start < end {
        if may_overlap(&tiles.bounds, start, TILE_COLUMNS) {
            let first_key = start as usize;
            write_scores::<F, I, N>(key, hidden, tiles, position, first_key, plan);
            add_scores::<F, N>(tiles, &mut softmax, first_key, scale);
            sync_cube();
        }
        start += TILE_COLUMNS as i32;
    }
    combine(&mut tiles.scores, &softmax)
}

/// Returns the running thread's row of a tile, and the first of its columns; the others follow at steps of [`THREADS_PER_ROW`].
#[cube]
fn row_and_column() -> (usize, usize) {
    (UNIT_POS as usize / THREADS_PER_ROW, UNIT_POS as usize % THREADS_PER_ROW)
}

/// Adds the scores of a tile to the softmax of the running thread.
#[cube]
fn add_scores<F: Float, N: Size>(
    tiles: &Tiles<F, N>,
    softmax: &mut Array<f32>,
    first_key: usize,
    scale: f32,
) {
    let (row, column) = row_and_column();
    let mut scores = Array::<f32>::new(VALUES_PER_THREAD);
    let old_max = softmax[0];
    let mut max = old_max;
    #[unroll]
    for j in 0..VALUES_PER_THREAD {
        let key = column + j * THREADS_PER_ROW;
        let visible = is_visible(&tiles.ranges, &tiles.visible, row, first_key, key);
        let score = select(visible, tiles.scores[row * SUM_PITCH + key] * scale, HIDDEN);
        max = select(score > max, score, max);
        scores[j] = score;
    }
    let mut sum = softmax[1] * (old_max - max).exp();
    #[unroll]
    for j in 0..VALUES_PER_THREAD {
        // The comparison is with HIDDEN itself, so that NaN scores stay NaN.
        sum += select(scores[j] == HIDDEN, 0.0f32, (scores[j] - max).exp());
    }
    softmax[0] = max;
    softmax[1] = sum;
}

/// Returns the log-sum-exp of a row from the softmax of the threads that share it. `shared` is overwritten.
#[cube]
fn combine(shared: &mut SharedMemory<f32>, softmax: &Array<f32>) -> f32 {
    let (row, _) = row_and_column();
    shared[UNIT_POS as usize * 2] = softmax[0];
    shared[UNIT_POS as usize * 2 + 1] = softmax[1];
    sync_cube();
    let first = row * comptime!(2 * THREADS_PER_ROW);
    let mut max = HIDDEN.runtime();
    #[unroll]
    for part in 0..THREADS_PER_ROW {
        let other = shared[first + part * 2];
        max = select(other > max, other, max);
    }
    let mut sum = 0.0f32;
    #[unroll]
    for part in 0..THREADS_PER_ROW {
        sum += shared[first + part * 2 + 1] * (shared[first + part * 2] - max).exp();
    }
    sync_cube();
    max + select(sum == 0.0f32, 1.0f32, sum).ln()
}

/// Writes the log-sum-exp of the rows.
#[cube]
fn write_lse(
    lse: &mut Tensor<f32>,
    row_lse: f32,
    rows: RowSlice,
    kv_head: usize,
    #[comptime] group: usize,
) {
    let (row, column) = row_and_column();
    let folded = rows.first + row;
    if column == 0 && folded < rows.row_count {
        let head = kv_head * group + folded % group;
        lse[folded / group * lse.stride(0) + head] = row_lse;
    }
}

/// Writes the probabilities of a tile.
#[cube]
fn write_weights<F: Float, N: Size>(
    tiles: &mut Tiles<F, N>,
    row_lse: f32,
    first_key: usize,
    scale: f32,
) {
    let (row, column) = row_and_column();
    #[unroll]
    for j in 0..VALUES_PER_THREAD {
        let key = column + j * THREADS_PER_ROW;
        let visible = is_visible(&tiles.ranges, &tiles.visible, row, first_key, key);
        let score = tiles.scores[row * SUM_PITCH + key] * scale;
        let weight = select(visible, (score - row_lse).exp(), 0.0f32);
        tiles.weights[row * WEIGHT_PITCH + key] = F::cast_from(weight);
    }
}
