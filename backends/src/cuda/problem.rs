//! Which GEMMs cuBLASLt can compute, and how they are described to it.

use burn::tensor::DType;

/// The alignment in bytes that addresses and rows must have: one load of the widest kind. Kernels for less are slow.
const MIN_ALIGNMENT: u64 = 16;

/// The alignment in bytes beyond which kernels gain nothing.
const MAX_ALIGNMENT: u64 = 256;

/// A matrix in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Values from one row to the next, and from one column to the next.
    pub(super) strides: [usize; 2],
    pub(super) dtype: DType,
    /// Bytes from the start of its allocation, which is aligned to [`MAX_ALIGNMENT`].
    pub(super) offset: u64,
}

/// The storage order of a matrix: row-major or, if transposed, column-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StorageOrder {
    transposed: bool,
    /// Values between the starts of two rows (or columns): the leading dimension.
    leading: usize,
}

/// A GEMM `left [m, k] right [k, n]`, perhaps with an addend `[m, n]`: the key under which a plan is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    m: usize,
    n: usize,
    k: usize,
    left: StorageOrder,
    right: StorageOrder,
    /// What is added to the product, in its dtype.
    addend: Option<StorageOrder>,
    product: StorageOrder,
    /// The dtype of both factors.
    pub(super) dtype: DType,
    pub(super) product_dtype: DType,
    /// The alignment in bytes of all matrices.
    pub(super) alignment: u64,
}

/// A matrix in cuBLASLt's terms: column-major, and perhaps transposed before the multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnMajor {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) leading: usize,
    pub(super) transposed: bool,
}

impl Matrix {
    /// Returns the storage order; `None` where neither rows nor columns are contiguous, or where they overlap.
    fn storage_order(&self) -> Option<StorageOrder> {
        let [row_stride, column_stride] = self.strides;
        // The stride of a single row or column has no meaning.
        let leading = |count: usize, stride: usize, length: usize| match count {
            1 => length,
            _ => stride,
        };
        let row_leading = leading(self.rows, row_stride, self.columns);
        let column_leading = leading(self.columns, column_stride, self.rows);
        if column_stride == 1 && row_leading >= self.columns {
            return Some(StorageOrder { transposed: false, leading: row_leading });
        }
        (row_stride == 1 && column_leading >= self.rows)
            .then_some(StorageOrder { transposed: true, leading: column_leading })
    }

    /// Returns the alignment in bytes of its start; `None` if the start or a row is aligned to less than
    /// [`MIN_ALIGNMENT`].
    fn alignment(&self, order: StorageOrder) -> Option<u64> {
        let row_bytes = (order.leading * self.dtype.size()) as u64;
        let aligned =
            [self.offset, row_bytes].into_iter().all(|bytes| bytes.is_multiple_of(MIN_ALIGNMENT));
        let offset_alignment = 1 << self.offset.trailing_zeros().min(MAX_ALIGNMENT.ilog2());
        aligned.then_some(offset_alignment)
    }
}

impl Problem {
    /// Describes the GEMM `left right + addend = product`. Returns `None` if cuBLASLt is not to compute it; other kernels do
    /// then.
    ///
    /// Sums are always f32. The product of 16-bit factors may be f32, as logits are.
    pub(super) fn new(
        left: Matrix,
        right: Matrix,
        addend: Option<Matrix>,
        product: Matrix,
    ) -> Option<Self> {
        let (m, n, k) = (left.rows, right.columns, left.columns);
        let is_product =
            |matrix: &Matrix| (matrix.rows, matrix.columns, matrix.dtype) == (m, n, product.dtype);
        let shapes_fit =
            right.rows == k && is_product(&product) && addend.as_ref().is_none_or(is_product);
        let max = i32::MAX as usize;
        let sizes_fit = [m, n, k].into_iter().all(|size| (1..=max).contains(&size));
        let dtype = left.dtype;
        let dtypes_fit = matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
            && right.dtype == dtype
            && [dtype, DType::F32].contains(&product.dtype);
        if !(shapes_fit && sizes_fit && dtypes_fit) {
            return None;
        }
        let mut alignment = MAX_ALIGNMENT;
        let mut order = |matrix: Matrix| {
            let order = matrix.storage_order()?;
            alignment = alignment.min(matrix.alignment(order)?);
            Some(order)
        };
        let [left, right, addend_order, product_order] =
            [Some(left), Some(right), addend, Some(product)]
                .map(|matrix| matrix.and_then(&mut order));
        let problem = Self {
            m,
            n,
            k,
            left: left?,
            right: right?,
            addend: addend_order,
            product: product_order?,
            dtype,
            product_dtype: product.dtype,
            alignment,
        };
        // An addend whose layout is not supported is not one without an addend.
        let is_complete = problem.addend.is_some() == addend.is_some();
        let sums = [Some(problem.product), problem.addend];
        let row_major = sums.into_iter().flatten().all(|order| !order.transposed);
        (is_complete && row_major).then_some(problem)
    }

