//! What all attention kernels share: a cube of 16 x 16 units multiplies tiles that lie in shared memory.
//!
//! The query heads of a key head are folded: row `r` of a key head is head `r % group` of query `r / group`, so that
//! rows of a tile have nearly the same keys, which are read once for all of them. Heads are taken in chunks of
//! [`CHUNK`] features, so that tiles fit the 32 KiB every device has whatever the width of a head.

use cubecl::prelude::*;

use crate::cubecl::launch::UNITS;

/// Units along each side of a cube.
pub(super) const SIDE: usize = 16;

/// Features of a head that are in shared memory at once.
pub(super) const CHUNK: usize = 32;

/// Values from one row of a tile to the next: odd, so that rows start in different banks.
const PITCH: usize = CHUNK + 1;

/// Keys in a tile of the forward kernel, queries in a tile of the key kernel.
pub(super) const ACROSS: usize = 2 * SIDE;

/// Values from one row of a tile of weights to the next.
pub(super) const WEIGHT_PITCH: usize = ACROSS + 1;

/// Stands for the score of a hidden key; finite, so that a row that sees nothing stays finite.
pub(super) const HIDDEN: f32 = -1e30;

/// Above every index of a key.
const BEYOND: i32 = i32::MAX;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    /// Query heads of a key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// First columns of the queries, keys and values in their tensors.
    pub(super) columns: [usize; 3],
    /// Whether keys are hidden one by one.
    pub(super) hidden: bool,
    /// Whether queries are chosen by index.
    pub(super) chosen: bool,
    /// Rows of a tile by 16.
    pub(super) down: usize,
}

impl Plan {
    /// Rows of a tile.
    pub(super) fn rows(&self) -> usize {
        self.down * SIDE
    }

    /// Chunks of a head.
    pub(super) fn chunks(&self) -> usize {
        self.head_dim.div_ceil(CHUNK)
    }

    /// Features of a head by 16, chunks rounded up: what a unit holds of a row.
    pub(super) fn wide(&self) -> usize {
        self.chunks() * CHUNK / SIDE
    }

    /// Values of a tile of `count` rows in shared memory.
    pub(super) fn tile(count: usize) -> usize {
        count * PITCH
    }
}

/// Copies a chunk of `count` keys (or values) into `tile`, zeros beyond the last.
#[cube]
pub(super) fn load_keys<F: Float>(
    from: &Tensor<F>,
    tile: &mut SharedMemory<f32>,
    first: usize,
    column: usize,
    #[comptime] head_dim: usize,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let within = i % CHUNK;
        let feature = chunk * CHUNK + within;
        let key = first + row;
        let mut value = 0.0f32;
        if key < from.shape(0) && feature < head_dim {
            value = f32::cast_from(from[key * from.stride(0) + column + feature]);
        }
        tile[row * PITCH + within] = value;
        i += UNITS;
    }
}

/// Copies a chunk of `count` folded rows of a key head into `tile`, zeros beyond the last. With `chosen`, row `i` of
/// the queries is row `queries[i]` of the tensor.
#[cube]
pub(super) fn load_rows<F: Float, I: Int>(
    from: &Tensor<F>,
    queries: &Tensor<I>,
    tile: &mut SharedMemory<f32>,
    first: usize,
    rows: usize,
    column: usize,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
    #[comptime] chunk: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * CHUNK) {
        let row = i / CHUNK;
        let within = i % CHUNK;
        let feature = chunk * CHUNK + within;
        let folded = first + row;
        let mut value = 0.0f32;
        if folded < rows && feature < plan.head_dim {
            let mut token = folded / plan.group;
            if comptime!(chosen) {
                token = usize::cast_from(queries[token]);
            }
            let head = folded % plan.group;
            let start = token * from.stride(0) + column + head * plan.head_dim;
            value = f32::cast_from(from[start + feature]);
        }
        tile[row * PITCH + within] = value;
        i += UNITS;
    }
}

/// `sums += left right^T` over one chunk: a unit holds rows `y, y + 16, ..` and columns `x, x + 16`.
#[cube]
pub(super) fn multiply(
    left: &SharedMemory<f32>,
    right: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] down: usize,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    for k in 0..CHUNK {
        let b0 = right[x * PITCH + k];
        let b1 = right[(x + SIDE) * PITCH + k];
        #[unroll]
        for i in 0..down {
            let a = left[(y + i * SIDE) * PITCH + k];
            sums[i * 2] += a * b0;
            sums[i * 2 + 1] += a * b1;
        }
    }
}

