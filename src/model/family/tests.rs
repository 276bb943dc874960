use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::error::Result;
use crate::model::names::TensorRole;
use crate::model::switches::{Activation, NormPlacement, QkNorm, QueryGrowth, RopeScaling, Yarn};

/// Parses a model of four layers with `keys` in addition.
fn parse(keys: Value) -> Result<DecoderConfig> {
    let mut object = json!({"vocab_size": 7, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 2});
    for (key, value) in keys.as_object().unwrap() {
        object[key] = value.clone();
    }
    DecoderConfig::parse(&object.to_string(), Path::new("config.json"))
}

fn good(keys: Value) -> DecoderConfig {
    parse(keys).unwrap()
}

fn refused(keys: Value) -> String {
    parse(keys).unwrap_err().to_string()
}

/// Returns which layers have a window.
fn windowed(config: &DecoderConfig) -> Vec<bool> {
    let windows = config.windows();
    let window = |index: usize| windows[config.layer_kind(index).window];
    (0..config.num_hidden_layers).map(|index| window(index).is_some()).collect()
}

#[test]
fn absent_keys_take_the_defaults_of_each_class_of_transformers() {
    let sizes = json!({"vocab_size": 7, "hidden_size": 512, "intermediate_size": 20, "num_hidden_layers": 4,
        "num_attention_heads": 64});
    // Key heads, width of a head, positions, base of the frequencies, window, tied.
    for (model_type, expected) in [
        ("mistral", (8, 8, 131_072, 1e4, Some(4096), false)),
        ("ministral", (8, 8, 131_072, 1e4, Some(4096), false)),
        ("ministral3", (8, 128, 262_144, 1e6, None, false)),
        ("llama", (64, 8, 2048, 1e4, None, false)),
        ("qwen2", (32, 8, 32_768, 1e4, None, false)),
        ("qwen3", (32, 128, 32_768, 1e4, None, false)),
        ("smollm3", (4, 8, 32_768, 2e6, None, true)),
        ("granite", (64, 8, 2048, 1e4, None, false)),
        ("olmo2", (64, 8, 2048, 1e4, None, false)),
        ("phi3", (64, 8, 4096, 1e4, None, false)),
        ("gemma3_text", (4, 256, 131_072, 1e6, Some(4096), true)),
    ] {
        let mut object = sizes.clone();
        object["model_type"] = json!(model_type);
        let config = DecoderConfig::parse(&object.to_string(), Path::new("config.json")).unwrap();
        let (window, tied) = (config.sliding_window, config.tie_word_embeddings);
        let (heads, positions) = (config.num_key_value_heads, config.max_position_embeddings);
        let ours = (heads, config.head_dim(), positions, config.rope_theta, window, tied);
        assert_eq!(ours, expected, "{model_type}");
    }
    // An explicit null is the number of query heads.
    let null = good(json!({"model_type": "qwen2", "num_key_value_heads": null}));
    assert_eq!(null.num_key_value_heads, 6);
}

#[test]
fn biases_follow_the_keys_of_each_family() {
    let biases = |keys: Value| {
        let config = good(keys);
        let tensors = config.tensors().into_iter();
        let biases = tensors.filter(|tensor| tensor.role == TensorRole::Bias);
        let first = biases.filter(|tensor| tensor.name.starts_with("model.layers.0."));
        let name = |name: String| name.split('.').nth(4).map(String::from);
        first.filter_map(|tensor| name(tensor.name)).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        biases(json!({"model_type": "qwen2", "attention_bias": false})),
        "q_proj k_proj v_proj"
    );
    let all = json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true});
    assert_eq!(biases(all), "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj");
    let attention = json!({"model_type": "qwen3", "attention_bias": true});
    assert_eq!(biases(attention), "q_proj k_proj v_proj o_proj");
    assert_eq!(biases(json!({"model_type": "qwen3"})), "");
    assert!(
        refused(json!({"model_type": "mistral", "attention_bias": true}))
            .contains("attention_bias is true")
    );
}

