//! Sums of GEMMs with many rows: a projection and its LoRA branch, or all summands of a gradient.
//!
//! A group of columns of the right operands is copied, one below the other, into a panel that stays
//! in the second-level cache while all rows of the left operands are read, six at a time, with
//! their sums in registers. So a branch costs only its multiplications, and the result is written
//! once.

mod kernel;

use faer::MatMut;

use super::gemm::{MIN_PARALLEL_WORK, WriteMode, split_in_two};
use super::tile::{Operand, Rows};

/// The largest number of rows in a panel: with 64 columns, 640 KiB of a second-level cache of 1
/// MiB.
const MAX_DEPTH: usize = 2560;

/// A summand: `factor * left right`.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// `[rows, depth]`
    pub(super) left: Rows<'a>,
    /// `[depth, columns]`
    pub(super) right: Operand<'a>,
    pub(super) depth: usize,
    pub(super) factor: f32,
}

impl Term<'_> {
    /// Returns the part that contributes to the target from `row` and `column` on.
    fn from(self, row: usize, column: usize) -> Self {
        Self { left: self.left.from(row, 0), right: self.right.from(0, column), ..self }
    }

    /// Returns the part from `start` to `end` of the depth.
    fn part(self, start: usize, end: usize) -> Self {
        Self {
            left: self.left.from(0, start),
            right: self.right.from(start, 0),
            depth: end - start,
            ..self
        }
    }
}

/// Computes the sum of `terms`, which overwrites `target` or is added to it, on `threads` threads.
/// The target is divided by rows, or by columns if there are few rows; this does not change any
/// value.
///
/// # Panics
/// If an operand is too short.
pub(super) fn gemm_sum(
    target: MatMut<'_, f32>,
    mode: WriteMode,
    terms: &[Term<'_>],
    threads: usize,
) {
    let depth: usize = terms.iter().map(|term| term.depth).sum();
    if threads <= 1 || target.nrows() * target.ncols() * depth < MIN_PARALLEL_WORK {
        return gemm_sum_on_thread(target, mode, terms);
    }
    let ([first, second], [row, column], [here, there]) = split_in_two(target, threads);
    let rest: Vec<_> = terms.iter().map(|term| term.from(row, column)).collect();
    rayon::join(|| gemm_sum(first, mode, terms, here), || gemm_sum(second, mode, &rest, there));
}

/// Computes the same as [`gemm_sum`] on the calling thread.
fn gemm_sum_on_thread(target: MatMut<'_, f32>, mode: WriteMode, terms: &[Term<'_>]) {
    let groups = panel_groups(terms);
    pulp::Arch::new().dispatch(kernel::Sum { target, mode, groups });
}

