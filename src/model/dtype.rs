//! Chooses the dtype in which a model's weights are kept in memory, unless the user names one.

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Element};

use super::config::DecoderConfig;
use crate::error::{Error, Result};

/// What the device must be able to do with weights of a dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Keep the weights in it; a device that cannot compute in it widens them when they are used: see
    /// [`super::load::load`].
    Hold,
    /// Compute in it, for benchmarks of the dtype itself.
    Compute,
}

/// Returns the dtype for a model's weights: `wanted`, or [`auto`]'s choice among the dtypes that `device` computes
/// in.
///
/// # Errors
/// The device cannot serve `purpose` in the wanted dtype.
pub fn choose<B: TrainBackend>(
    config: &DecoderConfig,
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
    let can_hold = purpose == Purpose::Hold && dtype == DType::BF16;
    if can_hold || B::computes_in(device, dtype) {
        Ok(dtype)
    } else {
        Err(Error::invalid(
            "model.dtype",
            format!("{} does not compute in {}", B::name(device), dtype.name()),
            "use dtype = \"auto\" or \"f32\", or another --backend",
        ))
    }
}

/// Returns the floating-point dtypes of stored weights in which `device` can compute.
pub fn computed<B: TrainBackend>(device: &B::Device) -> Vec<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    let computes = |dtype: &DType| B::computes_in(device, *dtype);
    all.into_iter().filter(computes).collect()
}

/// Returns the dtype the weights are stored in if `dtypes` contains it. Other 16-bit weights get the other 16-bit
/// dtype if `dtypes` contains that one (f16 on most consumer GPUs), and f32 otherwise.
pub fn auto(config: &DecoderConfig, dtypes: &[DType]) -> DType {
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

    /// Runs on a device that computes in f32 only.
    #[test]
    fn bf16_can_be_held_but_not_computed_in() {
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
        // A backend in f64, as gradient checks use it.
        type Double = burn_ndarray::NdArray<f64>;
        let chosen =
            choose::<Double>(&stored_in("bfloat16"), None, Purpose::Hold, &Default::default());
        assert_eq!(chosen.unwrap(), DType::F64);
    }

    fn stored_in(dtype: &str) -> DecoderConfig {
        let text = format!(
            r#"{{"model_type": "mistral", "vocab_size": 7, "hidden_size": 12, "intermediate_size": 20,
            "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "torch_dtype": "{dtype}"}}"#
        );
        DecoderConfig::parse(&text, Path::new("config.json")).unwrap()
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
