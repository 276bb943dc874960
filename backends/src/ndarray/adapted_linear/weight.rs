//! The weights of projections on slices.

use faer::MatMut;

use crate::ndarray::gemm::{Old, strided};
use crate::ndarray::matrix::Matrix;
use crate::ndarray::packed::{HostPacked, times, times_transposed};
use crate::ndarray::panel::{Term, sum_of};
use crate::ndarray::tile::{Operand, Rows};

/// A projection's weights.
pub(in crate::ndarray) struct HostProjection {
    /// `[D_out, D_in]`
    pub(in crate::ndarray) weight: HostWeight,
    /// `a` `[r, D_in]`, `b` `[D_out, r]` and the scaling.
    pub(in crate::ndarray) adapter: Option<(Matrix, Matrix, f32)>,
}

/// A weight on slices.
pub(in crate::ndarray) enum HostWeight {
    Float(Matrix),
    Packed(Box<HostPacked>),
}

impl HostWeight {
    /// `D_out`
    pub(in crate::ndarray) fn rows(&self) -> usize {
        match self {
            Self::Float(weight) => weight.rows,
            Self::Packed(weight) => weight.rows,
        }
    }

    /// `D_in`
    pub(in crate::ndarray) fn columns(&self) -> usize {
        match self {
            Self::Float(weight) => weight.columns,
            Self::Packed(weight) => weight.columns,
        }
    }

    /// Row `index` into `row`.
    pub(in crate::ndarray) fn copy_row(&self, index: usize, row: &mut [f32]) {
        match self {
            Self::Float(weight) => row.copy_from_slice(weight.row(index)),
            Self::Packed(weight) => weight.unpack_row(index, row),
        }
    }

    /// `x W^T` to `target`, on all threads.
    pub(in crate::ndarray) fn times_transposed(
        &self,
        target: MatMut<'_, f32>,
        old: Old,
        x: Rows<'_>,
    ) {
        match self {
            Self::Float(weight) => sum_of(target, old, &[outputs(x, weight)], threads()),
            Self::Packed(weight) => {
                let x = strided(x.values, target.nrows(), weight.columns, x.stride);
                times_transposed(target, old, x, weight);
            }
        }
    }

    /// `factor * y W` to `target`, on all threads.
    pub(in crate::ndarray) fn times(
        &self,
        target: MatMut<'_, f32>,
        old: Old,
        factor: f32,
        y: Rows<'_>,
    ) {
        match self {
            Self::Float(weight) => {
                let inputs = inputs(y, weight);
                sum_of(target, old, &[Term { factor, ..inputs }], threads());
            }
            Self::Packed(weight) => {
                let y = strided(y.values, target.nrows(), weight.rows, y.stride);
                times(target, old, factor, y, weight);
            }
        }
    }
}

/// `x W^T`
pub(super) fn outputs<'a>(x: Rows<'a>, weight: &'a Matrix) -> Term<'a> {
    Term {
        left: x,
        right: Operand::Transposed(Rows::all(weight.values(), weight.columns)),
        depth: weight.columns,
        factor: 1.0,
    }
}

/// `y W`
pub(super) fn inputs<'a>(y: Rows<'a>, weight: &'a Matrix) -> Term<'a> {
    Term {
        left: y,
        right: Operand::AsItIs(Rows::all(weight.values(), weight.columns)),
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

/// Columns of all projections side by side.
pub(in crate::ndarray) fn width(projections: &[HostProjection]) -> usize {
    projections.iter().map(|p| p.weight.rows()).sum()
}

/// Ranks of all branches together.
pub(in crate::ndarray) fn ranks(projections: &[HostProjection]) -> usize {
    projections.iter().map(HostProjection::rank).sum()
}

pub(super) fn any_packed(projections: &[HostProjection]) -> bool {
    let packed = |p: &HostProjection| matches!(p.weight, HostWeight::Packed(_));
    projections.iter().any(packed)
}

/// All `a` below each other, `[sum of r, D_in]`.
pub(super) fn stacked(projections: &[HostProjection]) -> Vec<f32> {
    let adapters = projections.iter().filter_map(|p| p.adapter.as_ref());
    let all: Vec<&[f32]> = adapters.map(|(a, ..)| a.values()).collect();
    all.concat()
}

/// A branch among those of several projections.
pub(super) struct Branch<'a> {
    pub(super) b: &'a Matrix,
    pub(super) scaling: f32,
    /// Where its projection's output begins.
    pub(super) column: usize,
    /// Where its `x A^T` begins among those of all.
    pub(super) first: usize,
}

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

pub(super) fn width_of_input(projections: &[HostProjection]) -> usize {
    projections.first().map_or(0, |p| p.weight.columns())
}
