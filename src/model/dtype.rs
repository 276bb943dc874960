//! The type a model's weights are held in, where the user leaves it to the program.

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use super::config::MistralConfig;
use super::load::dtype_for;
use crate::error::Result;

/// As [`dtype_for`]; for `None`, weights stored in 16 bits that the device cannot compute in as they are, are taken in its
/// other 16-bit type, if it has one: f16 on most consumer cards.
///
/// # Errors
/// The device does not compute in the wanted type.
pub fn choose<B: TrainBackend>(
    config: &MistralConfig,
    wanted: Option<DType>,
    device: &B::Device,
) -> Result<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    let computed: Vec<DType> = all
        .into_iter()
        .filter(|dtype| B::computes_in(device, *dtype))
        .collect();
    match (wanted, auto(config, &computed)) {
        // Held on every backend: see [`super::load::load`].
        (Some(DType::BF16), _) => Ok(DType::BF16),
        (None, dtype @ (DType::BF16 | DType::F16)) => Ok(dtype),
        (wanted, _) => dtype_for::<B>(config, wanted, device),
    }
}

/// What `auto` is on a device that computes in `dtypes`.
pub fn auto(config: &MistralConfig, dtypes: &[DType]) -> DType {
    let order = match config.torch_dtype.as_deref() {
        Some("bfloat16") => [DType::BF16, DType::F16],
        Some("float16") => [DType::F16, DType::BF16],
        _ => return DType::F32,
    };
    let found = order.into_iter().find(|dtype| dtypes.contains(dtype));
    found.unwrap_or(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn stored_in(dtype: &str) -> MistralConfig {
        let text = format!(
            r#"{{"model_type": "mistral", "vocab_size": 7, "hidden_size": 12, "intermediate_size": 20,
            "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "torch_dtype": "{dtype}"}}"#
        );
        MistralConfig::parse(&text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn sixteen_bits_stay_sixteen_where_the_device_has_such_a_type() {
        let (f32, bf16, f16) = (DType::F32, DType::BF16, DType::F16);
        for (stored, dtypes, expected) in [
            ("bfloat16", vec![f32, bf16, f16], bf16),
            ("bfloat16", vec![f32, f16], f16),
            ("bfloat16", vec![f32], f32),
            ("float16", vec![f32, bf16, f16], f16),
            ("float32", vec![f32, bf16, f16], f32),
        ] {
            assert_eq!(
                auto(&stored_in(stored), &dtypes),
                expected,
                "{stored} {dtypes:?}"
            );
        }
    }
}
