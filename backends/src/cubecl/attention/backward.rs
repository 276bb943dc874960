//! The backward kernels, without atomics, so that every run gives the same bits. One kernel sums over keys for the
//! gradient of the queries, another over rows for those of keys and values. Both recompute the probabilities from the
//! log-sum-exp.
//!
//! With `P = exp(scores - lse)`: `dv = P^T do`, `dS = P (do v^T - rowsum(do o)) scale`, `dq = dS k`, `dk = dS^T q`.

use cubecl::prelude::*;

use super::mask::{
    bounding_ranges, is_visible, key_bounds, load_ranges, load_visible, may_overlap,
};
use super::tiles::{
    BlockPosition, Plan, SIDE, TILE_COLUMNS, Tiles, WEIGHT_PITCH, add_row_key_products,
    add_weighted_keys, add_weighted_rows, block_position, key_slice, new_tiles, row_slice,
    set_to_zero, store_keys, store_rows, zero_sums,
};

/// Computes `rowsum(do o)`, `[Q, H]`, one value per thread.
#[cube(launch)]
pub(super) fn row_sums<F: Float>(
    grad: &Tensor<F>,
    output: &Tensor<F>,
    sums: &mut Tensor<f32>,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: StorageType,
) {
    let heads = sums.shape(1);
    let query = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    if query >= sums.shape(0) {
        terminate!();
    }
    let grad_start = query * grad.stride(0) + head * head_dim;
    let output_start = query * output.stride(0) + head * head_dim;
    let mut sum = 0.0f32;
    for i in 0..head_dim {
        sum += f32::cast_from(grad[grad_start + i]) * f32::cast_from(output[output_start + i]);
    }
    sums[ABSOLUTE_POS] = sum;
}

/// Computes the bounds of the ranges of each tile of [`TILE_COLUMNS`] folded rows, `[tiles, 4]`, one block per tile.
#[cube(launch)]
pub(super) fn compute_tile_bounds<I: Int>(
    ranges: &Tensor<I>,
    tile_bounds: &mut Tensor<i32>,
    #[comptime] group: usize,
    #[define(I)] _dtype: StorageType,
) {
    let mut tile_ranges = SharedMemory::<i32>::new(comptime!(TILE_COLUMNS * 4));
    let mut bounds = SharedMemory::<i32>::new(4usize);
    let tile = CUBE_POS_X as usize;
    load_ranges::<I>(ranges, &mut tile_ranges, tile * TILE_COLUMNS, group, TILE_COLUMNS);
    sync_cube();
    bounding_ranges(&tile_ranges, &mut bounds, TILE_COLUMNS);
    sync_cube();
    if UNIT_POS < 4 {
        tile_bounds[tile * 4 + UNIT_POS as usize] = bounds[UNIT_POS as usize];
    }
}

/// Computes the gradient of the queries, one tile of folded rows per block. The grid is tiles of rows by key heads.
#[cube(launch)]
pub(super) fn query_gradient<F: Float, I: Int>(
    qkv: &Tensor<F>,
    grad: &Tensor<F>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<F>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(plan.tile_rows());
    let position = block_position::<F, I>(qkv, ranges, plan);
    let first_row = CUBE_POS_X as usize * count;
    let mut tiles = new_tiles(plan);
    load_ranges::<I>(ranges, &mut tiles.ranges, first_row, plan.group, count);
    load_stats(lse, row_sum, &mut tiles.stats, first_row, position, plan.group, count);
    sync_cube();
    bounding_ranges(&tiles.ranges, &mut tiles.bounds, count);
    sync_cube();

    let mut d_query = zero_sums(comptime!(plan.features_per_thread()));
    let mut scores = zero_sums(comptime!(plan.rows_per_thread * 2));
    let mut d_probs = zero_sums(comptime!(plan.rows_per_thread * 2));
    let (mut start, end) = key_bounds(&tiles.bounds, position.key_count);
    while start < end {
        if may_overlap(&tiles.bounds, start, TILE_COLUMNS) {
            let first_key = start as usize;
            load_visible::<I>(
                hidden,
                &mut tiles.visible,
                first_key,
                position.key_count,
                plan.hidden,
                TILE_COLUMNS,
            );
            recompute_products::<F, I>(
                qkv,
                grad,
                queries,
                &mut tiles,
                &mut scores,
                &mut d_probs,
                first_row,
                first_key,
                position,
                plan,
            );
            softmax_backward(&mut scores, &mut d_probs, &tiles, first_key, scale, plan);
            write_tile(&d_probs, &mut tiles.weights, plan.rows_per_thread);
            let keys = key_slice(first_key, position.key_column);
            add_weighted_keys::<F>(qkv, &mut tiles, &mut d_query, keys, plan);
        }
        start += TILE_COLUMNS as i32;
    }
    let rows = row_slice(first_row, position.row_count, position.query_column);
    store_rows::<F, I>(&d_query, output, queries, rows, plan, plan.gather);
}