    /// Returns whether a matrix is added to the product.
    pub(super) fn adds(&self) -> bool {
        self.addend.is_some()
    }

    /// Returns the factors in the order in which cuBLASLt multiplies them, then the addend and the product. Without an addend, its
    /// layout is the product's.
    ///
    /// A row-major matrix, read column-major, is its transpose: `right^T left^T + addend^T = product^T`.
    pub(super) fn column_major(&self) -> [ColumnMajor; 4] {
        let column_major = |order: StorageOrder, rows: usize, columns: usize| {
            let (rows, columns) = if order.transposed { (rows, columns) } else { (columns, rows) };
            ColumnMajor { rows, columns, leading: order.leading, transposed: order.transposed }
        };
        [
            column_major(self.right, self.k, self.n),
            column_major(self.left, self.m, self.k),
            column_major(self.addend.unwrap_or(self.product), self.m, self.n),
            column_major(self.product, self.m, self.n),
        ]
    }

    /// Returns the number of bytes from the first value of the product to the end of its last.
    pub(super) fn product_bytes(&self) -> usize {
        ((self.m - 1) * self.product.leading + self.n) * self.product_dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a bf16 matrix at the start of its allocation.
    fn matrix(rows: usize, columns: usize, strides: [usize; 2]) -> Matrix {
        Matrix { rows, columns, strides, dtype: DType::BF16, offset: 0 }
    }

    fn dense(rows: usize, columns: usize) -> Matrix {
        matrix(rows, columns, [columns, 1])
    }

    /// Transposes a matrix by swapping its strides.
    fn transpose(matrix: Matrix) -> Matrix {
        Matrix {
            rows: matrix.columns,
            columns: matrix.rows,
            strides: [matrix.strides[1], matrix.strides[0]],
            ..matrix
        }
    }

    /// Returns `value(row, column)` of a matrix in `memory`.
    fn get(memory: &[i64], matrix: Matrix, row: usize, column: usize) -> i64 {
        memory[row * matrix.strides[0] + column * matrix.strides[1]]
    }

    /// Describes a GEMM without an addend.
    fn plain(left: Matrix, right: Matrix, product: Matrix) -> Option<Problem> {
        Problem::new(left, right, None, product)
    }

    /// Computes the GEMM as cuBLASLt's documentation defines it: `D = op(A) op(B) + C`, all column-major.
    fn reference_gemm(problem: &Problem, [left, right, addend]: [&[i64]; 3], product: &mut [i64]) {
        let [a, b, c, d] = problem.column_major();
        let op = |memory: &[i64], matrix: ColumnMajor, row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            assert!(row < matrix.rows && column < matrix.columns && matrix.leading >= matrix.rows);
            memory[column * matrix.leading + row]
        };
        let depth = if a.transposed { a.rows } else { a.columns };
        assert!(!c.transposed && !d.transposed);
        for row in 0..d.rows {
            for column in 0..d.columns {
                let terms = (0..depth).map(|i| op(right, a, row, i) * op(left, b, i, column));
                let addend = if problem.adds() { op(addend, c, row, column) } else { 0 };
                product[column * d.leading + row] = terms.sum::<i64>() + addend;
            }
        }
    }

