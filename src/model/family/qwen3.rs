//! Qwen 3 (arXiv 2505.09388): each head of queries and keys is normalized, and projections have no biases by default.

use serde_json::{Map, Value, json};

use super::Family;
use super::qwen2::{self, read_windows};
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::QkNorm;

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "qwen3", architecture: "Qwen3ForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "use_sliding_window": false,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    let attention_bias = fields.flag("attention_bias")?;
    config.switches.qkv_bias = attention_bias;
    config.switches.o_bias = attention_bias;
    config.switches.qk_norm = Some(QkNorm::EachHead);
    read_windows(fields, config)
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    qwen2::write(config, object);
    object.insert("attention_bias".to_string(), json!(config.switches.o_bias));
}
