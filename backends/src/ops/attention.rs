//! Masked softmax attention with grouped queries (arXiv 2305.13245): `softmax(q k^T * scale + mask) v`.
//!
//! The mask is given by indices, never as a tensor over pairs of tokens. A query sees two ranges of keys: the prompt
//! that it shares with other completions, and its own sequence up to itself. Padding on either side, packed rows, a
//! sliding window and a key-value cache are special cases of this.
//!
//! Heads lie side by side, `[T, heads * Dh]`, as the projections return them; keys are never repeated for their group
//! of queries. Backward recomputes the probabilities from the log-sum-exp of each row (arXiv 2205.14135).

use burn::tensor::{Int, Tensor, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// The score of a key that a query does not see. It is finite so that a row that sees nothing stays finite.
const HIDDEN: f64 = -1e30;

/// The parameters of attention that are the same for every batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// The number of query heads, `H`.
    pub heads: usize,
    /// The number of key and value heads, `H_kv`; query head `h` uses key head `h / (H / H_kv)`.
    pub kv_heads: usize,
    /// The width of a head, `Dh`.
    pub head_dim: usize,
    /// The factor on the scores, usually `1 / sqrt(Dh)`.
    pub scale: f64,
}

/// The largest number of queries that the CPU's kernel processes as one block: a multiple of the tile rows of its GEMM.
/// With more queries, more keys would be attended to by only some of them.
pub const CPU_BLOCK: usize = 48;

/// The largest number of columns by which the CPU's kernel pads the keys of a block.
const CPU_PADDING: usize = 32;

/// The bytes that the CPU's kernel allocates beside its result. Memory plans use these numbers; a test of the
/// kernel compares them with its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWorkspace {
    /// The results of one span (queries that share no key with others), which all threads on the span share.
    pub span: usize,
    /// What every thread allocates for itself: the transposed keys (in backward also values), and the scores of a block.
    pub thread: usize,
}

impl AttentionConfig {
    /// Returns the width of queries, keys and values side by side: `(H + 2 H_kv) Dh`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Returns the workspace of the CPU's forward kernel for a span of `queries` queries and `keys` keys.
    pub fn cpu_workspace(&self, queries: usize, keys: usize) -> AttentionWorkspace {
        AttentionWorkspace {
            span: 4 * queries * self.heads * (self.head_dim + 1),
            thread: 4 * (CPU_BLOCK + self.head_dim) * (keys + CPU_PADDING),
        }
    }

    /// Returns the workspace of the CPU's backward kernel for a span of `tokens` queries and keys.
    pub fn cpu_backward_workspace(&self, tokens: usize) -> AttentionWorkspace {
        AttentionWorkspace {
            span: 4 * tokens * self.qkv_width(),
            thread: 2 * self.cpu_workspace(tokens, tokens).thread,
        }
    }
}

/// Which keys each query sees, by index.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    /// `[Q, 4]`: query `i` sees the keys `[r[0], r[1])` and `[r[2], r[3])`, which must not overlap. The output of a
    /// query that sees nothing is zero.
    pub ranges: Tensor<B, 2, Int>,
    /// `[K]`: 1 for a key that no query sees although it lies within ranges; `None` if there is no such key.
    pub hidden: Option<Tensor<B, 1, Int>>,
    /// `[Q]`, ascending: the token of each query in [`self_attention`]; `None` if every token is a query.
    pub queries: Option<Tensor<B, 1, Int>>,
}

impl<B: Backend> AttentionMask<B> {
    /// Returns 1 where a query sees a key, else 0: `[Q, K]` in `dtype`. Only the references use it.
    fn visible(&self, keys: usize, dtype: burn::tensor::DType) -> Tensor<B, 2> {
        let [queries, _] = self.ranges.dims();
        let device = self.ranges.device();
        let shape = [queries, keys];
        let key: Tensor<B, 2, Int> = Tensor::arange(0..keys as i64, &device).unsqueeze();
        let bound = |column| self.ranges.clone().narrow(1, column, 1).expand(shape);
        let in_range = |column| {
            let key = key.clone().expand(shape);
            key.clone().greater_equal(bound(column)).bool_and(key.lower(bound(column + 1)))
        };
        let visible = in_range(0).bool_or(in_range(2)).float().cast(dtype);
        match &self.hidden {
            Some(hidden) => visible * (hidden.clone().float().cast(dtype).neg() + 1.0).unsqueeze(),
            None => visible,
        }
    }

    /// Returns the same mask for an autodiff backend over `B`, without copying data.
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
    /// `[Q, H * Dh]`, in the queries' dtype.
    pub output: Tensor<B, 2>,
    /// The log-sum-exp of each query's scores, `[Q, H]`, in f32 (f64 for f64 input).
    pub lse: Tensor<B, 2>,
}

/// Computes the attention of a sequence to itself. Differentiable.
///
/// # Shapes
/// - qkv: `[T, (H + 2 H_kv) * Dh]`: queries, keys (both rotated) and values side by side
/// - mask: its `hidden` is `[T]`
/// - returns `[Q, H * Dh]`, in the same dtype
///
/// # Panics
/// If shapes do not match.
pub fn self_attention<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 2> {
    let [tokens, width] = qkv.dims();
    assert_eq!(width, config.qkv_width(), "self_attention: qkv is [{tokens}, {width}]");
    let queries = mask.queries.as_ref().map_or(tokens, |q| q.dims()[0]);
    check_mask(mask, queries, tokens, config);
    B::self_attention(qkv, mask, config).output
}

