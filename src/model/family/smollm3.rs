//! SmolLM 3: Llama with layers whose queries and keys are not rotated (arXiv 2501.18795).

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "smollm3", architecture: "SmolLM3ForCausalLM", defaults, read, write };

fn defaults() -> Value {
    json!({
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "use_sliding_window": false,
        "sliding_window": null,
        "tie_word_embeddings": true,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    let (attention_bias, layers) = (fields.flag("attention_bias")?, config.num_hidden_layers);
    let rotated = match fields.flags("no_rope_layers", layers)? {
        listed if !listed.is_empty() => listed,
        _ => {
            let interval = fields.size("no_rope_layer_interval")?;
            (1..=layers).map(|number| !number.is_multiple_of(interval)).collect()
        }
    };
    let windowed = match fields.layer_types(layers)? {
        listed if !listed.is_empty() => listed,
        _ => rotated.iter().map(|rotated| !rotated).collect(),
    };
    let used = fields.flag("use_sliding_window")?;
    let window = fields.optional_size("sliding_window")?.filter(|_| used);
    config.set_windows(window, windowed);
    let switches = &mut config.switches;
    switches.qkv_bias = attention_bias;
    switches.o_bias = attention_bias;
    switches.mlp_bias = fields.flag("mlp_bias")?;
    switches.rotated = rotated;
    Ok(())
}

fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let switches = &config.switches;
    let rotated = |index: usize| u8::from(switches.is_rotated(index));
    let rotated: Vec<u8> = (0..config.num_hidden_layers).map(rotated).collect();
    for (key, value) in [
        ("attention_bias", json!(switches.o_bias)),
        ("mlp_bias", json!(switches.mlp_bias)),
        ("no_rope_layers", json!(rotated)),
        ("use_sliding_window", json!(config.sliding_window.is_some())),
        ("sliding_window", json!(config.sliding_window)),
        ("layer_types", config.layer_types()),
    ] {
        object.insert(key.to_string(), value);
    }
}