#[test]
fn windows_follow_the_layers() {
    let qwen2 = |keys: Value| {
        let mut all = json!({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 3});
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        windowed(&good(all))
    };
    assert_eq!(qwen2(json!({})), [false; 4]);
    assert_eq!(qwen2(json!({"use_sliding_window": true})), [false, false, false, true]);
    let layers = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
    let listed = qwen2(json!({"use_sliding_window": true, "layer_types": layers}));
    assert_eq!(listed, [true, false, false, true]);
    assert_eq!(qwen2(json!({"layer_types": layers})), [false; 4]);
    assert_eq!(qwen2(json!({"use_sliding_window": true, "max_window_layers": 0})), [true; 4]);

    assert_eq!(windowed(&good(json!({"model_type": "llama", "sliding_window": 8}))), [false; 4]);
    assert_eq!(windowed(&good(json!({"model_type": "mistral", "sliding_window": 8}))), [true; 4]);
    let ministral =
        good(json!({"model_type": "ministral", "sliding_window": 8, "layer_types": layers}));
    assert_eq!(windowed(&ministral), [true, false, false, true]);
    let gemma = good(
        json!({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3}),
    );
    assert_eq!(windowed(&gemma), [true, true, false, true]);
    assert_eq!([0, 2].map(|index| gemma.layer_kind(index).rope), [Some(1), Some(0)]);

    let chunked = json!({"model_type": "qwen3", "layer_types": vec!["chunked_attention"; 4]});
    assert!(refused(chunked).contains("layer_types must be"));
    let short = json!({"model_type": "qwen3", "layer_types": ["full_attention"]});
    assert!(refused(short).contains("layer_types must be"));
}

#[test]
fn rotations_follow_the_layers() {
    let rotated = |keys: Value| {
        let config = good(keys);
        (0..4).map(|index| config.layer_kind(index).rope.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(rotated(json!({"model_type": "smollm3"})), [true, true, true, false]);
    let interval = json!({"model_type": "smollm3", "no_rope_layer_interval": 2});
    assert_eq!(rotated(interval), [true, false, true, false]);
    let listed = json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 0]});
    assert_eq!(rotated(listed), [false, true, true, false]);
}

#[test]
fn scaled_rotations_are_read_in_both_forms() {
    let llama = |rope: Value| {
        let key = if rope.get("rope_theta").is_some() { "rope_parameters" } else { "rope_scaling" };
        parse(json!({"model_type": "llama", "max_position_embeddings": 64, key: rope}))
    };
    let scaling = |rope: Value| llama(rope).unwrap().switches.rope_scaling;
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(json!({"type": "linear", "factor": 4.0})), linear);
    let new = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    assert_eq!(scaling(new.clone()), linear);
    assert_eq!(llama(new).unwrap().rope_theta, 5e5);
    // The first training phase was as long as the texts of the model, if nothing else is said.
    let yarn = Yarn {
        factor: 4.0,
        original_max_position_embeddings: 64,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    assert_eq!(scaling(json!({"rope_type": "yarn", "factor": 4.0})), RopeScaling::Yarn(yarn));
    for (rope, wanted) in [
        (json!({"rope_type": "dynamic", "factor": 2.0}), "\"dynamic\""),
        (json!({"rope_type": "longrope", "long_factor": [1.0]}), "short_factor must be"),
        (
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]}),
            "rotated by 1 frequencies, but short_factor and long_factor have 1 and 2 values",
        ),
        (json!({"rope_type": "yarn"}), "factor must be a number above 0, missing"),
        (json!({"rope_type": "linear", "factor": 0}), "factor must be a number above 0, is 0"),
        (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!("yarn"), "rope_scaling must be an object"),
    ] {
        let error = llama(rope).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// As in transformers 5: a `rope_scaling` that somebody has added to a new `config.json` counts.
#[test]
fn of_both_forms_the_older_key_wins_unless_it_is_empty() {
    let read = |rope_scaling: Value| {
        let config = good(json!({
            "model_type": "llama",
            "rope_theta": 777.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "rope_scaling": rope_scaling,
        }));
        (config.switches.rope_scaling, config.rope_theta)
    };
    let linear = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(read(json!({"type": "linear", "factor": 2.0})), (linear, 777.0));
    assert_eq!(read(json!({})), (RopeScaling::None, 5000.0));
    assert_eq!(read(json!(null)), (RopeScaling::None, 5000.0));
}

#[test]
fn a_mistral_with_types_of_layers_is_a_ministral() {
    let types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    let config = good(json!({"model_type": "mistral", "sliding_window": 6, "layer_types": types}));
    assert_eq!(windowed(&config), [true, false, true, false]);
    assert_eq!(config.family.model_type, "ministral");
}

#[test]
fn queries_of_ministral_3_grow_by_absolute_positions() {
    let rope = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 16});
    let config = good(json!({"model_type": "ministral3", "rope_parameters": rope}));
    let growth = QueryGrowth { beta: 0.1, original_max_position_embeddings: 16 };
    assert_eq!(config.switches.query_growth, Some(growth));
    assert_eq!([0, 15].map(|position| growth.factor(position)), [1.0; 2]);
    assert_eq!(growth.factor(40), 1.0 + 0.1 * 3f32.ln());
}

