//! Reads and writes `config.json` of a model, in every form that Hugging Face transformers has written.

mod fields;
mod rope;

use std::path::Path;

use arithmo_backends::AttentionConfig;
use serde_json::{Map, Value, json};

pub use self::fields::Fields;
pub use self::rope::RopeKeys;
use super::family::Family;
use super::names::{self, ModelTensor};
use super::quantize::Quantization;
use super::rope::Rope;
use super::switches::{Activation, LayerKind, LongRope, NormPlacement, RopeScaling, Switches};
use crate::error::{Error, Result};
use crate::input_file;
use crate::output::write_whole;

/// The shape of a model, with the field names of transformers' `PretrainedConfig` classes.
///
/// Notation: D = `hidden_size`, H = `num_attention_heads`, H_kv = `num_key_value_heads`, d = [`head_dim`](Self::head_dim).
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family of the model, which determines the form of its `config.json`.
    pub family: &'static Family,
    /// The differences from Mistral's decoder.
    pub switches: Switches,
    /// Whether the model's files hold a model of several kinds of input, of which this is the text part.
    pub is_text_part: bool,
    /// Rows of the embedding and of the output head, V.
    pub vocab_size: usize,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads, H.
    pub num_attention_heads: usize,
    /// Number of key and value heads, H_kv; divides H.
    pub num_key_value_heads: usize,
    /// Width of one head if the file gives it, otherwise D / H. Use [`head_dim`](Self::head_dim).
    pub head_dim: Option<usize>,
    /// Longest sequence the model can be used with, in tokens: with [`RopeScaling::LongRope`], that of its first training
    /// phase.
    pub max_position_embeddings: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Sliding window: position i attends to j with `i - window < j <= i`; `None` means all j <= i. It restricts the layers
    /// of [`Switches::windowed`].
    pub sliding_window: Option<usize>,
    /// Whether the embedding matrix serves as the output head.
    pub tie_word_embeddings: bool,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// Dropout on attention probabilities in training. DPO disables it (`disable_dropout`).
    pub attention_dropout: f64,
    /// Begin-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence ids; generation stops at any of them.
    pub eos_token_id: Vec<u32>,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    /// Dtype the weights were saved in, as `float32`, `bfloat16`; informative only, the safetensors header decides.
    pub torch_dtype: Option<String>,
    /// How the projections are quantized in the files (`quantization_config`); `None` means floats.
    pub quantization: Option<Quantization>,
}

