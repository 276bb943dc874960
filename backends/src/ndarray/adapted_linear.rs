//! Projections with their branches on slices: see [`crate::ops::adapted_linear`].

use std::ops::Range;

use faer::MatMut;
use rayon::prelude::*;

use super::awake::keep_awake;
use super::few_rows::{FEW, Output, Rows, Term, Weights, compute};
use super::gemm::{Old, Product, ROWS_A_THREAD, View, columns_of, product, product_here, rows};
use super::matrix::{Matrix, split, written};
use super::packed::{HostPacked, times, times_transposed};

/// A projection's weights.
pub(super) struct HostProjection {
    /// `[D_out, D_in]`
    pub(super) weight: HostWeight,
    /// `a` `[r, D_in]`, `b` `[D_out, r]` and the scaling.
    pub(super) adapter: Option<(Matrix, Matrix, f32)>,
}

/// A weight on slices.
pub(super) enum HostWeight {
    Float(Matrix),
    Packed(Box<HostPacked>),
}

impl HostWeight {
    /// `D_out`
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Float(weight) => weight.rows,
            Self::Packed(weight) => weight.rows,
        }
    }

    /// `D_in`
    pub(super) fn columns(&self) -> usize {
        match self {
            Self::Float(weight) => weight.columns,
            Self::Packed(weight) => weight.columns,
        }
    }

    /// Row `index` into `row`.
    pub(super) fn copy_row(&self, index: usize, row: &mut [f32]) {
        match self {
            Self::Float(weight) => row.copy_from_slice(weight.row(index)),
            Self::Packed(weight) => weight.unpack_row(index, row),
        }
    }

    /// `x W^T` to `target`: floats by `product`, packed ones on all threads.
    pub(super) fn times_transposed(
        &self,
        product: Product,
        target: MatMut<'_, f32>,
        old: Old,
        x: View<'_>,
    ) {
        match self {
            Self::Float(weight) => product(target, old, 1.0, x, weight.view().transpose()),
            Self::Packed(weight) => times_transposed(target, old, x, weight),
        }
    }

    /// `factor * y W` to `target`: floats by `product`, packed ones on all threads.
    pub(super) fn times(
        &self,
        product: Product,
        target: MatMut<'_, f32>,
        old: Old,
        factor: f32,
        y: View<'_>,
    ) {
        match self {
            Self::Float(weight) => product(target, old, factor, y, weight.view()),
            Self::Packed(weight) => times(target, old, factor, y, weight),
        }
    }
}

impl HostProjection {
    fn rank(&self) -> usize {
        self.adapter.as_ref().map_or(0, |(a, ..)| a.rows)
    }
}

/// Columns of all projections side by side.
pub(super) fn width(projections: &[HostProjection]) -> usize {
    projections.iter().map(|p| p.weight.rows()).sum()
}

/// Ranks of all branches together.
pub(super) fn ranks(projections: &[HostProjection]) -> usize {
    projections.iter().map(HostProjection::rank).sum()
}

fn any_packed(projections: &[HostProjection]) -> bool {
    let packed = |p: &HostProjection| matches!(p.weight, HostWeight::Packed(_));
    projections.iter().any(packed)
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
    let old = match residual {
        Some(_) => Old::Add,
        None => Old::Replace,
    };
    let mut output = residual.unwrap_or_else(|| written(x.rows * width, |_| ()));
    let mut low = written(x.rows * ranks, |_| ());
    if x.rows <= FEW {
        low_of_few(x, projections, &mut low);
        project_few(x, projections, &low, old, &mut output);
        return (output, low);
    }
    let (a, together) = (stacked(projections), any_packed(projections));
    by_rows(
        (x.rows, together),
        [(&mut output, width), (&mut low, ranks)],
        |part, [output, low]| {
            let x = rows_of(x, &part);
            if ranks > 0 {
                let target = columns_of(low, ranks, 0, ranks);
                let a = rows(&a, x.ncols()).transpose();
                (part.product)(target, Old::Replace, 1.0, x, a);
            }
            let (mut column, mut next) = (0, 0);
            for HostProjection { weight, adapter } in projections {
                let target = columns_of(output, width, column, weight.rows());
                weight.times_transposed(part.product, target, old, x);
                if let Some((_, b, scaling)) = adapter {
                    let low = rows(low, ranks).subcols(next, b.columns);
                    let target = columns_of(output, width, column, weight.rows());
                    (part.product)(target, Old::Add, *scaling, low, b.view().transpose());
                    next += b.columns;
                }
                column += weight.rows();
            }
        },
    );
    (output, low)
}

