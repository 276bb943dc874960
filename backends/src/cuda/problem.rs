//! Which products of matrices cuBLASLt is asked for, and in which of its terms.

use burn::tensor::DType;

/// Bytes that addresses and rows must begin at a multiple of: one load of the widest kind. Kernels for less are slow.
const LEAST_ALIGNMENT: u64 = 16;

/// What kernels gain nothing beyond.
const MOST_ALIGNMENT: u64 = 256;

/// A matrix as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Values from one row to the next, and from one column to the next.
    pub(super) strides: [usize; 2],
    pub(super) dtype: DType,
    /// Bytes from the beginning of its memory, which lies at a multiple of [`MOST_ALIGNMENT`].
    pub(super) offset: u64,
}

/// Where the values of a factor lie: row after row, or, transposed, column after column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    transposed: bool,
    /// Values from one row (or column) to the next.
    leading: usize,
}

/// A product `left [m, k] right [k, n]`. A plan is kept for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    m: usize,
    n: usize,
    k: usize,
    left: Side,
    right: Side,
    product: Side,
    /// Of both factors.
    pub(super) dtype: DType,
    pub(super) product_dtype: DType,
    /// Bytes that all three begin at a multiple of.
    pub(super) alignment: u64,
}

/// A matrix in cuBLASLt's terms: column after column, and whether it is transposed before it is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) leading: usize,
    pub(super) transposed: bool,
}

impl Matrix {
    /// `None` where neither rows nor columns are dense, or where they overlap.
    fn side(&self) -> Option<Side> {
        let [of_rows, of_columns] = self.strides;
        // The stride of something that is there once says nothing.
        let leading = |count: usize, stride: usize, length: usize| match count {
            1 => length,
            _ => stride,
        };
        let rows = leading(self.rows, of_rows, self.columns);
        let columns = leading(self.columns, of_columns, self.rows);
        if of_columns == 1 && rows >= self.columns {
            return Some(Side { transposed: false, leading: rows });
        }
        (of_rows == 1 && columns >= self.rows)
            .then_some(Side { transposed: true, leading: columns })
    }

    /// Bytes that it begins at a multiple of, and its rows too.
    fn alignment(&self, side: Side) -> Option<u64> {
        let row = (side.leading * self.dtype.size()) as u64;
        let aligned =
            [self.offset, row].into_iter().all(|bytes| bytes.is_multiple_of(LEAST_ALIGNMENT));
        let of_offset = 1 << self.offset.trailing_zeros().min(MOST_ALIGNMENT.ilog2());
        aligned.then_some(of_offset)
    }
}

impl Problem {
    /// What is asked for `left right = product`; `None`: nothing, other kernels compute it.
    ///
    /// Sums are f32 always. A product of 16-bit factors may be f32, as logits are.
    pub(super) fn of(left: Matrix, right: Matrix, product: Matrix) -> Option<Self> {
        let (m, n, k) = (left.rows, right.columns, left.columns);
        let fits = right.rows == k && (product.rows, product.columns) == (m, n);
        let most = i32::MAX as usize;
        let computable = [m, n, k].into_iter().all(|side| (1..=most).contains(&side));
        let dtype = left.dtype;
        let typed = matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
            && right.dtype == dtype
            && [dtype, DType::F32].contains(&product.dtype);
        if !(fits && computable && typed) {
            return None;
        }
        let sides = [left.side()?, right.side()?, product.side()?];
        let matrices = [left, right, product].into_iter().zip(sides);
        let alignments: Option<Vec<u64>> = matrices.map(|(m, side)| m.alignment(side)).collect();
        let problem = Self {
            m,
            n,
            k,
            left: sides[0],
            right: sides[1],
            product: sides[2],
            dtype,
            product_dtype: product.dtype,
            alignment: alignments?.into_iter().min()?,
        };
        (!problem.product.transposed).then_some(problem)
    }

    /// The factors in the order in which cuBLASLt multiplies them, then the product.
    ///
    /// What lies row after row is, read column after column, the transpose: `right^T left^T = product^T`.
    pub(super) fn by_columns(&self) -> [Columns; 3] {
        let columns = |side: Side, rows: usize, columns: usize| {
            let (rows, columns) = match side.transposed {
                true => (rows, columns),
                false => (columns, rows),
            };
            Columns { rows, columns, leading: side.leading, transposed: side.transposed }
        };
        [
            columns(self.right, self.k, self.n),
            columns(self.left, self.m, self.k),
            columns(self.product, self.m, self.n),
        ]
    }

