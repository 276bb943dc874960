//! Projections of one input side by side, each with or without a low-rank branch (LoRA, arXiv 2106.09685):
//! `y_i = x W_i^T + s_i (x A_i^T) B_i^T`, plus a residual if there is one.
//!
//! All projections of an input are one operation. `x A^T` is then one GEMM for all branches, `dx` is summed as it is
//! computed, and backward needs only `x`, handles of the weights and the narrow `x A^T`. Weights are usually frozen,
//! and no weight-shaped temporary exists in either direction. A weight that requires a gradient gets it from
//! [`TrainBackend::linear_weight_gradient`].

use burn::tensor::{DType, Tensor, backend::Backend};

use super::accumulator;
use crate::{TrainBackend, Weight};

/// A weight and its optional low-rank branch.
#[derive(Clone, Debug)]
pub struct Projection<B: Backend> {
    /// `[D_out, D_in]`: floats of the input's dtype, or quantized.
    pub weight: Weight<B>,
    /// The trainable branch.
    pub adapter: Option<Adapter<B>>,
}

/// A low-rank branch, in f32 (f64 on an f64 backend) for any dtype of the weight.
#[derive(Clone, Debug)]
pub struct Adapter<B: Backend> {
    /// `[r, D_in]`
    pub a: Tensor<B, 2>,
    /// `[D_out, r]`
    pub b: Tensor<B, 2>,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    pub scaling: f64,
    /// The factors of the branch's input during training with dropout, `[T, D_in]`: 0 or `1 / (1 - p)`.
    pub dropout_mask: Option<Tensor<B, 2>>,
}

/// The result of [`TrainBackend::adapted_linear`].
#[derive(Clone, Debug)]
pub struct Adapted<B: Backend> {
    /// All projections side by side, `[T, sum of D_out]`, in the input's dtype.
    pub output: Tensor<B, 2>,
    /// `x A_i^T` of all branches side by side, `[T, sum of r]`, in the branches' dtype; `None` without branches.
    pub low: Option<Tensor<B, 2>>,
}

/// The gradients of [`adapted_linear`].
#[derive(Clone, Debug)]
pub struct AdaptedGrads<B: Backend> {
    /// The gradient of `x`, `[T, D_in]`; `None` if it was not asked for.
    pub x: Option<Tensor<B, 2>>,
    /// The gradients of `a` and `b` of each projection with a branch, in order.
    pub adapters: Vec<[Tensor<B, 2>; 2]>,
}

/// Projects tokens by up to three weights at once.
///
/// # Shapes
/// - x: `[T, D_in]`
/// - residual: `[T, sum of D_out]`, added to the result
/// - returns `[T, sum of D_out]`, the projections side by side, in x's dtype
///
/// # Panics
/// If shapes or dtypes do not match. (Burn 0.21 promotes nothing: mixed dtypes would give wrong results silently on
/// GPUs.)
pub fn adapted_linear<B: TrainBackend>(
    x: Tensor<B, 2>,
    projections: &[Projection<B>],
    residual: Option<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let [tokens, d_in] = x.dims();
    assert!(
        (1..=3).contains(&projections.len()),
        "adapted_linear: {} projections",
        projections.len()
    );
    for projection in projections {
        check(projection, [tokens, d_in], x.dtype());
    }
    if let Some(residual) = &residual {
        let width: usize = projections.iter().map(|p| p.weight.dims()[0]).sum();
        assert_eq!(
            (residual.dims(), residual.dtype()),
            ([tokens, width], x.dtype()),
            "adapted_linear: residual"
        );
    }
    B::adapted_linear(x, projections, residual).output
}

/// Panics if the shapes or dtypes of a projection do not match the input.
fn check<B: TrainBackend>(projection: &Projection<B>, [tokens, d_in]: [usize; 2], dtype: DType) {
    let [d_out, w_in] = projection.weight.dims();
    assert_eq!(
        (d_in, true),
        (w_in, projection.weight.fits(dtype)),
        "adapted_linear: x is [{tokens}, {d_in}] of {dtype:?}, weight [{d_out}, {w_in}]"
    );
    let Some(Adapter { a, b, dropout_mask, .. }) = &projection.adapter else {
        return;
    };
    let [rank, _] = a.dims();
    assert_eq!(
        (a.dims(), b.dims()),
        ([rank, d_in], [d_out, rank]),
        "adapted_linear: branch on a weight [{d_out}, {d_in}]"
    );
    assert!(
        a.dtype() == accumulator(dtype) && b.dtype() == a.dtype(),
        "adapted_linear: a branch must be in {:?}",
        accumulator(dtype)
    );
    if let Some(mask) = dropout_mask {
        assert_eq!(
            (mask.dims(), mask.dtype()),
            ([tokens, d_in], a.dtype()),
            "adapted_linear: dropout mask"
        );
    }
}