/// Rows one thread computes, and how.
struct Part {
    rows: Range<usize>,
    product: Product,
}

/// Shares rows out among the threads, each of which does all of `f` for its own: threads meet once, not at every product.
/// Few rows stay together, and their products are shared out; so do those that meet packed weights, of which every tile is
/// to be unpacked once.
///
/// `outputs` are written row by row; each comes with the length of a row.
fn by_rows(
    (count, together): (usize, bool),
    [first, second]: [(&mut Vec<f32>, usize); 2],
    f: impl Fn(Part, [&mut [f32]; 2]) + Sync,
) {
    let threads = rayon::current_num_threads();
    if threads == 1 || together || count < ROWS_A_THREAD * threads {
        let (rows, product) = (0..count, product as Product);
        return f(Part { rows, product }, [first.0, second.0]);
    }
    let lengths: Vec<usize> = (0..threads)
        .map(|thread| (thread + 1) * count / threads - thread * count / threads)
        .collect();
    let parts = split(first.0, &lengths, first.1).into_par_iter();
    let parts = parts.zip(split(second.0, &lengths, second.1)).enumerate();
    parts.for_each(|(thread, (first, second))| {
        let start = thread * count / threads;
        let (rows, product) = (start..start + lengths[thread], product_here as Product);
        f(Part { rows, product }, [first, second]);
    });
    // The next operation follows soon.
    keep_awake();
}

fn rows_of<'a>(matrix: &'a Matrix, part: &Part) -> View<'a> {
    matrix.view().subrows(part.rows.start, part.rows.len())
}

