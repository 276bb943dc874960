//! The Mistral model (arXiv 2310.06825), with Hugging Face's field names.

use arithmo_backends::{TrainBackend, ops::linear::linear};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use super::attention::Attention;
use super::config::MistralConfig;
use super::input::{ModelInput, SequenceContext};
use super::kv_cache::{KvCache, LayerCache};
use super::linear::Linear;
use super::mlp::Mlp;
use super::rms_norm::RmsNorm;
use super::rope::RotaryTable;

/// One layer: attention, then feed-forward, each on normed input and added to the residual stream.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: TrainBackend> {
    /// Attention.
    pub self_attn: Attention<B>,
    /// Feed-forward.
    pub mlp: Mlp<B>,
    /// Norm before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Norm before the feed-forward.
    pub post_attention_layernorm: RmsNorm<B>,
}

impl<B: TrainBackend> DecoderLayer<B> {
    /// `[B, S, D]` to `[B, S, D]`.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &SequenceContext<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let attended =
            self.self_attn
                .forward(self.input_layernorm.forward(x.clone()), context, cache);
        let x = x + attended;
        let normed = self.post_attention_layernorm.forward(x.clone());
        x + self.mlp.forward(normed, context.dropout_seed)
    }

    /// The seven projections, in Hugging Face's order.
    pub fn projections(&self) -> [&Linear<B>; 7] {
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        [
            &attn.q_proj,
            &attn.k_proj,
            &attn.v_proj,
            &attn.o_proj,
            &mlp.gate_proj,
            &mlp.up_proj,
            &mlp.down_proj,
        ]
    }

    /// As [`Self::projections`], to change them.
    pub fn projections_mut(&mut self) -> [&mut Linear<B>; 7] {
        let (attn, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            &mut attn.q_proj,
            &mut attn.k_proj,
            &mut attn.v_proj,
            &mut attn.o_proj,
            &mut mlp.gate_proj,
            &mut mlp.up_proj,
            &mut mlp.down_proj,
        ]
    }
}

/// Paths of a layer's projections below `model.layers.N.`, in the order of [`DecoderLayer::projections`].
pub const PROJECTIONS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The whole model.
#[derive(Module, Debug)]
pub struct Mistral<B: TrainBackend> {
    /// `[V, D]`
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// The decoder layers.
    pub layers: Vec<DecoderLayer<B>>,
    /// The final norm.
    pub norm: RmsNorm<B>,
    /// `[V, D]`; `None` where the embedding is used (`tie_word_embeddings`).
    pub lm_head: Option<Param<Tensor<B, 2>>>,
    /// Shapes and constants.
    #[module(skip)]
    pub config: MistralConfig,
}

impl<B: TrainBackend> Mistral<B> {
    /// Hidden states after the final norm, `[B, S, D]`.
    pub fn hidden_states(&self, input: &ModelInput<B>) -> Tensor<B, 3> {
        let mut x = self.embed(input.token_ids.clone());
        for layer in &self.layers {
            x = layer.forward(x, &input.context, None);
        }
        self.norm.forward(x)
    }

    /// As [`Self::hidden_states`], for new tokens after those in `cache`, which grows by them.
    pub fn hidden_states_cached(
        &self,
        input: &ModelInput<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 3> {
        let mut x = self.embed(input.token_ids.clone());
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(x, &input.context, Some(cache));
        }
        self.norm.forward(x)
    }

    /// Logits of the next token at every position, `[B, S, V]`.
    pub fn forward(&self, input: &ModelInput<B>) -> Tensor<B, 3> {
        let hidden = self.hidden_states(input);
        let [batch, length, width] = hidden.dims();
        let logits = linear(hidden.reshape([batch * length, width]), self.head());
        let [_, vocabulary] = logits.dims();
        logits.reshape([batch, length, vocabulary])
    }

    /// Embeds ids `[B, S]`: `[B, S, D]`.
    pub fn embed(&self, token_ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, length] = token_ids.dims();
        let [_, width] = self.embed_tokens.dims();
        let rows = self
            .embed_tokens
            .val()
            .select(0, token_ids.reshape([batch * length]));
        rows.reshape([batch, length, width])
    }

    /// The matrix from hidden states to logits, `[V, D]`.
    pub fn head(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.val(),
            None => self.embed_tokens.val(),
        }
    }

    /// A rotary table for every position the model allows.
    pub fn rotary_table(&self, device: &B::Device) -> RotaryTable<B> {
        let config = &self.config;
        let positions = config.max_position_embeddings;
        RotaryTable::new(positions, config.head_dim(), config.rope_theta, device)
    }

    /// Every projection with its Hugging Face module name (`model.layers.0.self_attn.q_proj`).
    pub fn projections(&self) -> impl Iterator<Item = (String, &Linear<B>)> {
        self.layers.iter().enumerate().flat_map(|(index, layer)| {
            PROJECTIONS
                .iter()
                .zip(layer.projections())
                .map(move |(path, linear)| (format!("model.layers.{index}.{path}"), linear))
        })
    }

    /// As [`Self::projections`], to change them.
    pub fn projections_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        self.layers
            .iter_mut()
            .enumerate()
            .flat_map(|(index, layer)| {
                PROJECTIONS
                    .iter()
                    .zip(layer.projections_mut())
                    .map(move |(path, linear)| (format!("model.layers.{index}.{path}"), linear))
            })
    }

    /// The same weights (shared, not copied) without any low-rank branch: DPO's reference model.
    pub fn without_adapter(mut self) -> Self {
        for (_, linear) in self.projections_mut() {
            linear.lora = None;
        }
        self
    }
}
