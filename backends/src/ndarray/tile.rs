//! Small GEMMs on operands in place, on the calling thread, for attention.
//!
//! A tile of the result stays in registers while the rows of the right operand are read one by one,
//! each multiplied by the values of the left operand. Nothing is copied first, which pays off for
//! large GEMMs and costs time for small ones.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

use super::gemm::WriteMode;

/// Rows of a tile: with four vectors per row, the sums and the operands just fit into 32 registers.
pub(super) const TILE_ROWS: usize = 6;

/// Returns the largest number of vectors in a row of a tile; with 16 registers there is room for
/// half as many sums.
#[inline(always)]
pub(super) const fn tile_vectors<S: Simd>() -> usize {
    if S::F32_LANES >= 16 { 4 } else { 2 }
}

/// Rows of values whose starts are `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// The left operand of a GEMM, by its layout in memory.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a> {
    RowMajor(Rows<'a>),
    /// The matrix is the transpose of these rows.
    Transposed(Rows<'a>),
}

impl Operand<'_> {
    /// Returns the part of the operand from `row` and `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        match self {
            Self::RowMajor(rows) => Self::RowMajor(rows.from(row, column)),
            Self::Transposed(rows) => Self::Transposed(rows.from(column, row)),
        }
    }
}

impl<'a> Rows<'a> {
    /// Returns `values` as contiguous rows of `columns` values.
    pub(super) fn all(values: &'a [f32], columns: usize) -> Self {
        Self { values, stride: columns }
    }

    /// Returns the part from `row` and `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        let values = self.values.get(row * self.stride + column..);
        Self { values: values.unwrap_or_default(), ..self }
    }
}

/// Computes `target = factor * left right`, or adds it to `target`, for `rows` rows, `columns`
/// columns, and sums over `depth`. Rows of `target` are `stride` apart.
///
/// # Panics
/// If an operand or the target is too short.
pub(super) fn small_gemm(
    (target, stride): (&mut [f32], usize),
    [rows, depth, columns]: [usize; 3],
    mode: WriteMode,
    factor: f32,
    left: Operand<'_>,
    right: Rows<'_>,
) {
    pulp::Arch::new().dispatch(SmallGemm {
        target,
        stride,
        rows,
        depth,
        columns,
        mode,
        factor,
        left,
        right,
    });
}

struct SmallGemm<'a> {
    target: &'a mut [f32],
    stride: usize,
    rows: usize,
    depth: usize,
    columns: usize,
    mode: WriteMode,
    factor: f32,
    left: Operand<'a>,
    right: Rows<'a>,
}

impl WithSimd for SmallGemm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let whole = self.columns / S::F32_LANES;
        let mut computed = 0;
        while computed < whole {
            let width = (whole - computed).min(tile_vectors::<S>());
            let column = computed * S::F32_LANES;
            match width {
                4 => self.column_of_tiles::<S, 4>(simd, column),
                3 => self.column_of_tiles::<S, 3>(simd, column),
                2 => self.column_of_tiles::<S, 2>(simd, column),
                _ => self.column_of_tiles::<S, 1>(simd, column),
            }
            computed += width;
        }
        self.last_columns(whole * S::F32_LANES);
    }
}

