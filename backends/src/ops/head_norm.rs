//! RMSNorm of each head of queries and keys (arXiv 2302.05442), as Qwen 3 and Gemma 3 have it before the rotation.
//!
//! The operation normalizes the first heads that lie side by side in `[T, (H + 2 H_kv) * Dh]`: each query head with one
//! weight, each key head with another. The values after them are copied. It is one operation because its backward needs
//! only the input.

use burn::tensor::{Tensor, backend::Backend};

use crate::TrainBackend;

/// The parameters of the norms of queries and keys.
#[derive(Clone, Debug)]
pub struct HeadNorm<B: Backend> {
    /// The weights for queries and for keys, `[Dh]` each.
    pub weights: [Tensor<B, 1>; 2],
    /// The numbers of query heads and key heads, `H` and `H_kv`.
    pub heads: [usize; 2],
    /// Added to the mean square.
    pub epsilon: f64,
}

impl<B: Backend> HeadNorm<B> {
    /// Returns the width of a head, `Dh`.
    pub fn head_dim(&self) -> usize {
        self.weights[0].dims()[0]
    }

    /// Splits a matrix `[T, (H + 2 H_kv) * Dh]` into the heads of queries `[T * H, Dh]` and keys `[T * H_kv, Dh]`, and the
    /// rest `[T, H_kv * Dh]`.
    fn split(&self, qkv: Tensor<B, 2>) -> ([Tensor<B, 2>; 2], Tensor<B, 2>) {
        let ([tokens, width], head_dim) = (qkv.dims(), self.head_dim());
        let [queries, keys] = self.heads;
        let heads = |first: usize, count: usize| {
            let part = qkv.clone().narrow(1, first * head_dim, count * head_dim);
            part.reshape([tokens * count, head_dim])
        };
        let normed = (queries + keys) * head_dim;
        let parts = [heads(0, queries), heads(queries, keys)];
        (parts, qkv.narrow(1, normed, width - normed))
    }

    /// Joins what [`Self::split`] returns.
    fn join(&self, parts: [Tensor<B, 2>; 2], rest: Tensor<B, 2>) -> Tensor<B, 2> {
        let (tokens, head_dim) = (rest.dims()[0], self.head_dim());
        let [queries, keys] = parts;
        let queries = queries.reshape([tokens, self.heads[0] * head_dim]);
        let keys = keys.reshape([tokens, self.heads[1] * head_dim]);
        Tensor::cat(vec![queries, keys, rest], 1)
    }
}

/// Normalizes each head of queries and keys. Differentiable, also with respect to the weights.
///
/// # Shapes
/// - qkv: `[T, (H + 2 H_kv) * Dh]`, in the weights' dtype
/// - returns the same shape and dtype
///
/// # Panics
/// If shapes or dtypes do not match.
pub fn head_norm<B: TrainBackend>(qkv: Tensor<B, 2>, norm: &HeadNorm<B>) -> Tensor<B, 2> {
    let ([tokens, width], head_dim) = (qkv.dims(), norm.head_dim());
    let [queries, keys] = norm.heads;
    assert!(
        norm.weights[1].dims() == [head_dim] && width >= (queries + keys) * head_dim,
        "head_norm: {queries} and {keys} heads of width {head_dim} in [{tokens}, {width}]"
    );
    for weight in &norm.weights {
        assert_eq!(weight.dtype(), qkv.dtype(), "head_norm: dtype of the weights");
    }
    B::head_norm(qkv, norm)
}

/// The reference body of [`TrainBackend::head_norm`].
pub fn reference<B: TrainBackend>(qkv: Tensor<B, 2>, norm: &HeadNorm<B>) -> Tensor<B, 2> {
    let ([queries, keys], rest) = norm.split(qkv);
    let [query_weight, key_weight] = norm.weights.clone();
    let queries = B::rms_norm(queries, query_weight, norm.epsilon);
    let keys = B::rms_norm(keys, key_weight, norm.epsilon);
    norm.join([queries, keys], rest)
}

/// The reference body of [`TrainBackend::head_norm_backward`], `[T, (H + 2 H_kv) * Dh]`.
pub fn reference_backward<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    norm: &HeadNorm<B>,
    grad: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([queries, keys], _) = norm.split(qkv);
    let ([d_queries, d_keys], d_rest) = norm.split(grad);
    let [query_weight, key_weight] = norm.weights.clone();
    let d_queries = B::rms_norm_backward(queries, query_weight, norm.epsilon, d_queries);
    let d_keys = B::rms_norm_backward(keys, key_weight, norm.epsilon, d_keys);
    norm.join([d_queries, d_keys], d_rest)
}

/// Returns the gradients of the weights for queries and keys, `[Dh]` each: see [`super::rms_norm`].
pub fn weight_gradients<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    norm: &HeadNorm<B>,
    grad: Tensor<B, 2>,
) -> [Tensor<B, 1>; 2] {
    let ([queries, keys], _) = norm.split(qkv);
    let ([d_queries, d_keys], _) = norm.split(grad);
    [(queries, d_queries), (keys, d_keys)]
        .map(|(x, grad)| B::rms_norm_weight_gradient(x, norm.epsilon, grad))
}
