//! The backward kernels: see the kernels without tensor cores, whose sums these compute over the same tiles.

use cubecl::prelude::*;

use super::tiles::{
    ROWS, SUM_PITCH, THREADS_PER_ROW, VALUES_PER_THREAD, WEIGHT_PITCH, accumulate, load_keys,
    load_rows, multiply, new_heads, new_sums, new_weights, store_keys, store_rows, zero_pieces,
};
use crate::cubecl::attention::backward::{load_stats, probability, tile_may_overlap};
use crate::cubecl::attention::mask::{
    bounding_ranges, is_visible, key_bounds, load_ranges, load_visible, may_overlap,
};
use crate::cubecl::attention::tiles::{
    BlockPosition, Plan, TILE_COLUMNS, block_position, key_slice, row_slice,
};

/// The tiles of a block. The rows on the left stay, those on the right change from tile to tile.
#[derive(CubeType)]
struct Tiles<F: Float, N: Size> {
    /// Queries, or keys.
    left: SharedMemory<Vector<F, N>>,
    /// Gradients of the output, or values.
    left_grads: SharedMemory<Vector<F, N>>,
    /// Keys, or queries.
    right: SharedMemory<Vector<F, N>>,
    /// Values, or gradients of the output.
    right_grads: SharedMemory<Vector<F, N>>,
    scores: SharedMemory<f32>,
    /// The products of gradients and values.
    d_probs: SharedMemory<f32>,
    /// The probabilities.
    probs: SharedMemory<F>,
    d_scores: SharedMemory<F>,
    ranges: SharedMemory<i32>,
    visible: SharedMemory<i32>,
    bounds: SharedMemory<i32>,
    /// The log-sum-exp and the row sum of each folded row, interleaved.
    stats: SharedMemory<f32>,
}

/// Allocates the tiles. `rows` and `keys` are the numbers of folded rows and of keys of a tile.
#[cube]
fn new_tiles<F: Float, N: Size>(
    #[comptime] head_dim: usize,
    #[comptime] rows: usize,
    #[comptime] keys: usize,
) -> Tiles<F, N> {
    Tiles::<F, N> {
        left: new_heads::<F, N>(ROWS, head_dim),
        left_grads: new_heads::<F, N>(ROWS, head_dim),
        right: new_heads::<F, N>(TILE_COLUMNS, head_dim),
        right_grads: new_heads::<F, N>(TILE_COLUMNS, head_dim),
        scores: new_sums(),
        d_probs: new_sums(),
        probs: new_weights::<F>(),
        d_scores: new_weights::<F>(),
        ranges: SharedMemory::<i32>::new(comptime!(rows * 4)),
        visible: SharedMemory::<i32>::new(keys),
        bounds: SharedMemory::<i32>::new(4usize),
        stats: SharedMemory::<f32>::new(comptime!(rows * 2)),
    }
}

/// Computes the gradient of the queries, one tile of folded rows per block. The grid is tiles of rows by key heads.
#[cube(launch)]
pub(super) fn query_gradient<F: Float, I: Int, N: Size>(
    qkv: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let position = block_position::<Vector<F, N>, I>(qkv, ranges, plan);
    let first_row = CUBE_POS_X as usize * ROWS;
    let mut tiles = new_tiles::<F, N>(plan.head_dim, ROWS, TILE_COLUMNS);
    load_ranges::<I>(ranges, &mut tiles.ranges, first_row, plan.group, ROWS);
    load_stats(lse, row_sum, &mut tiles.stats, first_row, position, plan.group, ROWS);
    let rows = row_slice(first_row, position.row_count, position.query_column);
    load_rows::<F, I, N>(qkv, queries, &mut tiles.left, rows, plan, plan.gather, ROWS);
    let grads = row_slice(first_row, position.row_count, position.output_column);
    load_rows::<F, I, N>(grad, queries, &mut tiles.left_grads, grads, plan, false, ROWS);
    sync_cube();
    bounding_ranges(&tiles.ranges, &mut tiles.bounds, ROWS);
    sync_cube();

    let d_query = zero_pieces(plan.head_dim);
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
            let keys = key_slice(first_key, position.key_column);
            load_keys::<F, N>(qkv, &mut tiles.right, keys, plan.head_dim, TILE_COLUMNS);
            let values = key_slice(first_key, position.value_column);
            load_keys::<F, N>(qkv, &mut tiles.right_grads, values, plan.head_dim, TILE_COLUMNS);
            write_gradients::<F, N>(&mut tiles, first_key, scale, plan);
            accumulate::<F, N>(&tiles.d_scores, &tiles.right, &d_query, plan.head_dim);
            sync_cube();
        }
        start += TILE_COLUMNS as i32;
    }
    store_rows::<F, I, N>(&d_query, &mut tiles.scores, output, queries, rows, plan, plan.gather);
}