impl DecoderConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The file is missing or not JSON, a size is missing or impossible, or the model has a feature that is not
    /// implemented (another `model_type`, another activation or RoPE scaling, weights quantized otherwise than by
    /// bitsandbytes in 4 bits).
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = input_file::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        Self::parse(&text, &path)
    }

    /// Parses the text of a `config.json`; errors name `path`.
    ///
    /// # Errors
    /// Same as [`load`](Self::load).
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            Error::file(path, format!("is not a JSON object: {e}"), "fetch the file again")
        })?;
        let fields = Fields::new(object, path)?;
        let heads = fields.size("num_attention_heads")?;
        let mut config = Self {
            family: fields.family,
            switches: Switches {
                rope_scaling: fields.rope(None)?.scaling()?,
                activation: fields.activation()?,
                ..Switches::default()
            },
            is_text_part: fields.is_text_part,
            vocab_size: fields.size("vocab_size")?,
            hidden_size: fields.size("hidden_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: fields.optional_size("head_dim")?,
            max_position_embeddings: fields.size("max_position_embeddings")?,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            rope_theta: fields.rope_theta()?,
            sliding_window: None,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            attention_dropout: fields.number("attention_dropout", 0.0)?,
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
            eos_token_id: fields.ids("eos_token_id")?,
            pad_token_id: fields.ids("pad_token_id")?.first().copied(),
            torch_dtype: fields.dtype(),
            quantization: fields.quantization()?,
        };
        // The families' lists have one entry per layer, so the sizes are checked first.
        config.validate(path)?;
        (config.family.read)(&fields, &mut config)?;
        if config.switches.partial_rotary_factor.is_none() {
            fields.rope(None)?.refuse_partial()?;
        }
        config.check_rotation(path)?;
        if let RopeScaling::LongRope(longrope) = &config.switches.rope_scaling {
            let longest = longrope.original_max_position_embeddings;
            config.max_position_embeddings = config.max_position_embeddings.min(longest);
        }
        Ok(config)
    }

    /// Returns the width of one attention head, d. `head_dim * num_attention_heads` need not be `hidden_size`.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Returns the number of features at the start of each head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        let partial = self.switches.partial_rotary_factor.unwrap_or(1.0);
        (self.head_dim() as f64 * partial) as usize
    }

    /// Returns the shape of attention.
    pub fn attention(&self) -> AttentionConfig {
        let head_dim = self.head_dim();
        AttentionConfig {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim,
            scale: match self.switches.attention_scale {
                Some(scale) => scale.factor(),
                None => 1.0 / (head_dim as f64).sqrt(),
            },
        }
    }

    /// Sets the sliding window and the layers that it restricts; if `windowed` is empty, all of them.
    pub(super) fn set_windows(&mut self, window: Option<usize>, windowed: Vec<bool>) {
        let restricts_some = windowed.is_empty() || windowed.contains(&true);
        self.sliding_window = window.filter(|_| restricts_some);
        let restricts_all = !windowed.contains(&false);
        let is_uniform = self.sliding_window.is_none() || restricts_all;
        self.switches.windowed = if is_uniform { Vec::new() } else { windowed };
    }

    /// Returns the value of `layer_types`.
    pub(super) fn layer_types(&self) -> Value {
        let name = |index: usize| {
            let restricted = self.sliding_window.is_some() && self.switches.is_windowed(index);
            if restricted { "sliding_attention" } else { "full_attention" }
        };
        (0..self.num_hidden_layers).map(name).collect()
    }

    /// Returns the widths of the windows that layers have, each once.
    pub fn windows(&self) -> Vec<Option<usize>> {
        match self.sliding_window {
            Some(window) if self.switches.windowed.is_empty() => vec![Some(window)],
            Some(window) => vec![None, Some(window)],
            None => vec![None],
        }
    }

    /// Returns the rotary frequencies that layers have, each once.
    pub fn ropes(&self) -> Vec<Rope> {
        let scaling = self.switches.rope_scaling.clone();
        let global = Rope { theta: self.rope_theta, scaling };
        let local = self.switches.local_rope_theta;
        let local = local.map(|theta| Rope { theta, scaling: RopeScaling::None });
        std::iter::once(global).chain(local).collect()
    }

    /// Returns which window and which rotary frequencies layer `index` has, and the shape of its attention.
    pub fn layer_kind(&self, index: usize) -> LayerKind {
        let windowed = self.sliding_window.is_some() && self.switches.is_windowed(index);
        let rope = usize::from(windowed && self.switches.local_rope_theta.is_some());
        LayerKind {
            attention: self.attention(),
            window: usize::from(windowed && !self.switches.windowed.is_empty()),
            rope: self.switches.is_rotated(index).then_some(rope),
            qk_norm: self.switches.qk_norm,
        }
    }

    /// Returns the number of values per token that a decoder layer keeps for the backward pass, without the `x A^T`
    /// of the low-rank branches: the residual stream before and between its halves, both norms' outputs, queries,
    /// keys, values (twice if their heads are normalized), the attention output, gate, up and their elementwise product.
    pub fn block_values_per_token(&self) -> usize {
        let heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads;
        let before_norms = if self.switches.qk_norm.is_some() {
            (heads - self.num_attention_heads) * self.head_dim()
        } else {
            0
        };
        let norms = match self.switches.norm_placement {
            NormPlacement::Before | NormPlacement::After => 4,
            NormPlacement::BeforeAndAfter => 6,
        };
        norms * self.hidden_size
            + heads * self.head_dim()
            + before_norms
            + 3 * self.intermediate_size
    }

    /// Returns the bytes per token of the largest activation, with `size` bytes per value: gate and up side by side,
    /// or one of them in f32 for a low-rank branch.
    pub fn widest_bytes_per_token(&self, size: usize) -> usize {
        let queries = self.num_attention_heads * self.head_dim();
        let qkv = queries + 2 * self.num_key_value_heads * self.head_dim();
        let widest = (2 * self.intermediate_size).max(qkv).max(self.hidden_size);
        (widest * size).max(4 * self.intermediate_size.max(queries))
    }

    /// Returns the number of weights.
    pub fn weights(&self) -> usize {
        self.tensors().iter().map(ModelTensor::count).sum()
    }

    /// Lists all tensors of the model: see [`names`].
    pub fn tensors(&self) -> Vec<ModelTensor> {
        names::tensors(self)
    }

    /// Writes `folder/config.json` in the form that every transformers since 4.34 reads (`rope_theta`,
    /// `torch_dtype`).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("config.json");
        write_whole(&path, format!("{:#}\n", self.to_json()).as_bytes())
    }

    /// Returns the JSON object that [`save`](Self::save) writes.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let mut config = json!({
            "architectures": [self.family.architecture],
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim(),
            "hidden_act": match self.switches.activation {
                Activation::Silu => "silu",
                Activation::GeluTanh => "gelu_pytorch_tanh",
            },
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.torch_dtype,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Some(object) = config.as_object_mut() {
            let scaling = self.rope_scaling().map(Value::Object);
            object.extend(scaling.map(|scaling| ("rope_scaling".to_string(), scaling)));
            if let RopeScaling::LongRope(longrope) = &self.switches.rope_scaling {
                let longest = json!(longrope.max_position_embeddings);
                object.insert("max_position_embeddings".to_string(), longest);
            }
            (self.family.write)(self, object);
            object.sort_keys();
        }
        if let Some(quantization) = &self.quantization {
            config["quantization_config"] = quantization.to_json(self.torch_dtype.as_deref());
        }
        config
    }

    /// Returns the exact number of weights, with embedding and output head.
    fn weight_count(&self) -> u128 {
        let [v, d, inter, layers, heads, kv, head_dim] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim(),
        ]
        .map(|size| size as u128);
        // Sizes are at most 2^32, so no term overflows.
        let width = 2 * heads.saturating_mul(head_dim) + 2 * kv.saturating_mul(head_dim);
        let layer = (width + 3 * inter + 2).saturating_mul(d);
        (2 * v * d).saturating_add(layer.saturating_mul(layers))
    }

    /// Checks that the features that are rotated are pairs, each with a factor if frequencies have factors of their own.
    fn check_rotation(&self, path: &Path) -> Result<()> {
        let width = self.rotary_dim();
        let factors = match &self.switches.rope_scaling {
            RopeScaling::LongRope(LongRope { short_factor, long_factor, .. }) => {
                [short_factor.len(), long_factor.len()]
            }
            _ => [width / 2; 2],
        };
        let problem = if width == 0 || !width.is_multiple_of(2) {
            format!("{width} features of a head are rotated; rotary embeddings need an even number")
        } else if factors != [width / 2; 2] {
            format!(
                "{width} features of a head are rotated by {} frequencies, but short_factor and long_factor have {} and {} \
                 values",
                width / 2,
                factors[0],
                factors[1]
            )
        } else {
            return Ok(());
        };
        Err(Error::file(path, problem, "take the config.json that belongs to these weights"))
    }

    /// Checks that the sizes and constants are consistent and within the supported limits.
    fn validate(&self, path: &Path) -> Result<()> {
        let (heads, kv, head_dim) =
            (self.num_attention_heads, self.num_key_value_heads, self.head_dim());
        let problem = if !heads.is_multiple_of(kv) {
            format!("num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv})")
        } else if head_dim == 0 || !head_dim.is_multiple_of(2) {
            format!("the head width is {head_dim}; rotary embeddings need an even one")
        } else if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            format!("hidden_size ({}) is not a multiple of {heads} heads", self.hidden_size)
        } else if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            format!("rms_norm_eps is {}", self.rms_norm_eps)
        } else if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            format!("rope_theta is {}", self.rope_theta)
        } else if self.num_hidden_layers > MAX_LAYERS {
            let layers = self.num_hidden_layers;
            format!(
                "num_hidden_layers is {layers}; models of at most {MAX_LAYERS} layers are supported"
            )
        } else if self.weight_count() > MAX_WEIGHTS {
            format!(
                "its sizes make {} weights, more than any model has: one of vocab_size, hidden_size, \
                 intermediate_size, head_dim and the numbers of layers and heads is wrong",
                self.weight_count()
            )
        } else {
            return Ok(());
        };
        Err(Error::file(path, problem, "take the config.json that belongs to these weights"))
    }
}

