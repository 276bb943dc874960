//! The decoder-only transformer with Hugging Face's field names. What distinguishes the families of models are the
//! [`Switches`](super::switches::Switches) of its configuration.

use arithmo_backends::{
    TrainBackend, Weight,
    ops::{self, linear::linear},
};
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};

use super::attention::Attention;
use super::config::DecoderConfig;
use super::input::{ModelInput, SequenceContext};
use super::kv_cache::{KvCache, LayerCache};
use super::linear::{Linear, WeightParam};
use super::mlp::Mlp;
use super::names::{EMBEDDING, FINAL_NORM, HEAD, layer_module};
use super::positions::PositionTable;
use super::rms_norm::RmsNorm;

/// One decoder layer: attention, then feed-forward, each on normalized input and added to the residual stream.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: TrainBackend> {
    /// Attention.
    pub self_attn: Attention<B>,
    /// Feed-forward.
    pub mlp: Mlp<B>,
    /// Norm before attention; `None` in a layer that has norms only after its halves.
    pub input_layernorm: Option<RmsNorm<B>>,
    /// Norm before the feed-forward; after attention if there is a [`Self::post_feedforward_layernorm`].
    pub post_attention_layernorm: RmsNorm<B>,
    /// Norm before the feed-forward in a layer that also has norms after its halves.
    pub pre_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Norm after the feed-forward.
    pub post_feedforward_layernorm: Option<RmsNorm<B>>,
    /// Factor on what each half adds to the residual stream; `None` means 1.
    #[module(skip)]
    pub residual_multiplier: Option<f64>,
}

impl<B: TrainBackend> DecoderLayer<B> {
    /// Maps the residual stream `[T, D]` to `[Q, D]`: one row per token that the layer's mask selects, or per token if it
    /// selects none. `is_last` says whether this is the model's last layer.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        context: &SequenceContext<B>,
        is_last: bool,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let mask = context.mask(self.self_attn.kind.window, is_last);
        let normed = normed_by(self.input_layernorm.as_ref(), &x);
        let residual = match &mask.queries {
            Some(queries) => x.select(0, queries.clone()),
            None => x,
        };
        let (attention, seed) = (&self.self_attn, context.dropout_seed);
        let Some(after) = &self.post_feedforward_layernorm else {
            let Some(multiplier) = self.residual_multiplier else {
                let x = attention.forward(normed, Some(residual), context, mask, cache);
                let normed = self.post_attention_layernorm.forward(x.clone());
                return self.mlp.forward(normed, Some(x), seed);
            };
            let x = residual + attention.forward(normed, None, context, mask, cache) * multiplier;
            let normed = self.post_attention_layernorm.forward(x.clone());
            return x + self.mlp.forward(normed, None, seed) * multiplier;
        };
        let attended = attention.forward(normed, None, context, mask, cache);
        let x = residual + self.post_attention_layernorm.forward(attended);
        let normed = normed_by(self.pre_feedforward_layernorm.as_ref(), &x);
        let fed = self.mlp.forward(normed, None, seed);
        x + after.forward(fed)
    }

    /// Returns the projections with their paths below the layer's, in Hugging Face's order.
    pub fn projections(&self) -> Vec<(&'static str, &Linear<B>)> {
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        let all = [
            ("self_attn.q_proj", attn.q_proj.as_ref()),
            ("self_attn.k_proj", attn.k_proj.as_ref()),
            ("self_attn.v_proj", attn.v_proj.as_ref()),
            ("self_attn.qkv_proj", attn.qkv_proj.as_ref()),
            ("self_attn.o_proj", Some(&attn.o_proj)),
            ("mlp.gate_proj", mlp.gate_proj.as_ref()),
            ("mlp.up_proj", mlp.up_proj.as_ref()),
            ("mlp.gate_up_proj", mlp.gate_up_proj.as_ref()),
            ("mlp.down_proj", Some(&mlp.down_proj)),
        ];
        all.into_iter().filter_map(|(path, linear)| Some((path, linear?))).collect()
    }

    /// Returns the projections in groups that have one input each: of queries, keys and values; the output of attention;
    /// gate and up; down.
    pub fn projection_groups(&self) -> [Vec<&Linear<B>>; 4] {
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        [attn.inputs(), vec![&attn.o_proj], mlp.inputs(), vec![&mlp.down_proj]]
    }

    /// Returns the number of outputs per token that DoRA scales.
    fn scaled_values_per_token(&self) -> usize {
        let groups = self.projection_groups().into_iter();
        let scaled = groups.filter(|group| group.iter().any(|p| p.has_magnitudes()));
        scaled.flatten().map(|projection| projection.dims().0).sum()
    }

    /// Returns the modules that have a weight, mutably, with their paths below the layer's: first the projections in the
    /// order of [`Self::projections`], then the norms.
    fn modules_mut(&mut self) -> Vec<(&'static str, ModuleMut<'_, B>)> {
        let Self { self_attn: attn, mlp, .. } = self;
        let projections = [
            ("self_attn.q_proj", attn.q_proj.as_mut()),
            ("self_attn.k_proj", attn.k_proj.as_mut()),
            ("self_attn.v_proj", attn.v_proj.as_mut()),
            ("self_attn.qkv_proj", attn.qkv_proj.as_mut()),
            ("self_attn.o_proj", Some(&mut attn.o_proj)),
            ("mlp.gate_proj", mlp.gate_proj.as_mut()),
            ("mlp.up_proj", mlp.up_proj.as_mut()),
            ("mlp.gate_up_proj", mlp.gate_up_proj.as_mut()),
            ("mlp.down_proj", Some(&mut mlp.down_proj)),
        ];
        let norms = [
            ("self_attn.q_norm", attn.q_norm.as_mut()),
            ("self_attn.k_norm", attn.k_norm.as_mut()),
            ("input_layernorm", self.input_layernorm.as_mut()),
            ("post_attention_layernorm", Some(&mut self.post_attention_layernorm)),
            ("pre_feedforward_layernorm", self.pre_feedforward_layernorm.as_mut()),
            ("post_feedforward_layernorm", self.post_feedforward_layernorm.as_mut()),
        ];
        let projections = projections
            .into_iter()
            .filter_map(|(path, linear)| Some((path, ModuleMut::Projection(linear?))));
        let norms =
            norms.into_iter().filter_map(|(path, norm)| Some((path, ModuleMut::Norm(norm?))));
        projections.chain(norms).collect()
    }
}

