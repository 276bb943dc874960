//! `y = x W^T` for a weight that never gets a gradient.
//!
//! The weight stays `[D_out, D_in]`, as Hugging Face stores it. Forward keeps only a handle of the weight; backward
//! is `dx = dy W`. No weight-shaped temporary exists in either direction.

use burn::tensor::Tensor;

use crate::{TrainBackend, Weight};

/// Projects tokens by a frozen weight.
///
/// # Shapes
/// - x: `[T, D_in]`
/// - weight: `[D_out, D_in]`, in the dtype of `x`, or quantized
/// - returns `[T, D_out]`
///
/// # Panics
/// If widths or dtypes differ (Burn 0.21 promotes nothing: mixed dtypes would give wrong results silently on GPUs),
/// or, under autodiff, if the weight requires a gradient, which this operation would drop.
pub fn linear<B: TrainBackend>(x: Tensor<B, 2>, weight: impl Into<Weight<B>>) -> Tensor<B, 2> {
    let weight = weight.into();
    let ([tokens, d_in], [d_out, w_in]) = (x.dims(), weight.dims());
    assert_eq!(d_in, w_in, "linear: x is [{tokens}, {d_in}], weight is [{d_out}, {w_in}]");
    assert!(weight.fits(x.dtype()), "linear: x and weight must have one dtype");
    B::frozen_linear(x, weight)
}

/// The reference body of [`TrainBackend::frozen_linear`].
pub fn reference<B: TrainBackend>(x: Tensor<B, 2>, weight: Weight<B>) -> Tensor<B, 2> {
    if let Weight::Split(weight) = weight {
        return weight.project(&x);
    }
    let dtype = x.dtype();
    B::matmul(x, weight.floats(dtype).transpose())
}

/// The reference body of [`TrainBackend::linear_weight_gradient`]: `dW = dy^T x`, `[D_out, D_in]`, from `x [T, D_in]`
/// and `grad [T, D_out]`. For projections side by side, `D_out` is the sum of theirs, and their gradients are
/// consecutive rows of the result.
pub fn reference_weight_gradient<B: TrainBackend>(
    x: Tensor<B, 2>,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    B::matmul(grad.transpose(), x)
}

/// The reference body of [`TrainBackend::frozen_linear_backward`]: `dx = dy W`, `[T, D_in]`, from `grad [T, D_out]`.
pub fn reference_backward<B: TrainBackend>(grad: Tensor<B, 2>, weight: Weight<B>) -> Tensor<B, 2> {
    if let Weight::Split(weight) = weight {
        return weight.project_backward(&grad);
    }
    let dtype = grad.dtype();
    B::matmul(grad, weight.floats(dtype))
}
