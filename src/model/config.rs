//! `config.json` of a Mistral model, in every form Hugging Face transformers has written it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::quantize::Quantization;
use crate::error::{Error, Result};
use crate::output::write_whole;

/// The shape of a Mistral model. Field names are those of transformers' `MistralConfig`.
///
/// Notation: D = `hidden_size`, H = `num_attention_heads`, H_kv = `num_key_value_heads`, d = [`head_dim`](Self::head_dim).
#[derive(Clone, Debug, PartialEq)]
pub struct MistralConfig {
    /// Rows of the embedding and of the output head, V.
    pub vocab_size: usize,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key and value heads, H_kv; divides H.
    pub num_key_value_heads: usize,
    /// Width of one head where the file gives it; otherwise D / H. Use [`head_dim`](Self::head_dim).
    pub head_dim: Option<usize>,
    /// Longest sequence the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Position i sees j with `i - window < j <= i`; `None`: all j <= i.
    pub sliding_window: Option<usize>,
    /// The output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation random weights are drawn with.
    pub initializer_range: f64,
    /// Dropout on attention probabilities in training. DPO turns it off (`disable_dropout`).
    pub attention_dropout: f64,
    /// Begin-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence ids; generation stops at any of them.
    pub eos_token_id: Vec<u32>,
    /// Padding id.
    pub pad_token_id: Option<u32>,
    /// Type the weights were saved in, as `float32`, `bfloat16`; informative, the safetensors header decides.
    pub torch_dtype: Option<String>,
    /// How the projections are packed in the files (`quantization_config`); `None`: they are floats.
    pub quantization: Option<Quantization>,
}

impl MistralConfig {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// The file is missing or not JSON, a size is missing or impossible, or the model is of a kind that is not
    /// implemented (another `model_type`, another activation, RoPE scaling, biases, weights quantised otherwise than by bitsandbytes in 4 bits).
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        Self::parse(&text, &path)
    }

    /// Reads the text of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            Error::file(path, format!("is not a JSON object: {e}"), "fetch the file again")
        })?;
        let fields = Fields { object, path };
        fields.refuse_unsupported()?;
        let config = Self {
            vocab_size: fields.size("vocab_size")?,
            hidden_size: fields.size("hidden_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads: fields.size("num_attention_heads")?,
            num_key_value_heads: fields.size("num_key_value_heads")?,
            head_dim: fields.optional_size("head_dim")?,
            max_position_embeddings: fields
                .optional_size("max_position_embeddings")?
                .unwrap_or(4096 * 32),
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            rope_theta: fields.rope_theta()?,
            sliding_window: match fields.object.contains_key("sliding_window") {
                true => fields.optional_size("sliding_window")?,
                // What transformers takes when the key is absent; `null` means no window.
                false => Some(4096),
            },
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            initializer_range: fields.number("initializer_range", 0.02)?,
            attention_dropout: fields.number("attention_dropout", 0.0)?,
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
            eos_token_id: fields.ids("eos_token_id")?,
            pad_token_id: fields.ids("pad_token_id")?.first().copied(),
            torch_dtype: fields.dtype(),
            quantization: fields.quantization()?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Width of one attention head, d. `head_dim * num_attention_heads` need not be `hidden_size`.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Numbers a block keeps of each token for backward, `x A^T` of the branches apart: the residual stream before and
    /// between its halves, both norms' results, queries, keys, values and what attention made of them, gate, up and
    /// their product.
    pub fn block_values_per_token(&self) -> usize {
        let heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads;
        4 * self.hidden_size + heads * self.head_dim() + 3 * self.intermediate_size
    }

    /// Most bytes of an activation of one token, where numbers have `size` bytes: gate and up side by side, or one of them in
    /// f32 for a branch.
    pub fn widest_bytes_per_token(&self, size: usize) -> usize {
        let queries = self.num_attention_heads * self.head_dim();
        let qkv = queries + 2 * self.num_key_value_heads * self.head_dim();
        let widest = (2 * self.intermediate_size).max(qkv).max(self.hidden_size);
        (widest * size).max(4 * self.intermediate_size.max(queries))
    }

    /// Name and shape of every weight of a model of this shape, as `MistralForCausalLM` stores them (`[out, in]`);
    /// without `lm_head.weight` where the embeddings are tied.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, inter) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim();
        let kv = self.num_key_value_heads * self.head_dim();
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let parts = [
                ("self_attn.q_proj", vec![q, d]),
                ("self_attn.k_proj", vec![kv, d]),
                ("self_attn.v_proj", vec![kv, d]),
                ("self_attn.o_proj", vec![d, q]),
                ("mlp.gate_proj", vec![inter, d]),
                ("mlp.up_proj", vec![inter, d]),
                ("mlp.down_proj", vec![d, inter]),
                ("input_layernorm", vec![d]),
                ("post_attention_layernorm", vec![d]),
            ];
            tensors.extend(
                parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)),
            );
        }
        tensors.push(("model.norm.weight".to_string(), vec![d]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_string(), vec![self.vocab_size, d]));
        }
        tensors
    }

    /// Writes `folder/config.json` in the form every transformers since 4.34 reads (`rope_theta`, `torch_dtype`).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("config.json");
        write_whole(&path, format!("{:#}\n", self.to_json()).as_bytes())
    }

    /// The object [`save`](Self::save) writes.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let mut config = json!({
            "architectures": ["MistralForCausalLM"],
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "head_dim": self.head_dim(),
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "mistral",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.torch_dtype,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let Some(quantization) = &self.quantization {
            config["quantization_config"] = quantization.to_json(self.torch_dtype.as_deref());
        }
        config
    }

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
        } else {
            return Ok(());
        };
        Err(Error::file(path, problem, "take the config.json that belongs to these weights"))
    }
}

