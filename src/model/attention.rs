//! Self-attention with grouped queries (arXiv 2305.13245) and a sliding window (arXiv 2310.06825); optionally queries and
//! keys are normalized first (arXiv 2302.05442).

use arithmo_backends::ops::attention::{attention, self_attention, split};
use arithmo_backends::ops::head_norm::head_norm;
use arithmo_backends::ops::rope::rope;
use arithmo_backends::{AttentionMask, HeadNorm, RotaryAngles, TrainBackend};
use burn::module::Module;
use burn::tensor::Tensor;

use super::input::SequenceContext;
use super::kv_cache::LayerCache;
use super::linear::{Linear, project};
use super::rms_norm::RmsNorm;
use super::switches::{LayerKind, QkNorm};

/// The attention half of a decoder layer.
#[derive(Module, Debug)]
pub struct Attention<B: TrainBackend> {
    /// `[H * Dh, D]`; `None` if there is a [`Self::qkv_proj`].
    pub q_proj: Option<Linear<B>>,
    /// `[H_kv * Dh, D]`; `None` if there is a [`Self::qkv_proj`].
    pub k_proj: Option<Linear<B>>,
    /// `[H_kv * Dh, D]`; `None` if there is a [`Self::qkv_proj`].
    pub v_proj: Option<Linear<B>>,
    /// The rows of queries, keys and values as one projection, `[(H + 2 H_kv) * Dh, D]`.
    pub qkv_proj: Option<Linear<B>>,
    /// `[D, H * Dh]`
    pub o_proj: Linear<B>,
    /// Norm of each query head, of width `Dh`, or of all of them together; `None` if queries are not normalized.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of each key head, or of all of them together.
    pub k_norm: Option<RmsNorm<B>>,
    /// The heads, the window and the rotation of this layer.
    #[module(skip)]
    pub kind: LayerKind,
}

impl<B: TrainBackend> Attention<B> {
    /// Computes the attention of each token over the tokens that `mask` lets it see, and adds the projected result to
    /// `residual`, if there is one.
    ///
    /// # Shapes
    /// - x: `[T, D]`, normalized hidden states
    /// - residual, returns: `[Q, D]`, one row per token in `mask.queries`; `Q = T` if that is `None`
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Option<Tensor<B, 2>>,
        context: &SequenceContext<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let (seed, config) = (context.dropout_seed, &self.kind.attention);
        let qkv = project(&self.inputs(), x, None, seed);
        let qkv = self.rotate(self.normalize(qkv), context);
        let attended = match cache.zip(context.slots.as_ref()) {
            None => self_attention(qkv, mask, config),
            Some((cache, slots)) => {
                let [query, key, value] = split(qkv, mask, config);
                let [key, value] = cache.write(key, value, slots);
                let mask = AttentionMask { queries: None, ..mask.clone() };
                attention(query, key, value, &mask, config)
            }
        };
        project(&[&self.o_proj], attended, residual, seed)
    }

    /// Returns the projections of the input, whose outputs side by side are queries, keys and values.
    pub(super) fn inputs(&self) -> Vec<&Linear<B>> {
        let all = [&self.q_proj, &self.k_proj, &self.v_proj, &self.qkv_proj];
        all.into_iter().flatten().collect()
    }

    /// Normalizes the queries and keys of `qkv` `[T, (H + 2 H_kv) * Dh]`, if this model does.
    fn normalize(&self, qkv: Tensor<B, 2>) -> Tensor<B, 2> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else {
            return qkv;
        };
        let config = &self.kind.attention;
        if self.kind.qk_norm == Some(QkNorm::AllHeads) {
            let [queries, keys] = [config.heads, config.kv_heads].map(|n| n * config.head_dim);
            let query = q_norm.forward(qkv.clone().narrow(1, 0, queries));
            let key = k_norm.forward(qkv.clone().narrow(1, queries, keys));
            return Tensor::cat(vec![query, key, qkv.narrow(1, queries + keys, keys)], 1);
        }
        let norm = HeadNorm {
            weights: [q_norm, k_norm].map(|norm| norm.factors(qkv.dtype())),
            heads: [config.heads, config.kv_heads],
            epsilon: q_norm.epsilon,
        };
        head_norm(qkv, &norm)
    }

    /// Rotates queries and keys by their positions, and multiplies queries by their factors.
    fn rotate(&self, qkv: Tensor<B, 2>, context: &SequenceContext<B>) -> Tensor<B, 2> {
        let config = &self.kind.attention;
        let qkv = match self.kind.rope {
            Some(kind) => {
                let heads = config.heads + config.kv_heads;
                rotate_start(qkv, &context.angles[kind], heads, config.head_dim)
            }
            None => qkv,
        };
        match &context.query_factors {
            Some(factors) => rope(qkv, factors, config.heads),
            None => qkv,
        }
    }
}

/// Rotates the features at the start of each of the first `heads` heads, of width `head_dim`, as many as there are angles
/// for.
fn rotate_start<B: TrainBackend>(
    qkv: Tensor<B, 2>,
    angles: &RotaryAngles<B>,
    heads: usize,
    head_dim: usize,
) -> Tensor<B, 2> {
    let ([tokens, width], [_, half]) = (qkv.dims(), angles.cos.dims());
    let (rotated, columns) = (2 * half, heads * head_dim);
    if rotated == head_dim {
        return rope(qkv, angles, heads);
    }
    let features = qkv.clone().narrow(1, 0, columns).reshape([tokens, heads, head_dim]);
    let start = features.clone().narrow(2, 0, rotated).reshape([tokens, heads * rotated]);
    let start = rope(start, angles, heads).reshape([tokens, heads, rotated]);
    let rest = features.narrow(2, rotated, head_dim - rotated);
    let features = Tensor::cat(vec![start, rest], 2).reshape([tokens, columns]);
    Tensor::cat(vec![features, qkv.narrow(1, columns, width - columns)], 1)
}
