//! Sums of products of many rows: a projection's weight and its branch, or all that a gradient is the sum of.
//!
//! Some columns of the right operands at a time are copied, below each other, into a panel that stays in the second cache
//! while all rows of the left ones go by, six at a time, whose sums stay in registers. So a branch costs its
//! multiplications and nothing more, and the result is written once.

mod kernel;

use faer::MatMut;

use super::gemm::{Old, SMALL, halves};
use super::tile::{Operand, Rows};

/// Rows of a panel, at most: with 64 columns, 640 KiB of a second cache of 1 MiB.
const DEPTH: usize = 2560;

/// `factor * left right`.
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
    /// What belongs to the target from `row` and `column` on.
    fn from(self, row: usize, column: usize) -> Self {
        Self { left: self.left.from(row, 0), right: self.right.from(0, column), ..self }
    }

    /// Some of the depth.
    fn part(self, start: usize, end: usize) -> Self {
        Self {
            left: self.left.from(0, start),
            right: self.right.from(start, 0),
            depth: end - start,
            ..self
        }
    }
}

/// `target = sum of terms`, or added to it, on `threads` threads: rows are shared out, or columns where there are few rows.
/// What a value becomes does not depend on how.
///
/// # Panics
/// If an operand is too short.
pub(super) fn sum_of(target: MatMut<'_, f32>, old: Old, terms: &[Term<'_>], threads: usize) {
    let depth: usize = terms.iter().map(|term| term.depth).sum();
    if threads <= 1 || target.nrows() * target.ncols() * depth < SMALL {
        return sum_here(target, old, terms);
    }
    let ([first, second], [row, column], [here, there]) = halves(target, threads);
    let rest: Vec<_> = terms.iter().map(|term| term.from(row, column)).collect();
    rayon::join(|| sum_of(first, old, terms, here), || sum_of(second, old, &rest, there));
}

/// [`sum_of`] on the calling thread.
fn sum_here(target: MatMut<'_, f32>, old: Old, terms: &[Term<'_>]) {
    let groups = groups(terms);
    pulp::Arch::new().dispatch(kernel::Sum { target, old, groups });
}

