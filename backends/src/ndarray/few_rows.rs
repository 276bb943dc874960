//! GEMM of a few rows with a weight as it is stored, `x W^T`, which dominates decoding. Quantized
//! weights have kernels of their own ([`super::packed`]).
//!
//! Reading a weight for few rows takes less time than rearranging it for a general GEMM, so it is
//! used in place, each row once. Each value is a sum over vectors along a row whose lanes are added
//! at the end. This order is the same for any number of rows, so no row depends on the others.

use std::ops::Range;

use faer::MatMut;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::awake::keep_awake;
use super::gemm::{MIN_PARALLEL_WORK, WriteMode};
use super::packed::{HostPacked, quantized_gemm};
use super::sums::reduce_sums;
use super::tile::Rows;
use super::vector::LANES;

/// The largest number of rows for which this GEMM is faster than a general one.
pub(super) const MAX_FEW_ROWS: usize = 128;

/// Rows of `x` and of `W` in a tile, whose sums stay in registers.
const TILE_X_ROWS: usize = 4;
const TILE_W_ROWS: usize = 6;

/// Longer rows are processed in groups of columns, so that the operands of a tile stay cached.
const MAX_COLUMNS: usize = 1024;

/// `count` rows of `columns` values.
#[derive(Clone, Copy)]
pub(super) struct RowBlock<'a> {
    pub(super) rows: Rows<'a>,
    pub(super) count: usize,
    pub(super) columns: usize,
}

impl<'a> RowBlock<'a> {
    /// Returns rows without gaps.
    pub(super) fn of(values: &'a [f32], columns: usize) -> Self {
        Self { rows: Rows::all(values, columns), count: values.len() / columns.max(1), columns }
    }

    /// Returns one row.
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        &self.rows.values[index * self.rows.stride..][..self.columns]
    }

    /// Returns the rows `start..start + count`.
    fn part(&self, start: usize, count: usize) -> Self {
        Self { rows: self.rows.from(start, 0), count, ..*self }
    }

    /// Returns the same rows, restricted to `columns`.
    fn columns(&self, columns: Range<usize>) -> Self {
        Self { rows: self.rows.from(0, columns.start), columns: columns.len(), ..*self }
    }

    /// Returns `N` consecutive rows from `start`. This is a loop for the reason given at [`dots`].
    #[inline(always)]
    fn several<const N: usize>(&self, start: usize) -> [&'a [f32]; N] {
        let mut rows = [&[][..]; N];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = self.row(start + index);
        }
        rows
    }
}

/// One summand of a result: `factor * x W^T`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) factor: f32,
    pub(super) x: RowBlock<'a>,
    pub(super) w: Weights<'a>,
}

/// Rows of a weight.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Floats(RowBlock<'a>),
    /// The rows of a quantized weight from an index on.
    Packed(&'a HostPacked, usize),
}

impl Weights<'_> {
    /// Returns the number of rows of the weight, or of the selected part.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Floats(rows) => rows.count,
            Self::Packed(weight, first) => weight.rows - first,
        }
    }

    /// Returns `count` rows from `start`.
    fn part(self, start: usize, count: usize) -> Self {
        match self {
            Self::Floats(rows) => Self::Floats(rows.part(start, count)),
            Self::Packed(weight, first) => Self::Packed(weight, first + start),
        }
    }
}

/// Columns of a result and the terms that are summed into them.
pub(super) struct Output<'a> {
    pub(super) target: MatMut<'a, f32>,
    /// Whether the terms overwrite the target or are added to it.
    pub(super) mode: WriteMode,
    pub(super) terms: Vec<Term<'a>>,
}

impl<'a> Output<'a> {
    /// Returns the number of multiplications.
    fn work(&self) -> usize {
        let (width, terms) = (self.target.ncols(), self.terms.iter());
        terms.map(|t| t.x.count * width * t.x.columns).sum()
    }

    /// Splits the output into parts of `width` columns; the last one may be narrower.
    fn split(self, width: usize) -> Vec<Self> {
        let Self { mut target, mode, terms } = self;
        let mut parts = Vec::new();
        let mut start = 0;
        while target.ncols() > 0 {
            let count = width.min(target.ncols());
            let (part, rest) = target.split_at_col_mut(count);
            target = rest;
            let terms = terms.iter().map(|term| Term { w: term.w.part(start, count), ..*term });
            parts.push(Self { target: part, mode, terms: terms.collect() });
            start += count;
        }
        parts
    }

    /// Computes the output on the calling thread.
    pub(super) fn compute(mut self) {
        let mut mode = self.mode;
        for term in &self.terms {
            let (target, Term { factor, x, w }) = (self.target.as_mut(), *term);
            match w {
                Weights::Floats(w) => few_rows_gemm(target, mode, factor, x, w),
                Weights::Packed(w, first) => quantized_gemm(target, mode, factor, x, (w, first)),
            }
            mode = WriteMode::Add;
        }
    }
}

