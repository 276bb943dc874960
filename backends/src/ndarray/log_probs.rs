//! Log-probabilities of target tokens on slices (see [`crate::ops::log_probs`]).

use rayon::prelude::*;

use super::adapted_linear::HostWeight;
use super::gemm::{WriteMode, rows_mut};
use super::matrix::{Matrix, filled};
use super::tile::Rows;
use super::vector::{exp, max, sum, sum2, vectorized};
use crate::LogProbStats;
use crate::ops::log_probs::cpu_chunk_rows;

/// Returns the statistics `[T, 1]`, `[T, 4]` or `[T, 5]` and, if asked for, the gradients of the log-probabilities
/// with respect to the hidden states `[T, D]`.
pub(super) fn forward(
    hidden: &Matrix,
    head: &HostWeight,
    targets: &[usize],
    stats: LogProbStats,
    with_slopes: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let (vocabulary, width, count) = (head.rows(), head.columns(), stats.columns());
    let size = cpu_chunk_rows(vocabulary);
    let mut columns = vec![0f32; targets.len() * count];
    let mut slopes = with_slopes.then(|| vec![0f32; targets.len() * width]);
    let mut logits = filled(size.min(targets.len()) * vocabulary, |_| ());
    for (chunk, targets) in targets.chunks(size).enumerate() {
        let (start, rows) = (chunk * size, targets.len());
        let logits = &mut logits[..rows * vocabulary];
        let states = Rows::all(hidden.values(), width).from(start, 0);
        let target = rows_mut(logits, vocabulary);
        head.times_transposed(target, WriteMode::Overwrite, states);
        let columns = &mut columns[start * count..][..rows * count];
        reduce_rows(logits, vocabulary, targets, columns);
        if let Some(slopes) = &mut slopes {
            let slopes = &mut slopes[start * width..][..rows * width];
            for (slope, target) in slopes.chunks_exact_mut(width).zip(targets) {
                head.copy_row(*target, slope);
            }
            let softmax = Rows::all(logits, vocabulary);
            let target = rows_mut(slopes, width);
            head.times(target, WriteMode::Add, -1.0, softmax);
        }
    }
    (columns, slopes)
}

/// Turns logits into probabilities in place, and writes to each row of `columns` as many as it
/// holds of: the target's log-probability, the entropy, whether the target is the most likely
/// token, the mean logit, and the logarithm of the sum of squared probabilities.
fn reduce_rows(logits: &mut [f32], vocabulary: usize, targets: &[usize], columns: &mut [f32]) {
    let count = columns.len() / targets.len();
    let part_rows = targets.len().div_ceil(2 * rayon::current_num_threads());
    let parts = logits.par_chunks_mut(part_rows * vocabulary);
    let parts = parts.zip(columns.par_chunks_mut(part_rows * count));
    parts.zip(targets.par_chunks(part_rows)).for_each(|((logits, columns), targets)| {
        let rows = logits.chunks_exact_mut(vocabulary).zip(targets);
        vectorized(
            #[inline(always)]
            || {
                for ((row, target), columns) in rows.zip(columns.chunks_exact_mut(count)) {
                    let with_squares = count == LogProbStats::Squares.columns();
                    columns.copy_from_slice(&reduce_row(row, *target, with_squares)[..count]);
                }
            },
        );
    });
}

/// Turns one row of logits into probabilities and returns the five statistics of [`reduce_rows`];
/// the last one is NaN unless `with_squares` is set.
#[inline(always)]
fn reduce_row(row: &mut [f32], target: usize, with_squares: bool) -> [f32; 5] {
    let (max, target_logit) = (max(row), row[target]);
    let mean = sum(row, |z| z) / row.len() as f32;
    let total = sum(row, |z| exp(z - max));
    let weighted = sum2(row, row, |z, _| exp(z - max) * (z - max));
    let (log_total, inverse) = (total.ln(), 1.0 / total);
    let best = row.iter().position(|z| *z == max);
    let is_best = if total.is_nan() { f32::NAN } else { f32::from(u8::from(best == Some(target))) };
    for z in row.iter_mut() {
        *z = exp(*z - max) * inverse;
    }
    let squares = if with_squares { sum(row, |p| p * p).ln() } else { f32::NAN };
    [target_logit - max - log_total, log_total - weighted * inverse, is_best, mean, squares]
}
