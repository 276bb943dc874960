//! Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115), with Qwen2.5-Math and -Coder: biases on queries, keys and values, and
//! optionally a sliding window in the upper layers.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "qwen2", architecture: "Qwen2ForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "num_key_value_heads": 32,
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
    config.switches.qkv_bias = true;
    read_windows(fields, config)
}

/// Sets the window of the layers from `max_window_layers` on, or of those that `layer_types` lists. It has no effect
/// unless `use_sliding_window` is true.
pub(super) fn read_windows(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    let used = fields.flag("use_sliding_window")?;
    let window = fields.optional_size("sliding_window")?.filter(|_| used);
    let layers = config.num_hidden_layers;
    let windowed = match fields.layer_types(layers)? {
        listed if !listed.is_empty() => listed,
        _ => {
            let first = fields.index("max_window_layers")?;
            (0..layers).map(|index| index >= first).collect()
        }
    };
    config.set_windows(window, windowed);
    Ok(())
}

pub(super) fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let layers = config.num_hidden_layers;
    let first = (0..layers).find(|index| config.switches.is_windowed(*index)).unwrap_or(layers);
    let used = config.sliding_window.is_some();
    for (key, value) in [
        ("use_sliding_window", json!(used)),
        ("sliding_window", json!(config.sliding_window)),
        ("max_window_layers", json!(if used { first } else { layers })),
        ("layer_types", config.layer_types()),
    ] {
        object.insert(key.to_string(), value);
    }
}
