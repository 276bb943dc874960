//! Small models of every family, with the sizes and features that the families differ in.

use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::{Decoder, ModuleMut};
use arithmo::model::linear::frozen_param;
use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

use super::tiny::uniform;

/// Returns the `config.json` of a model of each family, and of several kinds of rotary scaling. Windows are shorter than
/// the texts of the tests, and the heads together are not as wide as the model.
pub fn configs() -> Vec<Value> {
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let ministral3 = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 0.8,
        "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.1});
    let longrope = json!({"type": "longrope", "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 4.0, 9.0]});
    let families = [
        json!({"model_type": "llama", "rope_scaling": llama3, "attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "mistral", "rope_scaling": yarn, "sliding_window": 9}),
        json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2}),
        json!({"model_type": "qwen3", "tie_word_embeddings": true}),
        json!({"model_type": "ministral", "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        json!({"model_type": "ministral3", "rope_parameters": ministral3}),
        json!({"model_type": "smollm3", "no_rope_layer_interval": 2}),
        json!({"model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.4,
            "residual_multiplier": 0.6, "logits_scaling": 2.0}),
        json!({"model_type": "gemma3_text", "sliding_window": 9, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        json!({"model_type": "olmo2"}),
        json!({"model_type": "phi3", "sliding_window": 9, "partial_rotary_factor": 0.6, "rope_scaling": longrope,
            "original_max_position_embeddings": 60}),
    ];
    let sizes = json!({"vocab_size": 131, "hidden_size": 44, "intermediate_size": 75, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 80,
        "initializer_range": 0.2});
    let complete = |family: Value| {
        let mut config = sizes.clone();
        let keys = family.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(keys);
        config
    };
    families.map(complete).to_vec()
}

/// Returns the shapes of [`configs`].
pub fn shapes() -> Vec<DecoderConfig> {
    let parse =
        |config: Value| DecoderConfig::parse(&config.to_string(), "config.json".as_ref()).unwrap();
    configs().into_iter().map(parse).collect()
}

/// Replaces biases, which are zero in a random model, and the weights of norms, which are equal, by random values.
pub fn randomize_vectors<B: TrainBackend>(model: &mut Decoder<B>, device: &B::Device) {
    let dtype = model.dtype();
    let random = |seed: u64, count: usize, center: f32| -> Tensor<B, 1> {
        let values: Vec<f32> = uniform(seed, count, 0.3).iter().map(|v| v + center).collect();
        Tensor::from_data(TensorData::new(values, [count]).convert_dtype(dtype), (device, dtype))
    };
    for (seed, (_, module)) in (500..).zip(model.modules_mut()) {
        match module {
            ModuleMut::Norm(norm) => {
                let center = if norm.unit_offset { 0.0 } else { 1.0 };
                let count = norm.weight.dims()[0];
                norm.weight = frozen_param(random(seed, count, center));
            }
            ModuleMut::Projection(linear) => {
                let (count, _) = linear.dims();
                linear.bias = linear.bias.take().map(|_| frozen_param(random(seed, count, 0.0)));
            }
            ModuleMut::Matrix(_) => {}
        }
    }
    assert!([DType::F64, DType::F32, DType::F16, DType::BF16].contains(&dtype));
}
