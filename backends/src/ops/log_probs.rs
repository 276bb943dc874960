//! Log-probabilities of target tokens from hidden states, without ever holding the full `[T, V]` logits.
//!
//! `logp_t = z_t[target_t] - logsumexp(z_t)` with `z = hidden W^T`, computed in f32 over chunks of rows. Backward is
//! `d hidden = g (W[target] - softmax(z) W)`, chunk by chunk again; the head gets no gradient.

use burn::tensor::{Int, Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Logits alive at once: 2^23 values are 32 MiB in f32.
const CHUNK_VALUES: usize = 1 << 23;

/// What to compute beside the log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogProbStats {
    /// Log-probabilities alone: `[T, 1]`.
    None,
    /// Four columns, `[T, 4]`: log-probability; entropy of the distribution in nats; 1 where the target is the most
    /// likely token, else 0; mean of the logits over the vocabulary. Only the first column carries a gradient.
    All,
}

impl LogProbStats {
    /// Columns of the result.
    pub fn columns(self) -> usize {
        match self {
            Self::None => 1,
            Self::All => 4,
        }
    }
}

/// Log-probability of each target, natural logarithm, in f32 (f64 for f64 input).
///
/// # Shapes
/// - hidden: `[T, D]`, states after the final norm that predict the targets
/// - lm_head: `[V, D]`, frozen, of hidden's dtype
/// - targets: `[T]`, ids below `V`
/// - returns `[T, 1]` or `[T, 4]`: see [`LogProbStats`]
///
/// # Panics
/// If shapes or dtypes do not fit together, or, under autodiff, if the head requires a gradient.
pub fn completion_log_probs<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    stats: LogProbStats,
) -> Tensor<B, 2> {
    let ([tokens, width], [vocabulary, head_width]) = (hidden.dims(), lm_head.dims());
    assert_eq!(
        width, head_width,
        "log_probs: hidden [{tokens}, {width}], head [{vocabulary}, {head_width}]"
    );
    assert_eq!(targets.dims(), [tokens], "log_probs: one target a row");
    assert_eq!(
        hidden.dtype(),
        lm_head.dtype(),
        "log_probs: hidden and head must have one dtype"
    );
    B::completion_log_probs(hidden, lm_head, targets, stats)
}

/// The reference body of [`TrainBackend::completion_log_probs`].
pub fn reference<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    stats: LogProbStats,
) -> Tensor<B, 2> {
    let chunks = chunks(hidden.dims()[0], lm_head.dims()[0]);
    let rows = chunks.map(|(start, len)| {
        let logits = logits(hidden.clone().narrow(0, start, len), &lm_head);
        let target = targets.clone().narrow(0, start, len).unsqueeze_dim::<2>(1);
        let shifted = logits.clone() - log_sum_exp(logits.clone());
        let logps = shifted.clone().gather(1, target.clone());
        if stats == LogProbStats::None {
            return logps;
        }
        let entropy = (shifted.clone().exp() * shifted).sum_dim(1).neg();
        let correct = logits
            .clone()
            .argmax(1)
            .equal(target)
            .int()
            .float()
            .cast(logps.dtype());
        Tensor::cat(vec![logps, entropy, correct, logits.mean_dim(1)], 1)
    });
    Tensor::cat(rows.collect(), 0)
}

/// The reference body of [`TrainBackend::completion_log_probs_backward`]; `grad` `[T]` belongs to the log-probabilities.
pub fn reference_backward<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    grad: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let chunks = chunks(hidden.dims()[0], lm_head.dims()[0]);
    let rows = chunks.map(|(start, len)| {
        let logits = logits(hidden.clone().narrow(0, start, len), &lm_head);
        let grad = grad.clone().narrow(0, start, len).unsqueeze_dim::<2>(1);
        let softmax = (logits.clone() - log_sum_exp(logits)).exp();
        let of_targets = lm_head
            .clone()
            .select(0, targets.clone().narrow(0, start, len));
        let weights = (softmax * grad.clone()).cast(lm_head.dtype());
        let of_all = B::frozen_linear_backward(weights, lm_head.clone());
        of_targets * grad.cast(lm_head.dtype()) - of_all
    });
    Tensor::cat(rows.collect(), 0)
}

/// `(start, length)` of row chunks whose logits stay within [`CHUNK_VALUES`].
fn chunks(rows: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = (CHUNK_VALUES / vocabulary).max(1);
    (0..rows)
        .step_by(size)
        .map(move |start| (start, size.min(rows - start)))
}

/// `hidden W^T` in the accumulator's dtype, `[rows, V]`.
fn logits<B: TrainBackend>(hidden: Tensor<B, 2>, lm_head: &Tensor<B, 2>) -> Tensor<B, 2> {
    let dtype = accumulator(hidden.dtype());
    B::frozen_linear(hidden, lm_head.clone()).cast(dtype)
}

/// Stable `log(sum(exp(z)))` of each row, `[rows, 1]`.
fn log_sum_exp<B: Backend>(z: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = z.clone().max_dim(1);
    (z - max.clone()).exp().sum_dim(1).log() + max
}