impl SmallGemm<'_> {
    /// Computes all rows of `C` vectors from `column`.
    #[inline(always)]
    fn column_of_tiles<S: Simd, const C: usize>(&mut self, simd: S, column: usize) {
        let mut row = 0;
        while row + TILE_ROWS <= self.rows {
            self.tile::<S, TILE_ROWS, C>(simd, row, column);
            row += TILE_ROWS;
        }
        match self.rows - row {
            5 => self.tile::<S, 5, C>(simd, row, column),
            4 => self.tile::<S, 4, C>(simd, row, column),
            3 => self.tile::<S, 3, C>(simd, row, column),
            2 => self.tile::<S, 2, C>(simd, row, column),
            1 => self.tile::<S, 1, C>(simd, row, column),
            _ => (),
        }
    }

    /// Computes `R` rows of `C` vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let sums: [[S::f32s; C]; R] = match self.left {
            Operand::RowMajor(Rows { values, stride }) => {
                let left: [_; R] = from_fn(|i| &values[(row + i) * stride..][..self.depth]);
                self.sums(
                    simd,
                    column,
                    #[inline(always)]
                    |k| from_fn(|i| left[i][k]),
                )
            }
            Operand::Transposed(Rows { values, stride }) => self.sums(
                simd,
                column,
                #[inline(always)]
                |k| {
                    let left = &values[k * stride + row..][..R];
                    from_fn(|i| left[i])
                },
            ),
        };
        let factor = simd.splat_f32s(self.factor);
        for (i, sums) in sums.into_iter().enumerate() {
            let target = &mut self.target[(row + i) * self.stride + column..][..C * S::F32_LANES];
            let (target, _) = S::as_mut_simd_f32s(target);
            for (target, sum) in target.iter_mut().zip(sums) {
                *target = match self.mode {
                    WriteMode::Overwrite => simd.mul_f32s(factor, sum),
                    WriteMode::Add => simd.mul_add_e_f32s(factor, sum, *target),
                };
            }
        }
    }

    /// Returns the sums of `R` rows, whose values at step `k` are `left(k)`, and `C` vectors from
    /// `column`.
    #[inline(always)]
    fn sums<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        column: usize,
        left: impl Fn(usize) -> [f32; R],
    ) -> [[S::f32s; C]; R] {
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        for k in 0..self.depth {
            let right = &self.right.values[k * self.right.stride + column..][..C * S::F32_LANES];
            let (right, _) = S::as_simd_f32s(right);
            for (sums, left) in sums.iter_mut().zip(left(k)) {
                let left = simd.splat_f32s(left);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(left, *right, *sum);
                }
            }
        }
        sums
    }

    /// Computes the columns that do not fill a vector.
    #[inline(always)]
    fn last_columns(&mut self, first: usize) {
        for row in 0..self.rows {
            for column in first..self.columns {
                let left = |k: usize| match self.left {
                    Operand::RowMajor(left) => left.values[row * left.stride + k],
                    Operand::Transposed(left) => left.values[k * left.stride + row],
                };
                let right = |k: usize| self.right.values[k * self.right.stride + column];
                let sum: f32 = (0..self.depth).map(|k| left(k) * right(k)).sum();
                let target = &mut self.target[row * self.stride + column];
                *target = match self.mode {
                    WriteMode::Overwrite => self.factor * sum,
                    WriteMode::Add => *target + self.factor * sum,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::small_integers;
    use super::*;

    /// Covers every tile size and remainder, both layouts of the left operand, and a target within
    /// wider rows.
    #[test]
    fn gemm_equals_a_naive_loop() {
        for rows in (1..14).chain([25]) {
            for (depth, columns) in [(1, 1), (7, 16), (5, 63), (0, 32), (33, 131)] {
                for transposed in [false, true] {
                    check(rows, depth, columns, transposed);
                }
            }
        }
    }

    fn check(rows: usize, depth: usize, columns: usize, transposed: bool) {
        let left_stride = if transposed { rows } else { depth } + 2;
        let left_rows =
            Rows { values: &small_integers(left_stride * rows.max(depth), 7), stride: left_stride };
        let (right_stride, stride) = (columns + 1, columns + 3);
        let right = small_integers(depth * right_stride, 5);
        let before = small_integers(rows * stride, 3);
        let at = |i: usize, k: usize| {
            if transposed {
                left_rows.values[k * left_stride + i]
            } else {
                left_rows.values[i * left_stride + k]
            }
        };
        let left =
            if transposed { Operand::Transposed(left_rows) } else { Operand::RowMajor(left_rows) };
        for mode in [WriteMode::Overwrite, WriteMode::Add] {
            let mut ours = before.clone();
            let right = Rows { values: &right, stride: right_stride };
            small_gemm((&mut ours, stride), [rows, depth, columns], mode, 0.5, left, right);
            for (index, ours) in ours.iter().enumerate() {
                let (row, column) = (index / stride, index % stride);
                let mut expected = before[index];
                if column < columns {
                    let terms =
                        (0..depth).map(|k| at(row, k) * right.values[k * right_stride + column]);
                    let product = 0.5 * terms.sum::<f32>();
                    expected = match mode {
                        WriteMode::Overwrite => product,
                        WriteMode::Add => expected + product,
                    };
                }
                assert_eq!(*ours, expected, "{rows}x{depth}x{columns} at {row}, {column}");
            }
        }
    }
}
