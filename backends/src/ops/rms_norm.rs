//! RMSNorm (arXiv 1910.07467): `y = x / sqrt(mean(x^2) + epsilon) * weight`.
//!
//! It is one operation because its backward needs only `x`, whereas the separate operations would keep four tensors
//! of that size.

use burn::tensor::{Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Normalizes each row, with Hugging Face's order of casts: statistics and quotient in f32 (f64 for f64 input), a
/// cast to x's dtype, then the weight.
///
/// # Shapes
/// - x: `[T, D]`
/// - weight: `[D]`, in x's dtype
/// - returns `[T, D]`, in x's dtype
///
/// # Panics
/// If widths or dtypes differ.
pub fn rms_norm<B: TrainBackend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    assert_eq!(
        (x.dims()[1], x.dtype()),
        (weight.dims()[0], weight.dtype()),
        "rms_norm: x and weight must have one width and one dtype"
    );
    B::rms_norm(x, weight, epsilon)
}

/// The reference body of [`TrainBackend::rms_norm`].
pub fn reference<B: Backend>(x: Tensor<B, 2>, weight: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normalized, _) = normalized(x, epsilon);
    normalized.cast(dtype) * weight.unsqueeze()
}

/// The reference body of [`TrainBackend::rms_norm_backward`], `[T, D]`.
///
/// With `n = x / rms` and `g = grad * weight`: `dx = (g - n * mean(g n)) / rms`.
pub fn reference_backward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    epsilon: f64,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let (normalized, rms) = normalized(x, epsilon);
    let grad = (grad * weight.unsqueeze()).cast(normalized.dtype());
    let projection = (grad.clone() * normalized.clone()).mean_dim(1);
    ((grad - normalized * projection) / rms).cast(dtype)
}

/// The reference body of [`TrainBackend::rms_norm_weight_gradient`]: the sum over tokens of `grad * x / rms`, `[D]`.
pub fn reference_weight_gradient<B: Backend>(
    x: Tensor<B, 2>,
    epsilon: f64,
    grad: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let dtype = x.dtype();
    let (normalized, _) = normalized(x, epsilon);
    (grad * normalized.cast(dtype)).sum_dim(0).squeeze_dim(0)
}

/// Returns `x / rms` and `rms = sqrt(mean(x^2) + epsilon)` `[T, 1]`, in the accumulator's dtype.
fn normalized<B: Backend>(x: Tensor<B, 2>, epsilon: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let dtype = accumulator(x.dtype());
    let x = x.cast(dtype);
    let rms = (x.clone().square().mean_dim(1) + epsilon).sqrt();
    (x / rms.clone(), rms)
}
