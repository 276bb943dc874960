//! Ministral 3: Mistral with YaRN and queries that grow with their positions. Its published models can also read images;
//! of those, only the text part is used.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::QueryGrowth;

/// See [`Family`].
pub(super) static FAMILY: Family = Family {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    defaults,
    read,
    write,
};

fn defaults() -> Value {
    json!({
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
        "sliding_window": null,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    fields.refuse_biases()?;
    config.sliding_window = fields.optional_size("sliding_window")?;
    let rope = fields.rope(None)?;
    if let Some(beta) = rope.number("llama_4_scaling_beta")? {
        let original_max_position_embeddings = rope.original_max_position_embeddings()?;
        config.switches.query_growth = Some(QueryGrowth { beta, original_max_position_embeddings });
    }
    Ok(())
}

/// Only transformers 5 has this family, so its keys have the form of that version.
fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.remove("rope_theta");
    object.remove("rope_scaling");
    let mut rope = config.rope_parameters();
    if let Some(growth) = config.switches.query_growth {
        rope.insert("llama_4_scaling_beta".to_string(), json!(growth.beta));
        rope.insert(
            "original_max_position_embeddings".to_string(),
            json!(growth.original_max_position_embeddings),
        );
    }
    object.insert("rope_parameters".to_string(), Value::Object(rope));
    object.insert("sliding_window".to_string(), json!(config.sliding_window));
}
