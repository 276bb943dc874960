//! Granite 3 (dense): Llama with factors on embeddings, attention scores, residuals and logits (arXiv 2408.13359).

use serde_json::{Map, Value, json};

use super::{Family, llama};
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::AttentionScale;

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "granite", architecture: "GraniteForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    llama::read(fields, config)?;
    let factor = |key: &str| -> Result<Option<f64>> {
        Ok(Some(fields.positive(key)?).filter(|factor| *factor != 1.0))
    };
    let scale = fields.positive("attention_multiplier")?;
    let switches = &mut config.switches;
    switches.attention_scale = Some(AttentionScale::Factor(scale));
    switches.embedding_multiplier = factor("embedding_multiplier")?;
    switches.residual_multiplier = factor("residual_multiplier")?;
    switches.logits_scaling = factor("logits_scaling")?;
    Ok(())
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    llama::write(config, object);
    let switches = &config.switches;
    for (key, factor) in [
        ("attention_multiplier", Some(config.attention().scale)),
        ("embedding_multiplier", switches.embedding_multiplier),
        ("residual_multiplier", switches.residual_multiplier),
        ("logits_scaling", switches.logits_scaling),
    ] {
        object.insert(key.to_string(), json!(factor.unwrap_or(1.0)));
    }
}