/// Computes the gradients of keys and values, one tile of keys per block. The grid is tiles of keys by key heads; the
/// rows of these tiles are keys.
#[cube(launch)]
pub(super) fn key_value_gradient<F: Float, I: Int>(
    qkv: &Tensor<F>,
    grad: &Tensor<F>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    tile_bounds: &Tensor<i32>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<F>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(plan.tile_rows());
    let position = block_position::<F, I>(qkv, ranges, plan);
    let first_key = CUBE_POS_X as usize * count;
    let mut tiles = new_tiles(plan);
    load_visible::<I>(
        hidden,
        &mut tiles.visible,
        first_key,
        position.key_count,
        plan.hidden,
        count,
    );
    let mut d_key = zero_sums(comptime!(plan.features_per_thread()));
    let mut d_value = zero_sums(comptime!(plan.features_per_thread()));
    let mut scores = zero_sums(comptime!(plan.rows_per_thread * 2));
    let mut d_probs = zero_sums(comptime!(plan.rows_per_thread * 2));
    for tile in 0..tile_bounds.shape(0) {
        if tile_may_overlap(tile_bounds, tile, first_key as i32, count) {
            let first_row = tile * TILE_COLUMNS;
            load_ranges::<I>(ranges, &mut tiles.ranges, first_row, plan.group, TILE_COLUMNS);
            load_stats(
                lse,
                row_sum,
                &mut tiles.stats,
                first_row,
                position,
                plan.group,
                TILE_COLUMNS,
            );
            recompute_products::<F, I>(
                qkv,
                grad,
                queries,
                &mut tiles,
                &mut scores,
                &mut d_probs,
                first_row,
                first_key,
                position,
                plan,
            );
            softmax_backward(&mut scores, &mut d_probs, &tiles, first_key, scale, plan);
            write_tile(&scores, &mut tiles.weights, plan.rows_per_thread);
            let rows = row_slice(first_row, position.row_count, position.output_column);
            add_weighted_rows::<F, I>(grad, queries, &mut tiles, &mut d_value, rows, plan, false);
            write_tile(&d_probs, &mut tiles.weights, plan.rows_per_thread);
            let rows = row_slice(first_row, position.row_count, position.query_column);
            add_weighted_rows::<F, I>(
                qkv,
                queries,
                &mut tiles,
                &mut d_key,
                rows,
                plan,
                plan.gather,
            );
        }
    }
    store_keys::<F>(&d_key, output, key_slice(first_key, position.key_column), plan);
    store_keys::<F>(&d_value, output, key_slice(first_key, position.value_column), plan);
}

/// Returns whether the tile of rows may see one of the `count` keys from `first` on.
#[cube]
pub(super) fn tile_may_overlap(
    tile_bounds: &Tensor<i32>,
    tile: usize,
    first: i32,
    #[comptime] count: usize,
) -> bool {
    let start = tile * 4;
    let end = first + count as i32;
    (first < tile_bounds[start + 1] && end > tile_bounds[start])
        || (first < tile_bounds[start + 3] && end > tile_bounds[start + 2])
}

