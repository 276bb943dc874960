//! The sums on one thread: a panel is filled, then all rows go by.

use std::array::from_fn;

use faer::{MatMut, reborrow::ReborrowMut};
use pulp::{Simd, WithSimd};

use super::Term;
use crate::ndarray::exchange::exchange;
use crate::ndarray::few_rows::fetch;
use crate::ndarray::gemm::Old;
use crate::ndarray::matrix::written;
use crate::ndarray::tile::{Operand, ROWS, Rows, vectors};

/// Rows of a tile at most half as wide as others: fewer sums at once would wait for each other.
const ROWS_OF_FEW: usize = 12;

/// Steps of a sum between two looks at what comes next.
const STEPS: usize = 16;

/// Rows of a right operand that are fetched before they are copied: rows of a weight lie too far apart for the processor
/// to see what comes.
const AHEAD: usize = 8;

/// `target = sum of all terms`, or added to it.
pub(super) struct Sum<'a> {
    pub(super) target: MatMut<'a, f32>,
    pub(super) old: Old,
    /// Each fits into a panel.
    pub(super) groups: Vec<Vec<Term<'a>>>,
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let wide = vectors::<S>() * S::F32_LANES;
        let depths = self.groups.iter().map(|group| depth(group));
        let mut panel = written(depths.max().unwrap_or(0) * wide, |_| ());
        let columns = self.target.ncols();
        for column in (0..columns).step_by(wide) {
            let width = wide.min(columns - column);
            match width.div_ceil(S::F32_LANES) {
                4 => self.columns::<S, 4>(simd, column, width, &mut panel),
                3 => self.columns::<S, 3>(simd, column, width, &mut panel),
                2 => self.columns::<S, 2>(simd, column, width, &mut panel),
                _ => self.columns::<S, 1>(simd, column, width, &mut panel),
            }
        }
    }
}

fn depth(group: &[Term<'_>]) -> usize {
    group.iter().map(|term| term.depth).sum()
}

impl Sum<'_> {
    /// All rows of `width` columns from `column` on, which are `C` vectors.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(
        &mut self,
        simd: S,
        column: usize,
        width: usize,
        panel: &mut [f32],
    ) {
        let mut target = self.target.rb_mut().subcols_mut(column, width);
        let mut old = self.old;
        for group in &self.groups {
            fill::<S, C>(simd, group, column, width, panel);
            let mut rows = RowsOfSums { target: target.rb_mut(), old, group, panel };
            let (mut row, count) = (0, rows.target.nrows());
            while 2 * C <= vectors::<S>() && row + ROWS_OF_FEW <= count {
                rows.tile::<S, ROWS_OF_FEW, C>(simd, row);
                row += ROWS_OF_FEW;
            }
            while row + ROWS <= count {
                rows.tile::<S, ROWS, C>(simd, row);
                row += ROWS;
            }
            if row + 4 <= count {
                rows.tile::<S, 4, C>(simd, row);
                row += 4;
            }
            while row < count {
                rows.tile::<S, 1, C>(simd, row);
                row += 1;
            }
            old = Old::Add;
        }
    }
}

