//! Log-probabilities of targets on slices: see [`crate::ops::log_probs`].

use rayon::prelude::*;

use super::adapted_linear::HostWeight;
use super::gemm::{Old, rows_mut};
use super::matrix::{Matrix, written};
use super::tile::Rows;
use super::vector::{exp, max, sum, sum2, vectorized};
use crate::LogProbStats;

/// Logits alive at once: 2^22 values are 16 MiB.
const CHUNK_VALUES: usize = 1 << 22;

/// Columns `[T, 1 or 4]` and, if asked for, slopes `[T, D]`.
pub(super) fn forward(
    hidden: &Matrix,
    head: &HostWeight,
    targets: &[usize],
    stats: LogProbStats,
    with_slopes: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let (vocabulary, width, count) = (head.rows(), head.columns(), stats.columns());
    let size = (CHUNK_VALUES / vocabulary.max(1)).clamp(16, 1024);
    let mut columns = vec![0f32; targets.len() * count];
    let mut slopes = with_slopes.then(|| vec![0f32; targets.len() * width]);
    let mut logits = written(size.min(targets.len()) * vocabulary, |_| ());
    for (chunk, targets) in targets.chunks(size).enumerate() {
        let (start, rows) = (chunk * size, targets.len());
        let logits = &mut logits[..rows * vocabulary];
        let states = Rows::all(hidden.values(), width).from(start, 0);
        let target = rows_mut(logits, vocabulary);
        head.times_transposed(target, Old::Replace, states);
        let columns = &mut columns[start * count..][..rows * count];
        reduce(logits, vocabulary, targets, columns);
        if let Some(slopes) = &mut slopes {
            let slopes = &mut slopes[start * width..][..rows * width];
            for (slope, target) in slopes.chunks_exact_mut(width).zip(targets) {
                head.copy_row(*target, slope);
            }
            let softmax = Rows::all(logits, vocabulary);
            let target = rows_mut(slopes, width);
            head.times(target, Old::Add, -1.0, softmax);
        }
    }
    (columns, slopes)
}

/// Of each row of logits the first of: log-probability of the target, entropy, whether the target is the most likely,
/// mean logit; as many as a row of `columns` has. The logits become probabilities.
fn reduce(logits: &mut [f32], vocabulary: usize, targets: &[usize], columns: &mut [f32]) {
    let count = columns.len() / targets.len();
    let share = targets.len().div_ceil(2 * rayon::current_num_threads());
    let parts = logits.par_chunks_mut(share * vocabulary);
    let parts = parts.zip(columns.par_chunks_mut(share * count));
    parts.zip(targets.par_chunks(share)).for_each(|((logits, columns), targets)| {
        let rows = logits.chunks_exact_mut(vocabulary).zip(targets);
        vectorized(
            #[inline(always)]
            || {
                for ((row, target), columns) in rows.zip(columns.chunks_exact_mut(count)) {
                    columns.copy_from_slice(&reduce_row(row, *target)[..count]);
                }
            },
        );
    });
}

#[inline(always)]
fn reduce_row(row: &mut [f32], target: usize) -> [f32; 4] {
    let (max, of_target) = (max(row), row[target]);
    let mean = sum(row, |z| z) / row.len() as f32;
    let total = sum(row, |z| exp(z - max));
    let weighted = sum2(row, row, |z, _| exp(z - max) * (z - max));
    let (log_total, inverse) = (total.ln(), 1.0 / total);
    let best = row.iter().position(|z| *z == max);
    for z in row.iter_mut() {
        *z = exp(*z - max) * inverse;
    }
    [
        of_target - max - log_total,
        log_total - weighted * inverse,
        f32::from(u8::from(best == Some(target))),
        mean,
    ]
}