/// Computes the gradients of keys and values, one tile of keys per block. The grid is tiles of keys by key heads; the rows of these
/// tiles are keys.
#[cube(launch)]
pub(super) fn key_value_gradient<F: Float, I: Int, N: Size>(
    qkv: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    tile_bounds: &Tensor<i32>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let position = block_position::<Vector<F, N>, I>(qkv, ranges, plan);
    let first_key = CUBE_POS_X as usize * ROWS;
    let mut tiles = new_tiles::<F, N>(plan.head_dim, TILE_COLUMNS, ROWS);
    load_visible::<I>(hidden, &mut tiles.visible, first_key, position.key_count, plan.hidden, ROWS);
    let keys = key_slice(first_key, position.key_column);
    load_keys::<F, N>(qkv, &mut tiles.left, keys, plan.head_dim, ROWS);
    let values = key_slice(first_key, position.value_column);
    load_keys::<F, N>(qkv, &mut tiles.left_grads, values, plan.head_dim, ROWS);

    let d_key = zero_pieces(plan.head_dim);
    let d_value = zero_pieces(plan.head_dim);
    for tile in 0..tile_bounds.shape(0) {
        if tile_may_overlap(tile_bounds, tile, first_key as i32, ROWS) {
            let first_row = tile * TILE_COLUMNS;
            load_row_tiles::<F, I, N>(
                qkv, grad, lse, row_sum, ranges, queries, &mut tiles, first_row, position, plan,
            );
            write_gradients::<F, N>(&mut tiles, first_key, scale, plan);
            accumulate::<F, N>(&tiles.probs, &tiles.right_grads, &d_value, plan.head_dim);
            accumulate::<F, N>(&tiles.d_scores, &tiles.right, &d_key, plan.head_dim);
            sync_cube();
        }
    }
    store_keys::<F, N>(&d_key, &mut tiles.scores, output, keys, plan.head_dim);
    store_keys::<F, N>(&d_value, &mut tiles.scores, output, values, plan.head_dim);
}

/// Copies a tile of folded rows with all that belongs to them into shared memory.
#[cube]
fn load_row_tiles<F: Float, I: Int, N: Size>(
    qkv: &Tensor<Vector<F, N>>,
    grad: &Tensor<Vector<F, N>>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    queries: &Tensor<I>,
    tiles: &mut Tiles<F, N>,
    first_row: usize,
    position: BlockPosition,
    #[comptime] plan: Plan,
) {
    load_ranges::<I>(ranges, &mut tiles.ranges, first_row, plan.group, TILE_COLUMNS);
    load_stats(lse, row_sum, &mut tiles.stats, first_row, position, plan.group, TILE_COLUMNS);
    let rows = row_slice(first_row, position.row_count, position.query_column);
    load_rows::<F, I, N>(qkv, queries, &mut tiles.right, rows, plan, plan.gather, TILE_COLUMNS);
    let grads = row_slice(first_row, position.row_count, position.output_column);
    load_rows::<F, I, N>(grad, queries, &mut tiles.right_grads, grads, plan, false, TILE_COLUMNS);
}

/// Computes the probabilities of a tile and the gradients of its scores, once all threads have loaded it.
#[cube]
fn write_gradients<F: Float, N: Size>(
    tiles: &mut Tiles<F, N>,
    first_key: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    sync_cube();
    multiply::<F, N>(&tiles.left, &tiles.right, &mut tiles.scores, plan.head_dim);
    multiply::<F, N>(&tiles.left_grads, &tiles.right_grads, &mut tiles.d_probs, plan.head_dim);
    sync_cube();
    let tile_row = UNIT_POS as usize / THREADS_PER_ROW;
    #[unroll]
    for j in 0..VALUES_PER_THREAD {
        let tile_column = UNIT_POS as usize % THREADS_PER_ROW + j * THREADS_PER_ROW;
        let keys_as_rows = comptime!(plan.keys_as_rows).runtime();
        let row = select(keys_as_rows, tile_column, tile_row);
        let key = select(keys_as_rows, tile_row, tile_column);
        let visible = is_visible(&tiles.ranges, &tiles.visible, row, first_key, key);
        let place = tile_row * SUM_PITCH + tile_column;
        let prob = probability(tiles.scores[place] * scale - tiles.stats[row * 2], visible);
        let d_score = prob * (tiles.d_probs[place] - tiles.stats[row * 2 + 1]) * scale;
        let place = tile_row * WEIGHT_PITCH + tile_column;
        tiles.probs[place] = F::cast_from(prob);
        tiles.d_scores[place] = F::cast_from(d_score);
    }
    sync_cube();
}
