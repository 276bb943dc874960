//! The forward kernel: one block per tile of folded rows and key head, with an online softmax over tiles of keys
//! (arXiv 2205.14135).

use cubecl::prelude::*;

use super::mask::{
    bounding_ranges, is_visible, key_bounds, load_ranges, load_visible, may_overlap,
};
use super::tiles::{
    HIDDEN, Plan, RowSlice, SIDE, TILE_COLUMNS, Tiles, WEIGHT_PITCH, add_row_key_products,
    add_weighted_keys, block_position, key_slice, new_tiles, row_slice, set_to_zero, store_rows,
    zero_sums,
};

/// The state of the online softmax, one value per row of a tile.
#[derive(CubeType)]
struct Softmax {
    /// The largest score so far.
    max: SharedMemory<f32>,
    /// The sum of `exp(score - max)` so far.
    sum_exp: SharedMemory<f32>,
    /// The factor that rescales the output accumulated so far.
    rescale: SharedMemory<f32>,
}

/// Computes the attention output and the log-sum-exp of one tile of folded rows. The grid is tiles of rows by key
/// heads.
#[cube(launch)]
pub(super) fn attend<F: Float, I: Int>(
    query: &Tensor<F>,
    key: &Tensor<F>,
    value: &Tensor<F>,
    ranges: &Tensor<I>,
    hidden: &Tensor<I>,
    queries: &Tensor<I>,
    output: &mut Tensor<F>,
    lse: &mut Tensor<f32>,
    scale: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let count = comptime!(plan.tile_rows());
    let position = block_position::<F, I>(key, ranges, plan);
    let first = CUBE_POS_X as usize * count;
    let rows = row_slice(first, position.row_count, position.query_column);
    let mut tiles = new_tiles(plan);
    let mut softmax = new_softmax(count);
    load_ranges::<I>(ranges, &mut tiles.ranges, first, plan.group, count);
    sync_cube();
    bounding_ranges(&tiles.ranges, &mut tiles.bounds, count);
    sync_cube();

    let mut output_sums = zero_sums(comptime!(plan.features_per_thread()));
    let mut scores = zero_sums(comptime!(plan.rows_per_thread * 2));
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
            set_to_zero(&mut scores, comptime!(plan.rows_per_thread * 2));
            let keys = key_slice(first_key, position.key_column);
            add_row_key_products::<F, I>(
                query,
                key,
                queries,
                &mut tiles,
                &mut scores,
                rows,
                keys,
                plan,
                plan.gather,
            );
            write_scores(&scores, &mut tiles, first_key, scale, plan.rows_per_thread);
            sync_cube();
            update_softmax(&mut tiles.weights, &mut softmax, count);
            sync_cube();
            scale_rows(&mut output_sums, &softmax.rescale, plan);
            let keys = key_slice(first_key, position.value_column);
            add_weighted_keys::<F>(value, &mut tiles, &mut output_sums, keys, plan);
        }
        start += TILE_COLUMNS as i32;
    }
    write_lse(&mut softmax, lse, position.kv_head, rows, plan);
    sync_cube();
    scale_rows(&mut output_sums, &softmax.rescale, plan);
    let rows = row_slice(first, position.row_count, position.output_column);
    store_rows::<F, I>(&output_sums, output, queries, rows, plan, false);
}

/// Creates the softmax state of `count` rows that have seen no key yet.
#[cube]
fn new_softmax(#[comptime] count: usize) -> Softmax {
    let mut max = SharedMemory::<f32>::new(count);
    let mut sum_exp = SharedMemory::<f32>::new(count);
    let rescale = SharedMemory::<f32>::new(count);
    let row = UNIT_POS as usize;
    if row < count {
        max[row] = HIDDEN;
        sum_exp[row] = 0.0f32;
    }
    Softmax { max, sum_exp, rescale }
}

/// Writes a thread's scores, scaled, into shared memory; [`HIDDEN`] where a row does not see a key.
#[cube]
fn write_scores(
    scores: &Array<f32>,
    tiles: &mut Tiles,
    first_key: usize,
    scale: f32,
    #[comptime] rows_per_thread: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..rows_per_thread {
        #[unroll]
        for j in 0..2usize {
            let row = y + i * SIDE;
            let column = x + j * SIDE;
            let visible = is_visible(&tiles.ranges, &tiles.visible, row, first_key, column);
            let score = select(visible, scores[i * 2 + j] * scale, HIDDEN);
            tiles.weights[row * WEIGHT_PITCH + column] = score;
        }
    }
}

/// Replaces the scores of a tile by `exp(score - max)` and updates the softmax state; one row per thread.
#[cube]
fn update_softmax(weights: &mut SharedMemory<f32>, softmax: &mut Softmax, #[comptime] rows: usize) {
    let row = UNIT_POS as usize;
    if row < rows {
        let row_start = row * WEIGHT_PITCH;
        let old_max = softmax.max[row];
        let mut new_max = old_max;
        for column in 0..TILE_COLUMNS {
            let score = weights[row_start + column];
            new_max = select(score > new_max, score, new_max);
        }
        let mut sum = 0.0f32;
        for column in 0..TILE_COLUMNS {
            let score = weights[row_start + column];
            // The comparison is with HIDDEN itself, so that NaN scores stay NaN.
            let weight = select(score == HIDDEN, 0.0f32, (score - new_max).exp());
            weights[row_start + column] = weight;
            sum += weight;
        }
        let rescale_old = (old_max - new_max).exp();
        let old_sum = softmax.sum_exp[row];
        softmax.rescale[row] = rescale_old;
        softmax.max[row] = new_max;
        softmax.sum_exp[row] = old_sum * rescale_old + sum;
    }
}

/// Multiplies a thread's features of each row by the row's factor.
#[cube]
fn scale_rows(output_sums: &mut Array<f32>, rescale: &SharedMemory<f32>, #[comptime] plan: Plan) {
    let y = UNIT_POS as usize / SIDE;
    let row_features = comptime!(plan.features_per_row());
    #[unroll]
    for i in 0..plan.rows_per_thread {
        let factor = rescale[y + i * SIDE];
        #[unroll]
        for j in 0..row_features {
            output_sums[i * row_features + j] *= factor;
        }
    }
}

/// Writes the log-sum-exp, one row per thread, and sets each row's factor to the reciprocal of its sum. For a row
/// that sees nothing the sum counts as 1.
#[cube]
fn write_lse(
    softmax: &mut Softmax,
    lse: &mut Tensor<f32>,
    kv_head: usize,
    rows: RowSlice,
    #[comptime] plan: Plan,
) {
    let row = UNIT_POS as usize;
    if row < comptime!(plan.tile_rows()) {
        let sum_exp = softmax.sum_exp[row];
        let sum_exp = select(sum_exp == 0.0f32, 1.0f32, sum_exp);
        softmax.rescale[row] = 1.0f32 / sum_exp;
        let folded = rows.first + row;
        if folded < rows.row_count {
            let head = kv_head * plan.group + folded % plan.group;
            let index = folded / plan.group * lse.stride(0) + head;
            lse[index] = softmax.max[row] + sum_exp.ln();
        }
    }
}
