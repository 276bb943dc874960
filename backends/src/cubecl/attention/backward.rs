//! Backward, without atomics, so that it gives the same bits each time: one kernel sums over keys for the gradient of
//! the queries, one over rows for that of keys and values. Both recompute the probabilities from the log-sum-exp.
//!
//! With `P = exp(scores - lse)`: `dv = P^T do`, `dS = P (do v^T - rowsum(do o)) scale`, `dq = dS k`, `dk = dS^T q`.

use cubecl::prelude::*;

use super::mask::{hull_of, key_bounds, load_open, load_ranges, meets, visible};
use super::tiles::{
    ACROSS, Place, Plan, SIDE, Tiles, WEIGHT_PITCH, add_keys, add_products, add_rows, clear,
    keys_at, place, rows_at, store_keys, store_rows, sums, tiles,
};

/// `rowsum(do o)`, `[Q, H]`, a value a unit.
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
    let of_grad = query * grad.stride(0) + head * head_dim;
    let of_output = query * output.stride(0) + head * head_dim;
    let mut sum = 0.0f32;
    for i in 0..head_dim {
        sum += f32::cast_from(grad[of_grad + i]) * f32::cast_from(output[of_output + i]);
    }
    sums[ABSOLUTE_POS] = sum;
}

/// The hull of the ranges of each tile of [`ACROSS`] folded rows, `[tiles, 4]`, one cube a tile.
#[cube(launch)]
pub(super) fn tile_hulls<I: Int>(
    ranges: &Tensor<I>,
    hulls: &mut Tensor<i32>,
    #[comptime] group: usize,
    #[define(I)] _dtype: StorageType,
) {
    let mut seen = SharedMemory::<i32>::new(comptime!(ACROSS * 4));
    let mut hull = SharedMemory::<i32>::new(4usize);
    let tile = CUBE_POS_X as usize;
    load_ranges::<I>(ranges, &mut seen, tile * ACROSS, group, ACROSS);
    sync_cube();
    hull_of(&seen, &mut hull, ACROSS);
    sync_cube();
    if UNIT_POS < 4 {
        hulls[tile * 4 + UNIT_POS as usize] = hull[UNIT_POS as usize];
    }
}

/// The gradient of the queries. Cubes: tiles of rows, key heads.
#[cube(launch)]
pub(super) fn of_queries<F: Float, I: Int>(
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
    let count = comptime!(plan.rows());
    let place = place::<F, I>(qkv, ranges, plan);
    let first = CUBE_POS_X as usize * count;
    let mut tiles = tiles(plan);
    load_ranges::<I>(ranges, &mut tiles.seen, first, plan.group, count);
    load_row_values(lse, row_sum, &mut tiles.of_row, first, place, plan.group, count);
    sync_cube();
    hull_of(&tiles.seen, &mut tiles.hull, count);
    sync_cube();

    let mut held = sums(comptime!(plan.held()));
    let mut scores = sums(comptime!(plan.down * 2));
    let mut products = sums(comptime!(plan.down * 2));
    let (mut from, end) = key_bounds(&tiles.hull, place.keys);
    while from < end {
        if meets(&tiles.hull, from, ACROSS) {
            let key = from as usize;
            load_open::<I>(hidden, &mut tiles.open, key, place.keys, plan.hidden, ACROSS);
            recompute::<F, I>(
                qkv,
                grad,
                queries,
                &mut tiles,
                &mut scores,
                &mut products,
                first,
                key,
                place,
                plan,
            );
            differentiate(&mut scores, &mut products, &tiles, key, scale, plan);
            write_weights(&products, &mut tiles.weights, plan.down);
            let keys = keys_at(key, place.key);
            add_keys::<F>(qkv, &mut tiles, &mut held, keys, plan);
        }
        from += ACROSS as i32;
    }
    let rows = rows_at(first, place.rows, place.query);
    store_rows::<F, I>(&held, output, queries, rows, plan, plan.chosen);
}

