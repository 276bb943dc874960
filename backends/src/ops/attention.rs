//! Masked softmax attention with grouped queries: `softmax(q k^T * scale + mask) v`.
//!
//! The mask is given by index, never as a `[B, H, S, K]` tensor: a query sees a key when both stand in the same
//! segment, the key's position is not later, and it lies within the window. Positions, not indices, are compared, so
//! left padding, right padding, packed rows and a key-value cache all use the same rule.
//!
//! Backward recomputes the probabilities from q and k, so only q, k and v are saved.

use burn::tensor::{Bool, Int, Tensor, activation::softmax, backend::Backend};

use super::accumulator;
use crate::TrainBackend;

/// Added to the score of a hidden key; finite, so that a row that sees nothing stays finite.
const HIDDEN: f64 = -1e30;

/// What does not change from batch to batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Factor on the scores, usually `1 / sqrt(Dh)`.
    pub scale: f64,
    /// Sliding window `w`: position `i` sees `j` with `i - w < j <= i` (Hugging Face's meaning). `None`: no limit.
    pub window: Option<usize>,
}

/// Who may see whom, by index.
#[derive(Clone, Debug)]
pub struct AttentionMask<B: Backend> {
    /// Segment of each query, `[B, S]`.
    pub query_segments: Tensor<B, 2, Int>,
    /// Position of each query in its sequence, `[B, S]`.
    pub query_positions: Tensor<B, 2, Int>,
    /// Segment of each key, `[B, K]`; a key with a segment no query has (padding: -1) is seen by nobody.
    pub key_segments: Tensor<B, 2, Int>,
    /// Position of each key, `[B, K]`.
    pub key_positions: Tensor<B, 2, Int>,
}

impl<B: Backend> AttentionMask<B> {
    /// True where the key is hidden from the query, `[B, 1, S, K]`.
    pub fn hidden(&self, window: Option<usize>) -> Tensor<B, 4, Bool> {
        let query = |t: &Tensor<B, 2, Int>| t.clone().unsqueeze_dims::<4>(&[1, 3]);
        let key = |t: &Tensor<B, 2, Int>| t.clone().unsqueeze_dims::<4>(&[1, 1]);
        let [batch, queries] = self.query_positions.dims();
        let [_, keys] = self.key_positions.dims();
        let shape = [batch, 1, queries, keys];
        let distance =
            query(&self.query_positions).expand(shape) - key(&self.key_positions).expand(shape);
        let other = query(&self.query_segments)
            .expand(shape)
            .not_equal(key(&self.key_segments).expand(shape));
        let later = distance.clone().lower_elem(0);
        let hidden = other.bool_or(later);
        match window {
            Some(window) => hidden.bool_or(distance.greater_equal_elem(window as i64)),
            None => hidden,
        }
    }

    /// The same mask for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> AttentionMask<A>
    where
        A: burn::tensor::backend::AutodiffBackend<InnerBackend = B>,
    {
        AttentionMask {
            query_segments: Tensor::from_inner(self.query_segments.clone()),
            query_positions: Tensor::from_inner(self.query_positions.clone()),
            key_segments: Tensor::from_inner(self.key_segments.clone()),
            key_positions: Tensor::from_inner(self.key_positions.clone()),
        }
    }
}

/// Gradients of attention, shaped as its inputs.
#[derive(Clone, Debug)]
pub struct AttentionGrads<B: Backend> {
    /// `[B, S, H, Dh]`
    pub query: Tensor<B, 4>,
    /// `[B, K, H_kv, Dh]`
    pub key: Tensor<B, 4>,
    /// `[B, K, H_kv, Dh]`
    pub value: Tensor<B, 4>,
}

