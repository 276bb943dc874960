//! Small matrix products straight from where the operands lie, on the calling thread: attention's.
//!
//! A tile of the result stays in registers while the operands go by, row after row of the right one, of which every
//! value of the left one takes its multiple. Nothing is copied first, which is what large products gain by and small
//! ones lose by.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

use super::gemm::Old;

/// Rows of a tile: with four vectors a row, its sums and what it reads just fit into 32 registers.
pub(super) const ROWS: usize = 6;

/// Vectors of a tile's row, at most: with 16 registers, half as many sums.
#[inline(always)]
pub(super) const fn vectors<S: Simd>() -> usize {
    if S::F32_LANES >= 16 { 4 } else { 2 }
}

/// Rows of values, each `stride` after the one before.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// An operand of a product, by how it lies in memory.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a> {
    AsItIs(Rows<'a>),
    /// Rows and columns exchanged.
    Transposed(Rows<'a>),
}

impl Operand<'_> {
    /// What is left from `row` and `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        match self {
            Self::AsItIs(rows) => Self::AsItIs(rows.from(row, column)),
            Self::Transposed(rows) => Self::Transposed(rows.from(column, row)),
        }
    }
}

impl<'a> Rows<'a> {
    /// `values` in rows of `columns`.
    pub(super) fn all(values: &'a [f32], columns: usize) -> Self {
        Self { values, stride: columns }
    }

    /// What is left from `row` and `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        let values = self.values.get(row * self.stride + column..);
        Self { values: values.unwrap_or_default(), ..self }
    }
}

/// `target = factor * left right`, or `target += factor * left right`: `rows` rows, `columns` columns, sums over `depth`.
/// Rows of `target` are `stride` apart.
///
/// # Panics
/// If an operand or the target is too short.
pub(super) fn small_product(
    (target, stride): (&mut [f32], usize),
    [rows, depth, columns]: [usize; 3],
    old: Old,
    factor: f32,
    left: Operand<'_>,
    right: Rows<'_>,
) {
    pulp::Arch::new().dispatch(Product {
        target,
        stride,
        rows,
        depth,
        columns,
        old,
        factor,
        left,
        right,
    });
}

struct Product<'a> {
    target: &'a mut [f32],
    stride: usize,
    rows: usize,
    depth: usize,
    columns: usize,
    old: Old,
    factor: f32,
    left: Operand<'a>,
    right: Rows<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let all = self.columns / S::F32_LANES;
        let mut done = 0;
        while done < all {
            let width = (all - done).min(vectors::<S>());
            let column = done * S::F32_LANES;
            match width {
                4 => self.column_of_tiles::<S, 4>(simd, column),
                3 => self.column_of_tiles::<S, 3>(simd, column),
                2 => self.column_of_tiles::<S, 2>(simd, column),
                _ => self.column_of_tiles::<S, 1>(simd, column),
            }
            done += width;
        }
        self.last_columns(all * S::F32_LANES);
    }
}

impl Product<'_> {
    /// All rows of `C` vectors from `column` on.
    #[inline(always)]
    fn column_of_tiles<S: Simd, const C: usize>(&mut self, simd: S, column: usize) {
        let mut row = 0;
        while row + ROWS <= self.rows {
            self.tile::<S, ROWS, C>(simd, row, column);
            row += ROWS;
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

    /// `R` rows of `C` vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let sums: [[S::f32s; C]; R] = match self.left {
            Operand::AsItIs(Rows { values, stride }) => {
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
                *target = match self.old {
                    Old::Replace => simd.mul_f32s(factor, sum),
                    Old::Add => simd.mul_add_e_f32s(factor, sum, *target),
                };
            }
        }
    }

    /// The sums of `R` rows, of which `left` gives step `k`, and `C` vectors from `column` on.
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

    /// Columns that do not fill a vector.
    #[inline(always)]
    fn last_columns(&mut self, first: usize) {
        for row in 0..self.rows {
            for column in first..self.columns {
                let left = |k: usize| match self.left {
                    Operand::AsItIs(left) => left.values[row * left.stride + k],
                    Operand::Transposed(left) => left.values[k * left.stride + row],
                };
                let right = |k: usize| self.right.values[k * self.right.stride + column];
                let sum: f32 = (0..self.depth).map(|k| left(k) * right(k)).sum();
                let target = &mut self.target[row * self.stride + column];
                *target = match self.old {
                    Old::Replace => self.factor * sum,
                    Old::Add => *target + self.factor * sum,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::numbers;
    use super::*;

    /// Every size of tile and what is left over, both ways to read the left operand, a target within wider rows.
    #[test]
    fn products_are_the_definition() {
        for rows in (1..14).chain([25]) {
            for (depth, columns) in [(1, 1), (7, 16), (5, 63), (0, 32), (33, 131)] {
                for exchanged in [false, true] {
                    check(rows, depth, columns, exchanged);
                }
            }
        }
    }

    fn check(rows: usize, depth: usize, columns: usize, exchanged: bool) {
        let left_stride = if exchanged { rows } else { depth } + 2;
        let left_rows =
            Rows { values: &numbers(left_stride * rows.max(depth), 7), stride: left_stride };
        let (right_stride, stride) = (columns + 1, columns + 3);
        let right = numbers(depth * right_stride, 5);
        let before = numbers(rows * stride, 3);
        let at = |i: usize, k: usize| match exchanged {
            true => left_rows.values[k * left_stride + i],
            false => left_rows.values[i * left_stride + k],
        };
        let left = match exchanged {
            true => Operand::Transposed(left_rows),
            false => Operand::AsItIs(left_rows),
        };
        for old in [Old::Replace, Old::Add] {
            let mut ours = before.clone();
            let right = Rows { values: &right, stride: right_stride };
            small_product((&mut ours, stride), [rows, depth, columns], old, 0.5, left, right);
            for (place, ours) in ours.iter().enumerate() {
                let (row, column) = (place / stride, place % stride);
                let mut expected = before[place];
                if column < columns {
                    let terms =
                        (0..depth).map(|k| at(row, k) * right.values[k * right_stride + column]);
                    let product = 0.5 * terms.sum::<f32>();
                    expected = match old {
                        Old::Replace => product,
                        Old::Add => expected + product,
                    };
                }
                assert_eq!(*ours, expected, "{rows}x{depth}x{columns} at {row}, {column}");
            }
        }
    }
}
