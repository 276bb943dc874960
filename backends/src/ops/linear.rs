//! `y = x W^T`, for a weight that never gets a gradient.
//!
//! The weight stays `[D_out, D_in]`, as Hugging Face stores it. Forward keeps only a handle of the weight; backward is
//! `dx = dy W`. No weight-shaped temporary exists in either direction.

use burn::tensor::{Tensor, backend::Backend};

use crate::{TrainBackend, Weight};

/// Projects tokens by a frozen weight.
///
/// # Shapes
/// - x: `[T, D_in]`
/// - weight: `[D_out, D_in]`, of the same dtype as `x`, or packed
/// - returns `[T, D_out]`
///
/// # Panics
/// If widths or dtypes differ (Burn 0.21 promotes nothing: mixed dtypes would be silently wrong on GPUs), or, under
/// autodiff, if the weight requires a gradient, which this operation would drop.
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
        return weight.times_transposed(&x);
    }
    let dtype = x.dtype();
    x.matmul(weight.floats(dtype).transpose())
}

/// The reference body of [`TrainBackend::linear_weight_gradient`]: of `x [T, D_in]` and `grad [T, D_out]`, the gradient
/// `dW = dy^T x` `[D_out, D_in]`. For projections side by side `D_out` is their sum, and the gradients are its rows.
pub fn reference_weight_gradient<B: Backend>(x: Tensor<B, 2>, grad: Tensor<B, 2>) -> Tensor<B, 2> {
    grad.transpose().matmul(x)
}

/// The reference body of [`TrainBackend::frozen_linear_backward`]: `grad [T, D_out]` to `[T, D_in]`.
pub fn reference_backward<B: TrainBackend>(grad: Tensor<B, 2>, weight: Weight<B>) -> Tensor<B, 2> {
    if let Weight::Split(weight) = weight {
        return weight.times(&grad);
    }
    let dtype = grad.dtype();
    grad.matmul(weight.floats(dtype))
}
