//! The one list of a model's tensors: their names in Hugging Face's files, their roles and their shapes.

use super::config::DecoderConfig;
use super::switches::{NormPlacement, QkNorm};

/// Paths below `model.layers.N.` of the projections that a layer may have, in the order of
/// [`DecoderLayer::projections`](super::decoder::DecoderLayer::projections). See [`projections`] for those of a model.
const PROJECTIONS: [&str; 9] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.gate_up_proj",
    "mlp.down_proj",
];

/// Module name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens";

/// Module name of the final norm.
pub const FINAL_NORM: &str = "model.norm";

/// Module name of the head.
pub const HEAD: &str = "lm_head";

/// What a tensor of the model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The embedding, `[V, D]`.
    Embedding,
    /// A projection of a layer, `[D_out, D_in]`: it may be quantized and have a low-rank branch.
    Projection,
    /// The bias of a projection, `[D_out]`.
    Bias,
    /// The weight of a norm.
    Norm,
    /// The output head, `[V, D]`.
    Head,
}

/// A tensor of the model as `XForCausalLM` stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTensor {
    /// Name in files, as in `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// What the tensor is for.
    pub role: TensorRole,
    /// Shape in files; matrices are `[out, in]`.
    pub shape: Vec<usize>,
}

impl ModelTensor {
    /// Creates the weight of the module `module`.
    fn weight(module: &str, role: TensorRole, shape: Vec<usize>) -> Self {
        Self { name: format!("{module}.weight"), role, shape }
    }

    /// Returns the name of the module to which the tensor belongs, as in `model.layers.0.self_attn.q_proj`.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(module, _)| module)
    }

    /// Returns whether the tensor is the weight of a projection.
    pub fn is_projection(&self) -> bool {
        self.role == TensorRole::Projection
    }

    /// Returns the number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the shape of a matrix; `None` for a vector.
    pub fn dims(&self) -> Option<[usize; 2]> {
        self.shape.as_slice().try_into().ok()
    }
}

/// Returns the names of the projections of all families, as in PEFT's `target_modules`: `q_proj` and so on.
pub fn projection_names() -> impl Iterator<Item = &'static str> {
    PROJECTIONS.into_iter().filter_map(|path| path.split('.').nth(1))
}

/// Returns whether the weight `name` (`model.layers.0.mlp.up_proj.weight`) belongs to a projection. Projections are
/// quantized; embeddings, norms and the head are not.
pub fn is_projection(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or_default();
    let in_layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    in_layer.is_some_and(|(_, path)| PROJECTIONS.contains(&path))
}

/// Returns the module name of layer `index`.
pub fn layer_module(index: usize) -> String {
    format!("model.layers.{index}")
}

/// Lists all tensors of a model of this shape, without `lm_head.weight` if the embeddings are tied.
pub fn tensors(config: &DecoderConfig) -> Vec<ModelTensor> {
    let (d, vocabulary) = (config.hidden_size, config.vocab_size);
    let mut all = vec![ModelTensor::weight(EMBEDDING, TensorRole::Embedding, vec![vocabulary, d])];
    for index in 0..config.num_hidden_layers {
        all.extend(layer_tensors(config, index));
    }
    all.push(ModelTensor::weight(FINAL_NORM, TensorRole::Norm, vec![d]));
    if !config.tie_word_embeddings {
        all.push(ModelTensor::weight(HEAD, TensorRole::Head, vec![vocabulary, d]));
    }
    all
}

/// Lists the tensors of layer `index`: its projections, each with its bias if it has one, and its norms.
fn layer_tensors(config: &DecoderConfig, index: usize) -> Vec<ModelTensor> {
    let layer = layer_module(index);
    let mut tensors = Vec::new();
    for LayerProjection { path, dims, has_bias, .. } in projections(config) {
        let module = format!("{layer}.{path}");
        tensors.push(ModelTensor::weight(&module, TensorRole::Projection, dims.to_vec()));
        if has_bias {
            let name = format!("{module}.bias");
            tensors.push(ModelTensor { name, role: TensorRole::Bias, shape: vec![dims[0]] });
        }
    }
    for (path, width) in norms(config) {
        let module = format!("{layer}.{path}");
        tensors.push(ModelTensor::weight(&module, TensorRole::Norm, vec![width]));
    }
    tensors
}