/// The gradients of keys and values. Cubes: tiles of keys, key heads. Here keys are the rows of the tiles.
#[cube(launch)]
pub(super) fn of_keys<F: Float, I: Int>(
    qkv: &Tensor<F>,
    grad: &Tensor<F>,
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    ranges: &Tensor<I>,
    hulls: &Tensor<i32>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<F>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(plan.rows());
    let place = place::<F, I>(qkv, ranges, plan);
    let key = CUBE_POS_X as usize * count;
    let mut tiles = tiles(plan);
    load_open::<I>(hidden, &mut tiles.open, key, place.keys, plan.hidden, count);
    let mut of_key = sums(comptime!(plan.held()));
    let mut of_value = sums(comptime!(plan.held()));
    let mut scores = sums(comptime!(plan.down * 2));
    let mut products = sums(comptime!(plan.down * 2));
    for tile in 0..hulls.shape(0) {
        if tile_meets(hulls, tile, key as i32, count) {
            let first = tile * ACROSS;
            load_ranges::<I>(ranges, &mut tiles.seen, first, plan.group, ACROSS);
            load_row_values(lse, row_sum, &mut tiles.of_row, first, place, plan.group, ACROSS);
            recompute::<F, I>(
                qkv,
                grad,
                queries,
                &mut tiles,
                &mut scores,
                &mut products,
                first,
                key,
                place,
                plan,
            );
            differentiate(&mut scores, &mut products, &tiles, key, scale, plan);
            write_weights(&scores, &mut tiles.weights, plan.down);
            let rows = rows_at(first, place.rows, place.head);
            add_rows::<F, I>(grad, queries, &mut tiles, &mut of_value, rows, plan, false);
            write_weights(&products, &mut tiles.weights, plan.down);
            let rows = rows_at(first, place.rows, place.query);
            add_rows::<F, I>(qkv, queries, &mut tiles, &mut of_key, rows, plan, plan.chosen);
        }
    }
    store_keys::<F>(&of_key, output, keys_at(key, place.key), plan);
    store_keys::<F>(&of_value, output, keys_at(key, place.value), plan);
}

/// Whether the tile of rows may see one of `count` keys from `first` on.
#[cube]
fn tile_meets(hulls: &Tensor<i32>, tile: usize, first: i32, #[comptime] count: usize) -> bool {
    let hull = tile * 4;
    let end = first + count as i32;
    (first < hulls[hull + 1] && end > hulls[hull])
        || (first < hulls[hull + 3] && end > hulls[hull + 2])
}

/// `q k^T` and `do v^T` of one tile.
#[cube]
fn recompute<F: Float, I: Int>(
    qkv: &Tensor<F>,
    grad: &Tensor<F>,
    queries: &Tensor<I>,
    tiles: &mut Tiles,
    scores: &mut Array<f32>,
    products: &mut Array<f32>,
    first_row: usize,
    first_key: usize,
    place: Place,
    #[comptime] plan: Plan,
) {
    clear(scores, comptime!(plan.down * 2));
    clear(products, comptime!(plan.down * 2));
    let rows = rows_at(first_row, place.rows, place.query);
    let keys = keys_at(first_key, place.key);
    add_products::<F, I>(qkv, qkv, queries, tiles, scores, rows, keys, plan, plan.chosen);
    let rows = rows_at(first_row, place.rows, place.head);
    let keys = keys_at(first_key, place.value);
    add_products::<F, I>(grad, qkv, queries, tiles, products, rows, keys, plan, false);
}

/// Makes `P` of the scores a unit holds, and `dS` of the products.
#[cube]
fn differentiate(
    scores: &mut Array<f32>,
    products: &mut Array<f32>,
    tiles: &Tiles,
    first_key: usize,
    scale: f32,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..plan.down {
        #[unroll]
        for j in 0..2usize {
            let down = y + i * SIDE;
            let across = x + j * SIDE;
            let keys_down = comptime!(plan.keys_down).runtime();
            let row = select(keys_down, across, down);
            let key = select(keys_down, down, across);
            let seen = visible(tiles, row, first_key, key);
            let weight = probability(scores[i * 2 + j] * scale - tiles.of_row[row * 2], seen);
            let slope = weight * (products[i * 2 + j] - tiles.of_row[row * 2 + 1]) * scale;
            scores[i * 2 + j] = weight;
            products[i * 2 + j] = slope;
        }
    }
}

/// Puts what a unit holds of a tile into shared memory.
#[cube]
fn write_weights(values: &Array<f32>, weights: &mut SharedMemory<f32>, #[comptime] down: usize) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..2usize {
            weights[(y + i * SIDE) * WEIGHT_PITCH + x + j * SIDE] = values[i * 2 + j];
        }
    }
}

/// `exp(shifted)` where the key is seen. What is not seen may lie above the log-sum-exp: it must not overflow.
#[cube]
fn probability(shifted: f32, visible: bool) -> f32 {
    select(visible, select(shifted < 0.0f32, shifted, 0.0f32).exp(), 0.0f32)
}

/// The log-sum-exp and the row sum of `count` folded rows, in turns.
#[cube]
fn load_row_values(
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    of_row: &mut SharedMemory<f32>,
    first: usize,
    place: Place,
    #[comptime] group: usize,
    #[comptime] count: usize,
) {
    let i = UNIT_POS as usize;
    if i < count {
        let folded = first + i;
        let mut log = 0.0f32;
        let mut sum = 0.0f32;
        if folded < place.rows {
            let query = folded / group;
            let head = place.kv_head * group + folded % group;
            log = lse[query * lse.stride(0) + head];
            sum = row_sum[query * row_sum.stride(0) + head];
        }
        of_row[i * 2] = log;
        of_row[i * 2 + 1] = sum;
    }
}
