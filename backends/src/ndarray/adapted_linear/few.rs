//! Projections of a few rows: all their GEMMs are distributed over the threads at once.

use super::weight::{HostProjection, HostWeight, ranks, width};
use crate::ndarray::few_rows::{Output, RowBlock, Term, Weights, compute};
use crate::ndarray::gemm::{WriteMode, rows_mut};
use crate::ndarray::matrix::Matrix;

/// Computes all projections with their branches; `low` is `x A^T`.
pub(super) fn project(
    x: &Matrix,
    projections: &[HostProjection],
    low: &[f32],
    mode: WriteMode,
    output: &mut [f32],
) {
    let (width, ranks, mut next) = (width(projections), ranks(projections), 0);
    let terms = projections.iter().map(|projection| {
        let base = match &projection.weight {
            HostWeight::Float(weight) => term(1.0, x.values(), weight),
            HostWeight::Packed(weight) => Term {
                factor: 1.0,
                x: RowBlock::of(x.values(), weight.columns),
                w: Weights::Packed(weight, 0),
            },
        };
        let mut terms = vec![base];
        if let Some((_, b, scaling)) = &projection.adapter {
            let mut branch = term(*scaling, &low[next..], b);
            (branch.x.count, branch.x.rows.stride) = (x.rows, ranks);
            terms.push(branch);
            next += b.columns;
        }
        terms
    });
    compute(side_by_side(output, width, mode, terms));
}

/// Computes `x A^T` of all branches.
pub(super) fn low(x: &Matrix, projections: &[HostProjection], low: &mut [f32]) {
    let adapters = projections.iter().filter_map(|p| p.adapter.as_ref());
    let terms = adapters.map(|(a, ..)| vec![term(1.0, x.values(), a)]);
    compute(side_by_side(low, ranks(projections), WriteMode::Overwrite, terms));
}

/// Returns the term `factor * x W^T`.
fn term<'a>(factor: f32, x: &'a [f32], weight: &'a Matrix) -> Term<'a> {
    Term {
        factor,
        x: RowBlock::of(x, weight.columns),
        w: Weights::Floats(RowBlock::of(weight.values(), weight.columns)),
    }
}

/// Returns outputs side by side in rows of `width` values, each as wide as the weights of its
/// terms.
fn side_by_side<'a>(
    output: &'a mut [f32],
    width: usize,
    mode: WriteMode,
    terms: impl Iterator<Item = Vec<Term<'a>>>,
) -> Vec<Output<'a>> {
    let mut rest = rows_mut(output, width);
    let mut outputs = Vec::new();
    for terms in terms {
        let (target, right) = rest.split_at_col_mut(terms[0].w.count());
        rest = right;
        outputs.push(Output { target, mode, terms });
    }
    outputs
}
