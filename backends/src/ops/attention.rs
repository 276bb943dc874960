//! Masked softmax attention with grouped queries (arXiv 2305.13245): `softmax(q k^T * scale + mask) v`.
//!
//! Who sees whom is given by index, never as a tensor over pairs of tokens: a query sees two ranges of keys, the prompt
//! it shares with other completions and its own sequence up to itself. Padding on either side, packed rows, a sliding
//! window and a key-value cache are all special cases.
//!
//! Tokens lie side by side, `[T, heads * Dh]`, as projections leave them; keys are never repeated for their group of
//! queries. Backward recomputes the probabilities from the log-sum-exp of each row (arXiv 2205.14135).

use burn::tensor::{Int, Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Stands for the score of a hidden key; finite, so that a row that sees nothing stays finite.
const HIDDEN: f64 = -1e30;

/// What does not change from batch to batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads, `H`.
    pub heads: usize,
    /// Key and value heads, `H_kv`; query head `h` uses key head `h / (H / H_kv)`.
    pub kv_heads: usize,
    /// Width of a head, `Dh`.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(Dh)`.
    pub scale: f64,
}

impl AttentionConfig {
    /// Width of queries, keys and values side by side: `(H + 2 H_kv) Dh`.
    pub fn packed_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Who may see whom, by index.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    /// `[Q, 4]`: query `i` sees the keys `[r[0], r[1])` and `[r[2], r[3])`, which do not overlap. A query that sees
    /// nothing gives zero.
    pub ranges: Tensor<B, 2, Int>,
    /// `[K]`: 1 for a key that nobody sees, though it lies within ranges; `None`: there is none.
    pub hidden: Option<Tensor<B, 1, Int>>,
    /// `[Q]`, ascending: in [`self_attention`], the token each query is; `None`: every token is one.
    pub queries: Option<Tensor<B, 1, Int>>,
}

impl<B: Backend> AttentionMask<B> {
    /// 1 where the query sees the key, else 0: `[Q, K]` in `dtype`. For references only.
    fn visible(&self, keys: usize, dtype: burn::tensor::DType) -> Tensor<B, 2> {
        let [queries, _] = self.ranges.dims();
        let device = self.ranges.device();
        let shape = [queries, keys];
        let key: Tensor<B, 2, Int> = Tensor::arange(0..keys as i64, &device).unsqueeze();
        let bound = |column| self.ranges.clone().narrow(1, column, 1).expand(shape);
        let within = |column| {
            let key = key.clone().expand(shape);
            key.clone().greater_equal(bound(column)).bool_and(key.lower(bound(column + 1)))
        };
        let seen = within(0).bool_or(within(2)).float().cast(dtype);
        match &self.hidden {
            Some(hidden) => seen * (hidden.clone().float().cast(dtype).neg() + 1.0).unsqueeze(),
            None => seen,
        }
    }

    /// The same mask for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> AttentionMask<A>
    where
        A: burn::tensor::backend::AutodiffBackend<InnerBackend = B>,
    {
        AttentionMask {
            ranges: Tensor::from_inner(self.ranges.clone()),
            hidden: self.hidden.clone().map(Tensor::from_inner),
            queries: self.queries.clone().map(Tensor::from_inner),
        }
    }
}

/// The result of [`TrainBackend::masked_attention`].
#[derive(Clone, Debug)]
pub struct Attended<B: Backend> {
    /// `[Q, H * Dh]`, of the queries' dtype.
    pub output: Tensor<B, 2>,
    /// Log-sum-exp of each query's scores, `[Q, H]`, in f32 (f64 for f64 input).
    pub lse: Tensor<B, 2>,
}

/// Attention of a sequence to itself, differentiable.
///
/// # Shapes
/// - qkv: `[T, (H + 2 H_kv) * Dh]`: queries, keys (both turned) and values side by side
/// - mask: its `hidden` is `[T]`
/// - returns `[Q, H * Dh]`, of the same dtype
///
/// # Panics
/// If shapes do not fit together.
pub fn self_attention<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 2> {
    let [tokens, width] = qkv.dims();
    assert_eq!(width, config.packed_width(), "self_attention: qkv is [{tokens}, {width}]");
    let queries = mask.queries.as_ref().map_or(tokens, |q| q.dims()[0]);
    check_mask(mask, queries, tokens, config);
    B::self_attention(qkv, mask, config).output
}

