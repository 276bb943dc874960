//! AdamW (Loshchilov and Hutter 2019, algorithm 2) with torch's order of operations, for all tensors of an adapter in
//! one call, so that a backend may fuse the step of each tensor and run all of them at once.

use burn::tensor::{Tensor, backend::Backend};

/// A parameter, its gradient and its optimizer state, all of one shape and dtype.
#[derive(Clone, Debug)]
pub struct AdamWTensor<B: Backend> {
    /// The parameter, `[rows, columns]`.
    pub param: Tensor<B, 2>,
    /// Its gradient, already clipped.
    pub grad: Tensor<B, 2>,
    /// The running mean of the gradient.
    pub exp_avg: Tensor<B, 2>,
    /// The running mean of the squared gradient.
    pub exp_avg_sq: Tensor<B, 2>,
    /// The constants of this step.
    pub factors: AdamWFactors,
}

/// The constants of a step. The powers of the betas are computed on the host in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWFactors {
    /// The decay rate of the first moment, `b1`.
    pub beta1: f64,
    /// The decay rate of the second moment, `b2`.
    pub beta2: f64,
    /// The constant that is added to the root of the second moment.
    pub epsilon: f64,
    /// `1 - lr * weight_decay`
    pub shrink: f64,
    /// `lr / (1 - b1^t)`
    pub step_size: f64,
    /// `sqrt(1 - b2^t)`
    pub root_correction: f64,
}

/// The result of a step for one tensor.
#[derive(Clone, Debug)]
pub struct AdamWUpdate<B: Backend> {
    /// The new parameter.
    pub param: Tensor<B, 2>,
    /// The new running mean of the gradient.
    pub exp_avg: Tensor<B, 2>,
    /// The new running mean of the squared gradient.
    pub exp_avg_sq: Tensor<B, 2>,
}

/// The reference body of [`TrainBackend::adamw`](crate::TrainBackend::adamw).
///
/// `p <- p * shrink`, `m <- m + (g - m)(1 - b1)`, `v <- v b2 + g^2 (1 - b2)`,
/// `p <- p - step_size * m / (sqrt(v) / root_correction + eps)`.
pub fn reference<B: Backend>(tensors: Vec<AdamWTensor<B>>) -> Vec<AdamWUpdate<B>> {
    tensors.into_iter().map(reference_single).collect()
}

/// Computes [`reference()`] of one tensor.
pub fn reference_single<B: Backend>(tensor: AdamWTensor<B>) -> AdamWUpdate<B> {
    let AdamWTensor { param, grad, exp_avg, exp_avg_sq, factors } = tensor;
    let change = grad.clone() - exp_avg.clone();
    let exp_avg = exp_avg + change.mul_scalar(1.0 - factors.beta1);
    let squared_term = grad.square().mul_scalar(1.0 - factors.beta2);
    let exp_avg_sq = exp_avg_sq.mul_scalar(factors.beta2) + squared_term;
    let root = exp_avg_sq.clone().sqrt().div_scalar(factors.root_correction);
    let change = exp_avg.clone() / root.add_scalar(factors.epsilon);
    let param = param.mul_scalar(factors.shrink) - change.mul_scalar(factors.step_size);
    AdamWUpdate { param, exp_avg, exp_avg_sq }
}
