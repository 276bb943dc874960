//! Self-attention with grouped queries (arXiv 2305.13245) and a sliding window (arXiv 2310.06825).

use arithmo_backends::ops::attention::{attention, self_attention, split};
use arithmo_backends::ops::rope::rope;
use arithmo_backends::{AttentionConfig, AttentionMask, TrainBackend};
use burn::module::Module;
use burn::tensor::Tensor;

use super::input::SequenceContext;
use super::kv_cache::LayerCache;
use super::linear::{Linear, project};

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
    /// `Dh`
    #[module(skip)]
    pub head_dim: usize,
}

impl<B: TrainBackend> Attention<B> {
    /// Computes the attention of each token over the tokens that `mask` lets it see, and adds the projected result to
    /// `residual`.
    ///
    /// # Shapes
    /// - x: `[T, D]`, normalized hidden states
    /// - residual, returns: `[Q, D]`, one row per token in `mask.queries`; `Q = T` if that is `None`
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        residual: Tensor<B, 2>,
        context: &SequenceContext<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let (seed, config) = (context.dropout_seed, self.config());
        let qkv = project(&[&self.q_proj, &self.k_proj, &self.v_proj], x, None, seed);
        let qkv = rope(qkv, &context.angles, config.heads + config.kv_heads);
        let attended = match cache.zip(context.slots.as_ref()) {
            None => self_attention(qkv, mask, &config),
            Some((cache, slots)) => {
                let [query, key, value] = split(qkv, mask, &config);
                let [key, value] = cache.write(key, value, slots);
                let mask = AttentionMask { queries: None, ..mask.clone() };
                attention(query, key, value, &mask, &config)
            }
        };
        project(&[&self.o_proj], attended, Some(residual), seed)
    }

    /// Derives the shape of attention from the projections.
    fn config(&self) -> AttentionConfig {
        let (queries, keys) = (self.q_proj.dims().0, self.k_proj.dims().0);
        AttentionConfig {
            heads: queries / self.head_dim,
            kv_heads: keys / self.head_dim,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
        }
    }
}
