//! Multithreaded GEMM on slices.
//!
//! The kernels come from the crate `faer` and serve gradients of whole weights and tiles of
//! quantized ones; projections with f32 weights have a kernel of their own (`panel`). The result is
//! divided here: each thread computes a range of rows, or of columns if there are few rows.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, reborrow::ReborrowMut};

/// The smallest number of rows per thread.
pub(super) const MIN_ROWS_PER_THREAD: usize = 32;

/// A GEMM with fewer multiplications than this is not worth waking threads for.
pub(super) const MIN_PARALLEL_WORK: usize = 1 << 18;

/// The largest number of columns that are computed at once: beyond about 1,500 `faer` is a quarter
/// slower (docs/LOG.md).
const MAX_COLUMNS: usize = 1024;

/// A borrowed matrix.
pub(super) type View<'a> = MatRef<'a, f32>;

/// Returns a view of contiguous rows of `columns` values.
pub(super) fn rows(values: &[f32], columns: usize) -> View<'_> {
    let count = values.len() / columns.max(1);
    View::from_row_major_slice(&values[..count * columns], count, columns)
}

/// Returns a view of `count` rows of `columns` values whose starts are `stride` apart; values
/// beyond the last row are left out.
///
/// # Panics
/// If the rows do not lie within `values`.
pub(super) fn strided(values: &[f32], count: usize, columns: usize, stride: usize) -> View<'_> {
    let end = match count {
        0 => 0,
        count => (count - 1) * stride + columns,
    };
    View::from_row_major_slice_with_stride(&values[..end], count, columns, stride)
}

/// Returns a mutable view of contiguous rows of `columns` values.
pub(super) fn rows_mut(values: &mut [f32], columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, values.len() / columns.max(1), columns)
}

/// Returns a mutable view of `width` columns from `column`, in rows of length `stride`.
pub(super) fn columns_mut(
    values: &mut [f32],
    stride: usize,
    column: usize,
    width: usize,
) -> MatMut<'_, f32> {
    rows_mut(values, stride).get_mut(.., column..column + width)
}

/// Whether a result overwrites the target or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// The result overwrites the target.
    Overwrite,
    /// The result is added to the target.
    Add,
}

/// Computes `target = factor * a b`, or adds it to `target`, on all threads.
///
/// # Panics
/// If the shapes do not match.
pub(super) fn gemm(
    target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    a: View<'_>,
    b: View<'_>,
) {
    let work = a.nrows() * a.ncols() * b.ncols();
    let threads = if work < MIN_PARALLEL_WORK { 1 } else { rayon::current_num_threads() };
    gemm_on_threads(target, mode, factor, [a, b], threads);
}

/// Computes the same as [`gemm`] on the calling thread, in groups of columns.
pub(super) fn gemm_on_thread(
    mut target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    a: View<'_>,
    b: View<'_>,
) {
    let accum = match mode {
        WriteMode::Overwrite => Accum::Replace,
        WriteMode::Add => Accum::Add,
    };
    let columns = b.ncols();
    let parts = columns.div_ceil(MAX_COLUMNS).max(1);
    for part in 0..parts {
        let (start, end) = (part * columns / parts, (part + 1) * columns / parts);
        let target = target.rb_mut().subcols_mut(start, end - start);
        matmul(target, accum, a, b.subcols(start, end - start), factor, Par::Seq);
    }
}

/// Halves the result recursively until each thread has one part.
fn gemm_on_threads(
    target: MatMut<'_, f32>,
    mode: WriteMode,
    factor: f32,
    [a, b]: [View<'_>; 2],
    threads: usize,
) {
    if threads <= 1 {
        return gemm_on_thread(target, mode, factor, a, b);
    }
    let ([first, second], [row, column], [here, there]) = split_in_two(target, threads);
    let operands = |target: &MatMut<'_, f32>, row, column| {
        let a = a.subrows(row, target.nrows());
        [a, b.subcols(column, target.ncols())]
    };
    let (first_operands, second_operands) =
        (operands(&first, 0, 0), operands(&second, row, column));
    rayon::join(
        || gemm_on_threads(first, mode, factor, first_operands, here),
        || gemm_on_threads(second, mode, factor, second_operands, there),
    );
}

/// Splits a result in two. Returns the parts, the row and column where the second one starts, and
/// the number of threads for each. It is split by rows, or by columns if there are few rows.
pub(super) fn split_in_two(
    target: MatMut<'_, f32>,
    threads: usize,
) -> ([MatMut<'_, f32>; 2], [usize; 2], [usize; 2]) {
    let here = threads / 2;
    let (rows, columns) = (target.nrows(), target.ncols());
    let by_rows = rows >= MIN_ROWS_PER_THREAD * threads || rows >= columns;
    let ((first, second), begin) = if by_rows {
        let half = rows * here / threads;
        (target.split_at_row_mut(half), [half, 0])
    } else {
        let half = columns * here / threads;
        (target.split_at_col_mut(half), [0, half])
    };
    ([first, second], begin, [here, threads - here])
}

#[cfg(test)]
mod tests {
    use super::super::matrix::small_integers;
    use super::*;

    /// Covers every way to divide the result, transposed operands, and a target within wider rows
    /// to which the result is added.
    #[test]
    fn gemm_equals_a_naive_loop() {
        for [m, k, n] in [[1, 1, 1], [5, 7, 3], [200, 33, 40], [20, 300, 500], [97, 64, 130]] {
            let (a, b) = (small_integers(k * m, 7), small_integers(n * k, 5));
            let (stride, column) = (n + 5, 2);
            let before = small_integers(m * stride, 3);
            let mut ours = before.clone();
            let target = columns_mut(&mut ours, stride, column, n);
            let (a_view, b_view) = (rows(&a, m).transpose(), rows(&b, k).transpose());
            gemm(target, WriteMode::Add, 0.5, a_view, b_view);
            for row in 0..m {
                for at in 0..stride {
                    let mut expected = before[row * stride + at];
                    if (column..column + n).contains(&at) {
                        let terms = (0..k).map(|i| a[i * m + row] * b[(at - column) * k + i]);
                        expected += 0.5 * terms.sum::<f32>();
                    }
                    assert_eq!(ours[row * stride + at], expected, "{m}x{k}x{n} {row} {at}");
                }
            }
        }
    }

    #[test]
    fn a_gemm_of_depth_zero_is_zero() {
        let mut ours = vec![1f32; 6];
        let (a, b) = (View::from_row_major_slice(&[], 2, 0), View::from_row_major_slice(&[], 0, 3));
        gemm(rows_mut(&mut ours, 3), WriteMode::Overwrite, 1.0, a, b);
        assert_eq!(ours, [0.0; 6]);
    }
}
