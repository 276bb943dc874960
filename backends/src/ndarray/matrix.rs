//! Converts between Burn's tensors and slices.

use burn::tensor::{Int, Tensor, TensorPrimitive, backend::Backend};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use ndarray::ArrayD;

use super::gemm::{View, rows};

/// An f32 tensor whose values can be read row by row.
pub(super) struct Matrix {
    tensor: NdArrayTensor,
    /// The values in row-major order, if `tensor` does not hold them so.
    ordered: Option<Vec<f32>>,
    /// Length of the first dimension.
    pub(super) rows: usize,
    /// Length of the last dimension; for a vector the same as `rows`.
    pub(super) columns: usize,
}

impl Matrix {
    /// Returns `None` for f64.
    pub(super) fn new<E, I, Q, const D: usize>(tensor: Tensor<NdArray<E, I, Q>, D>) -> Option<Self>
    where
        E: FloatNdArrayElement,
        I: IntNdArrayElement,
        Q: QuantElement,
        NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    {
        let dims = tensor.dims();
        let tensor = tensor.into_primitive().tensor();
        let NdArrayTensor::F32(storage) = &tensor else {
            return None;
        };
        let view = storage.view();
        let ordered = match view.to_slice() {
            Some(_) => None,
            None => Some(view.iter().copied().collect()),
        };
        Some(Self { tensor, ordered, rows: dims[0], columns: dims[D - 1] })
    }

    /// Returns all values in row-major order.
    pub(super) fn values(&self) -> &[f32] {
        match (&self.ordered, &self.tensor) {
            (Some(values), _) => values,
            (None, NdArrayTensor::F32(storage)) => storage.view().to_slice().unwrap_or(&[]),
            (None, _) => &[],
        }
    }

    /// Returns a view as the operand of a GEMM.
    pub(super) fn view(&self) -> View<'_> {
        rows(self.values(), self.columns)
    }

    /// Returns one row.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.columns..][..self.columns]
    }

    /// Returns all values for modification, without a copy if the tensor is not shared.
    pub(super) fn into_values(self) -> Vec<f32> {
        self.try_into_values().unwrap_or_else(|shared| shared.values().to_vec())
    }

    /// Returns all values for modification without a copy, or the matrix itself if the tensor is
    /// shared.
    pub(super) fn try_into_values(self) -> Result<Vec<f32>, Box<Self>> {
        let Self { tensor, ordered, rows, columns } = self;
        let still_shared = |tensor| Box::new(Self { tensor, ordered: None, rows, columns });
        match (ordered, tensor) {
            (Some(values), _) => Ok(values),
            (None, NdArrayTensor::F32(storage)) => {
                match storage.into_shared().try_into_owned_nocopy() {
                    Ok(owned) => {
                        let (values, offset) = owned.into_raw_vec_and_offset();
                        let (start, count) = (offset.unwrap_or(0), rows * columns);
                        Ok(if start == 0 && values.len() == count {
                            values
                        } else {
                            values[start..start + count].to_vec()
                        })
                    }
                    Err(array) => Err(still_shared(array.into())),
                }
            }
            (None, tensor) => Err(still_shared(tensor)),
        }
    }
}

/// Returns `count` values that `fill` writes. It must write every value before it reads it, because
/// zeroing them first would take longer than many operations. With debug assertions, values that are
/// not written stay NaN.
#[allow(
    unsafe_code,
    clippy::uninit_vec,
    reason = "every bit pattern is an f32, the memory is the vector's own, and no caller reads before it writes: tests \
                  run with NaN in it"
)]
pub(super) fn filled(count: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    if cfg!(debug_assertions) {
        values.resize(count, f32::NAN)
    } else {
        unsafe { values.set_len(count) }
    }
    fill(&mut values);
    values
}

/// Splits `values` into consecutive parts of `lengths` rows of `columns` values each; a remainder
/// is left out.
pub(super) fn split<'a>(
    values: &'a mut [f32],
    lengths: &[usize],
    columns: usize,
) -> Vec<&'a mut [f32]> {
    let mut rest = values;
    let part = |length: &usize| {
        let (part, left) = std::mem::take(&mut rest).split_at_mut(length * columns);
        rest = left;
        part
    };
    lengths.iter().map(part).collect()
}

/// Returns a tensor of `values` in row-major order.
///
/// # Panics
/// If the number of values does not match the shape.
pub(super) fn tensor<B: Backend<FloatTensorPrimitive = NdArrayTensor>, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
) -> Tensor<B, D> {
    let count = values.len();
    let Ok(array) = ArrayD::from_shape_vec(shape.to_vec(), values) else {
        unreachable!("{count} values for a tensor {shape:?}")
    };
    let array: SharedArray<f32> = array.into_shared();
    Tensor::from_primitive(TensorPrimitive::Float(array.into()))
}

/// Returns the values of an integer tensor.
pub(super) fn integers<E, I, Q, const D: usize>(
    tensor: &Tensor<NdArray<E, I, Q>, D, Int>,
) -> Vec<usize>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
{
    match tensor.clone().into_primitive() {
        NdArrayTensor::I64(storage) => storage.view().iter().map(|v| *v as usize).collect(),
        NdArrayTensor::I32(storage) => storage.view().iter().map(|v| *v as usize).collect(),
        _ => {
            let values = tensor.to_data();
            values.iter::<i64>().map(|value| value as usize).collect()
        }
    }
}

/// Returns `count` integers from -11 to 11, which are more alike the smaller `step` is. Their
/// products and sums are exact.
#[cfg(test)]
pub(super) fn small_integers(count: usize, step: usize) -> Vec<f32> {
    let number = |at: usize| ((at * step) % 23) as f32 - 11.0;
    (0..count).map(number).collect()
}
