//! What llama.cpp's architectures can express of a model, and the keys that describe it.

use std::path::Path;

use super::rope::rope_keys;
use super::value::{Keys, Value};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::switches::{Activation, AttentionScale, RopeScaling, Switches};

/// What to do with a model that GGUF cannot express.
const REMEDY: &str = "GGUF cannot hold this model; use its folder, or that of `arithmo merge`, with a program that reads \
                      Hugging Face's layout";

/// Every how many layers llama.cpp's SmolLM 3 does not rotate queries and keys.
const SMOLLM3_INTERVAL: usize = 4;
/// Number of layers by which llama.cpp knows Gemma 3 27B, whose attention scores have a factor of their own.
const GEMMA3_27B_LAYERS: usize = 62;

/// The architecture that reads LongRoPE's factors.
const PHI3: &str = "phi3";

/// An architecture of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// Name, which is also the prefix of the model's keys.
    pub name: &'static str,
    /// Whether the rows of queries and keys are stored in Meta's order.
    pub interleaves_rows: bool,
    /// Whether attention's output projection may have a bias.
    output_bias: bool,
    /// Whether the projections of the feed-forward block may have biases.
    mlp_bias: bool,
    /// Whether a tensor may scale each rotary frequency, as Llama 3 needs it.
    rope_freqs: bool,
    /// Whether the bounds of YaRN's transition are read.
    pub yarn_bounds: bool,
    /// Whether some layers may have a sliding window.
    windows: bool,
    /// Whether a file must have an output head, even where that is the embedding.
    pub needs_head: bool,
}

impl Architecture {
    /// An architecture without any of the options.
    const fn plain(name: &'static str) -> Self {
        Self {
            name,
            interleaves_rows: false,
            output_bias: false,
            mlp_bias: false,
            rope_freqs: false,
            yarn_bounds: false,
            windows: false,
            needs_head: false,
        }
    }

    /// An architecture derived from Llama with all of its options.
    const fn llama(name: &'static str) -> Self {
        let options =
            Self { interleaves_rows: true, output_bias: true, mlp_bias: true, ..Self::plain(name) };
        Self { rope_freqs: true, ..options }
    }

