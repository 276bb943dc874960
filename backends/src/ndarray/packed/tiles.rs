//! GEMM of many rows with a quantized weight, forward and backward. Each thread dequantizes a tile
//! of the weight, multiplies all rows by it, and takes the next one. The columns of the result are
//! divided among the threads, so that every value is dequantized once and no temporary is larger
//! than a tile.

use std::ops::Range;

use faer::MatMut;
use faer::reborrow::ReborrowMut;
use rayon::prelude::*;

use super::HostPacked;
use crate::ndarray::gemm::{MIN_PARALLEL_WORK, View, WriteMode, gemm_on_thread, rows};
use crate::ndarray::matrix::filled;

/// The largest number of result columns that a tile computes.
const TILE_COLUMNS: usize = 512;

/// Depth of a tile.
const TILE_DEPTH: usize = 512;

/// The smallest number of result rows per part, if the result is divided by rows too.
const MIN_ROWS_PER_PART: usize = 256;

/// Computes `target = x W^T`, or adds it to `target`: `x` `[T, D_in]`, `target` `[T, D_out]`.
pub(in crate::ndarray) fn times_transposed(
    target: MatMut<'_, f32>,
    mode: WriteMode,
    x: View<'_>,
    w: &HostPacked,
) {
    for_each_part(target, x, w.columns, |mut part| {
        let mut tile = filled(part.columns.len() * TILE_DEPTH.min(w.columns), |_| ());
        for (terms, mode) in steps(w.columns, mode) {
            let tile = &mut tile[..part.columns.len() * terms.len()];
            w.unpack_tile(part.columns.clone(), terms.clone(), tile);
            let w = rows(tile, terms.len()).transpose();
            let x = part.left.subcols(terms.start, terms.len());
            gemm_on_thread(part.target.rb_mut(), mode, 1.0, x, w);
        }
    });
}

/// Computes `target = factor * y W`, or adds it to `target`: `y` `[T, D_out]`, `target` `[T,
/// D_in]`.
pub(in crate::ndarray) fn times(
    target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    y: View<'_>,
    w: &HostPacked,
) {
    for_each_part(target, y, w.rows, |mut part| {
        let mut tile = filled(part.columns.len() * TILE_DEPTH.min(w.rows), |_| ());
        for (terms, mode) in steps(w.rows, mode) {
            let tile = &mut tile[..part.columns.len() * terms.len()];
            w.unpack_tile(terms.clone(), part.columns.clone(), tile);
            let w = rows(tile, part.columns.len());
            let y = part.left.subcols(terms.start, terms.len());
            gemm_on_thread(part.target.rb_mut(), mode, factor, y, w);
        }
    });
}

/// Divides the terms of a sum into ranges of at most [`TILE_DEPTH`], each with its write mode.
fn steps(terms: usize, mode: WriteMode) -> impl Iterator<Item = (Range<usize>, WriteMode)> {
    let runs = (0..terms).step_by(TILE_DEPTH);
    runs.map(move |start| {
        let mode = if start == 0 { mode } else { WriteMode::Add };
        (start..terms.min(start + TILE_DEPTH), mode)
    })
}

/// The part of a result that one thread computes.
struct Part<'a> {
    target: MatMut<'a, f32>,
    /// Its columns in the whole target.
    columns: Range<usize>,
    /// The rows of the left operand that belong to the target's rows.
    left: View<'a>,
}

/// Divides `target` among the threads, by columns and, if there are too few, by rows too, and calls
/// `f` for each part. `left` is the left operand, and `terms` is the number of summands per value.
fn for_each_part<'a>(
    target: MatMut<'a, f32>,
    left: View<'a>,
    terms: usize,
    f: impl Fn(Part<'_>) + Sync + Send,
) {
    let (count, width) = (target.nrows(), target.ncols());
    let threads =
        if count * width * terms < MIN_PARALLEL_WORK { 1 } else { rayon::current_num_threads() };
    // At least two parts per thread, if they stay a few vectors wide.
    let columns = width.div_ceil(2 * threads).next_multiple_of(64);
    let columns = columns.min(TILE_COLUMNS);
    let by_rows = threads.div_ceil(width.div_ceil(columns).max(1));
    let by_rows = by_rows.min(count / MIN_ROWS_PER_PART).max(1);
    let (mut parts, mut rest, mut row) = (Vec::new(), target, 0);
    for part in 0..by_rows {
        let end = (part + 1) * count / by_rows;
        let (mut target, below) = rest.split_at_row_mut(end - row);
        let left = left.subrows(row, end - row);
        (rest, row) = (below, end);
        let mut column = 0;
        while column < width {
            let count_of_columns = columns.min(width - column);
            let (part, right) = target.split_at_col_mut(count_of_columns);
            target = right;
            parts.push(Part { target: part, columns: column..column + count_of_columns, left });
            column += count_of_columns;
        }
    }
    match threads {
        1 => parts.into_iter().for_each(f),
        _ => parts.into_par_iter().with_max_len(1).for_each(f),
    }
}