/// The keys of one `config.json`, read with errors that name the key.
struct Fields<'a> {
    object: Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    /// The value of `key`; an explicit `null` counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, wanted: &str) -> Error {
        let problem = match self.get(key) {
            Some(value) => format!("{key} must be {wanted}, is {value}"),
            None => format!("{key} is missing; it must be {wanted}"),
        };
        Error::file(self.path, problem, "take the config.json that belongs to these weights")
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().filter(|n| (1..=1 << 32).contains(n));
        let size = size.and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// One id, a list of ids, or none.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = values.iter().map(id).collect();
        ids.ok_or_else(|| self.wrong(key, "a token id or a list of them"))
    }

    /// `torch_dtype`, or transformers 5's `dtype`.
    fn dtype(&self) -> Option<String> {
        let value = self.get("torch_dtype").or_else(|| self.get("dtype"))?;
        value.as_str().map(|name| name.trim_start_matches("torch.").to_string())
    }

    /// How the weights are packed, if they are.
    fn quantization(&self) -> Result<Option<Quantization>> {
        let Some(config) = self.get("quantization_config") else {
            return Ok(None);
        };
        let quantization = Quantization::from_json(config);
        quantization.map(Some).ok_or_else(|| {
            let method = config.get("quant_method").unwrap_or(&Value::Null);
            Error::file(
                self.path,
                format!(
                    "the weights are quantised by {method}; of what is quantised already, bitsandbytes' 4 bits are read"
                ),
                "give the full-precision model; quantise it here with model.quantization",
            )
        })
    }

    /// `rope_parameters.rope_theta` (transformers 5) or `rope_theta`.
    fn rope_theta(&self) -> Result<f64> {
        match self.get("rope_parameters").and_then(|rope| rope.get("rope_theta")) {
            Some(theta) => theta
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters", "an object with a number rope_theta")),
            None => self.number("rope_theta", 10_000.0),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let unsupported =
            |problem: String, remedy: &str| Err(Error::file(self.path, problem, remedy));
        let model_type = self.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        if model_type != "mistral" {
            return unsupported(
                format!("model_type is {model_type:?}, only \"mistral\" is implemented"),
                "choose a Mistral model",
            );
        }
        let act = self.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return unsupported(
                format!("hidden_act is {act:?}, only \"silu\" is implemented"),
                "choose a model with the SwiGLU MLP of Mistral",
            );
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return unsupported(
                    format!("{key} is true; biases are not implemented"),
                    "choose a model without biases, as every released Mistral",
                );
            }
        }
        self.refuse_rope_scaling()
    }

    fn refuse_rope_scaling(&self) -> Result<()> {
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            let kind = kind.and_then(Value::as_str).unwrap_or("default");
            let partial = rope.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
            if !rope.is_object() || kind != "default" || partial != 1.0 {
                return Err(Error::file(
                    self.path,
                    format!("{key} is {rope}; only unscaled rotary embeddings are implemented"),
                    "choose a model without RoPE scaling",
                ));
            }
        }
        Ok(())
    }
}

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

    fn with(key: &str, value: Value) -> Result<MistralConfig> {
        let mut object = base();
        object[key] = value;
        MistralConfig::parse(&object.to_string(), Path::new("config.json"))
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
    fn what_is_not_implemented_or_impossible_is_named() {
        let wrong = [
            ("model_type", json!("llama"), "llama"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("attention_bias", json!(true), "attention_bias"),
            ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "yarn"),
            ("rope_parameters", json!({"rope_type": "linear"}), "linear"),
            (
                "quantization_config",
                json!({"quant_method": "gptq", "bits": 4}),
                "quantised by \"gptq\"",
            ),
            (
                "quantization_config",
                json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
                "quantised",
            ),
            ("vocab_size", json!(null), "vocab_size is missing"),
            ("hidden_size", json!(-4), "hidden_size must be a positive integer, is -4"),
            ("hidden_size", json!(13), "hidden_size (13)"),
            ("num_key_value_heads", json!(4), "num_key_value_heads (4)"),
            ("head_dim", json!(3), "head width is 3"),
            ("eos_token_id", json!("</s>"), "eos_token_id"),
            ("rms_norm_eps", json!(0), "rms_norm_eps"),
            ("sliding_window", json!(0), "sliding_window"),
        ];
        for (key, value, wanted) in wrong {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = with("eos_token_id", json!([2, 6])).unwrap();
        config.sliding_window = None;
        config.head_dim = Some(4);
        config.rope_theta = 1e6;
        config.quantization = Some(Quantization { format: Format::Nf4, double_quant: true });
        config.torch_dtype = Some("bfloat16".to_string());
        config.save(folder.path()).unwrap();
        assert_eq!(MistralConfig::load(folder.path()).unwrap(), config);
    }

    #[test]
    fn the_tensor_list_follows_the_heads_not_the_hidden_size() {
        let config = with("head_dim", json!(4)).unwrap();
        let tensors = config.tensors();
        assert_eq!(tensors.len(), 1 + 9 + 2);
        assert_eq!(
            tensors[1],
            ("model.layers.0.self_attn.q_proj.weight".to_string(), vec![24, 12])
        );
        assert_eq!(tensors[3].1, [8, 12]);
        assert_eq!(tensors[4].1, [12, 24]);
        let tied = with("tie_word_embeddings", json!(true)).unwrap();
        assert!(tied.tensors().iter().all(|(name, _)| name != "lm_head.weight"));
    }
}
