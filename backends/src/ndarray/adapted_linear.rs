//! Projections with their branches on slices: see [`crate::ops::adapted_linear`].

use std::ops::Range;

use faer::MatMut;
use rayon::prelude::*;

use super::awake::keep_awake;
use super::few_rows::{FEW, Output, Rows, Term, Weights, compute};
use super::gemm::{
    Old, Product, ROWS_A_THREAD, View, columns_of, product, product_here, rows, strided,
};
use super::matrix::{Matrix, split, written};
use super::packed::{HostPacked, times, times_transposed};
use super::tile::{self, tall_product};
use super::vector::LANES;

/// Columns of a result that are computed together where a branch is added to them: of a thread's rows of a pass, what
/// fits the second cache.
const STRIP: usize = 128;

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
        self.outputs(0..self.rows(), product, target, old, x);
    }

    /// The outputs `rows` of [`Self::times_transposed`]; of packed weights, all.
    fn outputs(
        &self,
        rows: Range<usize>,
        product: Product,
        target: MatMut<'_, f32>,
        old: Old,
        x: View<'_>,
    ) {
        match self {
            Self::Float(weight) => {
                let weight = weight.view().subrows(rows.start, rows.len());
                product(target, old, 1.0, x, weight.transpose());
            }
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
        self.inputs(0..self.columns(), product, target, old, factor, y);
    }

    /// The inputs `columns` of [`Self::times`]; of packed weights, all.
    fn inputs(
        &self,
        columns: Range<usize>,
        product: Product,
        target: MatMut<'_, f32>,
        old: Old,
        factor: f32,
        y: View<'_>,
    ) {
        match self {
            Self::Float(weight) => {
                let weight = weight.view().subcols(columns.start, columns.len());
                product(target, old, factor, y, weight);
            }
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

/// Rows and columns exchanged; `values` are rows of `columns`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let count = values.len() / columns.max(1);
    written(values.len(), |target| {
        for (column, row) in target.chunks_exact_mut(count.max(1)).enumerate() {
            for (value, from) in row.iter_mut().zip(values.chunks_exact(columns)) {
                *value = from[column];
            }
        }
    })
}

/// Output `[T, width]` and `x A^T` `[T, ranks]`.
pub(super) fn forward(
    x: &Matrix,
    projections: &[HostProjection],
    residual: Option<Matrix>,
) -> (Vec<f32>, Vec<f32>) {
    let (width, ranks) = (width(projections), ranks(projections));
    let old = match residual {
        Some(_) => Old::Add,
        None => Old::Replace,
    };
    let output = || written(x.rows * width, |_| ());
    // What somebody else holds too is copied, by each thread its own rows, shortly before they are added to.
    let (mut output, residual) = match residual.map(Matrix::into_own_values) {
        None => (output(), None),
        Some(Ok(values)) => (values, None),
        Some(Err(shared)) => (output(), Some(shared)),
    };
    let copy = |rows: &Range<usize>, output: &mut [f32]| {
        if let Some(shared) = &residual {
            output.copy_from_slice(&shared.values()[rows.start * width..rows.end * width]);
        }
    };
    let mut low = written(x.rows * ranks, |_| ());
    if x.rows <= FEW {
        copy(&(0..x.rows), &mut output);
        low_of_few(x, projections, &mut low);
        project_few(x, projections, &low, old, &mut output);
        return (output, low);
    }
    let a = transposed(&stacked(projections), x.columns);
    by_rows(
        (x.rows, any_packed(projections)),
        [(&mut output, width), (&mut low, ranks)],
        |part, [output, low]| {
            copy(&part.rows, output);
            if ranks > 0 {
                let x = part.of(x.values(), x.columns);
                let shape = [part.rows.len(), x.stride, ranks];
                part.thin(
                    (low, ranks, 0),
                    shape,
                    Old::Replace,
                    1.0,
                    [x, all(&a, ranks)],
                );
            }
            part.project(rows_of(x, &part), projections, all(low, ranks), old, output);
        },
    );
    (output, low)
}

/// Rows one thread computes, and how.
struct Part {
    rows: Range<usize>,
    product: Product,
    /// Whether other threads compute other rows.
    alone: bool,
    /// Whether columns of the result may be computed some after others.
    strips: bool,
}

impl Part {
    /// Ranges of a result's columns, one after another. Where a branch is added, they are so few that the result is still
    /// in the cache when it is.
    fn strips(&self, columns: usize, branch: bool) -> impl Iterator<Item = Range<usize>> {
        let width = match self.strips && branch {
            true => STRIP,
            false => columns.max(1),
        };
        let starts = (0..columns).step_by(width);
        starts.map(move |start| start..columns.min(start + width))
    }

    /// All projections of these rows, `x`, with their branches, of which `low` is `x A^T`.
    fn project(
        &self,
        x: View<'_>,
        projections: &[HostProjection],
        low: tile::Rows<'_>,
        old: Old,
        output: &mut [f32],
    ) {
        let (width, mut column, mut first) = (width(projections), 0, 0);
        for HostProjection { weight, adapter } in projections {
            let d_out = weight.rows();
            let branch = adapter.as_ref().map(|(_, b, scaling)| {
                let low = from(low.values, low.stride, first);
                first += b.columns;
                (transposed(b.values(), b.columns), low, b.columns, *scaling)
            });
            for strip in self.strips(d_out, branch.is_some()) {
                let (start, len) = (column + strip.start, strip.len());
                let target = columns_of(output, width, start, len);
                weight.outputs(strip.clone(), self.product, target, old, x);
                if let Some((b_t, low, rank, scaling)) = &branch {
                    let target = (&mut *output, width, start);
                    let operands = [*low, from(b_t, d_out, strip.start)];
                    self.thin(
                        target,
                        [x.nrows(), *rank, len],
                        Old::Add,
                        *scaling,
                        operands,
                    );
                }
            }
            column += d_out;
        }
    }

    /// These rows of `values`, all of `columns`.
    fn of<'a>(&self, values: &'a [f32], columns: usize) -> tile::Rows<'a> {
        let values = &values[self.rows.start * columns..self.rows.end * columns];
        all(values, columns)
    }

    /// `target = factor * left right`, or added to it, `[rows, depth, columns]`, where one of the last two is a rank; the
    /// target begins at a column of rows that are `stride` long.
    fn thin(
        &self,
        (target, stride, column): (&mut [f32], usize, usize),
        [rows, depth, columns]: [usize; 3],
        old: Old,
        factor: f32,
        [left, right]: [tile::Rows<'_>; 2],
    ) {
        if self.alone && columns.is_multiple_of(LANES) {
            let shape = [rows, depth, columns];
            return tall_product(
                (&mut target[column..], stride),
                shape,
                old,
                factor,
                left,
                right,
            );
        }
        let target = columns_of(target, stride, column, columns);
        let left = strided(left.values, rows, depth, left.stride);
        let right = strided(right.values, depth, columns, right.stride);
        (self.product)(target, old, factor, left, right);
    }
}

/// `values` in rows of `columns`.
fn all(values: &[f32], columns: usize) -> tile::Rows<'_> {
    from(values, columns, 0)
}