/// Groups terms, or parts of one, so that each group fits into a panel. How a weight is split does
/// not depend on the terms after it, so a projection with a zero branch is bit for bit the
/// projection without it.
fn panel_groups<'a>(terms: &[Term<'a>]) -> Vec<Vec<Term<'a>>> {
    let (mut groups, mut filled) = (vec![Vec::new()], 0);
    for term in terms {
        let parts = term.depth.div_ceil(MAX_DEPTH);
        for part in 0..parts {
            let [start, end] = [part, part + 1].map(|part| part * term.depth / parts);
            if filled + end - start > MAX_DEPTH {
                groups.push(Vec::new());
                filled = 0;
            }
            filled += end - start;
            if let Some(group) = groups.last_mut() {
                group.push(term.part(start, end));
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::gemm::columns_mut;
    use super::super::matrix::small_integers;
    use super::*;

    /// Returns rows of `width` values, each followed by two that are not part of the matrix.
    fn matrix(rows: usize, width: usize, seed: usize) -> (Vec<f32>, usize) {
        (small_integers(rows * (width + 2), seed), width + 2)
    }

    /// The operands of a term, its depth, and whether the right one is transposed.
    struct Operands {
        left: (Vec<f32>, usize),
        right: (Vec<f32>, usize),
        depth: usize,
        factor: f32,
        transposed: bool,
    }

    impl Operands {
        fn new([rows, depth, columns]: [usize; 3], transposed: bool) -> Self {
            Self {
                left: matrix(rows, depth, 7),
                right: if transposed {
                    matrix(columns, depth, 5)
                } else {
                    matrix(depth, columns, 11)
                },
                depth,
                factor: 0.75,
                transposed,
            }
        }

        /// Replaces the values by some whose sums depend on their order.
        fn inexact(mut self) -> Self {
            for value in self.left.0.iter_mut().chain(&mut self.right.0) {
                *value = value.sin();
            }
            self
        }

        fn term(&self) -> Term<'_> {
            let right = Rows::all(&self.right.0, self.right.1);
            Term {
                left: Rows::all(&self.left.0, self.left.1),
                right: if self.transposed {
                    Operand::Transposed(right)
                } else {
                    Operand::RowMajor(right)
                },
                depth: self.depth,
                factor: self.factor,
            }
        }

        fn naive(&self, row: usize, column: usize) -> f64 {
            let at = |k: usize| {
                if self.transposed { column * self.right.1 + k } else { k * self.right.1 + column }
            };
            let product = |k| f64::from(self.left.0[row * self.left.1 + k] * self.right.0[at(k)]);
            f64::from(self.factor) * (0..self.depth).map(product).sum::<f64>()
        }
    }

    const MARGIN: usize = 3;

    /// Returns wider rows before and after the sum is computed in their middle.
    fn computed(
        [rows, columns]: [usize; 2],
        mode: WriteMode,
        terms: &[Term<'_>],
        threads: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let stride = columns + 2 * MARGIN;
        let before: Vec<f32> = (0..rows * stride).map(|at| (at % 7) as f32).collect();
        let mut target = before.clone();
        let view = columns_mut(&mut target, stride, MARGIN, columns);
        gemm_sum(view, mode, terms, threads);
        (before, target)
    }

    fn check([rows, columns]: [usize; 2], operands: &[Operands], mode: WriteMode) {
        let terms: Vec<_> = operands.iter().map(Operands::term).collect();
        let (before, found) = computed([rows, columns], mode, &terms, 1);
        let stride = columns + 2 * MARGIN;
        for at in 0..rows * stride {
            let (row, column) = (at / stride, at % stride);
            let inside = (MARGIN..MARGIN + columns).contains(&column);
            let sum = || -> f64 {
                let terms = operands.iter();
                terms.map(|o| o.naive(row, column - MARGIN)).sum()
            };
            let expected = match (inside, mode) {
                (true, WriteMode::Overwrite) => sum(),
                (true, WriteMode::Add) => f64::from(before[at]) + sum(),
                (false, _) => f64::from(before[at]),
            };
            let found = f64::from(found[at]);
            assert_eq!(found, expected, "{rows}x{columns} at {row}, {column}");
        }
    }

    /// Checks that one and two threads give the same bits.
    fn check_threads([rows, columns]: [usize; 2], operands: Vec<Operands>) {
        let operands: Vec<_> = operands.into_iter().map(Operands::inexact).collect();
        let terms: Vec<_> = operands.iter().map(Operands::term).collect();
        let [one, two] =
            [1, 2].map(|threads| computed([rows, columns], WriteMode::Add, &terms, threads));
        assert!(one == two, "{rows}x{columns}");
    }

    /// Covers rows, columns and depths that are not multiples of a tile, a vector and a block.
    #[test]
    fn odd_sizes_equal_a_naive_loop() {
        for rows in [1, 3, 5, 11, 25, 67] {
            for columns in [1, 15, 16, 33, 50, 64, 131] {
                for depths in [vec![1], vec![17, 3], vec![64, 5, 0, 40]] {
                    let terms = depths.into_iter().enumerate().map(|(term, depth)| {
                        let transposed = (term + columns) % 2 == 0;
                        Operands::new([rows, depth, columns], transposed)
                    });
                    let operands: Vec<_> = terms.collect();
                    for mode in [WriteMode::Overwrite, WriteMode::Add] {
                        check([rows, columns], &operands, mode);
                    }
                    check_threads([rows, columns], operands);
                }
            }
        }
    }

    /// Covers sums that exceed a panel, and two threads that divide rows or columns.
    #[test]
    fn deep_sums_equal_a_naive_loop() {
        for transposed in [false, true] {
            for [rows, columns] in [[150, 21], [7, 150]] {
                let depths = [2 * MAX_DEPTH + 77, 9, MAX_DEPTH - 20];
                let terms = depths.map(|d| Operands::new([rows, d, columns], transposed));
                check([rows, columns], &terms, WriteMode::Add);
                check_threads([rows, columns], terms.into());
            }
        }
    }

    #[test]
    fn an_empty_sum_is_zero() {
        check([5, 20], &[], WriteMode::Overwrite);
        check([5, 20], &[], WriteMode::Add);
        check([0, 20], &[], WriteMode::Overwrite);
        check([5, 0], &[], WriteMode::Overwrite);
    }

    /// An adapter starts with zeros, and the loss must then equal the reference's to the last bit.
    #[test]
    fn a_term_of_zeros_changes_no_bit() {
        let [rows, columns] = [40, 70];
        for depth in [100, MAX_DEPTH - 1, MAX_DEPTH + 30] {
            let weight = Operands::new([rows, depth, columns], true).inexact();
            let mut branch = Operands::new([rows, 8, columns], true).inexact();
            branch.right.0.fill(0.0);
            let alone = computed([rows, columns], WriteMode::Overwrite, &[weight.term()], 2);
            let both = [weight.term(), branch.term()];
            let both = computed([rows, columns], WriteMode::Overwrite, &both, 2);
            assert!(alone == both, "{depth}");
        }
    }
}