/// Attention of `S` queries to `K` keys. Softmax is computed in f32 (f64 for f64 input).
///
/// # Shapes
/// - query: `[B, S, H, Dh]`
/// - key, value: `[B, K, H_kv, Dh]`, `H` a multiple of `H_kv`; query head `h` uses key head `h / (H / H_kv)`
/// - mask: `[B, S]` and `[B, K]`
/// - returns `[B, S, H, Dh]`, of the query's dtype
///
/// # Panics
/// If shapes or dtypes do not fit together.
pub fn attention<B: TrainBackend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 4> {
    let ([batch, queries, heads, width], [_, keys, kv_heads, _]) = (query.dims(), key.dims());
    assert_eq!(
        key.dims(),
        [batch, keys, kv_heads, width],
        "attention: query is {:?}",
        query.dims()
    );
    assert_eq!(
        key.dims(),
        value.dims(),
        "attention: key and value must have one shape"
    );
    assert!(
        heads.is_multiple_of(kv_heads),
        "attention: {heads} heads over {kv_heads} key heads"
    );
    assert_eq!(
        mask.query_positions.dims(),
        [batch, queries],
        "attention: query positions"
    );
    assert_eq!(
        mask.key_positions.dims(),
        [batch, keys],
        "attention: key positions"
    );
    assert!(
        query.dtype() == key.dtype() && key.dtype() == value.dtype(),
        "attention: query, key and value must have one dtype"
    );
    B::masked_attention(query, key, value, mask, config)
}

/// The reference body of [`TrainBackend::masked_attention`].
pub fn reference<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 4> {
    let [batch, queries, heads, width] = query.dims();
    let value = value.swap_dims(1, 2);
    let probs = probabilities(&query, &key, mask, config).cast(value.dtype());
    let [_, kv_heads, keys, _] = value.dims();
    let rows = [batch, kv_heads, heads / kv_heads * queries, keys];
    let out = probs.reshape(rows).matmul(value);
    out.reshape([batch, heads, queries, width]).swap_dims(1, 2)
}

/// The reference body of [`TrainBackend::masked_attention_backward`]; `grad` is `[B, S, H, Dh]`.
pub fn reference_backward<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    grad: Tensor<B, 4>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> AttentionGrads<B> {
    let [batch, queries, heads, width] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let rows = [batch, kv_heads, heads / kv_heads * queries, keys];
    let dtype = query.dtype();
    let probs = probabilities(&query, &key, mask, config).reshape(rows);
    let (query, grad) = (fold_heads(query, kv_heads), fold_heads(grad, kv_heads));
    let (key, value) = (key.swap_dims(1, 2), value.swap_dims(1, 2));

    let d_value = probs
        .clone()
        .cast(dtype)
        .swap_dims(2, 3)
        .matmul(grad.clone());
    let d_probs = grad.matmul(value.swap_dims(2, 3)).cast(probs.dtype());
    let row_sum = (d_probs.clone() * probs.clone()).sum_dim(3);
    let d_scores = ((d_probs - row_sum) * probs * config.scale).cast(dtype);
    let d_query = d_scores.clone().matmul(key);
    let d_key = d_scores.swap_dims(2, 3).matmul(query);
    AttentionGrads {
        query: d_query
            .reshape([batch, heads, queries, width])
            .swap_dims(1, 2),
        key: d_key.swap_dims(1, 2),
        value: d_value.swap_dims(1, 2),
    }
}

/// `softmax(q k^T * scale + mask)`: `[B, H, S, K]`, in the accumulator's dtype.
fn probabilities<B: Backend>(
    query: &Tensor<B, 4>,
    key: &Tensor<B, 4>,
    mask: &AttentionMask<B>,
    config: &AttentionConfig,
) -> Tensor<B, 4> {
    let [batch, queries, heads, _] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let dtype = accumulator(query.dtype());
    let folded = fold_heads(query.clone(), kv_heads);
    let scores = folded.matmul(key.clone().permute([0, 2, 3, 1])).cast(dtype) * config.scale;
    let scores = scores.reshape([batch, heads, queries, keys]);
    let hidden = mask.hidden(config.window);
    let bias = Tensor::zeros([batch, 1, queries, keys], (&scores.device(), dtype))
        .mask_fill(hidden, HIDDEN);
    softmax(scores + bias, 3)
}

/// The query heads of one key head become rows: `[B, S, H, Dh]` to `[B, H_kv, H / H_kv * S, Dh]`. Keys are never repeated.
fn fold_heads<B: Backend>(x: Tensor<B, 4>, kv_heads: usize) -> Tensor<B, 4> {
    let [batch, queries, heads, width] = x.dims();
    x.swap_dims(1, 2)
        .reshape([batch, kv_heads, heads / kv_heads * queries, width])
}
