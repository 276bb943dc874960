//! Ministral 8B of 2024: Mistral with a sliding window in some layers.

use serde_json::{Map, Value, json};

use super::Family;
use super::mistral::defaults;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};

/// See [`Family`].
pub static FAMILY: Family =
    Family { model_type: "ministral", architecture: "MinistralForCausalLM", defaults, read, write };

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    fields.refuse_biases()?;
    let window = fields.optional_size("sliding_window")?;
    config.set_windows(window, fields.layer_types(config.num_hidden_layers)?);
    Ok(())
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("sliding_window".to_string(), json!(config.sliding_window));
    object.insert("layer_types".to_string(), config.layer_types());
}