    /// Returns the architecture of a family; `None` if llama.cpp has none.
    fn find(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" | "mistral" | "ministral" => Self::llama("llama"),
            "ministral3" => Self { yarn_bounds: true, ..Self::llama("mistral3") },
            "granite" => Self::llama("granite"),
            "smollm3" => Self { interleaves_rows: true, ..Self::plain("smollm3") },
            "qwen2" => Self::plain("qwen2"),
            "qwen3" => Self::plain("qwen3"),
            "olmo2" => Self { needs_head: true, ..Self::plain("olmo2") },
            "phi3" => Self::plain(PHI3),
            "gemma3_text" => Self { windows: true, ..Self::plain("gemma3") },
            _ => return None,
        })
    }

    /// Returns the architecture that computes exactly the model in `folder`.
    ///
    /// # Errors
    /// llama.cpp has no such architecture, or the model has a feature that the architecture lacks.
    pub(super) fn of_model(config: &DecoderConfig, folder: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::file(folder, problem, REMEDY);
        let family = config.family.model_type;
        let found = Self::find(family).ok_or_else(|| {
            refuse(format!("is a {family} model, for which GGUF has no architecture"))
        })?;
        match found.lacking(config) {
            Some(feature) => Err(refuse(format!(
                "has {feature}, which GGUF's architecture {:?} lacks",
                found.name
            ))),
            None => Ok(found),
        }
    }

    /// Returns a feature of the model that the architecture cannot express.
    fn lacking(&self, config: &DecoderConfig) -> Option<String> {
        let switches = &config.switches;
        let is_gemma = self.name == "gemma3";
        let own = if is_gemma { Activation::GeluTanh } else { Activation::Silu };
        if switches.activation != own {
            return Some(format!("another activation, {:?}", switches.activation));
        }
        if switches.o_bias && !self.output_bias {
            return Some("a bias in attention's output projection".into());
        }
        if switches.mlp_bias && !self.mlp_bias {
            return Some("biases in the feed-forward block".into());
        }
        if ["qwen2", "olmo2", "phi3"].contains(&self.name)
            && config.num_attention_heads * config.head_dim() != config.hidden_size
        {
            return Some("heads that are together not as wide as the model".into());
        }
        if self.name == "smollm3" && !has_smollm3_rotations(config) {
            return Some("other layers without rotation than every fourth".into());
        }
        if is_gemma && !has_gemma3_scale(config) {
            return Some("another query_pre_attn_scalar than the width of a head".into());
        }
        self.lacking_rope(&switches.rope_scaling)
    }

    /// Returns a feature of the rotary embeddings that the architecture cannot express.
    fn lacking_rope(&self, scaling: &RopeScaling) -> Option<String> {
        match scaling {
            RopeScaling::Llama3 { .. } if !self.rope_freqs => {
                Some("rotary embeddings scaled by \"llama3\"".into())
            }
            RopeScaling::LongRope(_) if self.name != PHI3 => {
                Some("rotary embeddings scaled by \"longrope\"".into())
            }
            RopeScaling::Yarn(yarn) if !yarn.truncate => Some("YaRN with truncate = false".into()),
            RopeScaling::Yarn(yarn)
                if !self.yarn_bounds && (yarn.beta_fast, yarn.beta_slow) != (32.0, 1.0) =>
            {
                Some("YaRN with other values of beta_fast and beta_slow than 32 and 1".into())
            }
            _ => None,
        }
    }

    /// Returns the longest text for which llama.cpp computes exactly the model: that of the model, or the sliding window of
    /// layers if the architecture has none.
    pub(super) fn context_length(&self, config: &DecoderConfig) -> usize {
        let longest = match &config.switches.rope_scaling {
            // Longer texts than those of the first training phase have factors of their own, which the file holds too.
            RopeScaling::LongRope(longrope) => longrope.max_position_embeddings,
            _ => config.max_position_embeddings,
        };
        let window = config.sliding_window.filter(|_| !self.windows);
        window.map_or(longest, |window| window.min(longest))
    }

    /// Adds the keys that describe the model.
    pub(super) fn set_keys(&self, config: &DecoderConfig, keys: &mut Keys) {
        let name = |key: &str| format!("{}.{key}", self.name);
        for (key, value) in [
            ("block_count", config.num_hidden_layers),
            ("context_length", self.context_length(config)),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim()),
            ("attention.value_length", config.head_dim()),
            ("rope.dimension_count", config.rotary_dim()),
            ("vocab_size", config.vocab_size),
        ] {
            keys.set_u32(name(key), value);
        }
        keys.set_f32(name("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
        rope_keys(self, config, keys);
        if let Some(window) = config.sliding_window.filter(|_| self.windows) {
            let windowed = |index| config.switches.is_windowed(index);
            let pattern = (0..config.num_hidden_layers).map(windowed).collect();
            keys.set_u32(name("attention.sliding_window"), window);
            keys.set(name("attention.sliding_window_pattern"), Value::Bools(pattern));
        }
        if self.name == "granite" {
            let Switches { embedding_multiplier, residual_multiplier, logits_scaling, .. } =
                &config.switches;
            keys.set_f32(name("attention.scale"), config.attention().scale);
            keys.set_f32(name("embedding_scale"), embedding_multiplier.unwrap_or(1.0));
            keys.set_f32(name("residual_scale"), residual_multiplier.unwrap_or(1.0));
            keys.set_f32(name("logit_scale"), logits_scaling.unwrap_or(1.0));
        }
        if let Some(growth) = config.switches.query_growth {
            keys.set_f32(name("attention.temperature_scale"), growth.beta);
        }
    }
}

/// Returns whether exactly the layers are not rotated that llama.cpp's SmolLM 3 does not rotate.
fn has_smollm3_rotations(config: &DecoderConfig) -> bool {
    let rotates = |index: usize| !(index + 1).is_multiple_of(SMOLLM3_INTERVAL);
    (0..config.num_hidden_layers).all(|index| config.switches.is_rotated(index) == rotates(index))
}

