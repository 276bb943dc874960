//! The Mistral model (arXiv 2310.06825), with Hugging Face's field names.

use arithmo_backends::{
    AttentionMask, TrainBackend, Weight,
    ops::{self, linear::linear},
};
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};

use super::attention::Attention;
use super::config::MistralConfig;
use super::input::{ModelInput, SequenceContext};
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{Linear, WeightParam};
use super::mlp::Mlp;
use super::positions::PositionTable;
use super::rms_norm::RmsNorm;

/// One decoder layer: attention, then feed-forward, each on normalized input and added to the residual stream.
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
    /// Maps the residual stream `[T, D]` to `[Q, D]`: one row per token in `mask.queries`, or per token if that is
    /// `None`.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        context: &SequenceContext<B>,
        mask: &AttentionMask<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let normed = self.input_layernorm.forward(x.clone());
        let residual = match &mask.queries {
            Some(queries) => x.select(0, queries.clone()),
            None => x,
        };
        let x = self.self_attn.forward(normed, residual, context, mask, cache);
        let normed = self.post_attention_layernorm.forward(x.clone());
        self.mlp.forward(normed, x, context.dropout_seed)
    }

    /// Returns the seven projections, in Hugging Face's order.
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

    /// Returns the number of outputs per token that DoRA scales, in the layer's four groups of projections.
    fn scaled_values_per_token(&self) -> usize {
        let projections = self.projections();
        let groups = [&projections[..3], &projections[3..4], &projections[4..6], &projections[6..]];
        let scaled = groups.into_iter().filter(|group| group.iter().any(|p| p.has_magnitudes()));
        scaled.flatten().map(|projection| projection.dims().0).sum()
    }

    /// Returns the seven projections mutably, in the order of [`Self::projections`].
    pub fn projections_mut(&mut self) -> [&mut Linear<B>; 7] {
        projections_mut(&mut self.self_attn, &mut self.mlp)
    }
}

