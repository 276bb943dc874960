//! The model shapes that can be measured.

use std::path::Path;

use crate::error::{Error, Result};
use crate::input_file;
use crate::model::config::DecoderConfig;

/// Mistral-7B-v0.1.
const MISTRAL_7B: &str = r#"{
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": false, "initializer_range": 0.02, "torch_dtype": "bfloat16"
}"#;

/// Returns the shape called `name`, or the one in the `config.json` at that path.
///
/// # Errors
/// `name` is neither, or the file is not the configuration of a Mistral model.
pub fn shape(name: &str) -> Result<DecoderConfig> {
    let path = Path::new(name);
    if name == "mistral-7b" {
        return DecoderConfig::parse(MISTRAL_7B, path);
    }
    if !path.is_file() {
        let problem = format!("`{name}` is neither a known shape nor a file");
        let remedy = "use mistral-7b, or the path of a model's config.json";
        return Err(Error::invalid("--shape", problem, remedy));
    }
    let text = input_file::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    DecoderConfig::parse(&text, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistral_7b_has_its_weights() {
        let config = shape("mistral-7b").unwrap();
        assert_eq!(config.weights(), 7_241_732_096);
    }
}