/// The reference body of [`TrainBackend::adapted_linear`].
pub fn reference<B: TrainBackend>(
    x: Tensor<B, 2>,
    projections: &[Projection<B>],
    residual: Option<Tensor<B, 2>>,
) -> Adapted<B> {
    let low = low_rank(&x, projections);
    let mut next_rank = 0;
    let mut project = |projection: &Projection<B>| {
        let base = B::frozen_linear(x.clone(), projection.weight.clone());
        match (&projection.adapter, &low) {
            (Some(adapter), Some(low)) => {
                let [_, rank] = adapter.b.dims();
                let low = low.clone().narrow(1, next_rank, rank);
                next_rank += rank;
                let delta = B::matmul(low, adapter.b.clone().transpose()) * adapter.scaling;
                let dtype = base.dtype();
                base + delta.cast(dtype)
            }
            _ => base,
        }
    };
    let outputs: Vec<_> = projections.iter().map(&mut project).collect();
    let output = concat_columns(outputs);
    Adapted {
        output: match residual {
            Some(residual) => residual + output,
            None => output,
        },
        low,
    }
}

/// Computes `x A_i^T` side by side: with one GEMM, unless dropout gives every branch its own input.
fn low_rank<B: TrainBackend>(
    x: &Tensor<B, 2>,
    projections: &[Projection<B>],
) -> Option<Tensor<B, 2>> {
    let adapters = adapters(projections);
    let dtype = adapters.first()?.a.dtype();
    let x = x.clone().cast(dtype);
    if adapters.iter().all(|a| a.dropout_mask.is_none()) {
        return Some(B::matmul(x, stacked_a(&adapters).transpose()));
    }
    let project = |adapter: &&Adapter<B>| {
        B::matmul(apply_dropout(&x, adapter), adapter.a.clone().transpose())
    };
    Some(concat_columns(adapters.iter().map(project).collect()))
}

/// The reference body of [`TrainBackend::adapted_linear_backward`].
///
/// `dy_i` are the columns of `grad` that belong to projection `i`. With `dl_i = s_i dy_i B_i`:
/// `dB_i = s_i dy_i^T (x A_i^T)`, `dA_i = dl_i^T x`, `dx = sum of dy_i W_i + dl_i A_i`.
pub fn reference_backward<B: TrainBackend>(
    x: Option<Tensor<B, 2>>,
    projections: &[Projection<B>],
    low: Option<Tensor<B, 2>>,
    grad: Tensor<B, 2>,
    needs_x: bool,
) -> AdaptedGrads<B> {
    let (mut column, mut next_rank) = (0, 0);
    let (mut adapter_grads, mut d_lows, mut d_x) = (Vec::new(), Vec::new(), None);
    for projection in projections {
        let [d_out, _] = projection.weight.dims();
        let dy = match projections.len() {
            1 => grad.clone(),
            _ => grad.clone().narrow(1, column, d_out),
        };
        column += d_out;
        if needs_x {
            let through_weight = B::frozen_linear_backward(dy.clone(), projection.weight.clone());
            d_x = Some(match d_x {
                Some(d_x) => through_weight + d_x,
                None => through_weight,
            });
        }
        if let (Some(adapter), Some(low), Some(x)) = (&projection.adapter, &low, &x) {
            let [_, rank] = adapter.b.dims();
            let dy = dy.cast(low.dtype());
            let d_low = B::matmul(dy.clone(), adapter.b.clone()) * adapter.scaling;
            let low = low.clone().narrow(1, next_rank, rank);
            let d_b = B::matmul(dy.transpose(), low) * adapter.scaling;
            next_rank += rank;
            let x = apply_dropout(&x.clone().cast(d_low.dtype()), adapter);
            adapter_grads.push([B::matmul(d_low.clone().transpose(), x), d_b]);
            d_lows.push(d_low);
        }
    }
    AdaptedGrads {
        x: d_x.map(|d_x| add_branch_gradients(d_x, projections, d_lows)),
        adapters: adapter_grads,
    }
}

/// Returns `d_x + sum of dl_i A_i`, in d_x's dtype.
fn add_branch_gradients<B: TrainBackend>(
    d_x: Tensor<B, 2>,
    projections: &[Projection<B>],
    d_lows: Vec<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let (adapters, dtype) = (adapters(projections), d_x.dtype());
    if adapters.is_empty() {
        return d_x;
    }
    if adapters.iter().all(|a| a.dropout_mask.is_none()) {
        return d_x + B::matmul(concat_columns(d_lows), stacked_a(&adapters)).cast(dtype);
    }
    let branches = adapters.iter().zip(d_lows);
    branches.fold(d_x, |d_x, (adapter, d_low)| {
        d_x + apply_dropout(&B::matmul(d_low, adapter.a.clone()), adapter).cast(dtype)
    })
}

/// Multiplies `x` by the branch's dropout mask, if it has one.
fn apply_dropout<B: Backend>(x: &Tensor<B, 2>, adapter: &Adapter<B>) -> Tensor<B, 2> {
    match &adapter.dropout_mask {
        Some(mask) => x.clone() * mask.clone(),
        None => x.clone(),
    }
}

fn adapters<B: Backend>(projections: &[Projection<B>]) -> Vec<&Adapter<B>> {
    projections.iter().filter_map(|p| p.adapter.as_ref()).collect()
}

/// Stacks all `A` below each other, `[sum of r, D_in]`.
fn stacked_a<B: Backend>(adapters: &[&Adapter<B>]) -> Tensor<B, 2> {
    match adapters {
        [one] => one.a.clone(),
        many => Tensor::cat(many.iter().map(|adapter| adapter.a.clone()).collect(), 0),
    }
}

/// Concatenates the columns of all parts.
fn concat_columns<B: Backend>(mut parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}
