//! Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and the models that share its class, such as SmolLM 1 and 2.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "llama", architecture: "LlamaForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": false,
    })
}

pub(super) fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    let attention_bias = fields.flag("attention_bias")?;
    config.switches.qkv_bias = attention_bias;
    config.switches.o_bias = attention_bias;
    config.switches.mlp_bias = fields.flag("mlp_bias")?;
    Ok(())
}

pub(super) fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("attention_bias".to_string(), json!(config.switches.o_bias));
    object.insert("mlp_bias".to_string(), json!(config.switches.mlp_bias));
}
