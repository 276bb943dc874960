//! Matrix products on slices, shared among the threads.
//!
//! The kernels are those of the crate `faer`, for gradients of whole weights and tiles of packed ones; projections in floats
//! have one of their own (`panel`). The result is shared out here: a run of rows to each thread, or of columns where there
//! are few rows.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, reborrow::ReborrowMut};

/// A thread takes no fewer rows than this.
pub(super) const ROWS_A_THREAD: usize = 32;

/// Products of fewer multiplications than this are not worth waking threads for.
pub(super) const SMALL: usize = 1 << 18;

/// Columns that are computed together, at most: beyond some 1,500 `faer` is a quarter slower (docs/LOG.md).
const COLUMNS: usize = 1024;

/// A matrix in someone's slice.
pub(super) type View<'a> = MatRef<'a, f32>;

/// Rows of `columns` values, one after another.
pub(super) fn rows(values: &[f32], columns: usize) -> View<'_> {
    let count = values.len() / columns.max(1);
    View::from_row_major_slice(&values[..count * columns], count, columns)
}

/// `count` rows of `columns` values, each `stride` after the one before; what follows them is left out.
///
/// # Panics
/// If they do not lie within `values`.
pub(super) fn strided(values: &[f32], count: usize, columns: usize, stride: usize) -> View<'_> {
    let end = match count {
        0 => 0,
        count => (count - 1) * stride + columns,
    };
    View::from_row_major_slice_with_stride(&values[..end], count, columns, stride)
}

/// Where a product goes: rows of `columns` values, one after another.
pub(super) fn rows_mut(values: &mut [f32], columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, values.len() / columns.max(1), columns)
}

/// Where a product goes: `width` columns from `column` on, of rows that are `stride` long.
pub(super) fn columns_of(
    values: &mut [f32],
    stride: usize,
    column: usize,
    width: usize,
) -> MatMut<'_, f32> {
    rows_mut(values, stride).get_mut(.., column..column + width)
}

/// What becomes of what stands in the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    /// The product takes its place.
    Replace,
    /// The product is added to it.
    Add,
}

/// `target = factor * a b`, or `target += factor * a b`, on all threads.
///
/// # Panics
/// If shapes do not fit together.
pub(super) fn product(target: MatMut<'_, f32>, old: Old, factor: f32, a: View<'_>, b: View<'_>) {
    let work = a.nrows() * a.ncols() * b.ncols();
    let threads = match work < SMALL {
        true => 1,
        false => rayon::current_num_threads(),
    };
    share(target, old, factor, [a, b], threads);
}

/// [`product`] on the calling thread, some columns after others.
pub(super) fn product_here(
    mut target: MatMut<'_, f32>,
    old: Old,
    factor: f32,
    a: View<'_>,
    b: View<'_>,
) {
    let accum = match old {
        Old::Replace => Accum::Replace,
        Old::Add => Accum::Add,
    };
    let columns = b.ncols();
    let parts = columns.div_ceil(COLUMNS).max(1);
    for part in 0..parts {
        let (start, end) = (part * columns / parts, (part + 1) * columns / parts);
        let target = target.rb_mut().subcols_mut(start, end - start);
        matmul(target, accum, a, b.subcols(start, end - start), factor, Par::Seq);
    }
}

/// Halves the result, and the halves, until each thread has one part.
fn share(target: MatMut<'_, f32>, old: Old, factor: f32, [a, b]: [View<'_>; 2], threads: usize) {
    if threads <= 1 {
        return product_here(target, old, factor, a, b);
    }
    let ([first, second], [row, column], [here, there]) = halves(target, threads);
    let of = |target: &MatMut<'_, f32>, row, column| {
        let a = a.subrows(row, target.nrows());
        [a, b.subcols(column, target.ncols())]
    };
    let (of_first, of_second) = (of(&first, 0, 0), of(&second, row, column));
    rayon::join(
        || share(first, old, factor, of_first, here),
        || share(second, old, factor, of_second, there),
    );
}

/// A result in two, the row and the column where the second half begins, and the threads for each: a run of rows, or of
/// columns where there are few rows.
pub(super) fn halves(
    target: MatMut<'_, f32>,
    threads: usize,
) -> ([MatMut<'_, f32>; 2], [usize; 2], [usize; 2]) {
    let here = threads / 2;
    let (rows, columns) = (target.nrows(), target.ncols());
    let by_rows = rows >= ROWS_A_THREAD * threads || rows >= columns;
    let ((first, second), begin) = match by_rows {
        true => {
            let half = rows * here / threads;
            (target.split_at_row_mut(half), [half, 0])
        }
        false => {
            let half = columns * here / threads;
            (target.split_at_col_mut(half), [0, half])
        }
    };
    ([first, second], begin, [here, threads - here])
}

#[cfg(test)]
mod tests {
    use super::super::matrix::numbers;
    use super::*;

    /// Every way a product is shared out, transposed operands, a target within wider rows, added to what is there.
    #[test]
    fn products_are_the_definition() {
        for [m, k, n] in [[1, 1, 1], [5, 7, 3], [200, 33, 40], [20, 300, 500], [97, 64, 130]] {
            let (a, b) = (numbers(k * m, 7), numbers(n * k, 5));
            let (stride, column) = (n + 5, 2);
            let before = numbers(m * stride, 3);
            let mut ours = before.clone();
            let target = columns_of(&mut ours, stride, column, n);
            let (a_view, b_view) = (rows(&a, m).transpose(), rows(&b, k).transpose());
            product(target, Old::Add, 0.5, a_view, b_view);
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
    fn a_product_over_nothing_is_zero() {
        let mut ours = vec![1f32; 6];
        let (a, b) = (View::from_row_major_slice(&[], 2, 0), View::from_row_major_slice(&[], 0, 3));
        product(rows_mut(&mut ours, 3), Old::Replace, 1.0, a, b);
        assert_eq!(ours, [0.0; 6]);
    }
}
