//! The type a model's weights are held in, where the user leaves it to the program.

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Element};

use super::config::MistralConfig;
use crate::error::{Error, Result};

/// What a type of weights must be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Weights are held in it; where nothing computes in it they are widened when they are used: see [`super::load::load`].
    Hold,
    /// The device computes in it: for measurements of that.
    Compute,
}

/// The type of a model's weights: `wanted`, or for `None` [`auto`] among the types that `device` computes in.
///
/// # Errors
/// The wanted type does not do for this purpose.
pub fn choose<B: TrainBackend>(
    config: &MistralConfig,
    wanted: Option<DType>,
    purpose: Purpose,
    device: &B::Device,
) -> Result<DType> {
    let Some(dtype) = wanted else {
        return Ok(match auto(config, &computed::<B>(device)) {
            DType::F32 => <B::FloatElem as Element>::dtype(),
            half => half,
        });
    };
    let held = purpose == Purpose::Hold && dtype == DType::BF16;
    match held || B::computes_in(device, dtype) {
        true => Ok(dtype),
        false => Err(Error::invalid(
            "model.dtype",
            format!("{} does not compute in {}", B::name(device), dtype.name()),
            "use dtype = \"auto\" or \"f32\", or another --backend",
        )),
    }
}

/// Of the types weights come in, those that `device` computes in.
pub fn computed<B: TrainBackend>(device: &B::Device) -> Vec<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    let computes = |dtype: &DType| B::computes_in(device, *dtype);
    all.into_iter().filter(computes).collect()
}

/// The type weights are stored in where that is among `dtypes`; 16 bits that are not are taken in the other 16-bit type, if that
/// is: f16 on most consumer cards. Else f32.
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

    type B = burn_ndarray::NdArray<f32>;

    /// On a device that computes in f32 alone.
    #[test]
    fn bf16_is_held_and_not_computed_in() {
        let (bf16, f16) = (Some(DType::BF16), Some(DType::F16));
        let chosen = |stored: &str, wanted, purpose| {
            choose::<B>(&stored_in(stored), wanted, purpose, &Default::default())
        };
        for purpose in [Purpose::Hold, Purpose::Compute] {
            for stored in ["bfloat16", "float16", "float32"] {
                assert_eq!(chosen(stored, None, purpose).unwrap(), DType::F32);
            }
            assert!(chosen("float16", f16, purpose).is_err());
        }
        let held = chosen("float32", bf16, Purpose::Hold).unwrap();
        assert_eq!(held, DType::BF16);
        let refused = chosen("bfloat16", bf16, Purpose::Compute).unwrap_err();
        assert!(refused.to_string().contains("does not compute in bf16"), "{refused}");
        // Of a backend in f64, for gradient checks.
        type Double = burn_ndarray::NdArray<f64>;
        let chosen =
            choose::<Double>(&stored_in("bfloat16"), None, Purpose::Hold, &Default::default());
        assert_eq!(chosen.unwrap(), DType::F64);
    }

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
            assert_eq!(auto(&stored_in(stored), &dtypes), expected, "{stored} {dtypes:?}");
        }
    }
}
