//! Frozen weights on the device, in floats, quantized or split, and GEMMs with them.

use std::ops::Range;

use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;

use super::branch::write_columns;
use super::launch::{columns, empty, scaled_matmul_into, transposed, view_columns};
use super::packed::{self, QuantizedSpec, QuantizedTensors};
use super::queue::{CubeGpu, QueuedTensor, next_input, queued_tensor};
use super::runtime::{Gemm, GpuRuntime};
use crate::Weight;

/// Appends the tensors of `weight` to `tensors`, in the order in which [`WeightSpec::take_tensors`] reads them.
pub(super) fn weight_tensors<B: CubeGpu>(
    weight: &Weight<B>,
    tensors: &mut Vec<QueuedTensor<B::Runtime>>,
) {
    match weight {
        Weight::Float(weight) => tensors.push(queued_tensor(weight)),
        Weight::Packed(weight) => tensors.extend(packed::quantized_tensors(weight)),
        Weight::Split(weight) => weight.parts().for_each(|(_, part)| weight_tensors(part, tensors)),
    }
}

/// The metadata of a weight, known before its tensors are on the device.
#[derive(Clone, Debug)]
pub(super) enum WeightSpec {
    Float,
    Packed(QuantizedSpec),
    /// Parts stacked below each other, each with its range of rows.
    Split(Vec<(Range<usize>, Self)>),
}

impl WeightSpec {
    pub(super) fn new<B: CubeGpu>(weight: &Weight<B>) -> Self {
        match weight {
            Weight::Float(_) => Self::Float,
            Weight::Packed(weight) => Self::Packed(QuantizedSpec::new(weight)),
            Weight::Split(weight) => {
                let parts = weight.parts();
                Self::Split(parts.map(|(rows, part)| (rows, Self::new(part))).collect())
            }
        }
    }

    /// Takes the weight's tensors from a kernel's inputs.
    pub(super) fn take_tensors<R: GpuRuntime, I: Iterator<Item = CubeTensor<R>>>(
        &self,
        from: &mut I,
    ) -> DeviceWeight<R> {
        match self {
            Self::Float => DeviceWeight::Float(next_input(from)),
            Self::Packed(packed) => DeviceWeight::Packed(packed.take_tensors(from)),
            Self::Split(parts) => {
                let parts =
                    parts.iter().map(|(rows, part)| (rows.clone(), part.take_tensors(from)));
                DeviceWeight::Split(parts.collect())
            }
        }
    }
}

/// A weight whose tensors are on the device.
#[allow(clippy::large_enum_variant, reason = "at most three are alive, for one launch")]
pub(super) enum DeviceWeight<R: GpuRuntime> {
    Float(CubeTensor<R>),
    Packed(QuantizedTensors<R>),
    Split(Vec<(Range<usize>, Self)>),
}

impl<R: GpuRuntime> DeviceWeight<R> {
    /// Returns `x W^T`. A quantized weight is dequantized for it, unless x has few rows; the floats are freed
    /// afterwards.
    pub(super) fn project(self, x: &CubeTensor<R>) -> CubeTensor<R> {
        match self {
            Self::Float(weight) => matmul_transposed(x, weight),
            Self::Packed(parts) => parts
                .few_rows_matmul(x, x.dtype)
                .unwrap_or_else(|| matmul_transposed(x, parts.dequantize(x.dtype))),
            Self::Split(parts) => {
                let [tokens, _] = x.meta.shape().dims();
                let width: usize = parts.iter().map(|(rows, _)| rows.len()).sum();
                let output = empty(x, [tokens, width], x.dtype);
                Self::Split(parts).project_into(x, None, &output, 0);
                output
            }
        }
    }

    /// Writes `x W^T + addend` into the columns of `output` from `column` on. The vendor's library writes it there itself;
    /// where it does not, the product is copied.
    ///
    /// # Shapes
    /// - addend: as wide as `output`; the same columns of it are added
    pub(super) fn project_into(
        self,
        x: &CubeTensor<R>,
        addend: Option<&CubeTensor<R>>,
        output: &CubeTensor<R>,
        column: usize,
    ) {
        match self {
            Self::Float(weight) => {
                let range = column..column + weight.meta.shape()[0];
                let view = |tensor: &CubeTensor<R>| view_columns(tensor.clone(), range.clone());
                let right = transposed(weight);
                let (addend_view, product) = (addend.map(view), view(output));
                let gemm = Gemm {
                    left: x,
                    right: &right,
                    factor: 1.0,
                    addend: addend_view.as_ref(),
                    product: &product,
                };
                if !R::multiply_by_library(&gemm) {
                    write_columns(matmul(x, right), None, addend.cloned(), output, column);
                }
            }
            Self::Packed(parts) => match parts.few_rows_matmul(x, x.dtype) {
                Some(product) => write_columns(product, None, addend.cloned(), output, column),
                None => {
                    Self::Float(parts.dequantize(x.dtype)).project_into(x, addend, output, column)
                }
            },
            Self::Split(parts) => parts.into_iter().for_each(|(rows, part)| {
                part.project_into(x, addend, output, column + rows.start);
            }),
        }
    }

    /// Returns `dy W`.
    pub(super) fn project_backward(self, dy: &CubeTensor<R>) -> CubeTensor<R> {
        match self {
            Self::Float(weight) => matmul(dy, weight),
            Self::Packed(parts) => matmul(dy, parts.dequantize(dy.dtype)),
            Self::Split(parts) => {
                let sum = parts.into_iter().fold(None, |sum, (rows, part)| {
                    let dy = columns(dy.clone(), rows);
                    let (product, rest) = part.add_backward(&dy, sum);
                    Some(match rest {
                        Some(sum) => add(sum, product),
                        None => product,
                    })
                });
                sum.unwrap_or_else(|| unreachable!("a weight without parts"))
            }
        }
    }

    /// Returns `dy W + sum` if the vendor's library adds the product to `sum`, in place; otherwise `dy W` and `sum`, which the
    /// caller must add.
    pub(super) fn add_backward(
        self,
        dy: &CubeTensor<R>,
        sum: Option<CubeTensor<R>>,
    ) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
        let Some(sum) = sum else {
            return (self.project_backward(dy), None);
        };
        match self {
            Self::Float(weight) => {
                let gemm = Gemm {
                    left: dy,
                    right: &weight,
                    factor: 1.0,
                    addend: Some(&sum),
                    product: &sum,
                };
                if R::multiply_by_library(&gemm) {
                    return (sum, None);
                }
                (matmul(dy, weight), Some(sum))
            }
            Self::Packed(parts) => {
                Self::Float(parts.dequantize(dy.dtype)).add_backward(dy, Some(sum))
            }
            Self::Split(_) => (self.project_backward(dy), Some(sum)),
        }
    }
}

/// Returns the matrix product `left right`.
pub(super) fn matmul<R: GpuRuntime>(left: &CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
    scaled_matmul(left, right, 1.0)
}

/// Returns the matrix product `factor left right`.
pub(super) fn scaled_matmul<R: GpuRuntime>(
    left: &CubeTensor<R>,
    right: CubeTensor<R>,
    factor: f32,
) -> CubeTensor<R> {
    let ([rows, _], [_, columns]) = (left.meta.shape().dims(), right.meta.shape().dims());
    let output = empty(left, [rows, columns], left.dtype);
    scaled_matmul_into(left.clone(), right, factor, output)
}

/// Returns the matrix product `left right^T`.
pub(super) fn matmul_transposed<R: GpuRuntime>(
    left: &CubeTensor<R>,
    right: CubeTensor<R>,
) -> CubeTensor<R> {
    matmul(left, transposed(right))
}
