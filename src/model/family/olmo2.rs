//! OLMo 2 (arXiv 2501.00656): norms behind attention and feed-forward block only, and queries and keys that are normalized
//! over all heads together.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::{NormPlacement, QkNorm};

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "olmo2", architecture: "Olmo2ForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "eos_token_id": 50_279,
        "pad_token_id": 1,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    let attention_bias = fields.flag("attention_bias")?;
    let switches = &mut config.switches;
    switches.qkv_bias = attention_bias;
    switches.o_bias = attention_bias;
    switches.qk_norm = Some(QkNorm::AllHeads);
    switches.norm_placement = NormPlacement::After;
    Ok(())
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("attention_bias".to_string(), json!(config.switches.o_bias));
}