    /// Bytes from the first value of the product to the end of its last.
    pub(super) fn product_bytes(&self) -> usize {
        ((self.m - 1) * self.product.leading + self.n) * self.product_dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rows` by `columns` in bf16, from the beginning of its memory.
    fn matrix(rows: usize, columns: usize, strides: [usize; 2]) -> Matrix {
        Matrix { rows, columns, strides, dtype: DType::BF16, offset: 0 }
    }

    fn dense(rows: usize, columns: usize) -> Matrix {
        matrix(rows, columns, [columns, 1])
    }

    /// Looked at the other way round.
    fn turned(matrix: Matrix) -> Matrix {
        Matrix {
            rows: matrix.columns,
            columns: matrix.rows,
            strides: [matrix.strides[1], matrix.strides[0]],
            ..matrix
        }
    }

    /// `value(row, column)` of what lies in `memory`.
    fn get(memory: &[i64], matrix: Matrix, row: usize, column: usize) -> i64 {
        memory[row * matrix.strides[0] + column * matrix.strides[1]]
    }

    /// cuBLASLt as its documentation defines it: `D = op(A) op(B)`, all column after column.
    fn by_definition(problem: &Problem, left: &[i64], right: &[i64], product: &mut [i64]) {
        let [a, b, d] = problem.by_columns();
        let op = |memory: &[i64], of: Columns, row: usize, column: usize| {
            let (row, column) = match of.transposed {
                true => (column, row),
                false => (row, column),
            };
            assert!(row < of.rows && column < of.columns && of.leading >= of.rows);
            memory[column * of.leading + row]
        };
        let depth = if a.transposed { a.rows } else { a.columns };
        assert!(!d.transposed);
        for row in 0..d.rows {
            for column in 0..d.columns {
                let terms = (0..depth).map(|i| op(right, a, row, i) * op(left, b, i, column));
                product[column * d.leading + row] = terms.sum();
            }
        }
    }

    #[test]
    fn transposes_and_gaps_come_to_the_same_product() {
        let (m, n, k) = (3, 16, 8);
        // Dense, with gaps between rows, and both transposed.
        let lefts = [dense(m, k), matrix(m, k, [24, 1]), turned(dense(k, 8))];
        let lefts = lefts.map(|left| Matrix { rows: m, ..left });
        let rights = [
            dense(k, n),
            matrix(k, n, [32, 1]),
            turned(dense(n, k)),
            turned(matrix(n, k, [40, 1])),
        ];
        let memory = |seed: i64| -> Vec<i64> { (0..1000).map(|i| (i * seed) % 7 - 3).collect() };
        let (x, y) = (memory(5), memory(11));
        for left in lefts {
            for right in rights {
                for product in [dense(m, n), matrix(m, n, [24, 1])] {
                    let problem = Problem::of(left, right, product).unwrap();
                    let mut z = vec![99; 200];
                    by_definition(&problem, &x, &y, &mut z);
                    for (row, column) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
                        let term = |i| get(&x, left, row, i) * get(&y, right, i, column);
                        let terms: i64 = (0..k).map(term).sum();
                        assert_eq!(get(&z, product, row, column), terms, "{problem:?}");
                    }
                    let gap = z.iter().filter(|value| **value == 99).count();
                    assert_eq!(gap, 200 - m * n, "{problem:?}");
                    let end = (m - 1) * product.strides[0] + n;
                    assert_eq!(problem.product_bytes(), 2 * end);
                }
            }
        }
    }

    #[test]
    fn what_is_not_dense_or_aligned_is_left_to_others() {
        let [left, right, product] = [dense(3, 8), dense(8, 16), dense(3, 16)];
        assert!(Problem::of(left, right, product).is_some());
        let refused = |left, right, product| Problem::of(left, right, product).is_none();
        let strided = |strides| Matrix { strides, ..left };
        assert!(refused(strided([16, 2]), right, product), "every second");
        assert!(refused(strided([0, 1]), right, product), "repeated rows");
        assert!(refused(strided([9, 1]), right, product), "18 bytes a row");
        assert!(refused(left, dense(8, 17), dense(3, 17)), "34 bytes a row");
        let shifted = Matrix { offset: 8, ..right };
        assert!(refused(left, shifted, product));
        let turned_product = matrix(3, 16, [1, 8]);
        assert!(refused(left, right, turned_product));
    }

    #[test]
    fn shapes_and_types_must_fit() {
        let [left, right, product] = [dense(3, 8), dense(8, 16), dense(3, 16)];
        let refused = |left, right, product| Problem::of(left, right, product).is_none();
        assert!(refused(left, dense(16, 16), product));
        assert!(refused(left, right, dense(4, 16)));
        assert!(refused(dense(0, 8), right, dense(0, 16)));
        let typed = |matrix, dtype| Matrix { dtype, ..matrix };
        assert!(refused(typed(left, DType::F16), right, product));
        assert!(refused(left, right, typed(product, DType::F16)));
        let all = |dtype| [left, right, product].map(|matrix| typed(matrix, dtype));
        for (dtype, taken) in
            [(DType::F32, true), (DType::F16, true), (DType::F64, false), (DType::I32, false)]
        {
            let [left, right, product] = all(dtype);
            assert_eq!(Problem::of(left, right, product).is_some(), taken);
        }
        let problem = Problem::of(left, right, typed(product, DType::F32)).unwrap();
        assert_eq!(problem.product_dtype, DType::F32);
    }

    #[test]
    fn one_row_has_any_stride() {
        for stride in [0, 1, 5, 8] {
            let left = matrix(1, 8, [stride, 1]);
            let problem = Problem::of(left, dense(8, 16), dense(1, 16)).unwrap();
            assert_eq!(problem.left.leading, 8);
        }
        // A column, as the transpose of a row has it.
        let column = turned(matrix(1, 8, [3, 1]));
        assert_eq!(column.side().map(|s| (s.transposed, s.leading)), Some((true, 8)));
    }

    #[test]
    fn a_plan_is_for_one_layout() {
        let problem = |m: usize, right: Matrix, offset| {
            let left = Matrix { offset, ..dense(m, 8) };
            Problem::of(left, right, dense(m, 16)).unwrap()
        };
        let base = problem(3, dense(8, 16), 0);
        assert_eq!(base, problem(3, dense(8, 16), 0));
        assert_eq!(base, problem(3, dense(8, 16), 512), "as well aligned");
        assert_ne!(base, problem(4, dense(8, 16), 0));
        assert_ne!(base, problem(3, matrix(8, 16, [24, 1]), 0));
        assert_ne!(base, problem(3, turned(dense(16, 8)), 0));
        for (offset, alignment) in [(0, 256), (16, 16), (96, 32), (128, 128), (768, 256)] {
            assert_eq!(problem(3, dense(8, 16), offset).alignment, alignment);
        }
    }
}