#[test]
fn gemma_3_has_its_norms_scales_and_activation() {
    let config =
        good(json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        }}));
    let switches = &config.switches;
    assert_eq!((config.rope_theta, switches.local_rope_theta), (2e6, Some(3e4)));
    assert_eq!(switches.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(config.attention().scale, 0.25);
    assert_eq!(switches.activation, Activation::GeluTanh);
    assert_eq!(switches.norm_placement, NormPlacement::BeforeAndAfter);
    assert_eq!(switches.qk_norm, Some(QkNorm::EachHead));
    assert!(switches.unit_offset_norm && switches.embedding_multiplier == Some(12f64.sqrt()));
    let capped = json!({"model_type": "gemma3_text", "final_logit_softcapping": 30.0});
    assert!(refused(capped).contains("final_logit_softcapping is 30.0"));
}

/// transformers 5 refuses a float.
#[test]
fn the_scale_of_gemma_3_is_written_as_a_whole_number() {
    let config = gemma(json!({"query_pre_attn_scalar": 24.0})).unwrap();
    assert_eq!(config.to_json()["query_pre_attn_scalar"], json!(24));
}

/// Reads a Gemma 3 of seven layers with further keys in its config.json.
fn gemma(mut keys: Value) -> Result<DecoderConfig> {
    keys["model_type"] = json!("gemma3_text");
    keys["num_hidden_layers"] = json!(7);
    parse(keys)
}

/// Keys of a Gemma 3 as transformers 5.23 reads them: base of the frequencies of layers without and with a window, factor,
/// and number of windowed layers.
#[test]
fn odd_keys_of_gemma_3_are_read_as_by_transformers() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let default = json!({"rope_type": "default"});
    for (keys, expected) in [
        (json!({}), (1e6, 1e4, 1.0, 6)),
        (json!({"rope_theta": 6e5}), (6e5, 1e4, 1.0, 6)),
        (json!({"rope_scaling": linear}), (1e6, 1e4, 8.0, 6)),
        (
            json!({"rope_scaling": linear, "rope_local_base_freq": 777.0, "rope_theta": 5e5}),
            (5e5, 777.0, 8.0, 6),
        ),
        (
            json!({"rope_parameters": {"full_attention": linear}, "rope_local_base_freq": 777.0}),
            (1e6, 777.0, 8.0, 6),
        ),
        (
            json!({"rope_parameters": {"full_attention": linear, "sliding_attention": default},
                "rope_theta": 6e5, "rope_local_base_freq": 777.0}),
            (6e5, 777.0, 8.0, 6),
        ),
        (
            json!({"rope_parameters": {"full_attention": {"type": "linear", "factor": 8.0}}}),
            (1e6, 1e4, 8.0, 6),
        ),
        (json!({"rope_scaling": {}, "rope_parameters": {}}), (1e6, 1e4, 1.0, 6)),
        (json!({"sliding_window_pattern": 3}), (1e6, 1e4, 1.0, 5)),
        (json!({"sliding_window_pattern": 1}), (1e6, 1e4, 1.0, 0)),
        (json!({"sliding_window_pattern": 2, "_sliding_window_pattern": 2}), (1e6, 1e4, 1.0, 4)),
        (
            json!({"_sliding_window_pattern": 3, "layer_types": vec!["full_attention"; 7]}),
            (1e6, 1e4, 1.0, 0),
        ),
    ] {
        let config = gemma(keys.clone()).unwrap();
        let factor = match config.switches.rope_scaling {
            RopeScaling::Linear { factor } => factor,
            _ => 1.0,
        };
        let restricted = windowed(&config).iter().filter(|windowed| **windowed).count();
        let local = config.switches.local_rope_theta.unwrap();
        assert_eq!((config.rope_theta, local, factor, restricted), expected, "{keys}");
    }
}

/// Forms that transformers reads otherwise than they look.
#[test]
fn misleading_keys_of_gemma_3_are_refused() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let default = json!({"rope_type": "default"});
    for (keys, wanted) in [
        (json!({"rope_scaling": {"type": "linear", "factor": 8.0}}), "write \"rope_type\""),
        (json!({"rope_scaling": {"full_attention": linear}}), "write them in rope_parameters"),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}),
            "without types of layers",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
            "rope_parameters is",
        ),
        (
            json!({"rope_scaling": linear, "rope_parameters": {"full_attention": default}}),
            "rope_parameters is set too",
        ),
        (json!({"_sliding_window_pattern": 3}), "_sliding_window_pattern is 3"),
        (
            json!({"rope_parameters": {"full_attention": default, "sliding_attention": linear}}),
            "layers with a window have scaled",
        ),
    ] {
        let error = gemma(keys.clone()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{keys}: {error}");
    }
}

