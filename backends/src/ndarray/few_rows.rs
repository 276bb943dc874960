//! Products of a few rows with weights as they are stored, `x W^T`: what decoding spends its time on. Packed weights have
//! kernels of their own ([`super::packed`]).
//!
//! With few rows a weight is read faster than it can be laid out for a general product, so it is used where it lies, each
//! row of it once. A value of the result is one sum over vectors along its row, added up at the end: in the same order
//! whatever the number of rows, so that no row's result depends on the others.

use std::ops::Range;

use faer::MatMut;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::awake::keep_awake;
use super::gemm::{Old, SMALL};
use super::packed::{HostPacked, few_product};
use super::sums::sums_of;
use super::vector::LANES;

/// Up to this many rows are few; beyond, a general product is faster.
pub(super) const FEW: usize = 128;

/// Rows of `x` and of `W` whose products are computed together; their sums stay in registers.
const X_ROWS: usize = 4;
const W_ROWS: usize = 6;

/// Of longer rows some columns are computed after others: what is computed together stays in the nearest cache.
const COLUMNS: usize = 1024;

/// Rows of `columns` values, each `stride` after the one before.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) count: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows without gaps.
    pub(super) fn of(values: &'a [f32], columns: usize) -> Self {
        Self { values, count: values.len() / columns.max(1), columns, stride: columns }
    }

    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..self.columns]
    }

    /// Rows `start..start + count`.
    fn part(&self, start: usize, count: usize) -> Self {
        let values = &self.values[start * self.stride..];
        Self { values, count, ..*self }
    }

    /// The same rows, of each only these columns.
    fn columns(&self, columns: Range<usize>) -> Self {
        Self { values: &self.values[columns.start..], columns: columns.len(), ..*self }
    }

    /// Consecutive rows from `start` on, a loop for the reason given at [`dots`].
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
    pub(super) x: Rows<'a>,
    pub(super) w: Weights<'a>,
}

/// Rows of a weight.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Floats(Rows<'a>),
    /// From a row on.
    Packed(&'a HostPacked, usize),
}

impl Weights<'_> {
    /// All rows of the weight, or of the part that is looked at.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Floats(rows) => rows.count,
            Self::Packed(weight, first) => weight.rows - first,
        }
    }

    /// Rows from `start` on, `count` of them.
    fn part(self, start: usize, count: usize) -> Self {
        match self {
            Self::Floats(rows) => Self::Floats(rows.part(start, count)),
            Self::Packed(weight, first) => Self::Packed(weight, first + start),
        }
    }
}

/// Some columns of a result and what they are the sum of.
pub(super) struct Output<'a> {
    pub(super) target: MatMut<'a, f32>,
    /// Whether what stands there is a summand too.
    pub(super) old: Old,
    pub(super) terms: Vec<Term<'a>>,
}

impl<'a> Output<'a> {
    fn work(&self) -> usize {
        let (width, terms) = (self.target.ncols(), self.terms.iter());
        terms.map(|t| t.x.count * width * t.x.columns).sum()
    }

    /// Parts of `width` columns, the last may be narrower.
    fn cut(self, width: usize) -> Vec<Self> {
        let Self { mut target, old, terms } = self;
        let mut parts = Vec::new();
        let mut start = 0;
        while target.ncols() > 0 {
            let count = width.min(target.ncols());
            let (part, rest) = target.split_at_col_mut(count);
            target = rest;
            let terms = terms.iter().map(|term| Term { w: term.w.part(start, count), ..*term });
            parts.push(Self { target: part, old, terms: terms.collect() });
            start += count;
        }
        parts
    }

    /// On the calling thread.
    pub(super) fn compute(mut self) {
        let mut old = self.old;
        for term in &self.terms {
            let (target, Term { factor, x, w }) = (self.target.as_mut(), *term);
            match w {
                Weights::Floats(w) => float_product(target, old, factor, x, w),
                Weights::Packed(w, first) => few_product(target, old, factor, x, (w, first)),
            }
            old = Old::Add;
        }
    }
}

/// Computes all of `outputs`, on all threads.
///
/// # Panics
/// If shapes do not fit together.
pub(super) fn compute(outputs: Vec<Output<'_>>) {
    let work: usize = outputs.iter().map(Output::work).sum();
    if work < SMALL {
        return outputs.into_iter().for_each(Output::compute);
    }
    keep_awake();
    let width: usize = outputs.iter().map(|output| output.target.ncols()).sum();
    // Two parts a thread: one that comes late is helped out.
    let share = width.div_ceil(2 * rayon::current_num_threads());
    // Whole tiles, of packed weights too.
    let share = share.next_multiple_of(2 * W_ROWS);
    let parts = outputs.into_iter().flat_map(|output| output.cut(share));
    let parts: Vec<_> = parts.collect();
    parts.into_par_iter().with_max_len(1).for_each(Output::compute);
}

/// `target = factor * x W^T`, or `target += factor * x W^T`, on the calling thread.
///
/// Long rows some columns after others.
pub(super) fn float_product(
    mut target: MatMut<'_, f32>,
    mut old: Old,
    factor: f32,
    x: Rows<'_>,
    w: Rows<'_>,
) {
    let parts = x.columns.div_ceil(COLUMNS).max(1);
    let width = x.columns.div_ceil(parts).next_multiple_of(LANES);
    for part in 0..parts {
        let [start, end] = [part, part + 1].map(|part| (part * width).min(x.columns));
        pulp::Arch::new().dispatch(Product {
            target: target.as_mut(),
            old,
            factor,
            x: x.columns(start..end),
            w: w.columns(start..end),
        });
        old = Old::Add;
    }
}