/// Computes all `outputs` on all threads.
///
/// # Panics
/// If the shapes do not match.
pub(super) fn compute(outputs: Vec<Output<'_>>) {
    let work: usize = outputs.iter().map(Output::work).sum();
    if work < MIN_PARALLEL_WORK {
        return outputs.into_iter().for_each(Output::compute);
    }
    keep_awake();
    let width: usize = outputs.iter().map(|output| output.target.ncols()).sum();
    // Two parts per thread, so that fast threads take over from slow ones; whole tiles.
    let part_width = width.div_ceil(2 * rayon::current_num_threads());
    let part_width = part_width.next_multiple_of(2 * TILE_W_ROWS);
    let parts = outputs.into_iter().flat_map(|output| output.split(part_width));
    let parts: Vec<_> = parts.collect();
    parts.into_par_iter().with_max_len(1).for_each(Output::compute);
}

/// Computes `target = factor * x W^T`, or adds it to `target`, on the calling thread.
///
/// Long rows are processed in groups of columns.
pub(super) fn few_rows_gemm(
    mut target: MatMut<'_, f32>,
    mut mode: WriteMode,
    factor: f32,
    x: RowBlock<'_>,
    w: RowBlock<'_>,
) {
    let parts = x.columns.div_ceil(MAX_COLUMNS).max(1);
    let width = x.columns.div_ceil(parts).next_multiple_of(LANES);
    for part in 0..parts {
        let [start, end] = [part, part + 1].map(|part| (part * width).min(x.columns));
        pulp::Arch::new().dispatch(FewRowsGemm {
            target: target.as_mut(),
            mode,
            factor,
            x: x.columns(start..end),
            w: w.columns(start..end),
        });
        mode = WriteMode::Add;
    }
}

/// The GEMM of one group of columns.
struct FewRowsGemm<'a> {
    target: MatMut<'a, f32>,
    mode: WriteMode,
    factor: f32,
    x: RowBlock<'a>,
    w: RowBlock<'a>,
}

impl WithSimd for FewRowsGemm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (x, w) = (self.x, self.w);
        let whole = w.count - w.count % TILE_W_ROWS;
        for w_row in (0..whole).step_by(TILE_W_ROWS) {
            self.rows::<S, TILE_W_ROWS>(simd, x, w_row);
        }
        for w_row in whole..w.count {
            self.rows::<S, 1>(simd, x, w_row);
        }
    }
}

impl FewRowsGemm<'_> {
    /// Computes the columns that belong to `N` rows of `W`.
    #[inline(always)]
    fn rows<S: Simd, const N: usize>(&mut self, simd: S, x: RowBlock<'_>, w_row: usize) {
        let tiles = x.count.div_ceil(TILE_X_ROWS);
        for tile in 0..tiles {
            // Each tile prefetches a part of the next rows of `W`. With a single row of `x` this
            // gains nothing, because there is no arithmetic to overlap with.
            let next = if x.count > 1 { N } else { 0 };
            let [from, to] = [tile, tile + 1].map(|tile| w_row + N + tile * next / tiles);
            let (x_row, next_rows) = (tile * TILE_X_ROWS, from..to);
            match x.count - x_row {
                1 => self.tile::<S, 1, N>(simd, x_row, w_row, next_rows),
                2 => self.tile::<S, 2, N>(simd, x_row, w_row, next_rows),
                3 => self.tile::<S, 3, N>(simd, x_row, w_row, next_rows),
                _ => self.tile::<S, TILE_X_ROWS, N>(simd, x_row, w_row, next_rows),
            }
        }
    }

    /// Computes `M` rows and `N` columns of the result and prefetches the rows `next_rows` of `W`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        x_row: usize,
        w_row: usize,
        next_rows: Range<usize>,
    ) {
        let (factor, x, w) = (self.factor, self.x, self.w);
        let Rows { values, stride } = w.rows;
        let next_rows = values.get(next_rows.start * stride..next_rows.end * stride);
        let next_rows = (next_rows.unwrap_or_default(), stride);
        let sums = dots::<S, M, N>(simd, x.several(x_row), w.several(w_row), next_rows);
        for (row, sums) in sums.iter().enumerate() {
            let target = self.target.as_mut().row_mut(x_row + row);
            let Some(target) = target.subcols_mut(w_row, N).try_as_row_major_mut() else {
                unreachable!("a row of a row-major matrix")
            };
            for (value, sum) in target.as_slice_mut().iter_mut().zip(sums) {
                *value = match self.mode {
                    WriteMode::Overwrite => factor * sum,
                    WriteMode::Add => *value + factor * sum,
                };
            }
        }
    }
}

/// Prefetches `values[index]` into the cache, if the index exists.
#[inline(always)]
#[allow(
    unsafe_code,
    reason = "a prefetch has no effect on results, whatever lies at the address, if anything does"
)]
pub(super) fn prefetch<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values.as_ptr().wrapping_add(index);
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}