/// The keys of Phi 3 as transformers 5.23 reads them: the text length beside `rope_scaling` counts, 4096 if there is none.
#[test]
fn phi_3_is_rotated_in_part_and_used_up_to_the_length_of_its_first_training_phase() {
    let factors = |count: usize| vec![1.5; count];
    let longrope = |count| {
        json!({"type": "longrope", "short_factor": factors(count), "long_factor": factors(count),
        "original_max_position_embeddings": 16})
    };
    let phi3 = |mut keys: Value| {
        keys["model_type"] = json!("phi3");
        keys["head_dim"] = json!(8);
        keys["max_position_embeddings"] = json!(8192);
        parse(keys)
    };
    let whole = phi3(json!({"rope_scaling": longrope(4)})).unwrap();
    assert_eq!((whole.max_position_embeddings, whole.rotary_dim()), (4096, 8));
    let part = json!({"rope_scaling": longrope(3), "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75});
    let part = phi3(part).unwrap();
    assert_eq!((part.max_position_embeddings, part.rotary_dim()), (64, 6));
    let factor = part.ropes()[0].attention_factor();
    // sqrt(1 + ln(8192 / 64) / ln(64))
    assert!((factor - (1.0 + 7.0 / 6.0f32).sqrt()).abs() < 1e-6, "{factor}");
    assert_eq!(part.to_json()["max_position_embeddings"], 8192);
    let tensors: Vec<String> = part.tensors().into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(tensors[1], "model.layers.0.self_attn.qkv_proj.weight");
    assert_eq!(tensors[3], "model.layers.0.mlp.gate_up_proj.weight");
    for (keys, wanted) in [
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "\"longrope\" alone"),
        (json!({"rope_scaling": {"type": "su"}}), "scaled by \"su\""),
        (json!({"partial_rotary_factor": 0.7}), "5 features of a head are rotated"),
        (json!({"partial_rotary_factor": 0}), "partial_rotary_factor is 0"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor is 1.5"),
    ] {
        let error = phi3(keys).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// The text part of a model that also reads images, whose keys are nested.
#[test]
fn the_text_part_of_a_larger_model_is_read() {
    let text = json!({"model_type": "ministral3", "vocab_size": 7, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 2});
    let whole = json!({"model_type": "mistral3", "text_config": text, "vision_config": {"model_type": "pixtral"},
        "tie_word_embeddings": true, "dtype": "bfloat16"});
    let config = DecoderConfig::parse(&whole.to_string(), Path::new("config.json")).unwrap();
    assert_eq!(config.family.model_type, "ministral3");
    assert!(config.is_text_part && config.tie_word_embeddings);
    assert_eq!(config.torch_dtype.as_deref(), Some("bfloat16"));
    let growth = config.switches.query_growth.unwrap();
    assert_eq!((growth.beta, growth.original_max_position_embeddings), (0.1, 16_384));
}

#[test]
fn what_is_missing_for_other_models_is_named() {
    for (model_type, wanted) in [
        ("qwen3_moe", "a mixture of experts"),
        ("mixtral", "a mixture of experts"),
        ("qwen2_5_vl", "an encoder of images"),
        ("qwen3_next", "linear attention"),
        ("gemma2", "soft caps"),
        ("gemma4", "embeddings per layer"),
        ("olmo3", "rotary embeddings that differ"),
        ("granitemoe", "a mixture of experts"),
        ("a_later_architecture", "which is not implemented"),
    ] {
        let error = refused(json!({"model_type": model_type}));
        assert!(error.contains(wanted) && error.contains("llama, qwen2, qwen3"), "{error}");
    }
    assert!(refused(json!({})).contains("model_type is missing"));
    let activation = json!({"model_type": "llama", "hidden_act": "relu2"});
    assert!(refused(activation).contains("hidden_act is \"relu2\""));
}

#[test]
fn saved_configurations_are_read_back() {
    let yarn =
        json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.1, "truncate": false});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let layers = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
    for keys in [
        json!({"model_type": "mistral", "rope_scaling": yarn}),
        json!({"model_type": "llama", "rope_scaling": llama3, "attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "layer_types": layers}),
        json!({"model_type": "qwen3", "use_sliding_window": true, "max_window_layers": 1, "attention_bias": true}),
        json!({"model_type": "ministral", "layer_types": layers}),
        json!({"model_type": "ministral3"}),
        json!({"model_type": "ministral3", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
        json!({"model_type": "granite", "embedding_multiplier": 12, "attention_multiplier": 0.015625,
            "residual_multiplier": 0.22, "logits_scaling": 16.0, "attention_bias": true}),
        json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 0], "use_sliding_window": true, "sliding_window": 8}),
        json!({"model_type": "olmo2", "attention_bias": true}),
        json!({"model_type": "phi3", "sliding_window": 8}),
        json!({"model_type": "phi3", "head_dim": 8, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 4.0, 9.0]}}),
        json!({"model_type": "gemma3_text", "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ] {
        let config = good(keys);
        let text = config.to_json().to_string();
        let read = DecoderConfig::parse(&text, Path::new("config.json"));
        assert_eq!(read.unwrap(), config, "{text}");
    }
}