/// Maximum number of layers: several times that of the deepest published models.
const MAX_LAYERS: usize = 1 << 10;

/// Maximum number of weights: a hundred times that of the largest published models. The product of two sizes and the
/// bytes per value stays far below the range of an integer.
const MAX_WEIGHTS: u128 = 1 << 48;

#[cfg(test)]
mod tests {
    use arithmo_backends::Format;

    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "mistral", "vocab_size": 7, "hidden_size": 12, "intermediate_size": 20,
            "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2,
        })
    }

    fn with(key: &str, value: Value) -> Result<DecoderConfig> {
        let mut object = base();
        object[key] = value;
        DecoderConfig::parse(&object.to_string(), Path::new("config.json"))
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let config = with("bos_token_id", json!(null)).unwrap();
        assert_eq!((config.head_dim, config.head_dim()), (None, 2));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (10_000.0, 1e-6));
        assert_eq!(config.sliding_window, Some(4096));
        assert_eq!((config.bos_token_id, config.eos_token_id.len()), (None, 0));
        assert_eq!(with("sliding_window", json!(null)).unwrap().sliding_window, None);
        assert_eq!(with("head_dim", json!(null)).unwrap().head_dim(), 2);
        assert_eq!(with("head_dim", json!(8)).unwrap().head_dim(), 8);
    }

    #[test]
    fn both_forms_of_rope_dtype_and_eos_are_read() {
        let rope = json!({"rope_theta": 1e6, "rope_type": "default"});
        assert_eq!(with("rope_parameters", rope).unwrap().rope_theta, 1e6);
        assert_eq!(with("rope_theta", json!(5000)).unwrap().rope_theta, 5000.0);
        assert_eq!(with("dtype", json!("bfloat16")).unwrap().torch_dtype.unwrap(), "bfloat16");
        assert_eq!(
            with("torch_dtype", json!("torch.float16")).unwrap().torch_dtype.unwrap(),
            "float16"
        );
        assert_eq!(with("eos_token_id", json!(2)).unwrap().eos_token_id, [2]);
        assert_eq!(with("eos_token_id", json!([2, 5])).unwrap().eos_token_id, [2, 5]);
    }

    #[test]
    fn unsupported_or_impossible_values_are_named() {
        let wrong = [
            ("model_type", json!("mixtral"), "mixtral"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("attention_bias", json!(true), "attention_bias"),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "dynamic"),
            ("rope_parameters", json!({"rope_type": "linear"}), "factor must be"),
            (
                "quantization_config",
                json!({"quant_method": "gptq", "bits": 4}),
                "quantized by \"gptq\"",
            ),
            (
                "quantization_config",
                json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
                "quantized",
            ),
            ("vocab_size", json!(null), "vocab_size is missing"),
            ("hidden_size", json!(-4), "hidden_size must be a positive integer, is -4"),
            ("hidden_size", json!(13), "hidden_size (13)"),
            ("num_key_value_heads", json!(4), "num_key_value_heads (4)"),
            ("head_dim", json!(3), "head width is 3"),
            ("eos_token_id", json!("</s>"), "eos_token_id"),
            ("rms_norm_eps", json!(0), "rms_norm_eps"),
            ("sliding_window", json!(0), "sliding_window"),
            ("pad_token_id", json!(-2), "pad_token_id"),
            ("num_hidden_layers", json!(1u64 << 32), "num_hidden_layers is 4294967296"),
        ];
        for (key, value, wanted) in wrong {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }

    /// Sizes that would overflow when multiplied, or fill the memory with the names of tensors.
    #[test]
    fn sizes_no_model_has_are_refused_before_anything_is_computed_from_them() {
        let huge = json!(1u64 << 32);
        let sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"];
        let mut object = base();
        for key in
            sizes.into_iter().chain(["num_attention_heads", "num_key_value_heads", "head_dim"])
        {
            object[key] = huge.clone();
        }
        object["num_hidden_layers"] = json!(MAX_LAYERS);
        let config = DecoderConfig::parse(&object.to_string(), Path::new("config.json"));
        let message = config.unwrap_err().to_string();
        assert!(message.contains("weights, more than any model has"), "{message}");
        // 2 * 7 * 12 for embedding and head, (2 * 12 + 2 * 4 + 3 * 20 + 2) * 12 for the layer.
        assert_eq!(with("pad_token_id", json!(-1)).unwrap().weight_count(), 168 + 94 * 12);
        assert_eq!(with("pad_token_id", json!(-1)).unwrap().pad_token_id, None);
        assert_eq!(with("eos_token_id", json!([-1, 2])).unwrap().eos_token_id, [2]);
    }

    #[test]
    fn a_saved_config_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = with("eos_token_id", json!([2, 6])).unwrap();
        config.sliding_window = None;
        config.head_dim = Some(4);
        config.rope_theta = 1e6;
        config.quantization = Some(Quantization { format: Format::Nf4, double_quant: true });
        config.torch_dtype = Some("bfloat16".to_string());
        config.save(folder.path()).unwrap();
        assert_eq!(DecoderConfig::load(folder.path()).unwrap(), config);
    }

    #[test]
    fn the_tensor_list_follows_the_heads_not_the_hidden_size() {
        let config = with("head_dim", json!(4)).unwrap();
        let tensors = config.tensors();
        assert_eq!(tensors.len(), 1 + 9 + 2);
        let q_proj = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!((tensors[1].name.as_str(), &tensors[1].shape[..]), (q_proj, &[24, 12][..]));
        assert_eq!(tensors[3].shape, [8, 12]);
        assert_eq!(tensors[4].shape, [12, 24]);
        let tied = with("tie_word_embeddings", json!(true)).unwrap();
        assert!(tied.tensors().iter().all(|tensor| tensor.name != "lm_head.weight"));
    }
}