/// Computes `q k^T` and `do v^T` of one tile.
#[cube]
fn recompute_products<F: Float, I: Int>(
    qkv: &Tensor<F>,
    grad: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    scores: &mut Array<f32>,
    d_probs: &mut Array<f32>,
    first_row: usize,
    first_key: usize,
    position: BlockPosition,
    #[comptime] plan: Plan,
) {
    set_to_zero(scores, comptime!(plan.rows_per_thread * 2));
    set_to_zero(d_probs, comptime!(plan.rows_per_thread * 2));
    let rows = row_slice(first_row, position.row_count, position.query_column);
    let keys = key_slice(first_key, position.key_column);
    add_row_key_products::<F, I>(qkv, qkv, queries, tiles, scores, rows, keys, plan, plan.gather);
    let rows = row_slice(first_row, position.row_count, position.output_column);
    let keys = key_slice(first_key, position.value_column);
    add_row_key_products::<F, I>(grad, qkv, queries, tiles, d_probs, rows, keys, plan, false);
}

/// Replaces a thread's scores by the probabilities `P` and its `do v^T` by `dS`.
#[cube]
fn softmax_backward(
    scores: &mut Array<f32>,
    d_probs: &mut Array<f32>,
    tiles: &Tiles,
    first_key: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..plan.rows_per_thread {
        #[unroll]
        for j in 0..2usize {
            let tile_row = y + i * SIDE;
            let tile_column = x + j * SIDE;
            let keys_as_rows = comptime!(plan.keys_as_rows).runtime();
            let row = select(keys_as_rows, tile_column, tile_row);
            let key = select(keys_as_rows, tile_row, tile_column);
            let visible = is_visible(&tiles.ranges, &tiles.visible, row, first_key, key);
            let prob = probability(scores[i * 2 + j] * scale - tiles.stats[row * 2], visible);
            let d_score = prob * (d_probs[i * 2 + j] - tiles.stats[row * 2 + 1]) * scale;
            scores[i * 2 + j] = prob;
            d_probs[i * 2 + j] = d_score;
        }
    }
}

/// Writes a thread's values of a tile into shared memory.
#[cube]
fn write_tile(
    values: &Array<f32>,
    weights: &mut SharedMemory<f32>,
    #[comptime] rows_per_thread: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..rows_per_thread {
        #[unroll]
        for j in 0..2usize {
            weights[(y + i * SIDE) * WEIGHT_PITCH + x + j * SIDE] = values[i * 2 + j];
        }
    }
}

/// Returns `exp(shifted)` where the key is visible, else 0; NaN stays NaN. The score of a hidden key may exceed the
/// log-sum-exp, so the exponent is capped at 0 to avoid overflow.
#[cube]
pub(super) fn probability(shifted: f32, visible: bool) -> f32 {
    select(visible, select(shifted > 0.0f32, 0.0f32, shifted).exp(), 0.0f32)
}

/// Copies the log-sum-exp and the row sum of `count` folded rows into shared memory, interleaved.
#[cube]
pub(super) fn load_stats(
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    stats: &mut SharedMemory<f32>,
    first: usize,
    position: BlockPosition,
    #[comptime] group: usize,
    #[comptime] count: usize,
) {
    let i = UNIT_POS as usize;
    if i < count {
        let folded = first + i;
        let mut log_sum_exp = 0.0f32;
        let mut sum = 0.0f32;
        if folded < position.row_count {
            let query = folded / group;
            let head = position.kv_head * group + folded % group;
            log_sum_exp = lse[query * lse.stride(0) + head];
            sum = row_sum[query * row_sum.stride(0) + head];
        }
        stats[i * 2] = log_sum_exp;
        stats[i * 2 + 1] = sum;
    }
}