/// Attention of `Q` queries to `K` keys, of a cache for instance. Softmax is computed in f32 (f64 for f64 input).
///
/// # Shapes
/// - query: `[Q, H * Dh]`
/// - key, value: `[K, H_kv * Dh]`
/// - returns `[Q, H * Dh]`, of the query's dtype
///
/// # Panics
/// If shapes or dtypes do not fit together.
pub fn attention<B: TrainBackend>(
    query: Tensor<B, 2>,
    key: Tensor<B, 2>,
    value: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 2> {
    let ([queries, width], [keys, _]) = (query.dims(), key.dims());
    assert_eq!(width, config.heads * config.head_dim, "attention: query is [{queries}, {width}]");
    for (name, side) in [("key", &key), ("value", &value)] {
        assert_eq!(
            (side.dims(), side.dtype()),
            ([keys, config.kv_heads * config.head_dim], query.dtype()),
            "attention: {name}"
        );
    }
    assert!(mask.queries.is_none(), "attention: queries are given, not chosen");
    check_mask(mask, queries, keys, config);
    B::masked_attention(query, key, value, mask, config).output
}

fn check_mask<B: Backend>(
    mask: &AttentionMask<B>,
    queries: usize,
    keys: usize,
    config: &AttentionConfig,
) {
    assert_eq!(mask.ranges.dims(), [queries, 4], "attention: ranges");
    if let Some(hidden) = &mask.hidden {
        assert_eq!(hidden.dims(), [keys], "attention: hidden keys");
    }
    assert!(
        config.heads.is_multiple_of(config.kv_heads),
        "attention: {} heads over {} key heads",
        config.heads,
        config.kv_heads
    );
}

/// Queries, keys and values of `qkv` `[T, (H + 2 H_kv) * Dh]`; of the queries, those the mask chooses.
pub fn split<B: Backend>(
    qkv: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> [Tensor<B, 2>; 3] {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let query = qkv.clone().narrow(1, 0, queries);
    let query = match &mask.queries {
        Some(chosen) => query.select(0, chosen.clone()),
        None => query,
    };
    let key = qkv.clone().narrow(1, queries, keys);
    [query, key, qkv.narrow(1, queries + keys, keys)]
}

/// The reference body of [`TrainBackend::masked_attention`].
pub fn reference<B: Backend>(
    query: Tensor<B, 2>,
    key: Tensor<B, 2>,
    value: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let ([queries, _], dtype) = (query.dims(), query.dtype());
    let (keys, group) = (key.dims()[0], config.heads / config.kv_heads);
    let scores = scores(&query, &key, config).reshape([config.heads, queries, keys]);
    let visible = mask.visible(keys, scores.dtype()).unsqueeze::<3>();
    let scores = scores * visible.clone() + (visible.clone().neg() + 1.0) * HIDDEN;
    let max = scores.clone().max_dim(2);
    let weights = (scores - max.clone()).exp() * visible;
    let sum = weights.clone().sum_dim(2);
    let sum = sum.clone() + sum.equal_elem(0.0).float().cast(max.dtype());
    let rows = [config.kv_heads, group * queries, keys];
    let probs = (weights / sum.clone()).cast(dtype).reshape(rows);
    let output = probs.matmul(by_head(value, config.kv_heads, config.kv_heads));
    Attended {
        output: by_token(output, config.heads),
        lse: (sum.log() + max).squeeze_dim::<2>(2).transpose(),
    }
}

/// The reference body of [`TrainBackend::self_attention`].
pub fn reference_self<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Attended<B> {
    let [query, key, value] = split(qkv, mask, config);
    B::masked_attention(query, key, value, mask, config)
}

/// The reference body of [`TrainBackend::self_attention_backward`]: the gradient of `qkv`, `[T, (H + 2 H_kv) * Dh]`.
///
/// With `P = exp(scores - lse)`: `dv = P^T do`, `dS = P (do v^T - rowsum(do o)) scale`, `dq = dS k`, `dk = dS^T q`.
pub fn reference_self_backward<B: Backend>(
    qkv: Tensor<B, 2>,
    attended: Attended<B>,
    grad: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 2> {
    let ([tokens, _], dtype, kv_heads) = (qkv.dims(), qkv.dtype(), config.kv_heads);
    let [query, key, value] = split(qkv.clone(), mask, config);
    let ([queries, width], heads) = (query.dims(), config.heads);
    let rows = [kv_heads, heads / kv_heads * queries, tokens];
    let scores = scores(&query, &key, config).reshape([heads, queries, tokens]);
    let sums = accumulator(dtype);
    let visible = mask.visible(tokens, sums).unsqueeze::<3>();
    let lse = attended.lse.transpose().unsqueeze_dim::<3>(2);
    // Hidden scores may lie above the log-sum-exp: exp(0) at most, before the mask takes them out.
    let probs = (scores - lse).clamp_max(0.0).exp() * visible;
    let probs = probs.reshape(rows);
    let row_sum = {
        let product = grad.clone().cast(sums) * attended.output.cast(sums);
        let product = product.reshape([queries, heads, config.head_dim]);
        let sum = product.sum_dim(2).reshape([queries, heads]).transpose();
        sum.reshape([kv_heads, heads / kv_heads * queries, 1])
    };
    let (query, grad) = (by_head(query, heads, kv_heads), by_head(grad, heads, kv_heads));
    let (key, value) = (by_head(key, kv_heads, kv_heads), by_head(value, kv_heads, kv_heads));
    let d_value = probs.clone().cast(dtype).swap_dims(1, 2).matmul(grad.clone());
    let d_probs = grad.matmul(value.swap_dims(1, 2)).cast(sums);
    let d_scores = ((d_probs - row_sum) * probs * config.scale).cast(dtype);
    let d_query = by_token(d_scores.clone().matmul(key), heads);
    let d_key = d_scores.swap_dims(1, 2).matmul(query);
    let d_query = match &mask.queries {
        Some(chosen) => Tensor::zeros([tokens, width], (&qkv.device(), dtype)).select_assign(
            0,
            chosen.clone(),
            d_query,
            burn::tensor::IndexingUpdateOp::Add,
        ),
        None => d_query,
    };
    Tensor::cat(vec![d_query, by_token(d_key, kv_heads), by_token(d_value, kv_heads)], 1)
}

/// `q k^T * scale`, `[H_kv, H / H_kv * Q, K]`, in the accumulator's dtype.
fn scores<B: Backend>(
    query: &Tensor<B, 2>,
    key: &Tensor<B, 2>,
    config: &AttentionConfig,
) -> Tensor<B, 3> {
    let query = by_head(query.clone(), config.heads, config.kv_heads);
    let key = by_head(key.clone(), config.kv_heads, config.kv_heads);
    let dtype = accumulator(query.dtype());
    query.matmul(key.swap_dims(1, 2)).cast(dtype) * config.scale
}

/// `[T, heads * Dh]` to `[H_kv, heads / H_kv * T, Dh]`: the heads that share a key head become rows of it, head by head.
fn by_head<B: Backend>(x: Tensor<B, 2>, heads: usize, kv_heads: usize) -> Tensor<B, 3> {
    let [tokens, width] = x.dims();
    let head_dim = width / heads;
    let x = x.reshape([tokens, heads, head_dim]).swap_dims(0, 1);
    x.reshape([kv_heads, heads / kv_heads * tokens, head_dim])
}

/// The inverse of [`by_head`].
fn by_token<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 2> {
    let [kv_heads, rows, head_dim] = x.dims();
    let tokens = kv_heads * rows / heads;
    let x = x.reshape([heads, tokens, head_dim]).swap_dims(0, 1);
    x.reshape([tokens, heads * head_dim])
}
