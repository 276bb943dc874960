//! Rotary embeddings in GGUF files: keys, and the tensor that scales single frequencies.

use super::architecture::Architecture;
use super::value::Keys;
use crate::model::config::DecoderConfig;
use crate::model::rope::Rope;
use crate::model::switches::{RopeScaling, Yarn};

/// Adds the keys of the rotary embeddings.
pub(super) fn rope_keys(architecture: &Architecture, config: &DecoderConfig, keys: &mut Keys) {
    let name = |key: &str| format!("{}.rope.{key}", architecture.name);
    keys.set_f32(name("freq_base"), config.rope_theta);
    if let Some(theta) = config.switches.local_rope_theta {
        keys.set_f32(name("freq_base_swa"), theta);
    }
    match &config.switches.rope_scaling {
        // The tensor of `frequency_divisors` holds these.
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            keys.set_text(name("scaling.type"), "linear");
            keys.set_f32(name("scaling.factor"), *factor);
        }
        RopeScaling::Yarn(yarn) => {
            keys.set_text(name("scaling.type"), "yarn");
            keys.set_f32(name("scaling.factor"), yarn.factor);
            let original = yarn.original_max_position_embeddings;
            keys.set_u32(name("scaling.original_context_length"), original);
            let mut assumed = growth(yarn.factor, 1.0);
            if architecture.yarn_bounds {
                keys.set_f32(name("scaling.yarn_beta_fast"), yarn.beta_fast);
                keys.set_f32(name("scaling.yarn_beta_slow"), yarn.beta_slow);
                if let Some(weight) = divisor_weight(yarn) {
                    keys.set_f32(name("scaling.yarn_log_multiplier"), weight);
                    assumed /= growth(yarn.factor, weight);
                }
            }
            let rope =
                Rope { theta: config.rope_theta, scaling: config.switches.rope_scaling.clone() };
            let correction = f64::from(rope.attention_factor()) / assumed;
            if (correction - 1.0).abs() > 1e-6 {
                keys.set_f32(name("scaling.attn_factor"), correction);
            }
        }
    }
    let scaled = matches!(config.switches.rope_scaling, RopeScaling::Yarn(_));
    if let Some(growth) = config.switches.query_growth.filter(|_| !scaled) {
        // llama.cpp takes the length of the first training phase from the same key.
        let original = growth.original_max_position_embeddings;
        keys.set_u32(name("scaling.original_context_length"), original);
    }
}

/// Returns the factor on sines and cosines that llama.cpp derives from the factor on positions.
fn growth(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// Returns the weight of the divisor that llama.cpp applies to [`growth`]; `None` if the model has none.
fn divisor_weight(yarn: &Yarn) -> Option<f64> {
    yarn.mscale_all_dim.filter(|weight| *weight != 0.0 && yarn.mscale == Some(1.0))
}

/// Returns one divisor per rotary frequency, for scalings that a tensor describes.
pub(super) fn frequency_divisors(config: &DecoderConfig) -> Option<Vec<f32>> {
    let scaling = config.switches.rope_scaling.clone();
    if !matches!(scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let frequencies =
        |scaling| Rope { theta: config.rope_theta, scaling }.frequencies(config.head_dim());
    let unscaled = frequencies(RopeScaling::None);
    Some(
        unscaled
            .iter()
            .zip(frequencies(scaling))
            .map(|(unscaled, scaled)| unscaled / scaled)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value as Json, json};

    use super::super::value::Value;
    use super::*;

    fn config(family: &str, scaling: Json) -> DecoderConfig {
        let json = json!({
            "model_type": family, "vocab_size": 7, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 10_000.0,
            "max_position_embeddings": 512, "rope_scaling": scaling,
        });
        DecoderConfig::parse(&json.to_string(), Path::new("config.json")).unwrap()
    }

    fn keys(family: &str, scaling: Json) -> Keys {
        let (config, mut keys) = (config(family, scaling), Keys::default());
        let architecture = Architecture::of_model(&config, Path::new("model")).unwrap();
        rope_keys(&architecture, &config, &mut keys);
        keys
    }

    fn float(keys: &Keys, key: &str) -> Option<f32> {
        match keys.get(key)? {
            Value::F32(value) => Some(*value),
            other => panic!("{other:?}"),
        }
    }

    /// llama.cpp multiplies sines and cosines by `0.1 ln(factor) + 1`, divided by the same with the weight
    /// `yarn_log_multiplier` if there is one, and by `attn_factor`.
    #[test]
    fn the_factor_on_sines_is_what_llama_cpp_derives_or_a_correction() {
        let yarn = |further: Json| {
            let mut json =
                json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
            json.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
            json
        };
        let derived = 0.1 * 4.0f64.ln() + 1.0;
        let plain = keys("llama", yarn(json!({})));
        assert_eq!(float(&plain, "llama.rope.scaling.attn_factor"), None);
        assert_eq!(float(&plain, "llama.rope.scaling.factor"), Some(4.0));
        let length = plain.get("llama.rope.scaling.original_context_length");
        assert_eq!(length, Some(&Value::U32(128)));
        let given = keys("llama", yarn(json!({"attention_factor": 1.5})));
        assert_eq!(float(&given, "llama.rope.scaling.attn_factor"), Some((1.5 / derived) as f32));
        let equal = json!({"mscale": 1.0, "mscale_all_dim": 1.0});
        let ministral = keys("ministral3", yarn(equal.clone()));
        assert_eq!(float(&ministral, "mistral3.rope.scaling.attn_factor"), None);
        assert_eq!(float(&ministral, "mistral3.rope.scaling.yarn_log_multiplier"), Some(1.0));
        let llama = keys("llama", yarn(equal));
        let correction = float(&llama, "llama.rope.scaling.attn_factor").unwrap();
        assert!((f64::from(correction) * derived - 1.0).abs() < 1e-6, "{correction}");
    }

    /// The frequencies are 1, 0.1, 0.01 and 0.001, their waves 6.3, 63, 628 and 6283 positions long. With the bounds
    /// 400 / 4 and 400 / 1, the first two keep their values and the last is divided by the whole factor. The third wave
    /// is longer than 400 too.
    #[test]
    fn llama_3_divides_low_frequencies() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 400,
        });
        assert_eq!(frequency_divisors(&config("llama", scaling)), Some(vec![1.0, 1.0, 8.0, 8.0]));
        assert_eq!(frequency_divisors(&config("llama", json!(null))), None);
    }
}