/// Returns the projections of a layer's two halves, in the order of [`DecoderLayer::projections`].
fn projections_mut<'a, B: TrainBackend>(
    attn: &'a mut Attention<B>,
    mlp: &'a mut Mlp<B>,
) -> [&'a mut Linear<B>; 7] {
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

/// A module of the model that has a weight.
#[derive(Debug)]
pub enum ModuleMut<'a, B: TrainBackend> {
    /// A matrix: the embedding, a projection or the head.
    Matrix(&'a mut WeightParam<B>),
    /// A norm.
    Norm(&'a mut RmsNorm<B>),
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

/// Returns the names of a layer's projections, as in PEFT's `target_modules`: `q_proj` and so on.
pub fn projection_names() -> impl Iterator<Item = &'static str> {
    PROJECTIONS.into_iter().filter_map(|path| path.split('.').nth(1))
}

/// The decoder-only transformer with its language-model head.
#[derive(Module, Debug)]
pub struct Mistral<B: TrainBackend> {
    /// `[V, D]`
    pub embed_tokens: WeightParam<B>,
    /// The decoder layers.
    pub layers: Vec<DecoderLayer<B>>,
    /// The final norm.
    pub norm: RmsNorm<B>,
    /// `[V, D]`; `None` if the embedding serves as the head (`tie_word_embeddings`).
    pub lm_head: Option<WeightParam<B>>,
    /// Shapes and constants.
    #[module(skip)]
    pub config: MistralConfig,
}

impl<B: TrainBackend> Mistral<B> {
    /// Computes the hidden states after the final norm, `[Q, D]`: of the tokens chosen by [`ModelInput::only`], or of
    /// all tokens.
    pub fn hidden_states(&self, input: &ModelInput<B>) -> Tensor<B, 2> {
        let mut x = self.embed(input.token_ids.clone());
        for index in 0..self.layers.len() {
            x = self.layer(index, x, &input.context);
        }
        self.norm.forward(x)
    }

    /// Applies layer `index` to the residual stream `x` `[T, D]`.
    pub fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        context: &SequenceContext<B>,
    ) -> Tensor<B, 2> {
        let mask = context.layer_mask(index, self.layers.len());
        self.layers[index].forward(x, context, mask, None)
    }

    /// Computes hidden states like [`Self::hidden_states`]; the tokens also attend to those in `cache` and are added
    /// to it (see [`ModelInput::in_cache`]).
    pub fn hidden_states_cached(
        &self,
        input: &ModelInput<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let (mut x, context) = (self.embed(input.token_ids.clone()), &input.context);
        let caches = cache.layers.iter_mut();
        for (index, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            let mask = context.layer_mask(index, self.layers.len());
            x = layer.forward(x, context, mask, Some(cache));
        }
        self.norm.forward(x)
    }

    /// Computes the logits of the next token at every position, `[T, V]`.
    pub fn forward(&self, input: &ModelInput<B>) -> Tensor<B, 2> {
        linear(self.hidden_states(input), self.head())
    }

    /// Embeds token ids `[T]` as `[T, D]`.
    pub fn embed(&self, token_ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.rows(token_ids, self.dtype())
    }

    /// Returns the matrix that maps hidden states to logits, `[V, D]`.
    pub fn head(&self) -> Weight<B> {
        match &self.lm_head {
            Some(head) => head.for_input(self.dtype()),
            None => self.embed_tokens.for_input(self.dtype()),
        }
    }

    /// Builds the [`PositionTable`] of the first `positions` positions.
    pub fn position_table(&self, positions: usize, device: &B::Device) -> PositionTable<B> {
        let MistralConfig { rope_theta, sliding_window, .. } = self.config;
        let head_dim = self.config.head_dim();
        PositionTable::new(positions, head_dim, rope_theta, sliding_window, device)
    }

    /// Returns the bytes per token that a checkpointed block keeps for the backward pass: see
    /// [`MistralConfig::block_values_per_token`]. With DoRA, also the outputs before they are scaled.
    pub fn block_bytes_per_token(&self) -> usize {
        let scaled = self.layers.iter().map(DecoderLayer::scaled_values_per_token).max();
        let accumulator = ops::accumulator(self.dtype()).size();
        self.config.block_values_per_token() * self.dtype().size()
            + scaled.unwrap_or(0) * accumulator
    }

    /// Returns the dtype of the residual stream, in which the model computes.
    pub fn dtype(&self) -> DType {
        self.norm.weight.val().dtype()
    }

    /// Returns the device of the model's weights.
    pub fn device(&self) -> B::Device {
        self.norm.weight.val().device()
    }

    /// Returns every projection with its Hugging Face module name (`model.layers.0.self_attn.q_proj`).
    pub fn projections(&self) -> impl Iterator<Item = (String, &Linear<B>)> {
        self.layers.iter().enumerate().flat_map(|(index, layer)| {
            PROJECTIONS
                .iter()
                .zip(layer.projections())
                .map(move |(path, linear)| (format!("model.layers.{index}.{path}"), linear))
        })
    }

    /// Returns every projection mutably with its module name, in the order of [`Self::projections`].
    pub fn projections_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        self.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
            PROJECTIONS
                .iter()
                .zip(layer.projections_mut())
                .map(move |(path, linear)| (format!("model.layers.{index}.{path}"), linear))
        })
    }

    /// Returns every module that has a weight, mutably, with its Hugging Face name.
    pub fn modules_mut(&mut self) -> Vec<(String, ModuleMut<'_, B>)> {
        let Self { embed_tokens, layers, norm, lm_head, .. } = self;
        let mut modules = vec![("model.embed_tokens".to_string(), ModuleMut::Matrix(embed_tokens))];
        for (index, layer) in layers.iter_mut().enumerate() {
            let DecoderLayer { self_attn, mlp, input_layernorm, post_attention_layernorm } = layer;
            let matrices = PROJECTIONS.into_iter().zip(projections_mut(self_attn, mlp));
            let matrices =
                matrices.map(|(path, linear)| (path, ModuleMut::Matrix(&mut linear.weight)));
            let norms = [
                ("input_layernorm", ModuleMut::Norm(input_layernorm)),
                ("post_attention_layernorm", ModuleMut::Norm(post_attention_layernorm)),
            ];
            let all = matrices.chain(norms);
            modules
                .extend(all.map(|(path, module)| (format!("model.layers.{index}.{path}"), module)));
        }
        modules.push(("model.norm".to_string(), ModuleMut::Norm(norm)));
        modules.extend(
            lm_head.iter_mut().map(|head| ("lm_head".to_string(), ModuleMut::Matrix(head))),
        );
        modules
    }

    /// Recomputes the norms of DoRA: see [`Linear::update_norms`].
    pub fn update_norms(&mut self) {
        for (_, linear) in self.projections_mut() {
            linear.update_norms();
        }
    }

    /// Removes the adapter, its branches and its trained copies of weights, and keeps the same weights (shared, not
    /// copied): DPO's reference model.
    pub fn without_adapter(mut self) -> Self {
        self.remove_adapter();
        self
    }

    /// Removes the adapter like [`Self::without_adapter`].
    pub fn remove_adapter(&mut self) {
        for (_, linear) in self.projections_mut() {
            linear.lora = None;
        }
        for (_, module) in self.modules_mut() {
            match module {
                ModuleMut::Matrix(weight) => weight.trained = None,
                ModuleMut::Norm(norm) => norm.trained = None,
            }
        }
    }
}
