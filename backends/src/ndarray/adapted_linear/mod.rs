//! Projections with their branches on slices: see [`crate::ops::adapted_linear`].

mod few;
mod weight;

use std::ops::Range;

use faer::reborrow::ReborrowMut;
use rayon::prelude::*;

use self::weight::{Branch, any_packed, branches, inputs, outputs, stacked, width_of_input};
use super::awake::keep_awake;
use super::exchange::exchange;
use super::few_rows::FEW;
use super::gemm::{Old, ROWS_A_THREAD, columns_of, rows_mut};
use super::matrix::{Matrix, split, written};
use super::panel::{Term, sum_of};
use super::tile::{Operand, Rows};

pub(super) use self::weight::{HostProjection, HostWeight, ranks, width};

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
        few::low(x, projections, &mut low);
        few::project(x, projections, &low, old, &mut output);
        return (output, low);
    }
    let a = stacked(projections);
    by_rows(
        (x.rows, any_packed(projections)),
        [(&mut output, width), (&mut low, ranks)],
        |part, [output, low]| {
            copy(&part.rows, output);
            let x = part.of(x.values(), x.columns);
            if ranks > 0 {
                let term = Term {
                    left: x,
                    right: Operand::Transposed(Rows::all(&a, x.stride)),
                    depth: x.stride,
                    factor: 1.0,
                };
                let target = rows_mut(low, ranks);
                sum_of(target, Old::Replace, &[term], part.threads);
            }
            part.project(x, projections, Rows::all(low, ranks), old, output);
        },
    );
    (output, low)
}

/// Rows that are computed together, and by how many threads.
struct Part {
    rows: Range<usize>,
    threads: usize,
}

impl Part {
    /// All projections of these rows, `x`, with their branches, of which `low` is `x A^T`.
    fn project(
        &self,
        x: Rows<'_>,
        projections: &[HostProjection],
        low: Rows<'_>,
        old: Old,
        output: &mut [f32],
    ) {
        let (width, mut column, mut first) = (width(projections), 0, 0);
        for HostProjection { weight, adapter } in projections {
            let mut target = columns_of(output, width, column, weight.rows());
            let (mut terms, mut old) = (Vec::new(), old);
            match weight {
                HostWeight::Float(weight) => terms.push(outputs(x, weight)),
                HostWeight::Packed(_) => {
                    weight.times_transposed(target.rb_mut(), old, x);
                    old = Old::Add;
                }
            }
            if let Some((_, b, scaling)) = adapter {
                terms.push(Term { factor: *scaling, ..outputs(low.from(0, first), b) });
                first += b.columns;
            }
            if !terms.is_empty() {
                sum_of(target, old, &terms, self.threads);
            }
            column += weight.rows();
        }
    }

    /// `dy` through all projections and their branches, of which `d_low` is the gradient of `x A^T`.
    fn project_back(
        &self,
        dy: Rows<'_>,
        projections: &[HostProjection],
        (d_low, a): (Rows<'_>, &[f32]),
        d_x: &mut [f32],
    ) {
        let d_in = width_of_input(projections);
        let mut target = rows_mut(d_x, d_in);
        let (mut terms, mut old, mut column) = (Vec::new(), Old::Replace, 0);
        for HostProjection { weight, .. } in projections {
            let dy = dy.from(0, column);
            match weight {
                HostWeight::Float(weight) => terms.push(inputs(dy, weight)),
                HostWeight::Packed(_) => {
                    weight.times(target.rb_mut(), old, 1.0, dy);
                    old = Old::Add;
                }
            }
            column += weight.rows();
        }
        if !a.is_empty() {
            terms.push(Term {
                left: d_low,
                right: Operand::AsItIs(Rows::all(a, d_in)),
                depth: d_low.stride,
                factor: 1.0,
            });
        }
        if !terms.is_empty() {
            sum_of(target, old, &terms, self.threads);
        }
    }

    /// These rows of `values`, all of `columns`.
    fn of<'a>(&self, values: &'a [f32], columns: usize) -> Rows<'a> {
        let values = &values[self.rows.start * columns..self.rows.end * columns];
        Rows::all(values, columns)
    }
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
        let part = Part { rows: 0..count, threads };
        return f(part, [first.0, second.0]);
    }
    let lengths: Vec<usize> = (0..threads)
        .map(|thread| (thread + 1) * count / threads - thread * count / threads)
        .collect();
    let parts = split(first.0, &lengths, first.1).into_par_iter();
    let parts = parts.zip(split(second.0, &lengths, second.1)).enumerate();
    parts.for_each(|(thread, (first, second))| {
        let start = thread * count / threads;
        let part = Part { rows: start..start + lengths[thread], threads: 1 };
        f(part, [first, second]);
    });
    // The next operation follows soon.
    keep_awake();
}

