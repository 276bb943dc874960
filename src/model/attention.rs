//! Self-attention with grouped queries (arXiv 2305.13245) and a sliding window (arXiv 2310.06825).

use arithmo_backends::{AttentionConfig, TrainBackend, ops::attention::attention};
use burn::module::Module;
use burn::tensor::Tensor;

use super::input::SequenceContext;
use super::kv_cache::LayerCache;
use super::linear::Linear;

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
    /// Keys further back than this are not seen.
    #[module(skip)]
    pub sliding_window: Option<usize>,
}

impl<B: TrainBackend> Attention<B> {
    /// Lets each token look at the earlier ones it may see: `[B, S, D]` to `[B, S, D]`.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &SequenceContext<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let seed = context.dropout_seed;
        let query = context
            .rotary
            .apply(self.heads(self.q_proj.forward(x.clone(), seed)));
        let key = context
            .rotary
            .apply(self.heads(self.k_proj.forward(x.clone(), seed)));
        let value = self.heads(self.v_proj.forward(x, seed));
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let config = AttentionConfig {
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: self.sliding_window,
        };
        let out = attention(query, key, value, &context.mask, &config);
        let [batch, length, heads, width] = out.dims();
        self.o_proj
            .forward(out.reshape([batch, length, heads * width]), seed)
    }

    /// `[B, S, H * Dh]` to `[B, S, H, Dh]`.
    fn heads(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [batch, length, width] = x.dims();
        x.reshape([batch, length, width / self.head_dim, self.head_dim])
    }
}
