//! Backward, without atomics, so that it gives the same bits each time: one kernel sums over keys for the gradient of
//! the queries, one over rows for that of keys and values. Both recompute the probabilities from the log-sum-exp.
//!
//! With `P = exp(scores - lse)`: `dv = P^T do`, `dS = P (do v^T - rowsum(do o)) scale`, `dq = dS k`, `dk = dS^T q`.

use cubecl::prelude::*;

use super::tiles::{
    ACROSS, Plan, SIDE, WEIGHT_PITCH, accumulate, clear, hull_of, load_keys, load_open,
    load_ranges, load_rows, multiply, sees, store_keys, store_rows,
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
    let tile_rows = comptime!(plan.rows());
    let kv_head = CUBE_POS_Y as usize;
    let first_row = CUBE_POS_X as usize * tile_rows;
    let rows = ranges.shape(0) * plan.group;
    let keys = qkv.shape(0);
    let head_column = kv_head * plan.group * plan.head_dim;
    let query_column = comptime!(plan.columns[0]) + head_column;
    let key_column = comptime!(plan.columns[1]) + kv_head * plan.head_dim;
    let value_column = comptime!(plan.columns[2]) + kv_head * plan.head_dim;

    let mut left = SharedMemory::<f32>::new(comptime!(Plan::tile(plan.rows())));
    let mut right = SharedMemory::<f32>::new(comptime!(Plan::tile(ACROSS)));
    let mut slopes = SharedMemory::<f32>::new(comptime!(plan.rows() * WEIGHT_PITCH));
    let mut seen = SharedMemory::<i32>::new(comptime!(plan.rows() * 4));
    let mut open = SharedMemory::<i32>::new(ACROSS);
    let mut hull = SharedMemory::<i32>::new(4usize);
    let mut of_row = SharedMemory::<f32>::new(comptime!(plan.rows() * 2));

    load_ranges::<I>(ranges, &mut seen, first_row, plan.group, tile_rows);
    load_row_values(
        lse,
        row_sum,
        &mut of_row,
        first_row,
        rows,
        kv_head,
        plan.group,
        tile_rows,
    );
    sync_cube();
    hull_of(&seen, &mut hull, tile_rows);
    sync_cube();
    let mut sums = Array::<f32>::new(comptime!(plan.down * plan.wide()));
    clear(&mut sums, comptime!(plan.down * plan.wide()));
    let mut scores = Array::<f32>::new(comptime!(plan.down * 2));
    let mut products = Array::<f32>::new(comptime!(plan.down * 2));

    let start = select(hull[0] < hull[2], hull[0], hull[2]);
    let end = select(hull[1] > hull[3], hull[1], hull[3]);
    let end = select(end < keys as i32, end, keys as i32);
    let mut from = start / ACROSS as i32 * ACROSS as i32;
    while from < end {
        let to = from + ACROSS as i32;
        if (from < hull[1] && to > hull[0]) || (from < hull[3] && to > hull[2]) {
            let first_key = from as usize;
            load_open::<I>(hidden, &mut open, first_key, keys, plan.hidden, ACROSS);
            clear(&mut scores, comptime!(plan.down * 2));
            clear(&mut products, comptime!(plan.down * 2));
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_rows::<F, I>(
                    qkv,
                    queries,
                    &mut left,
                    first_row,
                    rows,
                    query_column,
                    plan,
                    plan.chosen,
                    chunk,
                    tile_rows,
                );
                load_keys::<F>(
                    qkv,
                    &mut right,
                    first_key,
                    key_column,
                    plan.head_dim,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                multiply(&left, &right, &mut scores, plan.down);
                sync_cube();
                load_rows::<F, I>(
                    grad,
                    queries,
                    &mut left,
                    first_row,
                    rows,
                    head_column,
                    plan,
                    false,
                    chunk,
                    tile_rows,
                );
                load_keys::<F>(
                    qkv,
                    &mut right,
                    first_key,
                    value_column,
                    plan.head_dim,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                multiply(&left, &right, &mut products, plan.down);
                sync_cube();
            }
            let x = UNIT_POS as usize % SIDE;
            let y = UNIT_POS as usize / SIDE;
            #[unroll]
            for i in 0..plan.down {
                #[unroll]
                for j in 0..2usize {
                    let row = y + i * SIDE;
                    let column = x + j * SIDE;
                    let visible = sees(&seen, row, from + column as i32) && open[column] == 1i32;
                    let weight = probability(scores[i * 2 + j] * scale - of_row[row * 2], visible);
                    let slope = weight * (products[i * 2 + j] - of_row[row * 2 + 1]) * scale;
                    slopes[row * WEIGHT_PITCH + column] = slope;
                }
            }
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_keys::<F>(
                    qkv,
                    &mut right,
                    first_key,
                    key_column,
                    plan.head_dim,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                accumulate(&slopes, &right, &mut sums, chunk, plan);
                sync_cube();
            }
        }
        from = to;
    }
    store_rows::<F, I>(
        &sums,
        output,
        queries,
        first_row,
        rows,
        query_column,
        plan,
        plan.chosen,
    );
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
    let tile_keys = comptime!(plan.rows());
    let kv_head = CUBE_POS_Y as usize;
    let first_key = CUBE_POS_X as usize * tile_keys;
    let rows = ranges.shape(0) * plan.group;
    let keys = qkv.shape(0);
    let head_column = kv_head * plan.group * plan.head_dim;
    let query_column = comptime!(plan.columns[0]) + head_column;
    let key_column = comptime!(plan.columns[1]) + kv_head * plan.head_dim;
    let value_column = comptime!(plan.columns[2]) + kv_head * plan.head_dim;

    let mut left = SharedMemory::<f32>::new(comptime!(Plan::tile(plan.rows())));
    let mut right = SharedMemory::<f32>::new(comptime!(Plan::tile(ACROSS)));
    let mut weights = SharedMemory::<f32>::new(comptime!(plan.rows() * WEIGHT_PITCH));
    let mut seen = SharedMemory::<i32>::new(comptime!(ACROSS * 4));
    let mut open = SharedMemory::<i32>::new(tile_keys);
    let mut of_row = SharedMemory::<f32>::new(comptime!(ACROSS * 2));

    load_open::<I>(hidden, &mut open, first_key, keys, plan.hidden, tile_keys);
    let mut of_key = Array::<f32>::new(comptime!(plan.down * plan.wide()));
    let mut of_value = Array::<f32>::new(comptime!(plan.down * plan.wide()));
    clear(&mut of_key, comptime!(plan.down * plan.wide()));
    clear(&mut of_value, comptime!(plan.down * plan.wide()));
    let mut scores = Array::<f32>::new(comptime!(plan.down * 2));
    let mut products = Array::<f32>::new(comptime!(plan.down * 2));

    let from = first_key as i32;
    let to = from + tile_keys as i32;
    for tile in 0..hulls.shape(0) {
        let hull = tile * 4;
        if (from < hulls[hull + 1] && to > hulls[hull])
            || (from < hulls[hull + 3] && to > hulls[hull + 2])
        {
            let first_row = tile * ACROSS;
            load_ranges::<I>(ranges, &mut seen, first_row, plan.group, ACROSS);
            load_row_values(
                lse,
                row_sum,
                &mut of_row,
                first_row,
                rows,
                kv_head,
                plan.group,
                ACROSS,
            );
            clear(&mut scores, comptime!(plan.down * 2));
            clear(&mut products, comptime!(plan.down * 2));
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_keys::<F>(
                    qkv,
                    &mut left,
                    first_key,
                    key_column,
                    plan.head_dim,
                    chunk,
                    tile_keys,
                );
                load_rows::<F, I>(
                    qkv,
                    queries,
                    &mut right,
                    first_row,
                    rows,
                    query_column,
                    plan,
                    plan.chosen,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                multiply(&left, &right, &mut scores, plan.down);
                sync_cube();
                load_keys::<F>(
                    qkv,
                    &mut left,
                    first_key,
                    value_column,
                    plan.head_dim,
                    chunk,
                    tile_keys,
                );
                load_rows::<F, I>(
                    grad,
                    queries,
                    &mut right,
                    first_row,
                    rows,
                    head_column,
                    plan,
                    false,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                multiply(&left, &right, &mut products, plan.down);
                sync_cube();
            }
            let x = UNIT_POS as usize % SIDE;
            let y = UNIT_POS as usize / SIDE;
            #[unroll]
            for i in 0..plan.down {
                #[unroll]
                for j in 0..2usize {
                    let key = y + i * SIDE;
                    let row = x + j * SIDE;
                    let visible = sees(&seen, row, from + key as i32) && open[key] == 1i32;
                    let weight = probability(scores[i * 2 + j] * scale - of_row[row * 2], visible);
                    weights[key * WEIGHT_PITCH + row] = weight;
                    let slope = weight * (products[i * 2 + j] - of_row[row * 2 + 1]) * scale;
                    products[i * 2 + j] = slope;
                }
            }
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_rows::<F, I>(
                    grad,
                    queries,
                    &mut right,
                    first_row,
                    rows,
                    head_column,
                    plan,
                    false,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                accumulate(&weights, &right, &mut of_value, chunk, plan);
                sync_cube();
            }
            #[unroll]
            for i in 0..plan.down {
                #[unroll]
                for j in 0..2usize {
                    weights[(y + i * SIDE) * WEIGHT_PITCH + x + j * SIDE] = products[i * 2 + j];
                }
            }
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_rows::<F, I>(
                    qkv,
                    queries,
                    &mut right,
                    first_row,
                    rows,
                    query_column,
                    plan,
                    plan.chosen,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                accumulate(&weights, &right, &mut of_key, chunk, plan);
                sync_cube();
            }
        }
    }
    store_keys::<F>(&of_key, output, first_key, key_column, plan);
    store_keys::<F>(&of_value, output, first_key, value_column, plan);
}

/// `exp(shifted)` where the key is seen. What is not seen may lie above the log-sum-exp: it must not overflow.
#[cube]
fn probability(shifted: f32, visible: bool) -> f32 {
    select(
        visible,
        select(shifted < 0.0f32, shifted, 0.0f32).exp(),
        0.0f32,
    )
}

/// The log-sum-exp and the row sum of `count` folded rows, in turns.
#[cube]
fn load_row_values(
    lse: &Tensor<f32>,
    row_sum: &Tensor<f32>,
    of_row: &mut SharedMemory<f32>,
    first: usize,
    rows: usize,
    kv_head: usize,
    #[comptime] group: usize,
    #[comptime] count: usize,
) {
    let i = UNIT_POS as usize;
    if i < count {
        let folded = first + i;
        let mut log = 0.0f32;
        let mut sum = 0.0f32;
        if folded < rows {
            let query = folded / group;
            let head = kv_head * group + folded % group;
            log = lse[query * lse.stride(0) + head];
            sum = row_sum[query * row_sum.stride(0) + head];
        }
        of_row[i * 2] = log;
        of_row[i * 2 + 1] = sum;
    }
}
