//! Log-probabilities of target tokens from hidden states, without materializing the full `[T, V]` logits.
//!
//! `logp_t = z_t[target_t] - logsumexp(z_t)` with `z = hidden W^T`, computed in f32 over chunks of rows. The gradient
//! is `d hidden_t = g_t (W[target_t] - softmax(z_t) W)`. All of it except the factor `g_t` of each row is known as
//! soon as the logits are. Forward therefore computes it together with them, as the row's slope, and backward only
//! scales it. A head that is trained gets its gradient from the logits, which are computed again.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, backend::Backend};

use super::accumulator;
use crate::{TrainBackend, Weight};

/// Returns how many rows the reference and [`head_gradient`] process at once: those of at most 2^23 logits, which are
/// 32 MiB in f32. Memory plans ask these functions as the kernels do.
pub fn reference_chunk_rows(vocabulary: usize) -> usize {
    ((1 << 23) / vocabulary.max(1)).max(1)
}

/// Returns how many rows the CPU's kernel processes at once: those of at most 2^22 logits, within bounds.
pub fn cpu_chunk_rows(vocabulary: usize) -> usize {
    ((1 << 22) / vocabulary.max(1)).clamp(16, 1024)
}

/// Returns how many rows the GPU's kernels process at once: those of at most 2^24 logits. Where it can, this is a
/// multiple of the 256 rows that a GEMM kernel processes in one tile.
pub fn gpu_chunk_rows(vocabulary: usize) -> usize {
    const TILE: usize = 256;
    match (1 << 24) / vocabulary.max(1) {
        many if many > TILE => many / TILE * TILE,
        few => few.max(1),
    }
}

/// Returns `(start, length)` of the chunks of `rows` rows.
pub(crate) fn chunks(rows: usize, chunk_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(chunk_rows).map(move |start| (start, chunk_rows.min(rows - start)))
}

/// The statistics to return beside the log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogProbStats {
    /// Only the log-probabilities: `[T, 1]`.
    None,
    /// Four columns, `[T, 4]`: log-probability; entropy of the distribution in nats; 1 where the target is the most
    /// likely token, else 0; mean of the logits over the vocabulary. Only the first column carries a gradient.
    All,
    /// Five columns, `[T, 5]`: those of [`All`](Self::All), and the logarithm of the sum of the squared probabilities of all
    /// tokens.
    Squares,
}

impl LogProbStats {
    /// Returns the number of columns of the result.
    pub fn columns(self) -> usize {
        match self {
            Self::None => 1,
            Self::All => 4,
            Self::Squares => 5,
        }
    }
}

/// Returns the log-probability of each target (natural logarithm) in f32 (f64 for f64 input).
///
/// # Shapes
/// - hidden: `[T, D]`, the states after the final norm that predict the targets
/// - lm_head: `[V, D]`, in hidden's dtype or quantized, whole or in parts
/// - targets: `[T]`, ids below `V`
/// - returns `[T, 1]`, `[T, 4]` or `[T, 5]`: see [`LogProbStats`]
///
/// # Panics
/// If shapes or dtypes do not match.
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
    assert_eq!(targets.dims(), [tokens], "log_probs: one target per row");
    assert!(lm_head.fits(hidden.dtype()), "log_probs: hidden and head must have one dtype");
    B::completion_log_probs(hidden, lm_head, targets, stats, false).columns
}

/// Log-probabilities and the slopes that their gradient is computed from.
#[derive(Clone, Debug)]
pub struct LogProbs<B: Backend> {
    /// `[T, 1]`, `[T, 4]` or `[T, 5]`: see [`LogProbStats`].
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
    let chunks = chunks(hidden.dims()[0], reference_chunk_rows(lm_head.dims()[0]));
    let dtype = hidden.dtype();
    let (mut columns, mut slopes) = (Vec::new(), Vec::new());
    for (start, len) in chunks {
        let logits = logits(hidden.clone().narrow(0, start, len), &lm_head);
        let targets = targets.clone().narrow(0, start, len);
        let shifted = logits.clone() - log_sum_exp(logits.clone());
        if with_slopes {
            let softmax = shifted.clone().exp().cast(dtype);
            let expected_rows = B::frozen_linear_backward(softmax, lm_head.clone());
            slopes.push(lm_head.clone().rows(targets.clone(), dtype) - expected_rows);
        }
        columns.push(columns_of(logits, shifted, targets, stats));
    }
    LogProbs {
        columns: Tensor::cat(columns, 0),
        slopes: with_slopes.then(|| Tensor::cat(slopes, 0)),
    }
}

/// Returns the gradient of the head, `[V, D]`: the sum over rows of
/// `g_t (onehot(target_t) - softmax(z_t)) hidden_t^T`.
///
/// # Shapes
/// - hidden: `[T, D]`; lm_head: `[V, D]`; targets: `[T]`
/// - grad: `g`, the gradient of each log-probability, `[T, 1]`, in the accumulator's dtype
pub fn head_gradient<B: TrainBackend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let mut sum = None;
    for (start, len) in chunks(hidden.dims()[0], reference_chunk_rows(lm_head.dims()[0])) {
        let hidden = hidden.clone().narrow(0, start, len);
        let targets = targets.clone().narrow(0, start, len).unsqueeze_dim::<2>(1);
        let grad = grad.clone().narrow(0, start, len);
        let logits = logits(hidden.clone(), &lm_head.clone().into());
        let softmax = (logits.clone() - log_sum_exp(logits)).exp();
        let logits_grad =
            (softmax * grad.clone().neg()).scatter(1, targets, grad, IndexingUpdateOp::Add);
        let head_grad = B::linear_weight_gradient(hidden, logits_grad.cast(lm_head.dtype()));
        sum = Some(match sum {
            Some(sum) => head_grad + sum,
            None => head_grad,
        });
    }
    sum.unwrap_or_else(|| lm_head.zeros_like())
}

/// Returns the columns of some rows; `shifted` holds the log-probabilities of the whole vocabulary.
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
    let squares =
        (stats == LogProbStats::Squares).then(|| (shifted.clone() * 2.0).exp().sum_dim(1).log());
    let entropy = (shifted.clone().exp() * shifted).sum_dim(1).neg();
    let correct = logits.clone().argmax(1).equal(target).int().float();
    let correct = correct.cast(logps.dtype());
    let columns = [logps, entropy, correct, logits.mean_dim(1)];
    Tensor::cat(columns.into_iter().chain(squares).collect(), 1)
}

/// Returns `hidden W^T` in the accumulator's dtype, `[rows, V]`.
fn logits<B: TrainBackend>(hidden: Tensor<B, 2>, lm_head: &Weight<B>) -> Tensor<B, 2> {
    let dtype = accumulator(hidden.dtype());
    B::frozen_linear(hidden, lm_head.clone()).cast(dtype)
}

/// Returns `log(sum(exp(z)))` of each row, `[rows, 1]`, without overflow.
fn log_sum_exp<B: Backend>(z: Tensor<B, 2>) -> Tensor<B, 2> {
    let max = z.clone().max_dim(1);
    (z - max.clone()).exp().sum_dim(1).log() + max
}
