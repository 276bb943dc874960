//! Projections with their branches on slices: see [`crate::ops::adapted_linear`].

use super::few_rows::{FEW, Output, Rows, Term, compute};
use super::gemm::{Old, columns_of, product, rows, strided};
use super::matrix::{Matrix, written};

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
    let all: Vec<&[f32]> = adapters.map(|(a, ..)| a.values()).collect();
    all.concat()
}

/// Output `[T, width]` and `x A^T` `[T, ranks]`.
pub(super) fn forward(
    x: &Matrix,
    projections: &[HostProjection],
    residual: Option<Vec<f32>>,
) -> (Vec<f32>, Vec<f32>) {
    let (width, ranks) = (width(projections), ranks(projections));
    let few = x.rows <= FEW;
    let low = written(x.rows * ranks, |low| match (ranks, few) {
        (0, _) => {}
        (_, true) => low_of_few(x, projections, low),
        (_, false) => {
            let a = stacked(projections);
            let a = rows(&a, x.columns).transpose();
            let target = columns_of(low, ranks, 0, ranks);
            product(target, Old::Replace, 1.0, x.view(), a);
        }
    });
    let project = if few { project_few } else { project };
    let output = match residual {
        Some(mut output) => {
            project(x, projections, &low, Old::Add, &mut output);
            output
        }
        None => written(x.rows * width, |output| {
            project(x, projections, &low, Old::Replace, output);
        }),
    };
    (output, low)
}

/// All projections into their columns of `output`.
fn project(x: &Matrix, projections: &[HostProjection], low: &[f32], old: Old, output: &mut [f32]) {
    let (width, ranks) = (width(projections), ranks(projections));
    let (mut column, mut next) = (0, 0);
    for projection in projections {
        let weight = &projection.weight;
        let target = columns_of(output, width, column, weight.rows);
        product(target, old, 1.0, x.view(), weight.view().transpose());
        if let Some((_, b, scaling)) = &projection.adapter {
            let low = strided(&low[next..], x.rows, b.columns, ranks);
            let target = columns_of(output, width, column, weight.rows);
            product(target, Old::Add, *scaling, low, b.view().transpose());
            next += b.columns;
        }
        column += weight.rows;
    }
}

/// As [`project`], for a few rows: all that is to be computed is shared out among the threads at once.
fn project_few(
    x: &Matrix,
    projections: &[HostProjection],
    low: &[f32],
    old: Old,
    output: &mut [f32],
) {
    let (width, ranks, mut next) = (width(projections), ranks(projections), 0);
    let terms = projections.iter().map(|projection| {
        let mut terms = vec![term(1.0, x.values(), &projection.weight)];
        if let Some((_, b, scaling)) = &projection.adapter {
            let mut branch = term(*scaling, &low[next..], b);
            (branch.x.count, branch.x.stride) = (x.rows, ranks);
            terms.push(branch);
            next += b.columns;
        }
        terms
    });
    compute(beside(output, width, old, terms));
}

/// `x A^T` of all branches.
fn low_of_few(x: &Matrix, projections: &[HostProjection], low: &mut [f32]) {
    let adapters = projections.iter().filter_map(|p| p.adapter.as_ref());
    let terms = adapters.map(|(a, ..)| vec![term(1.0, x.values(), a)]);
    compute(beside(low, ranks(projections), Old::Replace, terms));
}

fn term<'a>(factor: f32, x: &'a [f32], weight: &'a Matrix) -> Term<'a> {
    Term {
        factor,
        x: Rows::of(x, weight.columns),
        w: Rows::of(weight.values(), weight.columns),
    }
}

/// Results side by side in rows of `width` values, each as wide as its terms.
fn beside<'a>(
    output: &'a mut [f32],
    width: usize,
    old: Old,
    terms: impl Iterator<Item = Vec<Term<'a>>>,
) -> Vec<Output<'a>> {
    let mut rest = columns_of(output, width, 0, width);
    let mut outputs = Vec::new();
    for terms in terms {
        let (target, right) = rest.split_at_col_mut(terms[0].w.count);
        rest = right;
        outputs.push(Output { target, old, terms });
    }
    outputs
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
    let (width, ranks, d_in, tokens) = (width(projections), ranks(projections), x.columns, x.rows);
    // Each is replaced as a whole by the first product that goes there.
    let mut d_low = written(tokens * ranks, |_| ());
    let mut d_x = needs_x.then(|| written(tokens * d_in, |_| ()));
    let (mut column, mut next, mut old) = (0, 0, Old::Replace);
    let mut d_bs = Vec::new();
    for projection in projections {
        let d_out = projection.weight.rows;
        let dy = strided(&grad[column..], tokens, d_out, width);
        if let Some(d_x) = &mut d_x {
            let target = columns_of(d_x, d_in, 0, d_in);
            product(target, old, 1.0, dy, projection.weight.view());
            old = Old::Add;
        }
        if let Some((_, b, scaling)) = &projection.adapter {
            let rank = b.columns;
            let target = columns_of(&mut d_low, ranks, next, rank);
            product(target, Old::Replace, *scaling, dy, b.view());
            let mut d_b = vec![0f32; d_out * rank];
            let low = strided(&low[next..], tokens, rank, ranks);
            let target = columns_of(&mut d_b, rank, 0, rank);
            product(target, Old::Replace, *scaling, dy.transpose(), low);
            d_bs.push(d_b);
            next += rank;
        }
        column += d_out;
    }
    let mut d_a = vec![0f32; ranks * d_in];
    if ranks > 0 {
        let d_low = rows(&d_low, ranks);
        if let Some(d_x) = &mut d_x {
            let a = stacked(projections);
            let target = columns_of(d_x, d_in, 0, d_in);
            product(target, Old::Add, 1.0, d_low, rows(&a, d_in));
        }
        let target = columns_of(&mut d_a, d_in, 0, d_in);
        product(target, Old::Replace, 1.0, d_low.transpose(), x.view());
    }
    let mut rest = d_a.as_slice();
    let adapted = projections.iter().map(HostProjection::rank);
    let adapters = adapted.filter(|r| *r > 0).zip(d_bs).map(|(rank, d_b)| {
        let (d_a, left) = rest.split_at(rank * d_in);
        rest = left;
        [d_a.to_vec(), d_b]
    });
    let adapters = adapters.collect();
    HostGrads { x: d_x, adapters }
}