/// Returns `x` as `norm` normalizes it, or as it is if there is no norm.
fn normed_by<B: TrainBackend>(norm: Option<&RmsNorm<B>>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    norm.map_or_else(|| x.clone(), |norm| norm.forward(x.clone()))
}

/// A module of the model that has a weight.
#[derive(Debug)]
pub enum ModuleMut<'a, B: TrainBackend> {
    /// The embedding or the head.
    Matrix(&'a mut WeightParam<B>),
    /// A projection.
    Projection(&'a mut Linear<B>),
    /// A norm.
    Norm(&'a mut RmsNorm<B>),
}

/// The decoder-only transformer with its language-model head.
#[derive(Module, Debug)]
pub struct Decoder<B: TrainBackend> {
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
    pub config: DecoderConfig,
}

impl<B: TrainBackend> Decoder<B> {
    /// Computes the hidden states after the final norm, `[Q, D]`: of the tokens chosen by [`ModelInput::only`], or of
    /// all tokens.
    pub fn hidden_states(&self, input: &ModelInput<B>) -> Tensor<B, 2> {
        let mut x = self.embed(input.token_ids.clone());
        for index in 0..self.layers.len() {
            x = self.layer(index, x, &input.context);
        }
        self.final_states(x)
    }

    /// Applies layer `index` to the residual stream `x` `[T, D]`.
    pub fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        context: &SequenceContext<B>,
    ) -> Tensor<B, 2> {
        self.layers[index].forward(x, context, index + 1 == self.layers.len(), None)
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
            x = layer.forward(x, context, index + 1 == self.layers.len(), Some(cache));
        }
        self.final_states(x)
    }

    /// Computes the logits of the next token at every position, `[T, V]`.
    pub fn forward(&self, input: &ModelInput<B>) -> Tensor<B, 2> {
        linear(self.hidden_states(input), self.head())
    }

    /// Embeds token ids `[T]` as `[T, D]`.
    pub fn embed(&self, token_ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let embedded = self.embed_tokens.rows(token_ids, self.dtype());
        match self.config.switches.embedding_multiplier {
            Some(multiplier) => embedded * multiplier,
            None => embedded,
        }
    }

    /// Computes the hidden states that the head maps to logits, `[T, D]`, from the residual stream after the last layer:
    /// normalized, and divided by what the model divides its logits by.
    pub fn final_states(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.norm.forward(x);
        match self.config.switches.logits_scaling {
            Some(divisor) => normed / divisor,
            None => normed,
        }
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
        PositionTable::new(&self.config, positions, device)
    }

    /// Returns the bytes per token that a checkpointed block keeps for the backward pass: see
    /// [`DecoderConfig::block_values_per_token`]. With DoRA, also the outputs before they are scaled.
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
            let named = layer.projections().into_iter();
            named.map(move |(path, linear)| (format!("{}.{path}", layer_module(index)), linear))
        })
    }

    /// Returns every projection mutably with its module name, in the order of [`Self::projections`].
    pub fn projections_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear<B>)> {
        self.modules_mut().into_iter().filter_map(|(name, module)| match module {
            ModuleMut::Projection(linear) => Some((name, linear)),
            ModuleMut::Matrix(_) | ModuleMut::Norm(_) => None,
        })
    }

    /// Returns every module that has a weight, mutably, with its Hugging Face name, in the order of
    /// [`DecoderConfig::tensors`].
    pub fn modules_mut(&mut self) -> Vec<(String, ModuleMut<'_, B>)> {
        let Self { embed_tokens, layers, norm, lm_head, .. } = self;
        let mut modules = vec![(EMBEDDING.to_string(), ModuleMut::Matrix(embed_tokens))];
        for (index, layer) in layers.iter_mut().enumerate() {
            let layer_name = layer_module(index);
            let in_layer = layer.modules_mut().into_iter();
            modules.extend(in_layer.map(|(path, module)| (format!("{layer_name}.{path}"), module)));
        }
        modules.push((FINAL_NORM.to_string(), ModuleMut::Norm(norm)));
        modules.extend(lm_head.iter_mut().map(|head| (HEAD.to_string(), ModuleMut::Matrix(head))));
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
        for (_, module) in self.modules_mut() {
            match module {
                ModuleMut::Matrix(weight) => weight.trained = None,
                ModuleMut::Projection(linear) => {
                    linear.lora = None;
                    linear.trained_bias = None;
                    linear.weight.trained = None;
                }
                ModuleMut::Norm(norm) => norm.trained = None,
            }
        }
    }
}
