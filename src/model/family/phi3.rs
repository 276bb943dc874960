//! Phi 3, 3.5 and 4 (arXiv 2404.14219, 2412.08905): Mistral whose projections of queries, keys and values are one matrix,
//! those of gate and up another, and, in Phi 4 mini, heads that are rotated in part.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::RopeScaling;

/// See [`Family`].
pub static FAMILY: Family =
    Family { model_type: "phi3", architecture: "Phi3ForCausalLM", defaults, read, write };

/// The length of the texts of the first training phase if `config.json` does not say it.
const ORIGINAL_POSITIONS: usize = 4096;

fn defaults() -> Value {
    json!({
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "bos_token_id": 1,
        "eos_token_id": 32_000,
        "pad_token_id": 32_000,
        "sliding_window": null,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    fields.refuse_biases()?;
    config.sliding_window = fields.optional_size("sliding_window")?;
    let rope = fields.rope(None)?;
    if !matches!(config.switches.rope_scaling, RopeScaling::None | RopeScaling::LongRope(_)) {
        rope.refuse_scaling("models of this type are scaled by \"longrope\" alone")?;
    }
    config.switches.fused_projections = true;
    let partial = rope.partial_rotary_factor()?;
    config.switches.partial_rotary_factor = Some(partial).filter(|partial| *partial != 1.0);
    Ok(())
}

/// The form that transformers 4 and 5 read: version 4 allows no other keys in `rope_scaling` than these three.
fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let switches = &config.switches;
    object.insert("sliding_window".to_string(), json!(config.sliding_window));
    if let Some(partial) = switches.partial_rotary_factor {
        object.insert("partial_rotary_factor".to_string(), json!(partial));
    }
    let mut original = ORIGINAL_POSITIONS;
    if let RopeScaling::LongRope(longrope) = &switches.rope_scaling {
        original = longrope.original_max_position_embeddings;
        if let Some(Value::Object(scaling)) = object.get_mut("rope_scaling") {
            scaling.remove("original_max_position_embeddings");
            scaling.remove("rope_type");
            scaling.insert("type".to_string(), json!("longrope"));
        }
    }
    object.insert("original_max_position_embeddings".to_string(), json!(original));
}
