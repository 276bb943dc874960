//! Burn's tensors as plain slices, and back.

use burn::tensor::{Int, Tensor, TensorPrimitive, backend::Backend};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use ndarray::ArrayD;

use super::gemm::View;

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
        Some(Self {
            tensor,
            ordered,
            rows: dims[0],
            columns: dims[D - 1],
        })
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
        View::within(self.values(), self.rows, self.columns, self.columns)
    }

    /// One row.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.columns..][..self.columns]
    }

    /// All values, in memory of their own.
    pub(super) fn into_values(self) -> Vec<f32> {
        match self.ordered {
            Some(values) => values,
            None => self.values().to_vec(),
        }
    }
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
pub(super) fn integers<B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>) -> Vec<usize> {
    let values = tensor.to_data();
    values.iter::<i64>().map(|value| value as usize).collect()
}