/// Gradients of x, if it is needed, and of each branch's `a` and `b`.
pub(super) struct HostGrads {
    pub(super) x: Option<Vec<f32>>,
    pub(super) adapters: Vec<[Vec<f32>; 2]>,
}

/// See [`crate::ops::adapted_linear::reference_backward`]; `saved`, x and `x A^T`, are given where there are branches.
pub(super) fn backward(
    saved: Option<&(Matrix, Matrix)>,
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
            let dy = part.of(grad.values(), grad.columns);
            for branch in branches(projections) {
                let term =
                    Term { factor: branch.scaling, ..inputs(dy.from(0, branch.column), branch.b) };
                let target = columns_of(d_low, ranks, branch.first, branch.b.columns);
                sum_of(target, Old::Replace, &[term], part.threads);
            }
            if needs_x {
                let d_low = Rows::all(d_low, ranks);
                part.project_back(dy, projections, (d_low, &a), d_x);
            }
        },
    );
    let adapters = saved.map_or(Vec::new(), |(x, low)| {
        let d_a = gradients_of_a(projections, x, &d_low);
        d_a.into_iter()
            .zip(gradients_of_b(projections, low, grad))
            .map(|(d_a, d_b)| [d_a, d_b])
            .collect()
    });
    HostGrads { x: needs_x.then_some(d_x), adapters }
}

/// `d_low^T x`, branch by branch, `[r, D_in]` each.
fn gradients_of_a(projections: &[HostProjection], x: &Matrix, d_low: &[f32]) -> Vec<Vec<f32>> {
    let (ranks, d_in) = (ranks(projections), x.columns);
    let turned = turned(d_low, ranks);
    let all = written(ranks * d_in, |all| {
        let term = Term {
            left: Rows::all(&turned, x.rows),
            right: Operand::AsItIs(Rows::all(x.values(), d_in)),
            depth: x.rows,
            factor: 1.0,
        };
        let target = rows_mut(all, d_in);
        sum_of(target, Old::Replace, &[term], rayon::current_num_threads());
    });
    let of = |branch: Branch<'_>| all[branch.first * d_in..][..branch.b.columns * d_in].to_vec();
    branches(projections).map(of).collect()
}

/// `s dy^T low`, branch by branch, `[D_out, r]` each: computed as `low^T dy`, whose rows are long, and turned.
fn gradients_of_b(projections: &[HostProjection], low: &Matrix, grad: &Matrix) -> Vec<Vec<f32>> {
    let low = (turned(low.values(), low.columns), low.rows);
    let of = |branch: Branch<'_>| {
        let (d_out, rank) = (branch.b.rows, branch.b.columns);
        let term = Term {
            left: Rows::all(&low.0, low.1).from(branch.first, 0),
            right: Operand::AsItIs(Rows::all(grad.values(), grad.columns).from(0, branch.column)),
            depth: low.1,
            factor: branch.scaling,
        };
        let d_b = written(rank * d_out, |d_b| {
            let target = rows_mut(d_b, d_out);
            sum_of(target, Old::Replace, &[term], rayon::current_num_threads());
        });
        turned(&d_b, d_out)
    };
    branches(projections).map(of).collect()
}

/// Rows of `columns` values, with rows and columns exchanged.
fn turned(values: &[f32], columns: usize) -> Vec<f32> {
    let count = values.len() / columns.max(1);
    written(values.len(), |target| {
        let from = Rows::all(values, columns);
        exchange(from, [count, columns], 1.0, target, count);
    })
}
