//! Computes sums of GEMMs on one thread: fills a panel, then multiplies all rows by it.

use std::array::from_fn;

use faer::{MatMut, reborrow::ReborrowMut};
use pulp::{Simd, WithSimd};

use super::Term;
use crate::ndarray::few_rows::prefetch;
use crate::ndarray::gemm::WriteMode;
use crate::ndarray::matrix::filled;
use crate::ndarray::tile::{Operand, Rows, TILE_ROWS, tile_vectors};
use crate::ndarray::transpose::transpose;

/// Rows of a tile that is at most half as wide as others: with fewer sums, additions would wait for
/// each other.
const NARROW_TILE_ROWS: usize = 12;

/// Number of steps of a sum between two prefetches.
const UNROLLED_STEPS: usize = 16;

/// Number of rows of a right operand that are prefetched before they are copied: rows of a weight
/// are too far apart for the hardware prefetcher.
const PREFETCH_ROWS: usize = 8;

/// Computes the sum of all terms, which overwrites `target` or is added to it.
pub(super) struct Sum<'a> {
    pub(super) target: MatMut<'a, f32>,
    pub(super) mode: WriteMode,
    /// The terms in groups that fit into a panel each.
    pub(super) groups: Vec<Vec<Term<'a>>>,
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let wide = tile_vectors::<S>() * S::F32_LANES;
        let depths = self.groups.iter().map(|group| depth(group));
        let mut panel = filled(depths.max().unwrap_or(0) * wide, |_| ());
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

/// Returns the total depth of a group.
fn depth(group: &[Term<'_>]) -> usize {
    group.iter().map(|term| term.depth).sum()
}

impl Sum<'_> {
    /// Computes all rows of `width` columns from `column`, which are `C` vectors.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(
        &mut self,
        simd: S,
        column: usize,
        width: usize,
        panel: &mut [f32],
    ) {
        let mut target = self.target.rb_mut().subcols_mut(column, width);
        let mut mode = self.mode;
        for group in &self.groups {
            fill::<S, C>(simd, group, column, width, panel);
            let mut rows = GroupSums { target: target.rb_mut(), mode, group, panel };
            let (mut row, count) = (0, rows.target.nrows());
            while 2 * C <= tile_vectors::<S>() && row + NARROW_TILE_ROWS <= count {
                rows.tile::<S, NARROW_TILE_ROWS, C>(simd, row);
                row += NARROW_TILE_ROWS;
            }
            while row + TILE_ROWS <= count {
                rows.tile::<S, TILE_ROWS, C>(simd, row);
                row += TILE_ROWS;
            }
            if row + 4 <= count {
                rows.tile::<S, 4, C>(simd, row);
                row += 4;
            }
            while row < count {
                rows.tile::<S, 1, C>(simd, row);
                row += 1;
            }
            mode = WriteMode::Add;
        }
    }
}

/// Copies `width` columns of the right operands from `column` into the panel, whose rows are `C`
/// vectors, the last of which is padded with zeros.
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
            Operand::RowMajor(rows) => copy::<S, C>(simd, (rows, width), term.factor, panel),
            Operand::Transposed(rows) => {
                if width < wide {
                    panel.fill(0.0);
                }
                transpose(rows, [width, term.depth], term.factor, panel, wide);
            }
        }
    }
}

/// Copies the first `width` columns of `rows`, times `factor`, into the panel.
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
            let ahead = (k + PREFETCH_ROWS) * rows.stride + vector * S::F32_LANES;
            prefetch(rows.values, ahead);
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

/// The sums of a group for all rows of some columns.
struct GroupSums<'a> {
    target: MatMut<'a, f32>,
    mode: WriteMode,
    group: &'a [Term<'a>],
    panel: &'a [f32],
}

impl GroupSums<'_> {
    /// Computes `R` rows.
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
            let (blocks, last) = right.as_chunks::<UNROLLED_STEPS>();
            for (at, right) in blocks.iter().enumerate() {
                let left: [&[f32; UNROLLED_STEPS]; R] = from_fn(|i| steps(left[i], at));
                for i in 0..R {
                    prefetch(values, (row + R + i) * stride + at * UNROLLED_STEPS);
                }
                for k in 0..UNROLLED_STEPS {
                    let left: [f32; R] = from_fn(|i| left[i][k]);
                    multiply_add::<S, R, C>(simd, &mut sums, left, &right[k]);
                }
            }
            let unrolled = blocks.len() * UNROLLED_STEPS;
            for (k, right) in last.iter().enumerate() {
                let left: [f32; R] = from_fn(|i| left[i][unrolled + k]);
                multiply_add::<S, R, C>(simd, &mut sums, left, right);
            }
        }
        self.store(simd, row, sums);
    }

    /// Writes the sums to the target, or adds them to it.
    #[inline(always)]
    fn store<S: Simd, const R: usize, const C: usize>(
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
            // One by one: a copy of all sums would first have to be written to memory.
            for (j, sum) in sums.into_iter().enumerate() {
                match (whole.get_mut(j), self.mode) {
                    (Some(target), WriteMode::Overwrite) => *target = sum,
                    (Some(target), WriteMode::Add) => *target = simd.add_f32s(sum, *target),
                    (None, WriteMode::Overwrite) => simd.partial_store_f32s(last, sum),
                    (None, WriteMode::Add) => {
                        let sum = simd.add_f32s(sum, simd.partial_load_f32s(last));
                        simd.partial_store_f32s(last, sum);
                    }
                }
            }
        }
    }
}

/// Returns block `at` of a row.
#[inline(always)]
fn steps(row: &[f32], at: usize) -> &[f32; UNROLLED_STEPS] {
    &row.as_chunks::<UNROLLED_STEPS>().0[at]
}

/// Adds one step to the sums of `R` rows.
#[inline(always)]
fn multiply_add<S: Simd, const R: usize, const C: usize>(
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
