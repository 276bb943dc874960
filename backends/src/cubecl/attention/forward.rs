//! Forward: one cube a tile of folded rows and key head, an online softmax over tiles of keys (arXiv 2205.14135).

use cubecl::prelude::*;

use super::tiles::{
    ACROSS, HIDDEN, Plan, SIDE, WEIGHT_PITCH, accumulate, clear, hull_of, load_keys, load_open,
    load_ranges, load_rows, multiply, sees, store_rows,
};

/// Cubes: tiles of rows, key heads.
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
    let tile_rows = comptime!(plan.rows());
    let kv_head = CUBE_POS_Y as usize;
    let first_row = CUBE_POS_X as usize * tile_rows;
    let rows = ranges.shape(0) * plan.group;
    let keys = key.shape(0);
    let unit = UNIT_POS as usize;
    let query_column = comptime!(plan.columns[0]) + kv_head * plan.group * plan.head_dim;
    let key_column = comptime!(plan.columns[1]) + kv_head * plan.head_dim;
    let value_column = comptime!(plan.columns[2]) + kv_head * plan.head_dim;

    let mut left = SharedMemory::<f32>::new(comptime!(Plan::tile(plan.rows())));
    let mut right = SharedMemory::<f32>::new(comptime!(Plan::tile(ACROSS)));
    let mut weights = SharedMemory::<f32>::new(comptime!(plan.rows() * WEIGHT_PITCH));
    let mut seen = SharedMemory::<i32>::new(comptime!(plan.rows() * 4));
    let mut open = SharedMemory::<i32>::new(ACROSS);
    let mut hull = SharedMemory::<i32>::new(4usize);
    let mut largest = SharedMemory::<f32>::new(tile_rows);
    let mut total = SharedMemory::<f32>::new(tile_rows);
    let mut factor = SharedMemory::<f32>::new(tile_rows);

    load_ranges::<I>(ranges, &mut seen, first_row, plan.group, tile_rows);
    if unit < tile_rows {
        largest[unit] = HIDDEN;
        total[unit] = 0.0f32;
    }
    sync_cube();
    hull_of(&seen, &mut hull, tile_rows);
    sync_cube();
    let mut sums = Array::<f32>::new(comptime!(plan.down * plan.wide()));
    clear(&mut sums, comptime!(plan.down * plan.wide()));
    let mut scores = Array::<f32>::new(comptime!(plan.down * 2));

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
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_rows::<F, I>(
                    query,
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
                    key,
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
            }
            let offset = from;
            write_scores(
                &scores,
                &mut weights,
                &seen,
                &open,
                offset,
                scale,
                plan.down,
            );
            sync_cube();
            soften(
                &mut weights,
                &mut largest,
                &mut total,
                &mut factor,
                tile_rows,
            );
            sync_cube();
            scale_rows(&mut sums, &factor, plan);
            #[unroll]
            for chunk in 0..comptime!(plan.chunks()) {
                load_keys::<F>(
                    value,
                    &mut right,
                    first_key,
                    value_column,
                    plan.head_dim,
                    chunk,
                    ACROSS,
                );
                sync_cube();
                accumulate(&weights, &right, &mut sums, chunk, plan);
                sync_cube();
            }
        }
        from = to;
    }

    if unit < tile_rows {
        let all = total[unit];
        factor[unit] = 1.0f32 / select(all > 0.0f32, all, 1.0f32);
    }
    sync_cube();
    scale_rows(&mut sums, &factor, plan);
    let column = kv_head * plan.group * plan.head_dim;
    store_rows::<F, I>(&sums, output, queries, first_row, rows, column, plan, false);
    let folded = first_row + unit;
    if unit < tile_rows && folded < rows {
        let all = total[unit];
        let log = select(all > 0.0f32, all, 1.0f32).ln();
        let head = kv_head * plan.group + folded % plan.group;
        lse[folded / plan.group * lse.stride(0) + head] = largest[unit] + log;
    }
}

/// Puts the scores a unit holds into shared memory, scaled, [`HIDDEN`] where a row does not see a key.
#[cube]
fn write_scores(
    scores: &Array<f32>,
    weights: &mut SharedMemory<f32>,
    seen: &SharedMemory<i32>,
    open: &SharedMemory<i32>,
    first_key: i32,
    scale: f32,
    #[comptime] down: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..2usize {
            let row = y + i * SIDE;
            let column = x + j * SIDE;
            let visible = sees(seen, row, first_key + column as i32) && open[column] == 1i32;
            let score = select(visible, scores[i * 2 + j] * scale, HIDDEN);
            weights[row * WEIGHT_PITCH + column] = score;
        }
    }
}

/// Turns scores into `exp(score - largest)`, a row a unit, and keeps for each row the largest score so far, the sum of
/// weights so far, and the factor by which what was summed before must shrink.
#[cube]
fn soften(
    weights: &mut SharedMemory<f32>,
    largest: &mut SharedMemory<f32>,
    total: &mut SharedMemory<f32>,
    factor: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
) {
    let row = UNIT_POS as usize;
    if row < rows {
        let start = row * WEIGHT_PITCH;
        let before = largest[row];
        let mut most = before;
        for column in 0..ACROSS {
            let score = weights[start + column];
            most = select(score > most, score, most);
        }
        let mut sum = 0.0f32;
        for column in 0..ACROSS {
            let score = weights[start + column];
            let weight = select(score > HIDDEN, (score - most).exp(), 0.0f32);
            weights[start + column] = weight;
            sum += weight;
        }
        let shrink = (before - most).exp();
        let former = total[row];
        factor[row] = shrink;
        largest[row] = most;
        total[row] = former * shrink + sum;
    }
}

/// Multiplies what a unit holds of each row of a tile by the row's factor.
#[cube]
fn scale_rows(sums: &mut Array<f32>, factor: &SharedMemory<f32>, #[comptime] plan: Plan) {
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let by = factor[y + i * SIDE];
        #[unroll]
        for j in 0..wide {
            sums[i * wide + j] *= by;
        }
    }
}
