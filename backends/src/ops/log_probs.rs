//! Log-probabilities of target tokens from hidden states, without ever holding the full `[T, V]` logits.
//!
//! `logp_t = z_t[target_t] - logsumexp(z_t)` with `z = hidden W^T`, computed in f32 over chunks of rows. The gradient is
//! `d hidden_t = g_t (W[target_t] - softmax(z_t) W)`: but for the factor `g_t` of each row it is known as soon as the
//! logits are, so it is computed with them, and backward only scales it. A head that is trained gets its gradient from the
//! logits, computed again.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::accumulator;
use crate::{TrainBackend, Weight};

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
/// - lm_head: `[V, D]`, of hidden's dtype, or packed, whole or in parts
/// - targets: `[T]`, ids below `V`
/// - returns `[T, 1]` or `[T, 4]`: see [`LogProbStats`]
///
/// # Panics
/// If shapes or dtypes do not fit together.
pub fn completion_log_probs<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: impl Into<Weight<B>>,
    targets: Tensor<B, 1, Int>,
    stats: LogProbStats,
) -> Tensor<B, 2> {
    let lm_head = lm_head.into();
    let ([tokens, width], [vocabulary, head_width]) = (hidden.dims(), lm_head.dims());
    assert_eq!(
        width, head_width,
        "log_probs: hidden [{tokens}, {width}], head [{vocabulary}, {head_width}]"
    );
    assert_eq!(targets.dims(), [tokens], "log_probs: one target a row");
    assert!(lm_head.fits(hidden.dtype()), "log_probs: hidden and head must have one dtype");
    B::completion_log_probs(hidden, lm_head, targets, stats, false).columns
}

/// Log-probabilities with what their gradient is made of.
#[derive(Clone, Debug)]
pub struct LogProbs<B: Backend> {
    /// `[T, 1]` or `[T, 4]`: see [`LogProbStats`].
    pub columns: Tensor<B, 2>,
    /// If asked for: the gradient of each log-probability with respect to its own hidden state, `[T, D]`, in hidden's
    /// dtype.
    pub slopes: Option<Tensor<B, 2>>,
}

/// The reference body of [`TrainBackend::completion_log_probs`].
pub fn reference<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Weight<B>,
    targets: Tensor<B, 1, Int>,
    stats: LogProbStats,
    with_slopes: bool,
) -> LogProbs<B> {
    let (chunks, dtype) = (chunks(hidden.dims()[0], lm_head.dims()[0]), hidden.dtype());
    let (mut columns, mut slopes) = (Vec::new(), Vec::new());
    for (start, len) in chunks {
        let logits = logits(hidden.clone().narrow(0, start, len), &lm_head);
        let targets = targets.clone().narrow(0, start, len);
        let shifted = logits.clone() - log_sum_exp(logits.clone());
        if with_slopes {
            let softmax = shifted.clone().exp().cast(dtype);
            let of_all = B::frozen_linear_backward(softmax, lm_head.clone());
            slopes.push(lm_head.clone().rows(targets.clone(), dtype) - of_all);
        }
        columns.push(columns_of(logits, shifted, targets, stats));
    }
    LogProbs {
        columns: Tensor::cat(columns, 0),
        slopes: with_slopes.then(|| Tensor::cat(slopes, 0)),
    }
}

/// Gradient of the head `[V, D]`: the sum over rows of `g_t (onehot(target_t) - softmax(z_t)) hidden_t^T`.
///
/// # Shapes
/// - hidden: `[T, D]`; lm_head: `[V, D]`; targets: `[T]`
/// - of_log_probs: `g`, the gradient of each log-probability, `[T, 1]`, in the accumulator's dtype
pub fn head_gradient<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    of_log_probs: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let mut sum = None;
    for (start, len) in chunks(hidden.dims()[0], lm_head.dims()[0]) {
        let hidden = hidden.clone().narrow(0, start, len);
        let targets = targets.clone().narrow(0, start, len).unsqueeze_dim::<2>(1);
        let of_log_probs = of_log_probs.clone().narrow(0, start, len);
        let logits = logits(hidden.clone(), &lm_head.clone().into());
        let softmax = (logits.clone() - log_sum_exp(logits)).exp();
        let of_logits = (softmax * of_log_probs.clone().neg()).scatter(
            1,
            targets,
            of_log_probs,
            IndexingUpdateOp::Add,
        );
        let of_head = B::linear_weight_gradient(hidden, of_logits.cast(lm_head.dtype()));
        sum = Some(match sum {
            Some(sum) => of_head + sum,
            None => of_head,
        });
    }
    sum.unwrap_or_else(|| lm_head.zeros_like())
}

/// The columns of some rows; `shifted` are the log-probabilities of the whole vocabulary.
fn columns_of<B: Backend>(
    logits: Tensor<B, 2>,
    shifted: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    stats: LogProbStats,
) -> Tensor<B, 2> {
    let target = targets.unsqueeze_dim::<2>(1);
    let logps = shifted.clone().gather(1, target.clone());
    if stats == LogProbStats::None {
        return logps;
    }
    let entropy = (shifted.clone().exp() * shifted).sum_dim(1).neg();
    let correct = logits.clone().argmax(1).equal(target).int().float();
    let correct = correct.cast(logps.dtype());
    Tensor::cat(vec![logps, entropy, correct, logits.mean_dim(1)], 1)
}

/// `(start, length)` of row chunks whose logits stay within [`CHUNK_VALUES`].
fn chunks(rows: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = (CHUNK_VALUES / vocabulary).max(1);
    (0..rows).step_by(size).map(move |start| (start, size.min(rows - start)))
}

/// `hidden W^T` in the accumulator's dtype, `[rows, V]`.
fn logits<B: TrainBackend>(hidden: Tensor<B, 2>, lm_head: &Weight<B>) -> Tensor<B, 2> {
    let dtype = accumulator(hidden.dtype());
    B::frozen_linear(hidden, lm_head.clone()).cast(dtype)
}

/// Stable `log(sum(exp(z)))` of each row, `[rows, 1]`.
fn log_sum_exp<B: Backend>(z: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = z.clone().max_dim(1);
    (z - max.clone()).exp().sum_dim(1).log() + max
}
