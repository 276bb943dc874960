//! Projections of one input, each with or without a low-rank branch (LoRA, arXiv 2106.09685), side by side in
//! one result: `y_i = x W_i^T + s_i (x A_i^T) B_i^T`, plus a residual where one is given.
//!
//! One operation for all projections of an input, because then `x A^T` is one product for all branches, `dx` is summed
//! where it is made, and nothing is saved for backward but `x`, handles of the weights and the narrow `x A^T`. Weights are
//! frozen as a rule, and no weight-shaped temporary exists in either direction; one that requires a gradient gets it
//! ([`TrainBackend::linear_weight_gradient`]).

use burn::tensor::{DType, Tensor, backend::Backend};

use super::accumulator;
use crate::{TrainBackend, Weight};

/// A weight with, perhaps, a branch.
#[derive(Clone, Debug)]
pub struct Projection<B: Backend> {
    /// `[D_out, D_in]`: floats of the input's dtype, or packed.
    pub weight: Weight<B>,
    /// The trainable branch.
    pub adapter: Option<Adapter<B>>,
}

/// A low-rank branch, in f32 (f64 on an f64 backend) whatever the dtype of the weight.
#[derive(Clone, Debug)]
pub struct Adapter<B: Backend> {
    /// `[r, D_in]`
    pub a: Tensor<B, 2>,
    /// `[D_out, r]`
    pub b: Tensor<B, 2>,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    pub scaling: f64,
    /// While training with dropout, what the branch's input is multiplied with, `[T, D_in]`: 0 or `1 / (1 - p)`.
    pub dropout_mask: Option<Tensor<B, 2>>,
}

/// The result of [`TrainBackend::adapted_linear`].
#[derive(Clone, Debug)]
pub struct Adapted<B: Backend> {
    /// All projections side by side, `[T, sum of D_out]`, of the input's dtype.
    pub output: Tensor<B, 2>,
    /// `x A_i^T` of all branches side by side, `[T, sum of r]`, in the branches' dtype; `None` without branches.
    pub low: Option<Tensor<B, 2>>,
}

/// Gradients of [`adapted_linear`].
#[derive(Clone, Debug)]
pub struct AdaptedGrads<B: Backend> {
    /// `[T, D_in]`; `None` where it was not asked for.
    pub x: Option<Tensor<B, 2>>,
    /// Of `a` and `b`, for each projection with a branch, in order.
    pub adapters: Vec<[Tensor<B, 2>; 2]>,
}

/// Projects tokens by up to three weights at once.
///
/// # Shapes
/// - x: `[T, D_in]`
/// - residual: `[T, sum of D_out]`, added to the result
/// - returns `[T, sum of D_out]`, the projections side by side, of x's dtype
///
/// # Panics
/// If shapes or dtypes do not fit together (Burn 0.21 promotes nothing: mixed dtypes would be silently wrong on GPUs).
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
        "adapted_linear: a branch is kept in {:?}",
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
    let mut next = 0;
    let mut project = |projection: &Projection<B>| {
        let base = B::frozen_linear(x.clone(), projection.weight.clone());
        match (&projection.adapter, &low) {
            (Some(adapter), Some(low)) => {
                let [_, rank] = adapter.b.dims();
                let low = low.clone().narrow(1, next, rank);
                next += rank;
                let delta = low.matmul(adapter.b.clone().transpose()) * adapter.scaling;
                let dtype = base.dtype();
                base + delta.cast(dtype)
            }
            _ => base,
        }
    };
    let outputs: Vec<_> = projections.iter().map(&mut project).collect();
    let output = beside(outputs);
    Adapted {
        output: match residual {
            Some(residual) => residual + output,
            None => output,
        },
        low,
    }
}

/// `x A_i^T` side by side: one product, unless dropout gives every branch an input of its own.
fn low_rank<B: Backend>(x: &Tensor<B, 2>, projections: &[Projection<B>]) -> Option<Tensor<B, 2>> {
    let adapters = adapters(projections);
    let dtype = adapters.first()?.a.dtype();
    let x = x.clone().cast(dtype);
    Some(match adapters.iter().any(|a| a.dropout_mask.is_some()) {
        false => x.matmul(stacked(&adapters).transpose()),
        true => beside(
            adapters
                .iter()
                .map(|adapter| dropped(&x, adapter).matmul(adapter.a.clone().transpose()))
                .collect(),
        ),
    })
}

