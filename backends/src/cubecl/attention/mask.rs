//! Visibility of keys, tile by tile.

use cubecl::prelude::*;

use super::tiles::TILE_COLUMNS;
use crate::cubecl::launch::THREADS;

/// An index above that of every key.
const NO_KEY: i32 = i32::MAX;

/// Copies the ranges of `count` folded rows into shared memory, with empty ranges beyond the last row.
#[cube]
pub(super) fn load_ranges<I: Int>(
    source: &Tensor<I>,
    ranges: &mut SharedMemory<i32>,
    first: usize,
    #[comptime] group: usize,
    #[comptime] count: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * 4) {
        let query = (first + i / 4) / group;
        let mut bound = 0i32;
        if query < source.shape(0) {
            bound = i32::cast_from(source[query * source.stride(0) + i % 4]);
        }
        ranges[i] = bound;
        i += THREADS;
    }
}

/// Writes 1 for each of `count` keys that exists and is not hidden, else 0.
#[cube]
pub(super) fn load_visible<I: Int>(
    hidden: &Tensor<I>,
    visible: &mut SharedMemory<i32>,
    first: usize,
    keys: usize,
    #[comptime] has_hidden: bool,
    #[comptime] count: usize,
) {
    let i = UNIT_POS as usize;
    if i < count {
        let key = first + i;
        let mut flag = 0i32;
        if key < keys {
            flag = 1i32;
            if comptime!(has_hidden) {
                flag = 1i32 - i32::cast_from(hidden[key]);
            }
        }
        visible[i] = flag;
    }
}

/// Returns whether `key` lies in one of the two ranges of row `row` of a tile.
#[cube]
fn in_ranges(ranges: &SharedMemory<i32>, row: usize, key: i32) -> bool {
    let first = key >= ranges[row * 4] && key < ranges[row * 4 + 1];
    let second = key >= ranges[row * 4 + 2] && key < ranges[row * 4 + 3];
    first || second
}

/// Computes, for the first and the second ranges of `count` rows, the smallest range that contains them all. Empty
/// ranges do not count. Only the first thread computes.
#[cube]
pub(super) fn bounding_ranges(
    ranges: &SharedMemory<i32>,
    bounds: &mut SharedMemory<i32>,
    #[comptime] count: usize,
) {
    if UNIT_POS == 0 {
        #[unroll]
        for range in 0..2usize {
            let mut min = NO_KEY.runtime();
            let mut max = 0i32.runtime();
            for row in 0..count {
                let start = ranges[row * 4 + range * 2];
                let end = ranges[row * 4 + range * 2 + 1];
                if start < end {
                    min = select(start < min, start, min);
                    max = select(end > max, end, max);
                }
            }
            bounds[range * 2] = min;
            bounds[range * 2 + 1] = max;
        }
    }
}

/// Returns whether a row of the tile may see one of the `count` keys from `first` on.
#[cube]
pub(super) fn may_overlap(
    bounds: &SharedMemory<i32>,
    first: i32,
    #[comptime] count: usize,
) -> bool {
    let end = first + count as i32;
    (first < bounds[1] && end > bounds[0]) || (first < bounds[3] && end > bounds[2])
}

/// Returns the bounds of the keys that rows of the tile may see: the first one, rounded down to a multiple of
/// [`TILE_COLUMNS`], and the one after the last.
#[cube]
pub(super) fn key_bounds(bounds: &SharedMemory<i32>, keys: usize) -> (i32, i32) {
    let start = select(bounds[0] < bounds[2], bounds[0], bounds[2]);
    let end = select(bounds[1] > bounds[3], bounds[1], bounds[3]);
    let end = select(end < keys as i32, end, keys as i32);
    (start / TILE_COLUMNS as i32 * TILE_COLUMNS as i32, end)
}

/// Returns whether a row of the tile sees a key of the tile. Both are indices within the tile.
#[cube]
pub(super) fn is_visible(
    ranges: &SharedMemory<i32>,
    visible: &SharedMemory<i32>,
    row: usize,
    first_key: usize,
    key: usize,
) -> bool {
    in_ranges(ranges, row, (first_key + key) as i32) && visible[key] == 1i32
}
