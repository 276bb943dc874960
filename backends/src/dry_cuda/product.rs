//! A matrix product as cuBLASLt computes it: products of f32, or of 16-bit numbers in f32, with sums in f32.

use burn::tensor::{DType, bf16, f16};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::server::Binding;

use super::storage::TensorBytes;

/// The product of two matrices, `product = factor left right + addend`.
pub(super) struct Product<Place> {
    /// `[M, K]`
    pub(super) left: Matrix<Place>,
    /// `[K, N]`
    pub(super) right: Matrix<Place>,
    pub(super) factor: f32,
    /// `[M, N]`; it may lie where the product does.
    pub(super) addend: Option<Matrix<Place>>,
    /// `[M, N]`
    pub(super) product: Matrix<Place>,
}

/// A matrix in the card's memory.
pub(super) struct Matrix<Place> {
    /// Its memory.
    place: Place,
    shape: [usize; 2],
    strides: [usize; 2],
    dtype: DType,
}

impl Matrix<Binding> {
    /// Describes a tensor of two dimensions.
    pub(super) fn new<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Option<Self> {
        let (&[rows, columns], &[row_stride, column_stride]) =
            (tensor.meta.shape().as_slice(), &tensor.meta.strides()[..])
        else {
            return None;
        };
        Some(Self {
            place: tensor.handle.clone().binding(),
            shape: [rows, columns],
            strides: [row_stride, column_stride],
            dtype: tensor.dtype,
        })
    }

    /// Finds its memory on the host.
    fn at(
        self,
        find: &mut impl FnMut(&Binding) -> Result<TensorBytes, String>,
    ) -> Result<Matrix<TensorBytes>, String> {
        let Self { place, shape, strides, dtype } = self;
        Ok(Matrix { place: find(&place)?, shape, strides, dtype })
    }
}

impl Product<Binding> {
    /// Finds the memory of all matrices on the host.
    ///
    /// # Errors
    /// Returns that of `find`.
    pub(super) fn at(
        self,
        mut find: impl FnMut(&Binding) -> Result<TensorBytes, String>,
    ) -> Result<Product<TensorBytes>, String> {
        Ok(Product {
            left: self.left.at(&mut find)?,
            right: self.right.at(&mut find)?,
            factor: self.factor,
            addend: self.addend.map(|addend| addend.at(&mut find)).transpose()?,
            product: self.product.at(&mut find)?,
        })
    }
}

#[allow(unsafe_code, reason = "reads and writes the emulated card's memory")]
impl Matrix<TensorBytes> {
    /// Returns the address of a value.
    ///
    /// # Panics
    /// If it is not in the tensor's memory.
    fn address(&self, row: usize, column: usize) -> usize {
        let size = self.dtype.size();
        let offset = (row * self.strides[0] + column * self.strides[1]) * size;
        assert!(
            self.place.address > 0 && offset + size <= self.place.size,
            "{offset}: {:?}",
            self.place
        );
        self.place.address + offset
    }

    fn read(&self, row: usize, column: usize) -> f32 {
        let address = self.address(row, column);
        // SAFETY: the address is in the tensor's memory.
        unsafe {
            match self.dtype {
                DType::F16 => (address as *const f16).read_unaligned().to_f32(),
                DType::BF16 => (address as *const bf16).read_unaligned().to_f32(),
                _ => (address as *const f32).read_unaligned(),
            }
        }
    }

    fn write(&self, row: usize, column: usize, value: f32) {
        let address = self.address(row, column);
        // SAFETY: as above.
        unsafe {
            match self.dtype {
                DType::F16 => (address as *mut f16).write_unaligned(f16::from_f32(value)),
                DType::BF16 => (address as *mut bf16).write_unaligned(bf16::from_f32(value)),
                _ => (address as *mut f32).write_unaligned(value),
            }
        }
    }
}

/// Computes a product.
pub(super) fn multiply(Product { left, right, factor, addend, product }: &Product<TensorBytes>) {
    let [rows, inner] = left.shape;
    let columns = right.shape[1];
    let right: Vec<f32> =
        (0..inner).flat_map(|k| (0..columns).map(move |j| right.read(k, j))).collect();
    for row in 0..rows {
        let mut sums = vec![0.0; columns];
        for k in 0..inner {
            let value = left.read(row, k);
            let terms = &right[k * columns..][..columns];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += value * term);
        }
        for (column, sum) in sums.into_iter().enumerate() {
            let addend = addend.as_ref().map_or(0.0, |addend| addend.read(row, column));
            product.write(row, column, factor * sum + addend);
        }
    }
}