/// All projections of a few rows: all that is to be computed is shared out among the threads at once.
fn project_few(
    x: &Matrix,
    projections: &[HostProjection],
    low: &[f32],
    old: Old,
    output: &mut [f32],
) {
    let (width, ranks, mut next) = (width(projections), ranks(projections), 0);
    let terms = projections.iter().map(|projection| {
        let of_weight = match &projection.weight {
            HostWeight::Float(weight) => term(1.0, x.values(), weight),
            HostWeight::Packed(weight) => Term {
                factor: 1.0,
                x: Rows::of(x.values(), weight.columns),
                w: Weights::Packed(weight, 0),
            },
        };
        let mut terms = vec![of_weight];
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
        w: Weights::Floats(Rows::of(weight.values(), weight.columns)),
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
        let (target, right) = rest.split_at_col_mut(terms[0].w.count());
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

/// See [`crate::ops::adapted_linear::reference_backward`]; `inputs`, x and `x A^T`, are given where there are branches.
pub(super) fn backward(
    inputs: Option<&(Matrix, Matrix)>,
    projections: &[HostProjection],
    grad: &Matrix,
    needs_x: bool,
) -> HostGrads {
    let (ranks, d_in) = (ranks(projections), width_of_input(projections));
    let of_x = if needs_x { d_in } else { 0 };
    let mut d_low = written(grad.rows * ranks, |_| ());
    let mut d_x = written(grad.rows * of_x, |_| ());
    let (a, together) = (stacked(projections), any_packed(projections));
    by_rows(
        (grad.rows, together),
        [(&mut d_low, ranks), (&mut d_x, of_x)],
        |part, [d_low, d_x]| {
            let grad = rows_of(grad, &part);
            for branch in branches(projections) {
                let dy = grad.subcols(branch.column, branch.b.rows);
                let target = columns_of(d_low, ranks, branch.first, branch.b.columns);
                (part.product)(target, Old::Replace, branch.scaling, dy, branch.b.view());
            }
            if !needs_x {
                return;
            }
            let (mut column, mut old) = (0, Old::Replace);
            for HostProjection { weight, .. } in projections {
                let dy = grad.subcols(column, weight.rows());
                let target = columns_of(d_x, d_in, 0, d_in);
                weight.times(part.product, target, old, 1.0, dy);
                (column, old) = (column + weight.rows(), Old::Add);
            }
            if ranks > 0 {
                let target = columns_of(d_x, d_in, 0, d_in);
                (part.product)(target, old, 1.0, rows(d_low, ranks), rows(&a, d_in));
            }
        },
    );
    let adapters = inputs.map_or(Vec::new(), |(x, low)| {
        let d_a = gradients_of_a(projections, x, &d_low);
        d_a.into_iter()
            .zip(gradients_of_b(projections, low, grad))
            .map(|(d_a, d_b)| [d_a, d_b])
            .collect()
    });
    HostGrads {
        x: needs_x.then_some(d_x),
        adapters,
    }
}

/// `d_low^T x`, branch by branch, `[r, D_in]` each.
fn gradients_of_a(projections: &[HostProjection], x: &Matrix, d_low: &[f32]) -> Vec<Vec<f32>> {
    let (ranks, d_in) = (ranks(projections), x.columns);
    let all = written(ranks * d_in, |all| {
        let target = columns_of(all, d_in, 0, d_in);
        let d_low = rows(d_low, ranks).transpose();
        product(target, Old::Replace, 1.0, d_low, x.view());
    });
    let of = |branch: Branch<'_>| all[branch.first * d_in..][..branch.b.columns * d_in].to_vec();
    branches(projections).map(of).collect()
}

/// `s dy^T low`, branch by branch, `[D_out, r]` each: computed as `low^T dy`, whose rows are long, and turned.
fn gradients_of_b(projections: &[HostProjection], low: &Matrix, grad: &Matrix) -> Vec<Vec<f32>> {
    let of = |branch: Branch<'_>| {
        let (d_out, rank) = (branch.b.rows, branch.b.columns);
        let low = low.view().subcols(branch.first, rank).transpose();
        let dy = grad.view().subcols(branch.column, d_out);
        let turned = written(rank * d_out, |turned| {
            let target = columns_of(turned, d_out, 0, d_out);
            product(target, Old::Replace, branch.scaling, low, dy);
        });
        written(d_out * rank, |d_b| {
            for (i, row) in turned.chunks_exact(d_out).enumerate() {
                for (value, of_out) in row.iter().zip(d_b.chunks_exact_mut(rank)) {
                    of_out[i] = *value;
                }
            }
        })
    };
    branches(projections).map(of).collect()
}

/// A branch among those of several projections.
struct Branch<'a> {
    b: &'a Matrix,
    scaling: f32,
    /// Where its projection's output begins.
    column: usize,
    /// Where its `x A^T` begins among those of all.
    first: usize,
}

fn branches(projections: &[HostProjection]) -> impl Iterator<Item = Branch<'_>> {
    let (mut next_column, mut next) = (0, 0);
    projections.iter().filter_map(move |projection| {
        let (column, first) = (next_column, next);
        next_column += projection.weight.rows();
        next += projection.rank();
        let (_, b, scaling) = projection.adapter.as_ref()?;
        Some(Branch {
            b,
            scaling: *scaling,
            column,
            first,
        })
    })
}

fn width_of_input(projections: &[HostProjection]) -> usize {
    projections.first().map_or(0, |p| p.weight.columns())
}
