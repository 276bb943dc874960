//! Mistral (arXiv 2310.06825), with Mistral Nemo and Mathstral: the decoder with every switch off.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::decoder::Decoder;

/// The Mistral model. Its families' differences are switches of one [`Decoder`], so this is a name for that.
pub type Mistral<B> = Decoder<B>;

/// See [`Family`].
pub static FAMILY: Family =
    Family { model_type: "mistral", architecture: "MistralForCausalLM", defaults, read, write };

/// Returns the defaults of transformers' class, which Ministral has too.
pub(super) fn defaults() -> Value {
    json!({
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        // `null` means no window.
        "sliding_window": 4096,
        "tie_word_embeddings": false,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    fields.refuse_biases()?;
    config.sliding_window = fields.optional_size("sliding_window")?;
    Ok(())
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    object.insert("sliding_window".to_string(), json!(config.sliding_window));
}
