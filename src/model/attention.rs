//! Self-attention with grouped queries (arXiv 2305.13245) and a sliding window (arXiv 2310.06825); optionally each head of
//! queries and keys is normalized first (arXiv 2302.05442).

use arithmo_backends::ops::attention::{attention, self_attention, split};
use arithmo_backends::ops::head_norm::head_norm;
use arithmo_backends::ops::rope::rope;
use arithmo_backends::{AttentionMask, HeadNorm, TrainBackend};
use burn::module::Module;
use burn::tensor::Tensor;

use super::input::SequenceContext;
use super::kv_cache::LayerCache;
use super::linear::{Linear, project};
use super::rms_norm::RmsNorm;
use super::switches::LayerKind;

/// The attention half of a decoder layer.
#[derive(Module, Debug)]
pub struct Attention<B: TrainBackend> {
    /// `[H * Dh, D]`
    pub q_proj: Linear<B>,
    /// `[H_kv * Dh, D]`
    pub k_proj: Linear<B>,
    /// `[H_kv * Dh, D]`
    pub v_proj: Linear<B>,
    /// `[D, H * Dh]`
    pub o_proj: Linear<B>,
    /// Norm of each query head, of width `Dh`; `None` if heads are not normalized.
    pub q_norm: Option<RmsNorm<B>>,
    /// Norm of each key head.
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
        let qkv = project(&[&self.q_proj, &self.k_proj, &self.v_proj], x, None, seed);
        let qkv = self.rotate(self.normalize_heads(qkv), context);
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

    /// Normalizes each head of the queries and keys of `qkv` `[T, (H + 2 H_kv) * Dh]`, if this model does.
    fn normalize_heads(&self, qkv: Tensor<B, 2>) -> Tensor<B, 2> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else {
            return qkv;
        };
        let config = &self.kind.attention;
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
            Some(kind) => rope(qkv, &context.angles[kind], config.heads + config.kv_heads),
            None => qkv,
        };
        match &context.query_factors {
            Some(factors) => rope(qkv, factors, config.heads),
            None => qkv,
        }
    }
}
