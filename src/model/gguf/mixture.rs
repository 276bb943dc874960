//! The type of each tensor of a file, by the rules of llama.cpp (`llama_tensor_get_type` in `llama-quant.cpp`):
//!
//! - Vectors, that is norms and biases, stay f32.
//! - `q4_0` and `q4_k_m` store the output head, or the embedding if it is the head, as Q6_K.
//! - `q4_k_m` stores `v_proj` and `down_proj` as Q6_K in the first and the last eighth of the layers and in every third of
//!   those between; all other matrices as Q4_K.
//! - A matrix whose rows are no multiple of 256 gets Q5_0 instead of Q4_K, and Q8_0 instead of Q6_K; one whose rows are no
//!   multiple of 32 gets f16.
//!
//! Q5_K is not written here. llama.cpp has it for `v_proj` of models of 80 layers, which is Q4_K or Q6_K here, and for `qkv_proj` of
//! Phi 3, which is Q6_K here.

use super::tensor_type::TensorType;
use crate::model::config::DecoderConfig;
use crate::model::names::{ModelTensor, TensorRole};

/// The type of most tensors of a file, by the name that llama.cpp gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FileType {
    /// 32 bits per weight
    F32,
    /// 16 bits per weight, with values up to 65504
    F16,
    /// 16 bits per weight, with the range of f32
    Bf16,
    /// 8.5 bits per weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits per weight, in blocks of 32
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.5 to 6.6 bits per weight, in blocks of 256
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl FileType {
    /// Returns the number of the type in `general.file_type` (`llama_ftype`).
    pub fn id(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// Returns the type of a tensor of the model `config`.
    pub fn tensor_type(self, tensor: &ModelTensor, config: &DecoderConfig) -> TensorType {
        let Some([_, width]) = tensor.dims() else {
            return TensorType::F32;
        };
        let is_head = match tensor.role {
            TensorRole::Head => true,
            TensorRole::Embedding => config.tie_word_embeddings,
            _ => false,
        };
        let wanted = match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4_0 | Self::Q4KM if is_head => TensorType::Q6K,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4KM if gets_more_bits(tensor, config.num_hidden_layers) => TensorType::Q6K,
            Self::Q4KM => TensorType::Q4K,
        };
        fitting(wanted, width)
    }
}

/// Returns whether `q4_k_m` stores a projection as Q6_K.
fn gets_more_bits(tensor: &ModelTensor, layers: usize) -> bool {
    let Some((layer, path)) = super::names::layer_and_path(tensor.module()) else {
        return false;
    };
    if path == "self_attn.qkv_proj" {
        return true;
    }
    let eighth = layers / 8;
    ["self_attn.v_proj", "mlp.down_proj"].contains(&path)
        && (layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2)
}

/// Returns `wanted`, or a type with smaller blocks if rows of `width` values do not consist of whole blocks.
fn fitting(wanted: TensorType, width: usize) -> TensorType {
    let fits = |kind: TensorType| width.is_multiple_of(kind.block_values());
    let narrower = match wanted {
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q6K => TensorType::Q8_0,
        other => other,
    };
    [wanted, narrower].into_iter().find(|kind| fits(*kind)).unwrap_or(TensorType::F16)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn config(layers: usize, hidden: usize, tied: bool) -> DecoderConfig {
        let json = json!({
            "model_type": "llama", "vocab_size": 7, "hidden_size": hidden, "intermediate_size": 512,
            "num_hidden_layers": layers, "num_attention_heads": 1, "tie_word_embeddings": tied,
        });
        DecoderConfig::parse(&json.to_string(), Path::new("config.json")).unwrap()
    }

    /// Returns the layers whose tensor `path` has the type `kind`.
    fn layers_with(
        kind: TensorType,
        path: &str,
        file: FileType,
        config: &DecoderConfig,
    ) -> Vec<usize> {
        let tensors = config.tensors();
        let of_path = tensors.iter().filter(|tensor| tensor.module().ends_with(path));
        let found =
            of_path.enumerate().filter(|(_, tensor)| file.tensor_type(tensor, config) == kind);
        found.map(|(layer, _)| layer).collect()
    }

    /// The layers were counted by hand from llama.cpp's `use_more_bits(i, n)`: `i < n/8 || i >= 7*n/8 || (i - n/8) % 3 == 2`.
    #[test]
    fn q4_k_m_gives_some_layers_more_bits() {
        let config = config(30, 256, false);
        for path in ["v_proj", "down_proj"] {
            let more = layers_with(TensorType::Q6K, path, FileType::Q4KM, &config);
            assert_eq!(more, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29], "{path}");
        }
        for path in ["q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"] {
            assert_eq!(layers_with(TensorType::Q4K, path, FileType::Q4KM, &config).len(), 30);
        }
        assert!(layers_with(TensorType::Q6K, "v_proj", FileType::Q4_0, &config).is_empty());
    }

    #[test]
    fn the_head_has_more_bits_and_vectors_have_all() {
        let kinds = |file: FileType, tied: bool| {
            let config = config(1, 256, tied);
            let tensors = config.tensors();
            let kind = |name: &str| {
                let tensor = tensors.iter().find(|tensor| tensor.module() == name);
                tensor.map(|tensor| file.tensor_type(tensor, &config))
            };
            [kind("model.embed_tokens"), kind("lm_head"), kind("model.norm")]
        };
        let (q4, q6, f32) = (Some(TensorType::Q4K), Some(TensorType::Q6K), Some(TensorType::F32));
        assert_eq!(kinds(FileType::Q4KM, false), [q4, q6, f32]);
        assert_eq!(kinds(FileType::Q4KM, true), [q6, None, f32]);
        assert_eq!(kinds(FileType::Q4_0, false), [Some(TensorType::Q4_0), q6, f32]);
        assert_eq!(kinds(FileType::Q8_0, true), [Some(TensorType::Q8_0), None, f32]);
        assert_eq!(
            kinds(FileType::F16, false),
            [Some(TensorType::F16), Some(TensorType::F16), f32]
        );
    }

    #[test]
    fn rows_of_broken_blocks_fall_back() {
        for (wanted, width, expected) in [
            (TensorType::Q4K, 576, TensorType::Q5_0),
            (TensorType::Q6K, 576, TensorType::Q8_0),
            (TensorType::Q4K, 48, TensorType::F16),
            (TensorType::Q6K, 48, TensorType::F16),
            (TensorType::Q8_0, 48, TensorType::F16),
            (TensorType::Q4_0, 48, TensorType::F16),
            (TensorType::BF16, 48, TensorType::BF16),
            (TensorType::Q4K, 768, TensorType::Q4K),
        ] {
            assert_eq!(fitting(wanted, width), expected, "{wanted:?} {width}");
        }
    }
}
