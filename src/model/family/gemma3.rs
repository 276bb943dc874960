//! Gemma 3 (arXiv 2503.19786), text only: norms behind attention and feed-forward block too, which multiply by
//! `1 + weight`; scaled embeddings; GELU; and layers with a window, which have rotary frequencies of their own.

use serde_json::{Map, Value, json};

use super::Family;
use crate::error::Result;
use crate::model::config::{DecoderConfig, Fields};
use crate::model::switches::{AttentionScale, NormPlacement, QkNorm};

/// See [`Family`].
pub(super) static FAMILY: Family =
    Family { model_type: "gemma3_text", architecture: "Gemma3ForCausalLM", defaults, read, write };

/// The published models of several kinds of input leave out all of these.
fn defaults() -> Value {
    json!({
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
    })
}

fn read(fields: &Fields<'_>, config: &mut DecoderConfig) -> Result<()> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        fields.refuse_set(key, "soft caps are not implemented")?;
    }
    if fields.flag("use_bidirectional_attention")? {
        fields.refuse_set(
            "use_bidirectional_attention",
            "a model that attends to later tokens cannot generate",
        )?;
    }
    let (attention_bias, layers) = (fields.flag("attention_bias")?, config.num_hidden_layers);
    let windowed = match fields.layer_types(layers)? {
        listed if !listed.is_empty() => listed,
        _ => {
            let interval = fields.optional_size("sliding_window_pattern")?.unwrap_or(6);
            if fields.optional_size("_sliding_window_pattern")?.is_some_and(|key| key != interval) {
                fields.refuse_set(
                    "_sliding_window_pattern",
                    &format!(
                        "transformers ignores this key and would use {interval}; write layer_types"
                    ),
                )?;
            }
            (1..=layers).map(|number| !number.is_multiple_of(interval)).collect()
        }
    };
    config.set_windows(Some(fields.size("sliding_window")?), windowed);
    refuse_unread_rotations(fields)?;
    let local = fields.rope(Some("sliding_attention"))?;
    let local_theta = match local.number("rope_theta")? {
        Some(theta) if local.is_of_layer_type() => theta,
        _ => fields.positive("rope_local_base_freq")?,
    };
    if local.is_of_layer_type() {
        local.refuse_scaling("layers with a window have scaled rotary embeddings")?;
        local.refuse_partial()?;
    }
    let switches = &mut config.switches;
    switches.qkv_bias = attention_bias;
    switches.o_bias = attention_bias;
    switches.qk_norm = Some(QkNorm::EachHead);
    switches.local_rope_theta = Some(local_theta);
    let scalar = fields.positive("query_pre_attn_scalar")?;
    switches.attention_scale = Some(AttentionScale::InverseRootOf(scalar));
    switches.embedding_multiplier = Some((config.hidden_size as f64).sqrt());
    switches.unit_offset_norm = true;
    switches.norm_placement = NormPlacement::BeforeAndAfter;
    Ok(())
}

/// Refuses forms of the keys of rotary embeddings that transformers 5 reads otherwise than they look: it would not scale
/// at all, and say nothing.
fn refuse_unread_rotations(fields: &Fields<'_>) -> Result<()> {
    let object = |key: &str| fields.get(key).and_then(Value::as_object).filter(|o| !o.is_empty());
    let (scaling, parameters) = (object("rope_scaling"), object("rope_parameters"));
    let has_layer_types = |object: &Map<String, Value>| {
        ["full_attention", "sliding_attention"].iter().any(|key| object.contains_key(*key))
    };
    let old_type = |object: &Map<String, Value>| {
        let old = object.get("type").filter(|kind| *kind != "default");
        old.is_some() && !object.contains_key("rope_type")
    };
    let (key, problem) = match (scaling, parameters) {
        (Some(_), Some(_)) => ("rope_scaling", "rope_parameters is set too; keep one of them"),
        (Some(scaling), _) if has_layer_types(scaling) => (
            "rope_scaling",
            "transformers ignores types of layers here; write them in rope_parameters",
        ),
        (Some(scaling), _) if old_type(scaling) => {
            ("rope_scaling", "transformers ignores \"type\" in a Gemma 3; write \"rope_type\"")
        }
        (_, Some(parameters)) if !has_layer_types(parameters) => (
            "rope_parameters",
            "transformers ignores them without types of layers; write \"full_attention\" and \"sliding_attention\"",
        ),
        _ => return Ok(()),
    };
    fields.refuse_set(key, problem)
}

/// The form that transformers 4 and 5 read.
fn write(config: &DecoderConfig, object: &mut Map<String, Value>) {
    let switches = &config.switches;
    let activation = object.remove("hidden_act").unwrap_or_default();
    let scalar = match switches.attention_scale {
        // transformers 5 takes whole numbers alone.
        Some(AttentionScale::InverseRootOf(scalar)) if scalar.fract() == 0.0 => {
            json!(scalar as u64)
        }
        Some(AttentionScale::InverseRootOf(scalar)) => json!(scalar),
        _ => json!(config.head_dim()),
    };
    for (key, value) in [
        ("hidden_activation", activation),
        ("attention_bias", json!(switches.o_bias)),
        ("sliding_window", json!(config.sliding_window)),
        ("layer_types", config.layer_types()),
        ("rope_local_base_freq", json!(switches.local_rope_theta)),
        ("query_pre_attn_scalar", scalar),
    ] {
        object.insert(key.to_string(), value);
    }
}