/// The reference body of [`TrainBackend::adapted_linear_backward`].
///
/// With `dy_i` the columns of `grad` that belong to projection `i` and `dl_i = s_i dy_i B_i`:
/// `dB_i = s_i dy_i^T (x A_i^T)`, `dA_i = dl_i^T x`, `dx = sum of dy_i W_i + dl_i A_i`.
pub fn reference_backward<B: TrainBackend>(
    x: Option<Tensor<B, 2>>,
    projections: &[Projection<B>],
    low: Option<Tensor<B, 2>>,
    grad: Tensor<B, 2>,
    needs_x: bool,
) -> AdaptedGrads<B> {
    let (mut column, mut next) = (0, 0);
    let (mut of_adapters, mut d_lows, mut d_x) = (Vec::new(), Vec::new(), None);
    for projection in projections {
        let [d_out, _] = projection.weight.dims();
        let dy = match projections.len() {
            1 => grad.clone(),
            _ => grad.clone().narrow(1, column, d_out),
        };
        column += d_out;
        if needs_x {
            let of_weight = B::frozen_linear_backward(dy.clone(), projection.weight.clone());
            d_x = Some(match d_x {
                Some(d_x) => of_weight + d_x,
                None => of_weight,
            });
        }
        if let (Some(adapter), Some(low), Some(x)) = (&projection.adapter, &low, &x) {
            let [_, rank] = adapter.b.dims();
            let dy = dy.cast(low.dtype());
            let d_low = dy.clone().matmul(adapter.b.clone()) * adapter.scaling;
            let low = low.clone().narrow(1, next, rank);
            let d_b = dy.transpose().matmul(low) * adapter.scaling;
            next += rank;
            let x = dropped(&x.clone().cast(d_low.dtype()), adapter);
            of_adapters.push([d_low.clone().transpose().matmul(x), d_b]);
            d_lows.push(d_low);
        }
    }
    AdaptedGrads {
        x: d_x.map(|d_x| add_through_branches(d_x, projections, d_lows)),
        adapters: of_adapters,
    }
}

/// `d_x + sum of dl_i A_i`, in d_x's dtype.
fn add_through_branches<B: Backend>(
    d_x: Tensor<B, 2>,
    projections: &[Projection<B>],
    d_lows: Vec<Tensor<B, 2>>,
) -> Tensor<B, 2> {
    let (adapters, dtype) = (adapters(projections), d_x.dtype());
    if adapters.is_empty() {
        return d_x;
    }
    if adapters.iter().all(|a| a.dropout_mask.is_none()) {
        return d_x + beside(d_lows).matmul(stacked(&adapters)).cast(dtype);
    }
    let branches = adapters.iter().zip(d_lows);
    branches.fold(d_x, |d_x, (adapter, d_low)| {
        d_x + dropped(&d_low.matmul(adapter.a.clone()), adapter).cast(dtype)
    })
}

/// `x` times the branch's dropout mask, if it has one.
fn dropped<B: Backend>(x: &Tensor<B, 2>, adapter: &Adapter<B>) -> Tensor<B, 2> {
    match &adapter.dropout_mask {
        Some(mask) => x.clone() * mask.clone(),
        None => x.clone(),
    }
}

fn adapters<B: Backend>(projections: &[Projection<B>]) -> Vec<&Adapter<B>> {
    projections.iter().filter_map(|p| p.adapter.as_ref()).collect()
}

/// All `A` below each other, `[sum of r, D_in]`.
fn stacked<B: Backend>(adapters: &[&Adapter<B>]) -> Tensor<B, 2> {
    match adapters {
        [one] => one.a.clone(),
        many => Tensor::cat(many.iter().map(|adapter| adapter.a.clone()).collect(), 0),
    }
}

fn beside<B: Backend>(mut parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}
