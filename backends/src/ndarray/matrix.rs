//! Burn's tensors as plain slices, and back.

use burn::tensor::{Int, Tensor, TensorPrimitive, backend::Backend};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use ndarray::ArrayD;

use super::gemm::{View, rows};

/// A tensor of f32 whose values lie row after row.
pub(super) struct Matrix {
    /// Of f32.
    tensor: NdArrayTensor,
    /// The values in order, if they do not lie so in `tensor`.
    ordered: Option<Vec<f32>>,
    /// Length of the first dimension.
    pub(super) rows: usize,
    /// Length of the last dimension; for a vector the same as `rows`.
    pub(super) columns: usize,
}

impl Matrix {
    /// `None` for f64.
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

    /// All values, row after row.
    pub(super) fn values(&self) -> &[f32] {
        match (&self.ordered, &self.tensor) {
            (Some(values), _) => values,
            (None, NdArrayTensor::F32(storage)) => storage.view().to_slice().unwrap_or(&[]),
            (None, _) => &[],
        }
    }

    /// As an operand of a product.
    pub(super) fn view(&self) -> View<'_> {
        rows(self.values(), self.columns)
    }

    /// One row.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.columns..][..self.columns]
    }

    /// All values, to be changed: in place if nobody else holds the tensor.
    pub(super) fn into_values(self) -> Vec<f32> {
        self.into_own_values().unwrap_or_else(|shared| shared.values().to_vec())
    }

    /// All values, to be changed in place; the matrix itself if somebody else holds the tensor.
    pub(super) fn into_own_values(self) -> Result<Vec<f32>, Box<Self>> {
        let Self { tensor, ordered, rows, columns } = self;
        let shared = |tensor| Box::new(Self { tensor, ordered: None, rows, columns });
        match (ordered, tensor) {
            (Some(values), _) => Ok(values),
            (None, NdArrayTensor::F32(storage)) => {
                match storage.into_shared().try_into_owned_nocopy() {
                    Ok(owned) => {
                        let (values, offset) = owned.into_raw_vec_and_offset();
                        let (start, count) = (offset.unwrap_or(0), rows * columns);
                        Ok(match start == 0 && values.len() == count {
                            true => values,
                            false => values[start..start + count].to_vec(),
                        })
                    }
                    Err(array) => Err(shared(array.into())),
                }
            }
            (None, tensor) => Err(shared(tensor)),
        }
    }
}

/// `count` values that `fill` writes, all of them, before it reads any: zeroing them first takes longer than many an
/// operation. What is not written stays NaN in builds with debug assertions.
#[allow(
    unsafe_code,
    clippy::uninit_vec,
    reason = "every bit pattern is an f32, the memory is the vector's own, and no caller reads before it writes: tests \
              run with NaN in it"
)]
pub(super) fn written(count: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    match cfg!(debug_assertions) {
        true => values.resize(count, f32::NAN),
        false => unsafe { values.set_len(count) },
    }
    fill(&mut values);
    values
}

/// Consecutive parts of `values`, of `lengths` rows of `columns` each; what is left over is in none.
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

/// A tensor of `values`, row after row.
///
/// # Panics
/// If their number does not fit the shape.
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

/// The values of an integer tensor.
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

/// `count` whole numbers from -11 to 11, the more alike the smaller `step`: their products and sums are exact.
#[cfg(test)]
pub(super) fn numbers(count: usize, step: usize) -> Vec<f32> {
    let number = |at: usize| ((at * step) % 23) as f32 - 11.0;
    (0..count).map(number).collect()
}
