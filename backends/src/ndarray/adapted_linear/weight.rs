//! The weights of projections as slices.

use faer::MatMut;

use crate::ndarray::gemm::{WriteMode, strided};
use crate::ndarray::matrix::Matrix;
use crate::ndarray::packed::{HostPacked, times, times_transposed};
use crate::ndarray::panel::{Term, gemm_sum};
use crate::ndarray::tile::{Operand, Rows};

/// The weight and the adapter of a projection.
pub(in crate::ndarray) struct HostProjection {
    /// `[D_out, D_in]`
    pub(in crate::ndarray) weight: HostWeight,
    /// `a` `[r, D_in]`, `b` `[D_out, r]` and the scaling.
    pub(in crate::ndarray) adapter: Option<(Matrix, Matrix, f32)>,
}

/// A weight as slices.
pub(in crate::ndarray) enum HostWeight {
    Float(Matrix),
    Packed(Box<HostPacked>),
}

impl HostWeight {
    /// Returns `D_out`.
    pub(in crate::ndarray) fn rows(&self) -> usize {
        match self {
            Self::Float(weight) => weight.rows,
            Self::Packed(weight) => weight.rows,
        }
    }

    /// Returns `D_in`.
    pub(in crate::ndarray) fn columns(&self) -> usize {
        match self {
            Self::Float(weight) => weight.columns,
            Self::Packed(weight) => weight.columns,
        }
    }

    /// Copies row `index` to `row`.
    pub(in crate::ndarray) fn copy_row(&self, index: usize, row: &mut [f32]) {
        match self {
            Self::Float(weight) => row.copy_from_slice(weight.row(index)),
            Self::Packed(weight) => weight.unpack_row(index, row),
        }
    }

    /// Computes `x W^T` into `target` on all threads.
    pub(in crate::ndarray) fn times_transposed(
        &self,
        target: MatMut<'_, f32>,
        mode: WriteMode,
        x: Rows<'_>,
    ) {
        match self {
            Self::Float(weight) => gemm_sum(target, mode, &[outputs(x, weight)], threads()),
            Self::Packed(weight) => {
                let x = strided(x.values, target.nrows(), weight.columns, x.stride);
                times_transposed(target, mode, x, weight);
            }
        }
    }

    /// Computes `factor * y W` into `target` on all threads.
    pub(in crate::ndarray) fn times(
        &self,
        target: MatMut<'_, f32>,
        mode: WriteMode,
        factor: f32,
        y: Rows<'_>,
    ) {
        match self {
            Self::Float(weight) => {
                let inputs = inputs(y, weight);
                gemm_sum(target, mode, &[Term { factor, ..inputs }], threads());
            }
            Self::Packed(weight) => {
                let y = strided(y.values, target.nrows(), weight.rows, y.stride);
                times(target, mode, factor, y, weight);
            }
        }
    }
}

/// Returns the term `x W^T`.
pub(super) fn outputs<'a>(x: Rows<'a>, weight: &'a Matrix) -> Term<'a> {
    Term {
        left: x,
        right: Operand::Transposed(Rows::all(weight.values(), weight.columns)),
        depth: weight.columns,
        factor: 1.0,
    }
}

/// Returns the term `y W`.
pub(super) fn inputs<'a>(y: Rows<'a>, weight: &'a Matrix) -> Term<'a> {
    Term {
        left: y,
        right: Operand::RowMajor(Rows::all(weight.values(), weight.columns)),
        depth: weight.rows,
        factor: 1.0,
    }
}

fn threads() -> usize {
    rayon::current_num_threads()
}

impl HostProjection {
    fn rank(&self) -> usize {
        self.adapter.as_ref().map_or(0, |(a, ..)| a.rows)
    }
}

/// Returns the number of output columns of all projections.
pub(in crate::ndarray) fn width(projections: &[HostProjection]) -> usize {
    projections.iter().map(|p| p.weight.rows()).sum()
}

/// Returns the sum of the ranks of all branches.
pub(in crate::ndarray) fn ranks(projections: &[HostProjection]) -> usize {
    projections.iter().map(HostProjection::rank).sum()
}

/// Returns whether any weight is quantized.
pub(super) fn any_quantized(projections: &[HostProjection]) -> bool {
    let packed = |p: &HostProjection| matches!(p.weight, HostWeight::Packed(_));
    projections.iter().any(packed)
}

/// Returns all `a` concatenated, `[sum of r, D_in]`.
pub(super) fn stacked_a(projections: &[HostProjection]) -> Vec<f32> {
    let adapters = projections.iter().filter_map(|p| p.adapter.as_ref());
    let all: Vec<&[f32]> = adapters.map(|(a, ..)| a.values()).collect();
    all.concat()
}

/// A LoRA branch among those of several projections.
pub(super) struct Branch<'a> {
    pub(super) b: &'a Matrix,
    pub(super) scaling: f32,
    /// The first output column of its projection.
    pub(super) column: usize,
    /// The first column of its `x A^T` among those of all branches.
    pub(super) first: usize,
}

/// Returns the branches with their offsets.
pub(super) fn branches(projections: &[HostProjection]) -> impl Iterator<Item = Branch<'_>> {
    let (mut next_column, mut next) = (0, 0);
    projections.iter().filter_map(move |projection| {
        let (column, first) = (next_column, next);
        next_column += projection.weight.rows();
        next += projection.rank();
        let (_, b, scaling) = projection.adapter.as_ref()?;
        Some(Branch { b, scaling: *scaling, column, first })
    })
}

/// Returns the number of input features, which all projections share.
pub(super) fn input_width(projections: &[HostProjection]) -> usize {
    projections.first().map_or(0, |p| p.weight.columns())
}
