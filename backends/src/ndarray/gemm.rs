//! Matrix products on slices, shared among the threads.
//!
//! The kernels are those of the crate `gemm`, the fastest in pure Rust on the model's shapes (docs/performance.md). Rows
//! of the result are shared out here, a run of them to each thread, because for many rows that is faster than the
//! crate's own way; a result of few rows is left to it.

use gemm::Parallelism;
use rayon::prelude::*;

/// A thread takes no fewer rows than this.
const ROWS_A_THREAD: usize = 48;

/// Products of fewer multiplications than this are not worth waking threads for.
const SMALL: usize = 1 << 18;

/// A matrix in someone's slice, at any strides.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `columns` values, one after another.
    pub(super) fn rows(values: &'a [f32], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        Self::within(values, rows, columns, columns)
    }

    /// `rows` rows of `columns` values, each `stride` after the one before.
    ///
    /// # Panics
    /// If they do not lie within `values`.
    pub(super) fn within(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let end = match rows {
            0 => 0,
            rows => (rows - 1) * stride + columns,
        };
        assert!(
            end <= values.len() && (columns <= stride || rows <= 1),
            "view: {rows} rows of {columns}, {stride} apart, in {}",
            values.len()
        );
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// Rows and columns exchanged; nothing is copied.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// `count` rows from `start` on.
    fn rows_from(self, start: usize, count: usize) -> Self {
        let skipped = (start * self.row_stride).min(self.values.len());
        Self {
            values: &self.values[skipped..],
            rows: count,
            ..self
        }
    }
}

/// Where a product goes: the columns `column..column + width` of rows that are `stride` long.
pub(super) struct Target<'a> {
    values: &'a mut [f32],
    stride: usize,
    column: usize,
}

impl<'a> Target<'a> {
    /// Whole rows of `columns` values.
    pub(super) fn rows(values: &'a mut [f32], columns: usize) -> Self {
        Self::columns(values, columns, 0)
    }

    /// From `column` on, in rows of `stride` values.
    pub(super) fn columns(values: &'a mut [f32], stride: usize, column: usize) -> Self {
        Self {
            values,
            stride,
            column,
        }
    }
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
pub(super) fn product(target: Target<'_>, old: Old, factor: f32, a: View<'_>, b: View<'_>) {
    let (work, threads) = (a.rows * a.columns * b.columns, rayon::current_num_threads());
    if work < SMALL || threads == 1 {
        return kernel(target, old, factor, a, b, Parallelism::None);
    }
    let share = a.rows.div_ceil(threads);
    if share < ROWS_A_THREAD {
        return kernel(target, old, factor, a, b, Parallelism::Rayon(threads));
    }
    let Target { stride, column, .. } = target;
    let parts = target.values.par_chunks_mut(share * stride).enumerate();
    parts.for_each(|(index, values)| {
        let start = index * share;
        if start < a.rows {
            let a = a.rows_from(start, share.min(a.rows - start));
            let target = Target::columns(values, stride, column);
            kernel(target, old, factor, a, b, Parallelism::None);
        }
    });
}

/// [`product`] on the calling thread.
pub(super) fn product_here(target: Target<'_>, old: Old, factor: f32, a: View<'_>, b: View<'_>) {
    kernel(target, old, factor, a, b, Parallelism::None);
}

#[allow(
    unsafe_code,
    reason = "the crate takes pointers: every element touched lies within the slices, which is asserted just before"
)]
fn kernel(
    target: Target<'_>,
    old: Old,
    factor: f32,
    a: View<'_>,
    b: View<'_>,
    parallelism: Parallelism,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "product: [{m}, {k}] by [{}, {n}]", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    for view in [&a, &b] {
        let last = |count: usize, stride: usize| count.saturating_sub(1) * stride;
        let end = last(view.rows, view.row_stride) + last(view.columns, view.column_stride);
        assert!(
            k == 0 || end < view.values.len(),
            "product: outside the slice"
        );
    }
    let Target {
        values,
        stride,
        column,
    } = target;
    assert!(
        column + n <= stride && (m - 1) * stride + column + n <= values.len(),
        "product: target too small"
    );
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            values.as_mut_ptr().add(column),
            1,
            stride as isize,
            old == Old::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, step: usize) -> Vec<f32> {
        (0..count)
            .map(|at| ((at * step) % 23) as f32 - 11.0)
            .collect()
    }

    /// Every way a product is shared out, transposed operands, a target within wider rows, added to what is there.
    #[test]
    fn products_are_the_definition() {
        for [m, k, n] in [
            [1, 1, 1],
            [5, 7, 3],
            [200, 33, 40],
            [20, 300, 500],
            [97, 64, 130],
        ] {
            let (a, b) = (numbers(k * m, 7), numbers(n * k, 5));
            let (stride, column) = (n + 5, 2);
            let before = numbers(m * stride, 3);
            let mut ours = before.clone();
            let target = Target::columns(&mut ours, stride, column);
            let (a_view, b_view) = (View::rows(&a, m).t(), View::rows(&b, k).t());
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
}
