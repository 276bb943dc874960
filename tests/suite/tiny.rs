//! Tiny models with random weights.

use std::fs;
use std::path::Path;

use arithmo::model::config::DecoderConfig;
use arithmo::model::names::ModelTensor;
use arithmo::model::save::{ModelFolder, OutTensor};
use burn::tensor::DType;

use super::plan::tiny::fixture;
pub(crate) use super::plan::tiny::uniform;

/// Writes a model folder of `shape` with random weights stored as `dtype`, in many shards.
pub fn write_model(folder: &Path, shape: &DecoderConfig, dtype: DType) {
    write_changed_model(folder, shape, dtype, |_, _| ());
}

/// Writes a model folder like [`write_model`], after `change` was called with the name and values of each weight.
pub fn write_changed_model(
    folder: &Path,
    shape: &DecoderConfig,
    dtype: DType,
    change: impl Fn(&str, &mut Vec<f32>),
) {
    let tensors = (0..).zip(shape.tensors()).map(|(seed, tensor)| {
        let ModelTensor { name, shape: dims, .. } = tensor;
        let mut values = uniform(seed, dims.iter().product(), 0.4);
        change(&name, &mut values);
        OutTensor::new(name, dims, dtype, || Ok(values))
    });
    ModelFolder::new(folder, shape).with_max_shard_bytes(4000).save(tensors).unwrap();
}

/// Returns the shape of a model with the vocabulary size of the tokenizers in `tests/fixtures/tokenizer`.
pub fn text_shape() -> DecoderConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 430, "hidden_size": 20, "intermediate_size": 28,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "sliding_window": 40, "eos_token_id": 2}"#;
    DecoderConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Writes a model folder like [`write_model`], with the tokenizer in `tests/fixtures/tokenizer/<tokenizer>`.
pub fn write_model_with_tokenizer(
    folder: &Path,
    shape: &DecoderConfig,
    dtype: DType,
    tokenizer: &str,
) {
    write_model(folder, shape, dtype);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tokenizer").join(tokenizer).join(name), folder.join(name)).unwrap();
    }
}

/// Writes a model folder like [`write_model`] in f32, with a NaN as element 5 of the weight `name`.
pub fn write_not_finite(folder: &Path, shape: &DecoderConfig, name: &str) {
    write_changed_model(folder, shape, DType::F32, |tensor, values| {
        if tensor == name {
            values[5] = f32::NAN;
        }
    });
}