/// Copies `width` columns of the right operands from `column` on into the panel, whose rows are `C` vectors, the last
/// filled up with zeros.
#[inline(always)]
fn fill<S: Simd, const C: usize>(
    simd: S,
    group: &[Term<'_>],
    column: usize,
    width: usize,
    panel: &mut [f32],
) {
    let wide = C * S::F32_LANES;
    let mut rest = panel;
    for term in group {
        let (panel, below) = rest.split_at_mut(term.depth * wide);
        rest = below;
        match term.right.from(0, column) {
            Operand::AsItIs(rows) => copy::<S, C>(simd, (rows, width), term.factor, panel),
            Operand::Transposed(rows) => {
                if width < wide {
                    panel.fill(0.0);
                }
                exchange(rows, [width, term.depth], term.factor, panel, wide);
            }
        }
    }
}

/// `panel = factor * rows`, the first `width` columns of them.
#[inline(always)]
fn copy<S: Simd, const C: usize>(
    simd: S,
    (rows, width): (Rows<'_>, usize),
    factor: f32,
    panel: &mut [f32],
) {
    let factor = simd.splat_f32s(factor);
    let (vectors, _) = S::as_mut_simd_f32s(panel);
    let (vectors, _) = vectors.as_chunks_mut::<C>();
    for (k, vectors) in vectors.iter_mut().enumerate() {
        for vector in 0..C {
            let ahead = (k + AHEAD) * rows.stride + vector * S::F32_LANES;
            fetch(rows.values, ahead);
        }
        let row = &rows.values[k * rows.stride..][..width];
        let (whole, last) = S::as_simd_f32s(row);
        for (vector, values) in vectors.iter_mut().zip(whole) {
            *vector = simd.mul_f32s(factor, *values);
        }
        if let Some(vector) = vectors.get_mut(whole.len()) {
            *vector = simd.mul_f32s(factor, simd.partial_load_f32s(last));
        }
    }
}

/// A group's sums for all rows of some columns.
struct RowsOfSums<'a> {
    target: MatMut<'a, f32>,
    old: Old,
    group: &'a [Term<'a>],
    panel: &'a [f32],
}

impl RowsOfSums<'_> {
    /// `R` rows.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(&mut self, simd: S, row: usize) {
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        let (panel, _) = S::as_simd_f32s(self.panel);
        let (mut panel, _) = panel.as_chunks::<C>();
        for term in self.group {
            let (right, below) = panel.split_at(term.depth);
            panel = below;
            let (values, stride) = (term.left.values, term.left.stride);
            let left: [_; R] = from_fn(|i| &values[(row + i) * stride..][..term.depth]);
            let (blocks, last) = right.as_chunks::<STEPS>();
            for (at, right) in blocks.iter().enumerate() {
                let left: [&[f32; STEPS]; R] = from_fn(|i| steps(left[i], at));
                for i in 0..R {
                    fetch(values, (row + R + i) * stride + at * STEPS);
                }
                for k in 0..STEPS {
                    let left: [f32; R] = from_fn(|i| left[i][k]);
                    add_products::<S, R, C>(simd, &mut sums, left, &right[k]);
                }
            }
            let done = blocks.len() * STEPS;
            for (k, right) in last.iter().enumerate() {
                let left: [f32; R] = from_fn(|i| left[i][done + k]);
                add_products::<S, R, C>(simd, &mut sums, left, right);
            }
        }
        self.put(simd, row, sums);
    }

    /// Writes the sums, or adds them to what is there.
    #[inline(always)]
    fn put<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        row: usize,
        sums: [[S::f32s; C]; R],
    ) {
        for (i, sums) in sums.into_iter().enumerate() {
            let target = self.target.as_mut().row_mut(row + i);
            let Some(target) = target.try_as_row_major_mut() else {
                unreachable!("a row of a row-major matrix")
            };
            let (whole, last) = S::as_mut_simd_f32s(target.as_slice_mut());
            // One by one: a copy of them all would have to stand in memory first.
            for (j, sum) in sums.into_iter().enumerate() {
                match (whole.get_mut(j), self.old) {
                    (Some(target), Old::Replace) => *target = sum,
                    (Some(target), Old::Add) => *target = simd.add_f32s(sum, *target),
                    (None, Old::Replace) => simd.partial_store_f32s(last, sum),
                    (None, Old::Add) => {
                        let sum = simd.add_f32s(sum, simd.partial_load_f32s(last));
                        simd.partial_store_f32s(last, sum);
                    }
                }
            }
        }
    }
}

/// The `at`th steps of a row.
#[inline(always)]
fn steps(row: &[f32], at: usize) -> &[f32; STEPS] {
    &row.as_chunks::<STEPS>().0[at]
}

/// One step of `R` rows' sums.
#[inline(always)]
fn add_products<S: Simd, const R: usize, const C: usize>(
    simd: S,
    sums: &mut [[S::f32s; C]; R],
    left: [f32; R],
    right: &[S::f32s; C],
) {
    for i in 0..R {
        let left = simd.splat_f32s(left[i]);
        for j in 0..C {
            sums[i][j] = simd.mul_add_e_f32s(left, right[j], sums[i][j]);
        }
    }
}
