//! Frozen weights on the device, in whatever form, and products with them.

use std::ops::Range;

use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::add;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

use super::branch::put;
use super::launch::{empty, matmul, transposed};
use super::packed::{self, PackedShape, Parts};
use super::queue::{CubeGpu, Queued, queued, taken};
use crate::Weight;

/// The tensors of a weight, in the order in which [`WeightShape::part`] takes them.
pub(super) fn weight_tensors<B: CubeGpu>(
    weight: &Weight<B>,
    tensors: &mut Vec<Queued<B::Runtime>>,
) {
    match weight {
        Weight::Float(weight) => tensors.push(queued(weight)),
        Weight::Packed(weight) => tensors.extend(packed::tensors(weight)),
        Weight::Split(weight) => weight.parts().for_each(|(_, part)| weight_tensors(part, tensors)),
    }
}

/// What is known of a weight before its tensors are there.
#[derive(Clone, Debug)]
pub(super) enum WeightShape {
    Float,
    Packed(PackedShape),
    /// The rows that each part has.
    Split(Vec<(Range<usize>, Self)>),
}

impl WeightShape {
    pub(super) fn of<B: CubeGpu>(weight: &Weight<B>) -> Self {
        match weight {
            Weight::Float(_) => Self::Float,
            Weight::Packed(weight) => Self::Packed(PackedShape::of(weight)),
            Weight::Split(weight) => {
                let parts = weight.parts();
                Self::Split(parts.map(|(rows, part)| (rows, Self::of(part))).collect())
            }
        }
    }

    /// Takes the tensors of a weight.
    pub(super) fn part<R: CubeRuntime, I: Iterator<Item = CubeTensor<R>>>(
        &self,
        from: &mut I,
    ) -> PartWeight<R> {
        match self {
            Self::Float => PartWeight::Float(taken(from)),
            Self::Packed(packed) => PartWeight::Packed(packed.parts(from)),
            Self::Split(parts) => {
                let parts = parts.iter();
                let parts = parts.map(|(rows, part)| (rows.clone(), part.part(from)));
                PartWeight::Split(parts.collect())
            }
        }
    }
}

/// A weight on the device.
#[allow(clippy::large_enum_variant, reason = "at most three are alive, for one launch")]
pub(super) enum PartWeight<R: CubeRuntime> {
    Float(CubeTensor<R>),
    Packed(Parts<R>),
    Split(Vec<(Range<usize>, Self)>),
}

impl<R: CubeRuntime> PartWeight<R> {
    /// `x W^T`. What is unpacked for it, unless x has few rows, is gone when it is done.
    pub(super) fn times_transposed(self, x: &CubeTensor<R>) -> CubeTensor<R> {
        match self {
            Self::Float(weight) => times_transposed(x, weight),
            Self::Packed(parts) => parts
                .few_product(x, x.dtype)
                .unwrap_or_else(|| times_transposed(x, parts.floats(x.dtype))),
            Self::Split(parts) => {
                let [tokens, _] = x.meta.shape().dims();
                let width: usize = parts.iter().map(|(rows, _)| rows.len()).sum();
                let output = empty(x, [tokens, width], x.dtype);
                for (rows, part) in parts {
                    put(part.times_transposed(x), None, None, &output, rows.start);
                }
                output
            }
        }
    }

    /// `dy W`.
    pub(super) fn times(self, dy: &CubeTensor<R>) -> CubeTensor<R> {
        match self {
            Self::Float(weight) => times(dy, weight),
            Self::Packed(parts) => times(dy, parts.floats(dy.dtype)),
            Self::Split(parts) => {
                let [tokens, _] = dy.meta.shape().dims();
                let products = parts.into_iter().map(|(rows, part)| {
                    let dy = slice(dy.clone(), &[0..tokens, rows]);
                    part.times(&dy)
                });
                let sum = products.reduce(add);
                sum.unwrap_or_else(|| unreachable!("a weight without parts"))
            }
        }
    }
}

/// `left right`.
pub(super) fn times<R: CubeRuntime>(left: &CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
    let ([rows, _], [_, columns]) = (left.meta.shape().dims(), right.meta.shape().dims());
    let product = empty(left, [rows, columns], left.dtype);
    matmul(left.clone(), right, product.clone());
    product
}

/// `left right^T`.
pub(super) fn times_transposed<R: CubeRuntime>(
    left: &CubeTensor<R>,
    right: CubeTensor<R>,
) -> CubeTensor<R> {
    times(left, transposed(right))
}
