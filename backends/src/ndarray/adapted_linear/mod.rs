//! Projections with LoRA branches on slices (see [`crate::ops::adapted_linear`]).

mod few;
mod weight;

use std::ops::Range;

use faer::reborrow::ReborrowMut;
use rayon::prelude::*;

use self::weight::{Branch, any_quantized, branches, input_width, inputs, outputs, stacked_a};
use super::awake::keep_awake;
use super::few_rows::MAX_FEW_ROWS;
use super::gemm::{MIN_ROWS_PER_THREAD, WriteMode, columns_mut, rows_mut};
use super::matrix::{Matrix, filled, split};
use super::panel::{Term, gemm_sum};
use super::tile::{Operand, Rows};
use super::transpose::transpose;

pub(super) use self::weight::{HostProjection, HostWeight, ranks, width};

/// Returns the output `[T, width]` and `x A^T` `[T, ranks]`.
pub(super) fn forward(
    x: &Matrix,
    projections: &[HostProjection],
    residual: Option<Matrix>,
) -> (Vec<f32>, Vec<f32>) {
    let (width, ranks) = (width(projections), ranks(projections));
    let mode = match residual {
        Some(_) => WriteMode::Add,
        None => WriteMode::Overwrite,
    };
    let output = || filled(x.rows * width, |_| ());
    // A shared residual is copied: each thread copies its own rows shortly before it adds to them.
    let (mut output, residual) = match residual.map(Matrix::try_into_values) {
        None => (output(), None),
        Some(Ok(values)) => (values, None),
        Some(Err(shared)) => (output(), Some(shared)),
    };
    let copy = |rows: &Range<usize>, output: &mut [f32]| {
        if let Some(shared) = &residual {
            output.copy_from_slice(&shared.values()[rows.start * width..rows.end * width]);
        }
    };
    let mut low = filled(x.rows * ranks, |_| ());
    if x.rows <= MAX_FEW_ROWS {
        copy(&(0..x.rows), &mut output);
        few::low(x, projections, &mut low);
        few::project(x, projections, &low, mode, &mut output);
        return (output, low);
    }
    let a = stacked_a(projections);
    by_rows(
        (x.rows, any_quantized(projections)),
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
                gemm_sum(target, WriteMode::Overwrite, &[term], part.threads);
            }
            part.project(x, projections, Rows::all(low, ranks), mode, output);
        },
    );
    (output, low)
}

/// Rows that are computed together, and the number of threads for them.
struct Part {
    rows: Range<usize>,
    threads: usize,
}

impl Part {
    /// Computes all projections of the rows `x` with their branches; `low` is `x A^T`.
    fn project(
        &self,
        x: Rows<'_>,
        projections: &[HostProjection],
        low: Rows<'_>,
        mode: WriteMode,
        output: &mut [f32],
    ) {
        let (width, mut column, mut first) = (width(projections), 0, 0);
        for HostProjection { weight, adapter } in projections {
            let mut target = columns_mut(output, width, column, weight.rows());
            let (mut terms, mut mode) = (Vec::new(), mode);
            match weight {
                HostWeight::Float(weight) => terms.push(outputs(x, weight)),
                HostWeight::Packed(_) => {
                    weight.times_transposed(target.rb_mut(), mode, x);
                    mode = WriteMode::Add;
                }
            }
            if let Some((_, b, scaling)) = adapter {
                terms.push(Term { factor: *scaling, ..outputs(low.from(0, first), b) });
                first += b.columns;
            }
            if !terms.is_empty() {
                gemm_sum(target, mode, &terms, self.threads);
            }
            column += weight.rows();
        }
    }

    /// Computes the input gradient of all projections and their branches; `d_low` is the gradient
    /// of `x A^T`.
    fn project_back(
        &self,
        dy: Rows<'_>,
        projections: &[HostProjection],
        (d_low, a): (Rows<'_>, &[f32]),
        d_x: &mut [f32],
    ) {
        let d_in = input_width(projections);
        let mut target = rows_mut(d_x, d_in);
        let (mut terms, mut mode, mut column) = (Vec::new(), WriteMode::Overwrite, 0);
        for HostProjection { weight, .. } in projections {
            let dy = dy.from(0, column);
            match weight {
                HostWeight::Float(weight) => terms.push(inputs(dy, weight)),
                HostWeight::Packed(_) => {
                    weight.times(target.rb_mut(), mode, 1.0, dy);
                    mode = WriteMode::Add;
                }
            }
            column += weight.rows();
        }
        if !a.is_empty() {
            terms.push(Term {
                left: d_low,
                right: Operand::RowMajor(Rows::all(a, d_in)),
                depth: d_low.stride,
                factor: 1.0,
            });
        }
        if !terms.is_empty() {
            gemm_sum(target, mode, &terms, self.threads);
        }
    }

    /// Returns these rows of `values`, which has `columns` columns.
    fn of<'a>(&self, values: &'a [f32], columns: usize) -> Rows<'a> {
        let values = &values[self.rows.start * columns..self.rows.end * columns];
        Rows::all(values, columns)
    }
}