/// Returns whether attention scores have the factor of llama.cpp's Gemma 3.
fn has_gemma3_scale(config: &DecoderConfig) -> bool {
    let scalar = if config.num_hidden_layers == GEMMA3_27B_LAYERS {
        config.hidden_size / config.num_attention_heads
    } else {
        config.head_dim()
    };
    let own = AttentionScale::InverseRootOf(scalar as f64).factor();
    (config.attention().scale / own - 1.0).abs() < 1e-6
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    /// Returns a tiny model of a family with further keys in its config.json.
    fn config(family: &str, further: Json) -> DecoderConfig {
        let mut json = json!({
            "model_type": family, "vocab_size": 7, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
            "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 100, "query_pre_attn_scalar": 16,
        });
        let further = further.as_object().unwrap().clone();
        json.as_object_mut().unwrap().extend(further);
        DecoderConfig::parse(&json.to_string(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn features_that_an_architecture_lacks_are_named() {
        let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16.0}});
        let longrope = json!({"rope_scaling": {
            "rope_type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8],
            "original_max_position_embeddings": 64,
        }});
        let untruncated =
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": false}});
        let llama3 = json!({"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }});
        for (family, further, wanted) in [
            ("qwen3", json!({"attention_bias": true}), "a bias in attention's output"),
            ("smollm3", json!({"mlp_bias": true}), "biases in the feed-forward block"),
            ("smollm3", json!({"no_rope_layer_interval": 3}), "than every fourth"),
            ("qwen2", llama3.clone(), "scaled by \"llama3\""),
            ("llama", longrope, "scaled by \"longrope\""),
            ("qwen2", json!({"head_dim": 8}), "not as wide as the model"),
            ("olmo2", json!({"head_dim": 8}), "not as wide as the model"),
            ("olmo2", json!({"attention_bias": true}), "a bias in attention's output"),
            ("llama", yarn.clone(), "beta_fast and beta_slow"),
            ("llama", untruncated, "truncate = false"),
            ("llama", json!({"hidden_act": "gelu_pytorch_tanh"}), "another activation, GeluTanh"),
            ("gemma3_text", json!({"query_pre_attn_scalar": 24}), "another query_pre_attn_scalar"),
        ] {
            let error = Architecture::of_model(&config(family, further), Path::new("model"));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("model: has ") && error.contains(wanted), "{error}");
            assert!(error.contains("GGUF cannot hold this model"), "{error}");
        }
        for (family, further, name) in [
            ("llama", json!({"attention_bias": true, "mlp_bias": true}), "llama"),
            ("llama", llama3, "llama"),
            ("ministral3", yarn, "mistral3"),
            ("smollm3", json!({}), "smollm3"),
            ("gemma3_text", json!({}), "gemma3"),
            ("granite", json!({}), "granite"),
            ("olmo2", json!({}), "olmo2"),
            ("phi3", json!({}), "phi3"),
        ] {
            let found = Architecture::of_model(&config(family, further), Path::new("model"));
            assert_eq!(found.unwrap().name, name);
        }
    }

    #[test]
    fn the_context_ends_where_a_window_would_begin() {
        let length = |family: &str, further: Json| {
            let config = config(family, further);
            Architecture::find(family).unwrap().context_length(&config)
        };
        assert_eq!(length("mistral", json!({"sliding_window": null})), 100);
        assert_eq!(length("mistral", json!({"sliding_window": 8})), 8);
        assert_eq!(length("mistral", json!({"sliding_window": 4096})), 100);
        assert_eq!(length("qwen2", json!({"sliding_window": 8, "max_window_layers": 1})), 100);
        let used = json!({"sliding_window": 8, "max_window_layers": 1, "use_sliding_window": true});
        assert_eq!(length("qwen2", used), 8);
        assert_eq!(length("gemma3_text", json!({"sliding_window": 8})), 100);
    }

    #[test]
    fn windows_of_gemma_are_listed_by_layer() {
        let config =
            config("gemma3_text", json!({"sliding_window": 8, "sliding_window_pattern": 2}));
        let mut keys = Keys::default();
        Architecture::find("gemma3_text").unwrap().set_keys(&config, &mut keys);
        let pattern = Value::Bools(vec![true, false, true, false]);
        assert_eq!(keys.get("gemma3.attention.sliding_window_pattern"), Some(&pattern));
        assert_eq!(keys.get("gemma3.attention.sliding_window"), Some(&Value::U32(8)));
        assert_eq!(keys.get("gemma3.rope.freq_base_swa"), Some(&Value::F32(10_000.0)));
    }
}
