//! Who sees whom, tile by tile.

use cubecl::prelude::*;

use super::tiles::{ACROSS, Tiles};
use crate::cubecl::launch::UNITS;

/// Above every index of a key.
const BEYOND: i32 = i32::MAX;

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
fn sees(ranges: &SharedMemory<i32>, row: usize, key: i32) -> bool {
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

/// Whether a row of the tile may see one of `count` keys from `first` on.
#[cube]
pub(super) fn meets(hull: &SharedMemory<i32>, first: i32, #[comptime] count: usize) -> bool {
    let end = first + count as i32;
    (first < hull[1] && end > hull[0]) || (first < hull[3] && end > hull[2])
}

/// The keys that rows of the tile may see: the first, on a border of tiles, and the one behind the last.
#[cube]
pub(super) fn key_bounds(hull: &SharedMemory<i32>, keys: usize) -> (i32, i32) {
    let start = select(hull[0] < hull[2], hull[0], hull[2]);
    let end = select(hull[1] > hull[3], hull[1], hull[3]);
    let end = select(end < keys as i32, end, keys as i32);
    (start / ACROSS as i32 * ACROSS as i32, end)
}

/// Whether a row of the tile sees a key of the tile, both counted within it.
#[cube]
pub(super) fn visible(tiles: &Tiles, row: usize, first_key: usize, key: usize) -> bool {
    sees(&tiles.seen, row, (first_key + key) as i32) && tiles.open[key] == 1i32
}