/// Returns the dot products of `M` rows with `N` rows, and prefetches `next_rows`.
///
/// Plain loops: closures passed to `map` would not be inlined but compiled for narrow vectors.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(
    simd: S,
    x: [&[f32]; M],
    w: [&[f32]; N],
    (next_rows, stride): (&[f32], usize),
) -> [[f32; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let length = x[0].len();
    let vectors = length / S::F32_LANES;
    let (mut x_vectors, mut w_vectors) = ([&[][..]; M], [&[][..]; N]);
    for m in 0..M {
        x_vectors[m] = &S::as_simd_f32s(x[m]).0[..vectors];
    }
    for n in 0..N {
        w_vectors[n] = &S::as_simd_f32s(w[n]).0[..vectors];
    }
    for at in 0..vectors {
        for first in (0..next_rows.len()).step_by(stride) {
            prefetch(next_rows, first + at * S::F32_LANES);
        }
        for n in 0..N {
            let w = w_vectors[n][at];
            for m in 0..M {
                sums[m][n] = simd.mul_add_e_f32s(x_vectors[m][at], w, sums[m][n]);
            }
        }
    }
    let rest = vectors * S::F32_LANES;
    if rest < length {
        for n in 0..N {
            let w = simd.partial_load_f32s(&w[n][rest..]);
            for m in 0..M {
                let x = simd.partial_load_f32s(&x[m][rest..]);
                sums[m][n] = simd.mul_add_e_f32s(x, w, sums[m][n]);
            }
        }
    }
    reduce_sums(simd, sums)
}

#[cfg(test)]
mod tests {
    use super::super::gemm::{columns_mut, rows_mut};
    use super::super::matrix::small_integers;
    use super::*;

    /// Covers every remainder of rows, columns and vectors, one thread and several, both modes.
    #[test]
    fn sums_equal_a_naive_loop() {
        for [m, k, n] in
            [[1, 1, 1], [2, 7, 3], [3, 16, 13], [4, 33, 6], [7, 100, 41], [9, 300, 500]]
        {
            let (x, w) = (small_integers(m * k, 7), small_integers(n * k, 5));
            let (low, b) = (small_integers(m * 5, 3), small_integers(n * 2, 11));
            let (stride, column) = (n + 5, 2);
            let before = small_integers(m * stride, 13);
            for mode in [WriteMode::Overwrite, WriteMode::Add] {
                let mut ours = before.clone();
                let base = Term {
                    factor: 1.0,
                    x: RowBlock::of(&x, k),
                    w: Weights::Floats(RowBlock::of(&w, k)),
                };
                let branch = Term {
                    factor: 0.5,
                    x: RowBlock {
                        rows: Rows { values: &low[3..], stride: 5 },
                        count: m,
                        columns: 2,
                    },
                    w: Weights::Floats(RowBlock::of(&b, 2)),
                };
                compute(vec![Output {
                    target: columns_mut(&mut ours, stride, column, n),
                    mode,
                    terms: vec![base, branch],
                }]);
                for row in 0..m {
                    for at in 0..stride {
                        let mut expected = before[row * stride + at];
                        if (column..column + n).contains(&at) {
                            let out = at - column;
                            let base = (0..k).map(|i| x[row * k + i] * w[out * k + i]);
                            let branch = (0..2).map(|i| low[3 + row * 5 + i] * b[out * 2 + i]);
                            let new = base.sum::<f32>() + 0.5 * branch.sum::<f32>();
                            expected = new + if mode == WriteMode::Add { expected } else { 0.0 };
                        }
                        assert_eq!(ours[row * stride + at], expected, "{m}x{k}x{n} {row} {at}");
                    }
                }
            }
        }
    }

    /// Compares bit by bit random values whose sums depend on the order.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (k, n) = (77, 200);
        let random =
            |count: usize| -> Vec<f32> { (0..count).map(|at| (at as f32 * 1.37).sin()).collect() };
        let (x, w) = (random(MAX_FEW_ROWS * k), random(n * k));
        let rows_of_result = |first: usize, count: usize| {
            let mut y = vec![f32::NAN; count * n];
            compute(vec![Output {
                target: rows_mut(&mut y, n),
                mode: WriteMode::Overwrite,
                terms: vec![Term {
                    factor: 1.0,
                    x: RowBlock::of(&x, k).part(first, count),
                    w: Weights::Floats(RowBlock::of(&w, k)),
                }],
            }]);
            y
        };
        let all = rows_of_result(0, MAX_FEW_ROWS);
        for (first, count) in [(0, 1), (5, 1), (127, 1), (3, 2), (8, 7), (20, 31)] {
            assert_eq!(rows_of_result(first, count), all[first * n..][..count * n]);
        }
    }
}
