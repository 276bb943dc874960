//! Projections with their branches on slices: see [`crate::ops::adapted_linear`].

use super::gemm::{Old, Target, View, product};
use super::matrix::Matrix;

/// A projection's weights.
pub(super) struct HostProjection {
    /// `[D_out, D_in]`
    pub(super) weight: Matrix,
    /// `a` `[r, D_in]`, `b` `[D_out, r]` and the scaling.
    pub(super) adapter: Option<(Matrix, Matrix, f32)>,
}

impl HostProjection {
    fn rank(&self) -> usize {
        self.adapter.as_ref().map_or(0, |(a, ..)| a.rows)
    }
}

/// Columns of all projections side by side.
pub(super) fn width(projections: &[HostProjection]) -> usize {
    projections.iter().map(|p| p.weight.rows).sum()
}

/// Ranks of all branches together.
pub(super) fn ranks(projections: &[HostProjection]) -> usize {
    projections.iter().map(HostProjection::rank).sum()
}

/// All `a` below each other, `[sum of r, D_in]`.
fn stacked(projections: &[HostProjection]) -> Vec<f32> {
    let adapters = projections.iter().filter_map(|p| p.adapter.as_ref());
    adapters.flat_map(|(a, ..)| a.values()).copied().collect()
}

/// Output `[T, width]` and `x A^T` `[T, ranks]`.
pub(super) fn forward(
    x: &Matrix,
    projections: &[HostProjection],
    residual: Option<Vec<f32>>,
) -> (Vec<f32>, Vec<f32>) {
    let (width, ranks) = (width(projections), ranks(projections));
    let view = View::rows(x.values(), x.columns);
    let mut low = vec![0f32; x.rows * ranks];
    if ranks > 0 {
        let a = stacked(projections);
        let target = Target::rows(&mut low, ranks);
        product(
            target,
            Old::Replace,
            1.0,
            view,
            View::rows(&a, x.columns).t(),
        );
    }
    let old = match residual {
        Some(_) => Old::Add,
        None => Old::Replace,
    };
    let mut output = residual.unwrap_or_else(|| vec![0f32; x.rows * width]);
    let (mut column, mut next) = (0, 0);
    for projection in projections {
        let weight = View::rows(projection.weight.values(), x.columns);
        let target = Target::columns(&mut output, width, column);
        product(target, old, 1.0, view, weight.t());
        if let Some((_, b, scaling)) = &projection.adapter {
            let low = View::within(&low[next..], x.rows, b.columns, ranks);
            let target = Target::columns(&mut output, width, column);
            product(
                target,
                Old::Add,
                *scaling,
                low,
                View::rows(b.values(), b.columns).t(),
            );
            next += b.columns;
        }
        column += projection.weight.rows;
    }
    (output, low)
}

/// Gradients of x, if it is needed, and of each branch's `a` and `b`.
pub(super) struct HostGrads {
    pub(super) x: Option<Vec<f32>>,
    pub(super) adapters: Vec<[Vec<f32>; 2]>,
}

/// See [`crate::ops::adapted_linear::reference_backward`].
pub(super) fn backward(
    x: &Matrix,
    projections: &[HostProjection],
    low: &[f32],
    grad: &[f32],
    needs_x: bool,
) -> HostGrads {
    let (width, ranks, d_in, rows) = (width(projections), ranks(projections), x.columns, x.rows);
    let mut d_low = vec![0f32; rows * ranks];
    let mut d_x = needs_x.then(|| vec![0f32; rows * d_in]);
    let (mut column, mut next, mut old) = (0, 0, Old::Replace);
    let mut d_bs = Vec::new();
    for projection in projections {
        let d_out = projection.weight.rows;
        let dy = View::within(&grad[column..], rows, d_out, width);
        if let Some(d_x) = &mut d_x {
            let weight = View::rows(projection.weight.values(), d_in);
            product(Target::rows(d_x, d_in), old, 1.0, dy, weight);
            old = Old::Add;
        }
        if let Some((_, b, scaling)) = &projection.adapter {
            let target = Target::columns(&mut d_low, ranks, next);
            product(
                target,
                Old::Replace,
                *scaling,
                dy,
                View::rows(b.values(), b.columns),
            );
            let mut d_b = vec![0f32; d_out * b.columns];
            let low = View::within(&low[next..], rows, b.columns, ranks);
            let target = Target::rows(&mut d_b, b.columns);
            product(target, Old::Replace, *scaling, dy.t(), low);
            d_bs.push(d_b);
            next += b.columns;
        }
        column += d_out;
    }
    let mut d_a = vec![0f32; ranks * d_in];
    if ranks > 0 {
        let d_low = View::rows(&d_low, ranks);
        if let Some(d_x) = &mut d_x {
            let a = stacked(projections);
            let target = Target::rows(d_x, d_in);
            product(target, Old::Add, 1.0, d_low, View::rows(&a, d_in));
        }
        let target = Target::rows(&mut d_a, d_in);
        let x = View::rows(x.values(), d_in);
        product(target, Old::Replace, 1.0, d_low.t(), x);
    }
    let mut rest = d_a.as_slice();
    let adapted = projections
        .iter()
        .map(HostProjection::rank)
        .filter(|r| *r > 0);
    let adapters = adapted.zip(d_bs).map(|(rank, d_b)| {
        let (d_a, left) = rest.split_at(rank * d_in);
        rest = left;
        [d_a.to_vec(), d_b]
    });
    let adapters = adapters.collect();
    HostGrads { x: d_x, adapters }
}