/// Terms, or parts of one, that stand in one panel. Where a weight is parted does not depend on what follows it: with a
/// branch that is zero a projection is bit for bit what it is without.
fn groups<'a>(terms: &[Term<'a>]) -> Vec<Vec<Term<'a>>> {
    let (mut groups, mut filled) = (vec![Vec::new()], 0);
    for term in terms {
        let parts = term.depth.div_ceil(DEPTH);
        for part in 0..parts {
            let [start, end] = [part, part + 1].map(|part| part * term.depth / parts);
            if filled + end - start > DEPTH {
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
    use super::super::gemm::columns_of;
    use super::super::matrix::numbers;
    use super::*;

    /// Rows of `width` values, each followed by two that are not part of the matrix.
    fn matrix(rows: usize, width: usize, seed: usize) -> (Vec<f32>, usize) {
        (numbers(rows * (width + 2), seed), width + 2)
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
                right: match transposed {
                    true => matrix(columns, depth, 5),
                    false => matrix(depth, columns, 11),
                },
                depth,
                factor: 0.75,
                transposed,
            }
        }

        /// With values whose sums depend on their order.
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
                right: match self.transposed {
                    true => Operand::Transposed(right),
                    false => Operand::AsItIs(right),
                },
                depth: self.depth,
                factor: self.factor,
            }
        }

        fn by_definition(&self, row: usize, column: usize) -> f64 {
            let at = |k: usize| match self.transposed {
                true => column * self.right.1 + k,
                false => k * self.right.1 + column,
            };
            let product = |k| f64::from(self.left.0[row * self.left.1 + k] * self.right.0[at(k)]);
            f64::from(self.factor) * (0..self.depth).map(product).sum::<f64>()
        }
    }

    const BESIDE: usize = 3;

    /// The sum in the middle of wider rows, and what stood there before.
    fn computed(
        [rows, columns]: [usize; 2],
        old: Old,
        terms: &[Term<'_>],
        threads: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let stride = columns + 2 * BESIDE;
        let before: Vec<f32> = (0..rows * stride).map(|at| (at % 7) as f32).collect();
        let mut target = before.clone();
        let view = columns_of(&mut target, stride, BESIDE, columns);
        sum_of(view, old, terms, threads);
        (before, target)
    }

    fn check([rows, columns]: [usize; 2], operands: &[Operands], old: Old) {
        let terms: Vec<_> = operands.iter().map(Operands::term).collect();
        let (before, found) = computed([rows, columns], old, &terms, 1);
        let stride = columns + 2 * BESIDE;
        for at in 0..rows * stride {
            let (row, column) = (at / stride, at % stride);
            let inside = (BESIDE..BESIDE + columns).contains(&column);
            let sum = || -> f64 {
                let terms = operands.iter();
                terms.map(|o| o.by_definition(row, column - BESIDE)).sum()
            };
            let expected = match (inside, old) {
                (true, Old::Replace) => sum(),
                (true, Old::Add) => f64::from(before[at]) + sum(),
                (false, _) => f64::from(before[at]),
            };
            let found = f64::from(found[at]);
            assert_eq!(found, expected, "{rows}x{columns} at {row}, {column}");
        }
    }

    /// As is, and on two threads: all bits.
    fn check_threads([rows, columns]: [usize; 2], operands: Vec<Operands>) {
        let operands: Vec<_> = operands.into_iter().map(Operands::inexact).collect();
        let terms: Vec<_> = operands.iter().map(Operands::term).collect();
        let [one, two] = [1, 2].map(|threads| computed([rows, columns], Old::Add, &terms, threads));
        assert!(one == two, "{rows}x{columns}");
    }

    /// Rows beside every tile's, columns beside every vector's, and depths beside every block's.
    #[test]
    fn odd_sizes_are_as_defined() {
        for rows in [1, 3, 5, 11, 25, 67] {
            for columns in [1, 15, 16, 33, 50, 64, 131] {
                for depths in [vec![1], vec![17, 3], vec![64, 5, 0, 40]] {
                    let terms = depths.into_iter().enumerate().map(|(term, depth)| {
                        let transposed = (term + columns) % 2 == 0;
                        Operands::new([rows, depth, columns], transposed)
                    });
                    let operands: Vec<_> = terms.collect();
                    for old in [Old::Replace, Old::Add] {
                        check([rows, columns], &operands, old);
                    }
                    check_threads([rows, columns], operands);
                }
            }
        }
    }

    /// A panel does not hold them, and two threads share rows, or columns.
    #[test]
    fn deep_sums_are_as_defined() {
        for transposed in [false, true] {
            for [rows, columns] in [[150, 21], [7, 150]] {
                let depths = [2 * DEPTH + 77, 9, DEPTH - 20];
                let terms = depths.map(|d| Operands::new([rows, d, columns], transposed));
                check([rows, columns], &terms, Old::Add);
                check_threads([rows, columns], terms.into());
            }
        }
    }

    #[test]
    fn nothing_to_sum_is_zero() {
        check([5, 20], &[], Old::Replace);
        check([5, 20], &[], Old::Add);
        check([0, 20], &[], Old::Replace);
        check([5, 0], &[], Old::Replace);
    }

    /// As an adapter at its start is: the loss is then the reference's to the last bit.
    #[test]
    fn a_term_of_zeros_changes_no_bit() {
        let [rows, columns] = [40, 70];
        for depth in [100, DEPTH - 1, DEPTH + 30] {
            let weight = Operands::new([rows, depth, columns], true).inexact();
            let mut branch = Operands::new([rows, 8, columns], true).inexact();
            branch.right.0.fill(0.0);
            let alone = computed([rows, columns], Old::Replace, &[weight.term()], 2);
            let both = [weight.term(), branch.term()];
            let both = computed([rows, columns], Old::Replace, &both, 2);
            assert!(alone == both, "{depth}");
        }
    }
}
