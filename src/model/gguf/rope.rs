//! Rotary embeddings in GGUF files: keys, and the tensor that scales single frequencies.

use super::architecture::Architecture;
use super::names::ROPE_FREQS;
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
        // A tensor of `divisors` holds these.
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::LongRope(longrope) => {
            let original = longrope.original_max_position_embeddings;
            keys.set_u32(name("scaling.original_context_length"), original);
            keys.set_f32(name("scaling.attn_factor"), rope(config).attention_factor().into());
        }
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
            let correction = f64::from(rope(config).attention_factor()) / assumed;
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

/// Returns the rotary embeddings of the layers that attend to the whole text.
fn rope(config: &DecoderConfig) -> Rope {
    Rope { theta: config.rope_theta, scaling: config.switches.rope_scaling.clone() }
}

/// Returns the tensors that scale single frequencies: name, and one divisor per frequency.
pub(super) fn divisors(config: &DecoderConfig) -> Vec<(&'static str, Vec<f32>)> {
    match &config.switches.rope_scaling {
        RopeScaling::Llama3 { .. } => vec![(ROPE_FREQS, llama3_divisors(config))],
        RopeScaling::LongRope(longrope) => {
            let list = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
            vec![
                ("rope_factors_long.weight", list(&longrope.long_factor)),
                ("rope_factors_short.weight", list(&longrope.short_factor)),
            ]
        }
        _ => Vec::new(),
    }
}

/// Returns by what Llama 3's scaling divides each frequency.
fn llama3_divisors(config: &DecoderConfig) -> Vec<f32> {
    let scaled = rope(config);
    let unscaled = Rope { scaling: RopeScaling::None, ..scaled.clone() };
    let [scaled, unscaled] = [scaled, unscaled].map(|rope| rope.frequencies(config.head_dim()));
    unscaled.iter().zip(scaled).map(|(unscaled, scaled)| unscaled / scaled).collect()
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
        let expected = vec![(ROPE_FREQS, vec![1.0, 1.0, 8.0, 8.0])];
        assert_eq!(divisors(&config("llama", scaling)), expected);
        assert_eq!(divisors(&config("llama", json!(null))), []);
    }

    /// llama.cpp divides frequencies by one of two lists, chosen by the length of its context, and multiplies sines and
    /// cosines by `attn_factor`: `sqrt(1 + ln(512 / 128) / ln(128))`.
    #[test]
    fn longrope_writes_both_lists_of_divisors() {
        let json = json!({
            "model_type": "phi3", "vocab_size": 7, "hidden_size": 16, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "original_max_position_embeddings": 128,
            "partial_rotary_factor": 0.75, "rope_scaling": {
                "type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 4.0, 9.0],
            },
        });
        let config = DecoderConfig::parse(&json.to_string(), Path::new("config.json")).unwrap();
        let expected = vec![
            ("rope_factors_long.weight", vec![1.0, 4.0, 9.0]),
            ("rope_factors_short.weight", vec![1.0, 1.5, 2.0]),
        ];
        assert_eq!(divisors(&config), expected);
        let architecture = Architecture::of_model(&config, Path::new("model")).unwrap();
        let mut keys = Keys::default();
        architecture.set_keys(&config, &mut keys);
        let factor = f64::from(float(&keys, "phi3.rope.scaling.attn_factor").unwrap());
        assert!((factor - (1.0 + 4.0f64.ln() / 128.0f64.ln()).sqrt()).abs() < 1e-6, "{factor}");
        for (key, expected) in [
            ("phi3.rope.scaling.original_context_length", 128),
            ("phi3.context_length", 512),
            ("phi3.rope.dimension_count", 6),
        ] {
            assert_eq!(keys.get(key), Some(&Value::U32(expected)), "{key}");
        }
    }
}
