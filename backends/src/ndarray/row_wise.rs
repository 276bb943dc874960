//! RMSNorm, rotary embedding and SwiGLU: one multithreaded pass over the rows.

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::filled;
use super::vector::{exp, sum, sum2, update_pairs, vectorized};
use crate::Rotation;
use crate::ops::geglu::{CUBIC, TWICE_ROOT};

/// The smallest number of values per thread; fewer are not worth waking one.
const MIN_VALUES_PER_THREAD: usize = 1 << 14;

/// Calls `f(first row, rows)` for ranges of rows of `out`, each `columns` long, in parallel and
/// [`vectorized`].
pub(super) fn by_rows(
    out: &mut [f32],
    columns: usize,
    f: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if columns == 0 {
        return;
    }
    let rows = out.len() / columns;
    let part_rows = rows.div_ceil(2 * rayon::current_num_threads());
    let part_rows = part_rows.max(MIN_VALUES_PER_THREAD.div_ceil(columns)).max(1);
    let parts = out.par_chunks_mut(part_rows * columns).enumerate();
    parts.for_each(|(index, part)| {
        vectorized(
            #[inline(always)]
            || f(index * part_rows, part),
        )
    });
}

/// Returns `count` new values in rows of `columns`, all of which `f` writes (see [`by_rows`]).
#[inline(always)]
fn collect_by_rows(
    count: usize,
    columns: usize,
    f: impl Fn(usize, &mut [f32]) + Send + Sync,
) -> Vec<f32> {
    filled(count, |out| by_rows(out, columns, f))
}

/// Computes RMSNorm (see [`crate::ops::rms_norm`]).
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let columns = weight.len();
    collect_by_rows(
        x.len(),
        columns,
        #[inline(always)]
        |first, rows| {
            let xs = x[first * columns..].chunks_exact(columns);
            for (y, x) in rows.chunks_exact_mut(columns).zip(xs) {
                let inverse = inverse_rms(x, epsilon);
                for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * inverse * weight;
                }
            }
        },
    )
}

/// Computes the backward pass of RMSNorm (see [`crate::ops::rms_norm`]). The gradient of `x`, plus
/// `other`, overwrites `grad`.
pub(super) fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    grad: &mut [f32],
    other: Option<&[f32]>,
) {
    let columns = weight.len();
    by_rows(
        grad,
        columns,
        #[inline(always)]
        |first, rows| {
            let xs = x[first * columns..].chunks_exact(columns);
            for (row, (d, x)) in rows.chunks_exact_mut(columns).zip(xs).enumerate() {
                normed_row_backward(x, weight, epsilon, d);
                if let Some(other) = other {
                    for (d, other) in d.iter_mut().zip(&other[(first + row) * columns..]) {
                        *d += other;
                    }
                }
            }
        },
    );
}

/// Replaces the gradient `d` of a normalized row by that of the row `x`.
#[inline(always)]
fn normed_row_backward(x: &[f32], weight: &[f32], epsilon: f32, d: &mut [f32]) {
    let inverse = inverse_rms(x, epsilon);
    for (d, weight) in d.iter_mut().zip(weight) {
        *d *= weight;
    }
    let projection = sum2(d, x, |d, x| d * x) * inverse * inverse / x.len() as f32;
    for (d, x) in d.iter_mut().zip(x) {
        *d = (*d - x * projection) * inverse;
    }
}

/// Returns the reciprocal of the root mean square.
#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + epsilon).sqrt()
}

/// Computes the weight gradient of RMSNorm (see [`crate::ops::rms_norm`]) on one thread: summing
/// the rows of a pass takes less time than waking threads.
pub(super) fn rms_norm_weight_gradient(
    x: &[f32],
    columns: usize,
    epsilon: f32,
    grad: &[f32],
) -> Vec<f32> {
    let mut d_weight = vec![0.0; columns];
    vectorized(
        #[inline(always)]
        || {
            for (x, grad) in x.chunks_exact(columns).zip(grad.chunks_exact(columns)) {
                let inverse = inverse_rms(x, epsilon);
                for ((d, x), grad) in d_weight.iter_mut().zip(x).zip(grad) {
                    *d += grad * x * inverse;
                }
            }
        },
    );
    d_weight
}

/// Normalizes the heads of queries and keys in place (see [`crate::ops::head_norm`]). `x` has `columns` columns.
pub(super) fn head_norm(
    x: &mut [f32],
    columns: usize,
    weights: [&[f32]; 2],
    heads: [usize; 2],
    epsilon: f32,
) {
    by_rows(
        x,
        columns,
        #[inline(always)]
        |_, rows| {
            for row in rows.chunks_exact_mut(columns) {
                for (weight, range) in weights.into_iter().zip(head_columns(heads, weights)) {
                    for head in row[range].chunks_exact_mut(weight.len()) {
                        let inverse = inverse_rms(head, epsilon);
                        for (x, weight) in head.iter_mut().zip(weight) {
                            *x = *x * inverse * weight;
                        }
                    }
                }
            }
        },
    );
}