/// Calls `f` with ranges of `count` rows and the same rows of the two outputs. Each thread gets one
/// range, so that threads synchronize once and not after every GEMM.
///
/// Few rows are not divided, and neither are any if `together` is set, as with quantized weights,
/// whose tiles are to be dequantized only once: `f` is then called once and its GEMMs are
/// multithreaded. Each output is passed with the length of a row.
fn by_rows(
    (count, together): (usize, bool),
    [first, second]: [(&mut Vec<f32>, usize); 2],
    f: impl Fn(Part, [&mut [f32]; 2]) + Sync,
) {
    let threads = rayon::current_num_threads();
    if threads == 1 || together || count < MIN_ROWS_PER_THREAD * threads {
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

/// Computes the gradients of projections (see [`crate::ops::adapted_linear::reference_backward`]);
/// `saved`, x and `x A^T`, is given if there are branches.
pub(super) fn backward(
    saved: Option<&(Matrix, Matrix)>,
    projections: &[HostProjection],
    grad: &Matrix,
    needs_x: bool,
) -> HostGrads {
    let (ranks, d_in) = (ranks(projections), input_width(projections));
    let x_width = if needs_x { d_in } else { 0 };
    let mut d_low = filled(grad.rows * ranks, |_| ());
    let mut d_x = filled(grad.rows * x_width, |_| ());
    let (a, together) = (stacked_a(projections), any_quantized(projections));
    by_rows(
        (grad.rows, together),
        [(&mut d_low, ranks), (&mut d_x, x_width)],
        |part, [d_low, d_x]| {
            let dy = part.of(grad.values(), grad.columns);
            for branch in branches(projections) {
                let term =
                    Term { factor: branch.scaling, ..inputs(dy.from(0, branch.column), branch.b) };
                let target = columns_mut(d_low, ranks, branch.first, branch.b.columns);
                gemm_sum(target, WriteMode::Overwrite, &[term], part.threads);
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

/// Returns `d_low^T x` of each branch, `[r, D_in]`.
fn gradients_of_a(projections: &[HostProjection], x: &Matrix, d_low: &[f32]) -> Vec<Vec<f32>> {
    let (ranks, d_in) = (ranks(projections), x.columns);
    let transposed = transposed(d_low, ranks);
    let all = filled(ranks * d_in, |all| {
        let term = Term {
            left: Rows::all(&transposed, x.rows),
            right: Operand::RowMajor(Rows::all(x.values(), d_in)),
            depth: x.rows,
            factor: 1.0,
        };
        let target = rows_mut(all, d_in);
        gemm_sum(target, WriteMode::Overwrite, &[term], rayon::current_num_threads());
    });
    let gradient =
        |branch: Branch<'_>| all[branch.first * d_in..][..branch.b.columns * d_in].to_vec();
    branches(projections).map(gradient).collect()
}

/// Returns `s dy^T low` of each branch, `[D_out, r]`. It is computed as `low^T dy`, whose rows are
/// long, and transposed.
fn gradients_of_b(projections: &[HostProjection], low: &Matrix, grad: &Matrix) -> Vec<Vec<f32>> {
    let low = (transposed(low.values(), low.columns), low.rows);
    let gradient = |branch: Branch<'_>| {
        let (d_out, rank) = (branch.b.rows, branch.b.columns);
        let term = Term {
            left: Rows::all(&low.0, low.1).from(branch.first, 0),
            right: Operand::RowMajor(Rows::all(grad.values(), grad.columns).from(0, branch.column)),
            depth: low.1,
            factor: branch.scaling,
        };
        let d_b = filled(rank * d_out, |d_b| {
            let target = rows_mut(d_b, d_out);
            gemm_sum(target, WriteMode::Overwrite, &[term], rayon::current_num_threads());
        });
        transposed(&d_b, d_out)
    };
    branches(projections).map(gradient).collect()
}

/// Returns the transpose of rows of `columns` values.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let count = values.len() / columns.max(1);
    filled(values.len(), |target| {
        let from = Rows::all(values, columns);
        transpose(from, [count, columns], 1.0, target, count);
    })
}
