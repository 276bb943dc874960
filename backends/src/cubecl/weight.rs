//! Frozen weights on the device, in floats, quantized or split, and GEMMs with them.

use std::ops::Range;

use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;

use super::branch::write_columns;
use super::launch::{empty, matmul_into, transposed};
use super::packed::{self, QuantizedSpec, QuantizedTensors};
use super::queue::{CubeGpu, QueuedTensor, next_input, queued_tensor};
use super::runtime::GpuRuntime;
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
                for (rows, part) in parts {
                    write_columns(part.project(x), None, None, &output, rows.start);
                }
                output
            }
        }
    }

    /// Returns `dy W`.
    pub(super) fn project_backward(self, dy: &CubeTensor<R>) -> CubeTensor<R> {
        match self {
            Self::Float(weight) => matmul(dy, weight),
            Self::Packed(parts) => matmul(dy, parts.dequantize(dy.dtype)),
            Self::Split(parts) => {
                let [tokens, _] = dy.meta.shape().dims();
                let products = parts.into_iter().map(|(rows, part)| {
                    let dy = slice(dy.clone(), &[0..tokens, rows]);
                    part.project_backward(&dy)
                });
                let sum = products.reduce(add);
                sum.unwrap_or_else(|| unreachable!("a weight without parts"))
            }
        }
    }
}

/// Returns the matrix product `left right`.
pub(super) fn matmul<R: GpuRuntime>(left: &CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
    let ([rows, _], [_, columns]) = (left.meta.shape().dims(), right.meta.shape().dims());
    let output = empty(left, [rows, columns], left.dtype);
    matmul_into(left.clone(), right, output.clone());
    output
}

/// Returns the matrix product `left right^T`.
pub(super) fn matmul_transposed<R: GpuRuntime>(
    left: &CubeTensor<R>,
    right: CubeTensor<R>,
) -> CubeTensor<R> {
    matmul(left, transposed(right))
}
