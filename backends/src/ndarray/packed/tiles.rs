//! Products of many rows with a packed weight, forward and back: each thread unpacks a tile of the weight, multiplies all
//! rows with it, and takes the next. Threads share out the columns of the result, so that every value is unpacked once,
//! and no temporary is larger than a tile.

use std::ops::Range;

use faer::MatMut;
use faer::reborrow::ReborrowMut;
use rayon::prelude::*;

use super::HostPacked;
use crate::ndarray::gemm::{Old, SMALL, View, product_here, rows};
use crate::ndarray::matrix::written;

/// Columns of the result a tile gives, at most.
const COLUMNS: usize = 512;

/// Terms of a sum that are added up at once.
const DEPTH: usize = 512;

/// Rows of the result a thread takes, at least, where it shares a tile's columns with others.
const ROWS: usize = 256;

/// `target = x W^T`, or `target += x W^T`: `x` `[T, D_in]`, `target` `[T, D_out]`.
pub(in crate::ndarray) fn times_transposed(
    target: MatMut<'_, f32>,
    old: Old,
    x: View<'_>,
    w: &HostPacked,
) {
    share(target, x, w.columns, |mut part| {
        let mut tile = written(part.columns.len() * DEPTH.min(w.columns), |_| ());
        for (terms, old) in steps(w.columns, old) {
            let tile = &mut tile[..part.columns.len() * terms.len()];
            w.unpack_tile(part.columns.clone(), terms.clone(), tile);
            let w = rows(tile, terms.len()).transpose();
            let x = part.left.subcols(terms.start, terms.len());
            product_here(part.target.rb_mut(), old, 1.0, x, w);
        }
    });
}

/// `target = factor * y W`, or `target += factor * y W`: `y` `[T, D_out]`, `target` `[T, D_in]`.
pub(in crate::ndarray) fn times(
    target: MatMut<'_, f32>,
    old: Old,
    factor: f32,
    y: View<'_>,
    w: &HostPacked,
) {
    share(target, y, w.rows, |mut part| {
        let mut tile = written(part.columns.len() * DEPTH.min(w.rows), |_| ());
        for (terms, old) in steps(w.rows, old) {
            let tile = &mut tile[..part.columns.len() * terms.len()];
            w.unpack_tile(terms.clone(), part.columns.clone(), tile);
            let w = rows(tile, part.columns.len());
            let y = part.left.subcols(terms.start, terms.len());
            product_here(part.target.rb_mut(), old, factor, y, w);
        }
    });
}

/// Terms in runs of at most [`DEPTH`], and what becomes of what stands in the target before each.
fn steps(terms: usize, old: Old) -> impl Iterator<Item = (Range<usize>, Old)> {
    let runs = (0..terms).step_by(DEPTH);
    runs.map(move |start| {
        let old = if start == 0 { old } else { Old::Add };
        (start..terms.min(start + DEPTH), old)
    })
}

/// What one thread computes.
struct Part<'a> {
    target: MatMut<'a, f32>,
    /// Of the whole target.
    columns: Range<usize>,
    /// The rows of the left operand that belong to the target's.
    left: View<'a>,
}

/// Shares `target` out among the threads: by columns, and by rows too where there are too few columns.
fn share<'a>(
    target: MatMut<'a, f32>,
    left: View<'a>,
    terms: usize,
    f: impl Fn(Part<'_>) + Sync + Send,
) {
    let (count, width) = (target.nrows(), target.ncols());
    let threads = match count * width * terms < SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    // Two parts a thread at least, if that leaves them some vectors wide.
    let columns = width.div_ceil(2 * threads).next_multiple_of(64);
    let columns = columns.min(COLUMNS);
    let by_rows = threads.div_ceil(width.div_ceil(columns).max(1));
    let by_rows = by_rows.min(count / ROWS).max(1);
    let (mut parts, mut rest, mut row) = (Vec::new(), target, 0);
    for part in 0..by_rows {
        let end = (part + 1) * count / by_rows;
        let (mut target, below) = rest.split_at_row_mut(end - row);
        let left = left.subrows(row, end - row);
        (rest, row) = (below, end);
        let mut column = 0;
        while column < width {
            let taken = columns.min(width - column);
            let (part, right) = target.split_at_col_mut(taken);
            target = right;
            parts.push(Part { target: part, columns: column..column + taken, left });
            column += taken;
        }
    }
    match threads {
        1 => parts.into_iter().for_each(f),
        _ => parts.into_par_iter().with_max_len(1).for_each(f),
    }
}
