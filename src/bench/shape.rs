//! The model shapes that can be measured.

use std::path::Path;

use crate::error::{Error, Result};
use crate::input_file;
use crate::model::config::DecoderConfig;

/// The known shapes: name, and the `config.json` of the model.
const SHAPES: [(&str, &str); 6] = [
    // Mistral-7B-v0.1.
    (
        "mistral-7b",
        r#"{
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": false, "initializer_range": 0.02, "torch_dtype": "bfloat16"
        }"#,
    ),
    // Mistral-Nemo-Base-2407, whose heads together are narrower than the model.
    (
        "mistral-nemo",
        r#"{
            "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 14336,
            "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": null,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        }"#,
    ),
    // The text part of Ministral-3-3B-Base-2512.
    (
        "ministral-3b",
        r#"{
            "model_type": "ministral3", "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "torch_dtype": "bfloat16"
        }"#,
    ),
    // Llama-3.1-8B.
    (
        "llama-3.1-8b",
        r#"{
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            },
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        }"#,
    ),
    // Qwen2.5-7B.
    (
        "qwen2.5-7b",
        r#"{
            "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "use_sliding_window": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        }"#,
    ),
    // Qwen3-4B.
    (
        "qwen3-4b",
        r#"{
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "use_sliding_window": false, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
        }"#,
    ),
];

/// Returns the names of the known shapes.
pub fn shape_names() -> String {
    SHAPES.map(|(name, _)| name).join(", ")
}

/// Returns the shape called `name`, or the one in the `config.json` at that path.
///
/// # Errors
/// `name` is neither, or the file is not the configuration of a supported model.
pub fn shape(name: &str) -> Result<DecoderConfig> {
    let path = Path::new(name);
    if let Some((_, text)) = SHAPES.iter().find(|(known, _)| *known == name) {
        return DecoderConfig::parse(text, path);
    }
    if !path.is_file() {
        let problem = format!("`{name}` is neither a known shape nor a file");
        let remedy = format!("use one of {}, or the path of a model's config.json", shape_names());
        return Err(Error::invalid("--shape", problem, remedy));
    }
    let text = input_file::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    DecoderConfig::parse(&text, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of weights that the models' pages name.
    #[test]
    fn shapes_have_the_weights_of_their_models() {
        for (name, weights) in [
            ("mistral-7b", 7_241_732_096),
            ("mistral-nemo", 12_247_782_400),
            ("ministral-3b", 3_429_006_336),
            ("llama-3.1-8b", 8_030_261_248),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen3-4b", 4_022_468_096),
        ] {
            assert_eq!(shape(name).unwrap().weights(), weights, "{name}");
        }
    }
}