/// Computes the attention of `Q` queries to `K` keys, for example those of a cache. The softmax is computed in f32
/// (f64 for f64 input).
///
/// # Shapes
/// - query: `[Q, H * Dh]`
/// - key, value: `[K, H_kv * Dh]`
/// - returns `[Q, H * Dh]`, in the query's dtype
///
/// # Panics
/// If shapes or dtypes do not match.
pub fn attention<B: TrainBackend>(
    query: Tensor<B, 2>,
    key: Tensor<B, 2>,
    value: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 2> {
    let ([queries, width], [keys, _]) = (query.dims(), key.dims());
    assert_eq!(width, config.heads * config.head_dim, "attention: query is [{queries}, {width}]");
    for (name, tensor) in [("key", &key), ("value", &value)] {
        assert_eq!(
            (tensor.dims(), tensor.dtype()),
            ([keys, config.kv_heads * config.head_dim], query.dtype()),
            "attention: {name}"
        );
    }
    assert!(mask.queries.is_none(), "attention: the mask must not select queries");
    check_mask(mask, queries, keys, config);
    B::masked_attention(query, key, value, mask, config).output
}

/// Panics if the mask's shapes do not match the numbers of queries and keys.
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

/// Splits `qkv` `[T, (H + 2 H_kv) * Dh]` into queries, keys and values. Only the queries that the mask selects are
/// returned.
pub fn split<B: Backend>(
    qkv: Tensor<B, 2>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> [Tensor<B, 2>; 3] {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let query = qkv.clone().narrow(1, 0, queries);
    let query = match &mask.queries {
        Some(queries) => query.select(0, queries.clone()),
        None => query,
    };
    let key = qkv.clone().narrow(1, queries, keys);
    [query, key, qkv.narrow(1, queries + keys, keys)]
}

/// The reference body of [`TrainBackend::masked_attention`].
pub fn reference<B: TrainBackend>(
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
    let output = B::matmul(probs, by_head(value, config.kv_heads, config.kv_heads));
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
pub fn reference_self_backward<B: TrainBackend>(
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
    let sum_dtype = accumulator(dtype);
    let visible = mask.visible(tokens, sum_dtype).unsqueeze::<3>();
    let lse = attended.lse.transpose().unsqueeze_dim::<3>(2);
    // The score of a hidden key may exceed the log-sum-exp. It is capped at exp(0) before the mask zeroes it. (A
    // clamp would replace NaN by a number.)
    let shifted = scores - lse;
    let above = shifted.clone().greater_elem(0.0);
    let probs = shifted.mask_fill(above, 0.0).exp() * visible;
    let probs = probs.reshape(rows);
    let row_sum = {
        let grad_output = grad.clone().cast(sum_dtype) * attended.output.cast(sum_dtype);
        let grad_output = grad_output.reshape([queries, heads, config.head_dim]);
        let sum = grad_output.sum_dim(2).reshape([queries, heads]).transpose();
        sum.reshape([kv_heads, heads / kv_heads * queries, 1])
    };
    let (query, grad) = (by_head(query, heads, kv_heads), by_head(grad, heads, kv_heads));
    let (key, value) = (by_head(key, kv_heads, kv_heads), by_head(value, kv_heads, kv_heads));
    let d_value = B::matmul(probs.clone().cast(dtype).swap_dims(1, 2), grad.clone());
    let d_probs = B::matmul(grad, value.swap_dims(1, 2)).cast(sum_dtype);
    let d_scores = ((d_probs - row_sum) * probs * config.scale).cast(dtype);
    let d_query = by_token(B::matmul(d_scores.clone(), key), heads);
    let d_key = B::matmul(d_scores.swap_dims(1, 2), query);
    let d_query = match &mask.queries {
        Some(queries) => Tensor::zeros([tokens, width], (&qkv.device(), dtype)).select_assign(
            0,
            queries.clone(),
            d_query,
            burn::tensor::IndexingUpdateOp::Add,
        ),
        None => d_query,
    };
    Tensor::cat(vec![d_query, by_token(d_key, kv_heads), by_token(d_value, kv_heads)], 1)
}

/// Returns `q k^T * scale`, `[H_kv, H / H_kv * Q, K]`, in the accumulator's dtype.
fn scores<B: TrainBackend>(
    query: &Tensor<B, 2>,
    key: &Tensor<B, 2>,
    config: &AttentionConfig,
) -> Tensor<B, 3> {
    let query = by_head(query.clone(), config.heads, config.kv_heads);
    let key = by_head(key.clone(), config.kv_heads, config.kv_heads);
    let dtype = accumulator(query.dtype());
    B::matmul(query, key.swap_dims(1, 2)).cast(dtype) * config.scale
}

/// Reshapes `[T, heads * Dh]` to `[H_kv, heads / H_kv * T, Dh]`: the heads that share a key head become its rows,
/// head by head.
fn by_head<B: Backend>(x: Tensor<B, 2>, heads: usize, kv_heads: usize) -> Tensor<B, 3> {
    let [tokens, width] = x.dims();
    let head_dim = width / heads;
    let x = x.reshape([tokens, heads, head_dim]).swap_dims(0, 1);
    x.reshape([kv_heads, heads / kv_heads * tokens, head_dim])
}

/// Reshapes back: the inverse of [`by_head`].
fn by_token<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 2> {
    let [kv_heads, rows, head_dim] = x.dims();
    let tokens = kv_heads * rows / heads;
    let x = x.reshape([heads, tokens, head_dim]).swap_dims(0, 1);
    x.reshape([tokens, heads * head_dim])
}