/// The columns from `column` on of rows that are `stride` long.
fn from(values: &[f32], stride: usize, column: usize) -> tile::Rows<'_> {
    let values = values.get(column..).unwrap_or_default();
    tile::Rows { values, stride }
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
        let part = Part {
            rows: 0..count,
            product,
            alone: threads == 1,
            strips: threads == 1 && !together,
        };
        return f(part, [first.0, second.0]);
    }
    let lengths: Vec<usize> = (0..threads)
        .map(|thread| (thread + 1) * count / threads - thread * count / threads)
        .collect();
    let parts = split(first.0, &lengths, first.1).into_par_iter();
    let parts = parts.zip(split(second.0, &lengths, second.1)).enumerate();
    parts.for_each(|(thread, (first, second))| {
        let start = thread * count / threads;
        let part = Part {
            rows: start..start + lengths[thread],
            product: product_here,
            alone: true,
            strips: true,
        };
        f(part, [first, second]);
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
            let rows_here = part.of(grad.values(), grad.columns);
            let grad = rows_of(grad, &part);
            for branch in branches(projections) {
                let shape = [part.rows.len(), branch.b.rows, branch.b.columns];
                let dy = from(rows_here.values, rows_here.stride, branch.column);
                let target = (&mut *d_low, ranks, branch.first);
                let operands = [dy, all(branch.b.values(), branch.b.columns)];
                part.thin(target, shape, Old::Replace, branch.scaling, operands);
            }
            if !needs_x {
                return;
            }
            for strip in part.strips(d_in, ranks > 0) {
                let (mut column, mut old) = (0, Old::Replace);
                for HostProjection { weight, .. } in projections {
                    let dy = grad.subcols(column, weight.rows());
                    let target = columns_of(d_x, d_in, strip.start, strip.len());
                    weight.inputs(strip.clone(), part.product, target, old, 1.0, dy);
                    (column, old) = (column + weight.rows(), Old::Add);
                }
                if ranks > 0 {
                    let shape = [part.rows.len(), ranks, strip.len()];
                    let target = (&mut *d_x, d_in, strip.start);
                    let operands = [all(d_low, ranks), from(&a, d_in, strip.start)];
                    part.thin(target, shape, old, 1.0, operands);
                }
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