/// Computes the backward pass of [`head_norm`]: the gradient of `x` overwrites `grad`.
pub(super) fn head_norm_backward(
    x: &[f32],
    weights: [&[f32]; 2],
    heads: [usize; 2],
    epsilon: f32,
    (grad, columns): (&mut [f32], usize),
) {
    by_rows(
        grad,
        columns,
        #[inline(always)]
        |first, rows| {
            let xs = x[first * columns..].chunks_exact(columns);
            for (d, x) in rows.chunks_exact_mut(columns).zip(xs) {
                for (weight, range) in weights.into_iter().zip(head_columns(heads, weights)) {
                    let xs = x[range.clone()].chunks_exact(weight.len());
                    for (d, x) in d[range].chunks_exact_mut(weight.len()).zip(xs) {
                        normed_row_backward(x, weight, epsilon, d);
                    }
                }
            }
        },
    );
}

/// Returns the columns of the queries and of the keys.
fn head_columns([queries, keys]: [usize; 2], weights: [&[f32]; 2]) -> [Range<usize>; 2] {
    let head_dim = weights[0].len();
    let end = queries * head_dim;
    [0..end, end..end + keys * head_dim]
}

/// Rotates the first `rotated_heads` heads of `x` in place (see [`crate::ops::rope`]). `x` has
/// `columns` columns, `cos` and `sin` have `half`.
pub(super) fn rope(
    x: &mut [f32],
    columns: usize,
    [cos, sin]: [&[f32]; 2],
    half: usize,
    rotated_heads: usize,
    rotation: Rotation,
) {
    let sign = match rotation {
        Rotation::Forward => 1.0,
        Rotation::Inverse => -1.0,
    };
    by_rows(
        x,
        columns,
        #[inline(always)]
        |first, rows| {
            for (index, row) in rows.chunks_exact_mut(columns).enumerate() {
                let cos = &cos[(first + index) * half..][..half];
                let sin = &sin[(first + index) * half..][..half];
                for head in row[..rotated_heads * 2 * half].chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    update_pairs(
                        [a, b],
                        [cos, sin],
                        #[inline(always)]
                        |a, b, cos, sin| {
                            let sin = sin * sign;
                            (a * cos - b * sin, b * cos + a * sin)
                        },
                    );
                }
            }
        },
    );
}

/// Computes SwiGLU (see [`crate::ops::swiglu`]); a row of `gate_up` holds `2 * half` values.
pub(super) fn swiglu(gate_up: &[f32], half: usize) -> Vec<f32> {
    collect_by_rows(
        gate_up.len() / 2,
        half,
        #[inline(always)]
        |first, rows| {
            let pairs = gate_up[first * 2 * half..].chunks_exact(2 * half);
            for (y, pair) in rows.chunks_exact_mut(half).zip(pairs) {
                let (gate, up) = pair.split_at(half);
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = gate * sigmoid(*gate) * up;
                }
            }
        },
    )
}

/// Computes the backward pass of SwiGLU (see [`crate::ops::swiglu`]). The gradients overwrite gate
/// and up, a row of which holds `2 * half` values.
pub(super) fn swiglu_backward(gate_up: &mut [f32], half: usize, grad: &[f32]) {
    by_rows(
        gate_up,
        2 * half,
        #[inline(always)]
        |first, rows| {
            let grads = grad[first * half..].chunks_exact(half);
            for (pair, grad) in rows.chunks_exact_mut(2 * half).zip(grads) {
                let (gate, up) = pair.split_at_mut(half);
                update_pairs(
                    [gate, up],
                    [grad, grad],
                    #[inline(always)]
                    |gate, up, grad, _| {
                        let sigmoid = sigmoid(gate);
                        let d_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                        (d_gate, grad * gate * sigmoid)
                    },
                );
            }
        },
    );
}

/// Computes GeGLU (see [`crate::ops::geglu`]); a row of `gate_up` holds `2 * half` values.
pub(super) fn geglu(gate_up: &[f32], half: usize) -> Vec<f32> {
    collect_by_rows(
        gate_up.len() / 2,
        half,
        #[inline(always)]
        |first, rows| {
            let pairs = gate_up[first * 2 * half..].chunks_exact(2 * half);
            for (y, pair) in rows.chunks_exact_mut(half).zip(pairs) {
                let (gate, up) = pair.split_at(half);
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = gate * sigmoid(twice_u(*gate)) * up;
                }
            }
        },
    )
}

/// Computes the backward pass of GeGLU (see [`crate::ops::geglu`]). The gradients overwrite gate and up, a row of which
/// holds `2 * half` values.
pub(super) fn geglu_backward(gate_up: &mut [f32], half: usize, grad: &[f32]) {
    by_rows(
        gate_up,
        2 * half,
        #[inline(always)]
        |first, rows| {
            let grads = grad[first * half..].chunks_exact(half);
            for (pair, grad) in rows.chunks_exact_mut(2 * half).zip(grads) {
                let (gate, up) = pair.split_at_mut(half);
                update_pairs(
                    [gate, up],
                    [grad, grad],
                    #[inline(always)]
                    |gate, up, grad, _| {
                        let sigmoid = sigmoid(twice_u(gate));
                        let twice_slope =
                            TWICE_ROOT as f32 * (1.0 + 3.0 * CUBIC as f32 * gate * gate);
                        let slope = 1.0 + gate * (1.0 - sigmoid) * twice_slope;
                        (grad * up * sigmoid * slope, grad * gate * sigmoid)
                    },
                );
            }
        },
    );
}

/// Returns the argument of the sigmoid in GELU.
#[inline(always)]
fn twice_u(x: f32) -> f32 {
    TWICE_ROOT as f32 * x * (1.0 + CUBIC as f32 * x * x)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