struct Product<'a> {
    target: MatMut<'a, f32>,
    old: Old,
    factor: f32,
    x: Rows<'a>,
    w: Rows<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (x, w) = (self.x, self.w);
        let whole = w.count - w.count % W_ROWS;
        for w_row in (0..whole).step_by(W_ROWS) {
            self.rows::<S, W_ROWS>(simd, x, w_row);
        }
        for w_row in whole..w.count {
            self.rows::<S, 1>(simd, x, w_row);
        }
    }
}

impl Product<'_> {
    /// The columns of `N` rows of `W`.
    #[inline(always)]
    fn rows<S: Simd, const N: usize>(&mut self, simd: S, x: Rows<'_>, w_row: usize) {
        let tiles = x.count.div_ceil(X_ROWS);
        for tile in 0..tiles {
            // The rows of `W` that come next are fetched meanwhile, each tile a share of them. With one row that
            // gains nothing: there is no computing to do meanwhile.
            let next = if x.count > 1 { N } else { 0 };
            let [from, to] = [tile, tile + 1].map(|tile| w_row + N + tile * next / tiles);
            let (x_row, ahead) = (tile * X_ROWS, from..to);
            match x.count - x_row {
                1 => self.tile::<S, 1, N>(simd, x_row, w_row, ahead),
                2 => self.tile::<S, 2, N>(simd, x_row, w_row, ahead),
                3 => self.tile::<S, 3, N>(simd, x_row, w_row, ahead),
                _ => self.tile::<S, X_ROWS, N>(simd, x_row, w_row, ahead),
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        x_row: usize,
        w_row: usize,
        ahead: Range<usize>,
    ) {
        let (factor, x, w) = (self.factor, self.x, self.w);
        let ahead = w.values.get(ahead.start * w.stride..ahead.end * w.stride);
        let ahead = (ahead.unwrap_or_default(), w.stride);
        let sums = dots::<S, M, N>(simd, x.several(x_row), w.several(w_row), ahead);
        for (row, sums) in sums.iter().enumerate() {
            let target = self.target.as_mut().row_mut(x_row + row);
            let Some(target) = target.subcols_mut(w_row, N).try_as_row_major_mut() else {
                unreachable!("a row of a row-major matrix")
            };
            for (place, sum) in target.as_slice_mut().iter_mut().zip(sums) {
                *place = match self.old {
                    Old::Replace => factor * sum,
                    Old::Add => *place + factor * sum,
                };
            }
        }
    }
}

/// Has the processor bring `values[index]` near, if there is such a value.
#[inline(always)]
#[allow(
    unsafe_code,
    reason = "a hint without effect on what is computed, whatever stands at the address, if anything does"
)]
pub(super) fn fetch<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values.as_ptr().wrapping_add(index);
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}

/// The products of `M` rows with `N` rows of one length; fetches the rows `ahead`, each `stride` long.
///
/// Plain loops: what the closures of `map` do would not be inlined, and so compiled for narrow vectors.
#[inline(always)]
fn dots<S: Simd, const M: usize, const N: usize>(
    simd: S,
    x: [&[f32]; M],
    w: [&[f32]; N],
    (ahead, stride): (&[f32], usize),
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
        for first in (0..ahead.len()).step_by(stride) {
            fetch(ahead, first + at * S::F32_LANES);
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
    sums_of(simd, sums)
}

#[cfg(test)]
mod tests {
    use super::super::gemm::{columns_of, rows_mut};
    use super::super::matrix::numbers;
    use super::*;

    /// Every remainder of rows, columns and vectors; shared out or not; two terms, added to what is there.
    #[test]
    fn sums_of_products_are_the_definition() {
        for [m, k, n] in
            [[1, 1, 1], [2, 7, 3], [3, 16, 13], [4, 33, 6], [7, 100, 41], [9, 300, 500]]
        {
            let (x, w) = (numbers(m * k, 7), numbers(n * k, 5));
            let (low, b) = (numbers(m * 5, 3), numbers(n * 2, 11));
            let (stride, column) = (n + 5, 2);
            let before = numbers(m * stride, 13);
            for old in [Old::Replace, Old::Add] {
                let mut ours = before.clone();
                let base =
                    Term { factor: 1.0, x: Rows::of(&x, k), w: Weights::Floats(Rows::of(&w, k)) };
                let branch = Term {
                    factor: 0.5,
                    x: Rows { values: &low[3..], count: m, columns: 2, stride: 5 },
                    w: Weights::Floats(Rows::of(&b, 2)),
                };
                compute(vec![Output {
                    target: columns_of(&mut ours, stride, column, n),
                    old,
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
                            expected = new + if old == Old::Add { expected } else { 0.0 };
                        }
                        assert_eq!(ours[row * stride + at], expected, "{m}x{k}x{n} {row} {at}");
                    }
                }
            }
        }
    }

    /// Bit by bit: random values, whose sums depend on the order.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (k, n) = (77, 200);
        let random =
            |count: usize| -> Vec<f32> { (0..count).map(|at| (at as f32 * 1.37).sin()).collect() };
        let (x, w) = (random(FEW * k), random(n * k));
        let product = |first: usize, count: usize| {
            let mut y = vec![f32::NAN; count * n];
            compute(vec![Output {
                target: rows_mut(&mut y, n),
                old: Old::Replace,
                terms: vec![Term {
                    factor: 1.0,
                    x: Rows::of(&x, k).part(first, count),
                    w: Weights::Floats(Rows::of(&w, k)),
                }],
            }]);
            y
        };
        let all = product(0, FEW);
        for (first, count) in [(0, 1), (5, 1), (127, 1), (3, 2), (8, 7), (20, 31)] {
            assert_eq!(product(first, count), all[first * n..][..count * n]);
        }
    }
}