    #[test]
    fn transposed_and_pitched_operands_give_the_same_product() {
        let (m, n, k) = (3, 16, 8);
        // Contiguous, with gaps between rows, and transposed.
        let lefts = [dense(m, k), matrix(m, k, [24, 1]), transpose(dense(k, 8))];
        let lefts = lefts.map(|left| Matrix { rows: m, ..left });
        let rights = [
            dense(k, n),
            matrix(k, n, [32, 1]),
            transpose(dense(n, k)),
            transpose(matrix(n, k, [40, 1])),
        ];
        let memory = |seed: i64| -> Vec<i64> { (0..1000).map(|i| (i * seed) % 7 - 3).collect() };
        let (x, y, sums) = (memory(5), memory(11), memory(3));
        let results = [
            (None, dense(m, n)),
            (None, matrix(m, n, [24, 1])),
            (Some(dense(m, n)), matrix(m, n, [24, 1])),
            (Some(matrix(m, n, [48, 1])), dense(m, n)),
        ];
        for left in lefts {
            for right in rights {
                for (addend, product) in results {
                    let problem = Problem::new(left, right, addend, product).unwrap();
                    let mut z = vec![99; 200];
                    reference_gemm(&problem, [&x, &y, &sums], &mut z);
                    for (row, column) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
                        let term = |i| get(&x, left, row, i) * get(&y, right, i, column);
                        let addend = addend.map_or(0, |addend| get(&sums, addend, row, column));
                        let terms = (0..k).map(term).sum::<i64>() + addend;
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
    fn strided_or_misaligned_matrices_are_refused() {
        let [left, right, product] = [dense(3, 8), dense(8, 16), dense(3, 16)];
        assert!(plain(left, right, product).is_some());
        let refused = |left, right, product| plain(left, right, product).is_none();
        let strided = |strides| Matrix { strides, ..left };
        assert!(refused(strided([16, 2]), right, product), "every second value");
        assert!(refused(strided([0, 1]), right, product), "repeated rows");
        assert!(refused(strided([9, 1]), right, product), "18 bytes per row");
        assert!(refused(left, dense(8, 17), dense(3, 17)), "34 bytes per row");
        let shifted = Matrix { offset: 8, ..right };
        assert!(refused(left, shifted, product));
        let transposed_product = matrix(3, 16, [1, 8]);
        assert!(refused(left, right, transposed_product));
        for addend in
            [transposed_product, Matrix { offset: 8, ..product }, dense(3, 8), dense(16, 3)]
        {
            assert!(Problem::new(left, right, Some(addend), product).is_none(), "{addend:?}");
        }
    }

    #[test]
    fn shapes_and_dtypes_must_match() {
        let [left, right, product] = [dense(3, 8), dense(8, 16), dense(3, 16)];
        let refused = |left, right, product| plain(left, right, product).is_none();
        assert!(refused(left, dense(16, 16), product));
        assert!(refused(left, right, dense(4, 16)));
        assert!(refused(dense(0, 8), right, dense(0, 16)));
        let typed = |matrix, dtype| Matrix { dtype, ..matrix };
        assert!(refused(typed(left, DType::F16), right, product));
        assert!(refused(left, right, typed(product, DType::F16)));
        let all = |dtype| [left, right, product].map(|matrix| typed(matrix, dtype));
        for (dtype, supported) in
            [(DType::F32, true), (DType::F16, true), (DType::F64, false), (DType::I32, false)]
        {
            let [left, right, product] = all(dtype);
            assert_eq!(plain(left, right, product).is_some(), supported);
        }
        let wide = typed(product, DType::F32);
        assert_eq!(plain(left, right, wide).unwrap().product_dtype, DType::F32);
        assert!(Problem::new(left, right, Some(wide), wide).is_some());
        assert!(Problem::new(left, right, Some(product), wide).is_none());
    }

    #[test]
    fn a_single_row_may_have_any_stride() {
        for stride in [0, 1, 5, 8] {
            let left = matrix(1, 8, [stride, 1]);
            let problem = plain(left, dense(8, 16), dense(1, 16)).unwrap();
            assert_eq!(problem.left.leading, 8);
        }
        // A single column: the transpose of a row.
        let column = transpose(matrix(1, 8, [3, 1]));
        assert_eq!(column.storage_order().map(|s| (s.transposed, s.leading)), Some((true, 8)));
    }

    #[test]
    fn problems_differ_by_shape_layout_and_alignment() {
        let problem = |m: usize, right: Matrix, offset| {
            let left = Matrix { offset, ..dense(m, 8) };
            plain(left, right, dense(m, 16)).unwrap()
        };
        let base = problem(3, dense(8, 16), 0);
        assert_eq!(base, problem(3, dense(8, 16), 0));
        assert_eq!(base, problem(3, dense(8, 16), 512), "an equal alignment");
        assert_ne!(base, problem(4, dense(8, 16), 0));
        assert_ne!(base, problem(3, matrix(8, 16, [24, 1]), 0));
        assert_ne!(base, problem(3, transpose(dense(16, 8)), 0));
        let sum =
            Problem::new(dense(3, 8), dense(8, 16), Some(dense(3, 16)), dense(3, 16)).unwrap();
        assert_ne!(base, sum);
        for (offset, alignment) in [(0, 256), (16, 16), (96, 32), (128, 128), (768, 256)] {
            assert_eq!(problem(3, dense(8, 16), offset).alignment, alignment);
        }
    }
}