/// A group of a layer's projections that have one input and are computed side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectionGroup {
    /// Of queries, keys and values.
    Qkv,
    /// Of the output of attention.
    Output,
    /// Of gate and up.
    GateUp,
    /// Of down.
    Down,
}

/// A projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProjection {
    /// Path below `model.layers.N.`.
    pub path: &'static str,
    /// Shape `[D_out, D_in]`.
    pub dims: [usize; 2],
    /// Whether it has a bias.
    pub has_bias: bool,
    /// The group to which it belongs.
    pub group: ProjectionGroup,
}

/// Lists the projections of each layer of a model, in the order of
/// [`DecoderLayer::projections`](super::decoder::DecoderLayer::projections).
pub fn projections(config: &DecoderConfig) -> Vec<LayerProjection> {
    let (d, inner, switches) = (config.hidden_size, config.intermediate_size, &config.switches);
    let queries = config.num_attention_heads * config.head_dim();
    let keys = config.num_key_value_heads * config.head_dim();
    let projection = |path: &'static str| {
        let (group, dims) = match path {
            "self_attn.q_proj" => (ProjectionGroup::Qkv, [queries, d]),
            "self_attn.k_proj" | "self_attn.v_proj" => (ProjectionGroup::Qkv, [keys, d]),
            "self_attn.qkv_proj" => (ProjectionGroup::Qkv, [queries + 2 * keys, d]),
            "self_attn.o_proj" => (ProjectionGroup::Output, [d, queries]),
            "mlp.gate_up_proj" => (ProjectionGroup::GateUp, [2 * inner, d]),
            "mlp.down_proj" => (ProjectionGroup::Down, [d, inner]),
            _ => (ProjectionGroup::GateUp, [inner, d]),
        };
        let has_bias = match group {
            ProjectionGroup::Qkv => switches.qkv_bias,
            ProjectionGroup::Output => switches.o_bias,
            ProjectionGroup::GateUp | ProjectionGroup::Down => switches.mlp_bias,
        };
        LayerProjection { path, dims, has_bias, group }
    };
    let is_fused = |projection: &LayerProjection| {
        matches!(projection.path, "self_attn.qkv_proj" | "mlp.gate_up_proj")
    };
    let has_fused_form = |projection: &LayerProjection| {
        matches!(projection.group, ProjectionGroup::Qkv | ProjectionGroup::GateUp)
    };
    PROJECTIONS
        .into_iter()
        .map(projection)
        .filter(|p| !has_fused_form(p) || is_fused(p) == switches.fused_projections)
        .collect()
}

/// Lists the norms of a layer with their widths.
fn norms(config: &DecoderConfig) -> Vec<(&'static str, usize)> {
    let (d, head_dim) = (config.hidden_size, config.head_dim());
    let mut norms = Vec::new();
    let widths = config.switches.qk_norm.map(|norm| match norm {
        QkNorm::EachHead => [head_dim; 2],
        QkNorm::AllHeads => {
            [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * head_dim)
        }
    });
    if let Some([queries, keys]) = widths {
        norms.extend([("self_attn.q_norm", queries), ("self_attn.k_norm", keys)]);
    }
    let in_stream: &[&'static str] = match config.switches.norm_placement {
        NormPlacement::Before => &["input_layernorm", "post_attention_layernorm"],
        NormPlacement::BeforeAndAfter => &[
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ],
        NormPlacement::After => &["post_attention_layernorm", "post_feedforward_layernorm"],
    };
    norms.extend(in_stream.iter().map(|path| (*path, d)));
    norms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_weights_of_projections_are_quantized() {
        for (name, expected) in [
            ("model.layers.0.mlp.up_proj.weight", true),
            ("model.layers.12.self_attn.q_proj.weight", true),
            ("model.layers.0.self_attn.q_proj.bias", false),
            ("model.layers.0.input_layernorm.weight", false),
            ("model.embed_tokens.weight", false),
            ("lm_head.weight", false),
        ] {
            assert_eq!(is_projection(name), expected, "{name}");
        }
    }
}
