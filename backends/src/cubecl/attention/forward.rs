//! Forward: one cube a tile of folded rows and key head, an online softmax over tiles of keys (arXiv 2205.14135).

use cubecl::prelude::*;

use super::mask::{hull_of, key_bounds, load_open, load_ranges, meets, visible};
use super::tiles::{
    ACROSS, HIDDEN, Plan, Rows, SIDE, Tiles, WEIGHT_PITCH, add_keys, add_products, clear, keys_at,
    place, rows_at, store_rows, sums, tiles,
};

/// The softmax so far, of each row of a tile.
#[derive(CubeType)]
struct Softmax {
    /// The largest score.
    largest: SharedMemory<f32>,
    /// The sum of weights.
    total: SharedMemory<f32>,
    /// By how much what was summed before must be multiplied.
    factor: SharedMemory<f32>,
}

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
    let count = comptime!(plan.rows());
    let place = place::<F, I>(key, ranges, plan);
    let first = CUBE_POS_X as usize * count;
    let rows = rows_at(first, place.rows, place.query);
    let mut tiles = tiles(plan);
    let mut softmax = start_softmax(count);
    load_ranges::<I>(ranges, &mut tiles.seen, first, plan.group, count);
    sync_cube();
    hull_of(&tiles.seen, &mut tiles.hull, count);
    sync_cube();

    let mut held = sums(comptime!(plan.held()));
    let mut scores = sums(comptime!(plan.down * 2));
    let (mut from, end) = key_bounds(&tiles.hull, place.keys);
    while from < end {
        if meets(&tiles.hull, from, ACROSS) {
            let first_key = from as usize;
            load_open::<I>(hidden, &mut tiles.open, first_key, place.keys, plan.hidden, ACROSS);
            clear(&mut scores, comptime!(plan.down * 2));
            let keys = keys_at(first_key, place.key);
            add_products::<F, I>(
                query,
                key,
                queries,
                &mut tiles,
                &mut scores,
                rows,
                keys,
                plan,
                plan.chosen,
            );
            write_scores(&scores, &mut tiles, first_key, scale, plan.down);
            sync_cube();
            soften(&mut tiles.weights, &mut softmax, count);
            sync_cube();
            scale_rows(&mut held, &softmax.factor, plan);
            let keys = keys_at(first_key, place.value);
            add_keys::<F>(value, &mut tiles, &mut held, keys, plan);
        }
        from += ACROSS as i32;
    }
    write_lse(&mut softmax, lse, place.kv_head, rows, plan);
    sync_cube();
    scale_rows(&mut held, &softmax.factor, plan);
    let rows = rows_at(first, place.rows, place.head);
    store_rows::<F, I>(&held, output, queries, rows, plan, false);
}

#[cube]
fn start_softmax(#[comptime] count: usize) -> Softmax {
    let mut largest = SharedMemory::<f32>::new(count);
    let mut total = SharedMemory::<f32>::new(count);
    let factor = SharedMemory::<f32>::new(count);
    let row = UNIT_POS as usize;
    if row < count {
        largest[row] = HIDDEN;
        total[row] = 0.0f32;
    }
    Softmax { largest, total, factor }
}

/// Puts the scores a unit holds into shared memory, scaled, [`HIDDEN`] where a row does not see a key.
#[cube]
fn write_scores(
    scores: &Array<f32>,
    tiles: &mut Tiles,
    first_key: usize,
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
            let seen = visible(tiles, row, first_key, column);
            let score = select(seen, scores[i * 2 + j] * scale, HIDDEN);
            tiles.weights[row * WEIGHT_PITCH + column] = score;
        }
    }
}

/// Turns scores into `exp(score - largest)`, a row a unit.
#[cube]
fn soften(weights: &mut SharedMemory<f32>, softmax: &mut Softmax, #[comptime] rows: usize) {
    let row = UNIT_POS as usize;
    if row < rows {
        let start = row * WEIGHT_PITCH;
        let before = softmax.largest[row];
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
        let former = softmax.total[row];
        softmax.factor[row] = shrink;
        softmax.largest[row] = most;
        softmax.total[row] = former * shrink + sum;
    }
}

/// Multiplies what a unit holds of each row of a tile by the row's factor.
#[cube]
fn scale_rows(held: &mut Array<f32>, factor: &SharedMemory<f32>, #[comptime] plan: Plan) {
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let by = factor[y + i * SIDE];
        #[unroll]
        for j in 0..wide {
            held[i * wide + j] *= by;
        }
    }
}

/// Writes the log-sum-exp, a row a unit, and makes of the row's factor what divides by the sum. A row that sees nothing
/// counts as having summed one.
#[cube]
fn write_lse(
    softmax: &mut Softmax,
    lse: &mut Tensor<f32>,
    kv_head: usize,
    rows: Rows,
    #[comptime] plan: Plan,
) {
    let row = UNIT_POS as usize;
    if row < comptime!(plan.rows()) {
        let total = softmax.total[row];
        let total = select(total > 0.0f32, total, 1.0f32);
        softmax.factor[row] = 1.0f32 / total;
        let folded = rows.first + row;
        if folded < rows.rows {
            let head = kv_head * plan.group + folded % plan.group;
            let at = folded / plan.group * lse.stride(0) + head;
            lse[at] = softmax.largest[row] + total.ln();
        }
    }
}