/// `sums += weights tile` for one chunk of features: a unit holds rows `y, y + 16, ..` and features `x, x + 16, ..`.
#[cube]
pub(super) fn accumulate(
    weights: &SharedMemory<f32>,
    tile: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    #[comptime] chunk: usize,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    for k in 0..ACROSS {
        let b0 = tile[k * PITCH + x];
        let b1 = tile[k * PITCH + x + SIDE];
        #[unroll]
        for i in 0..plan.down {
            let a = weights[(y + i * SIDE) * WEIGHT_PITCH + k];
            sums[i * wide + chunk * 2] += a * b0;
            sums[i * wide + chunk * 2 + 1] += a * b1;
        }
    }
}

#[cube]
pub(super) fn clear(sums: &mut Array<f32>, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
}

/// Copies the ranges of `count` folded rows, empty ones beyond the last.
#[cube]
pub(super) fn load_ranges<I: Int>(
    from: &Tensor<I>,
    ranges: &mut SharedMemory<i32>,
    first: usize,
    #[comptime] group: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * 4) {
        let query = (first + i / 4) / group;
        let mut bound = 0i32;
        if query < from.shape(0) {
            bound = i32::cast_from(from[query * from.stride(0) + i % 4]);
        }
        ranges[i] = bound;
        i += UNITS;
    }
}

/// Marks which of `count` keys exist and are not hidden.
#[cube]
pub(super) fn load_open<I: Int>(
    hidden: &Tensor<I>,
    open: &mut SharedMemory<i32>,
    first: usize,
    keys: usize,
    #[comptime] is_hidden: bool,
    #[comptime] count: usize,
) {
    let i = UNIT_POS as usize;
    if i < count {
        let key = first + i;
        let mut seen = 0i32;
        if key < keys {
            seen = 1i32;
            if comptime!(is_hidden) {
                seen = 1i32 - i32::cast_from(hidden[key]);
            }
        }
        open[i] = seen;
    }
}

/// Whether row `row` of a tile sees `key`.
#[cube]
pub(super) fn sees(ranges: &SharedMemory<i32>, row: usize, key: i32) -> bool {
    let first = key >= ranges[row * 4] && key < ranges[row * 4 + 1];
    let second = key >= ranges[row * 4 + 2] && key < ranges[row * 4 + 3];
    first || second
}

/// The smallest two ranges that hold all ranges of `count` rows, one by one, computed by the first unit. Empty ones do
/// not count.
#[cube]
pub(super) fn hull_of(
    ranges: &SharedMemory<i32>,
    hull: &mut SharedMemory<i32>,
    #[comptime] count: usize,
) {
    if UNIT_POS == 0 {
        #[unroll]
        for side in 0..2usize {
            let mut from = BEYOND.runtime();
            let mut to = 0i32.runtime();
            for row in 0..count {
                let start = ranges[row * 4 + side * 2];
                let end = ranges[row * 4 + side * 2 + 1];
                if start < end {
                    from = select(start < from, start, from);
                    to = select(end > to, end, to);
                }
            }
            hull[side * 2] = from;
            hull[side * 2 + 1] = to;
        }
    }
}

/// The features that a unit holds of its rows of a tile, written to folded rows: the inverse of [`load_rows`].
#[cube]
pub(super) fn store_rows<F: Float, I: Int>(
    sums: &Array<f32>,
    to: &mut Tensor<F>,
    queries: &Tensor<I>,
    first: usize,
    rows: usize,
    column: usize,
    #[comptime] plan: Plan,
    #[comptime] chosen: bool,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let folded = first + y + i * SIDE;
        if folded < rows {
            let mut token = folded / plan.group;
            if comptime!(chosen) {
                token = usize::cast_from(queries[token]);
            }
            let start = token * to.stride(0) + column + folded % plan.group * plan.head_dim;
            #[unroll]
            for j in 0..wide {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    to[start + feature] = F::cast_from(sums[i * wide + j]);
                }
            }
        }
    }
}

/// The features that a unit holds of its rows of a tile, written to keys: the inverse of [`load_keys`].
#[cube]
pub(super) fn store_keys<F: Float>(
    sums: &Array<f32>,
    to: &mut Tensor<F>,
    first: usize,
    column: usize,
    #[comptime] plan: Plan,
) {
    let x = UNIT_POS as usize % SIDE;
    let y = UNIT_POS as usize / SIDE;
    let wide = comptime!(plan.wide());
    #[unroll]
    for i in 0..plan.down {
        let key = first + y + i * SIDE;
        if key < to.shape(0) {
            #[unroll]
            for j in 0..wide {
                let feature = x + j * SIDE;
                if feature < plan.head_dim {
                    let at = key * to.stride(0) + column + feature;
                    to[at] = F::cast_from(sums[i * wide + j]);
                }
            }
        }
    }
}
