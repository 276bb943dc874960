//! What a device takes in one piece, asked before a model is loaded.

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use super::config::MistralConfig;
use crate::error::{Error, Result};

/// Refuses a model of which a tensor in `dtype` is longer than a buffer of `device` may be: loading it would end in the
/// middle of a computation, without a word about why.
///
/// # Errors
/// There is such a tensor; the error names it.
pub fn check<B: TrainBackend>(
    config: &MistralConfig,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let Some(limits) = B::buffer_limits(device) else {
        return Ok(());
    };
    match longest(config, dtype) {
        (name, bytes) if bytes > limits.binding => {
            let problem = format!(
                "{name} in {} is {} MiB, and {} takes at most {} MiB in one piece",
                dtype.name(),
                bytes >> 20,
                B::name(device),
                limits.binding >> 20
            );
            Err(Error::invalid("model", problem, REMEDY))
        }
        _ => Ok(()),
    }
}

/// What helps where a tensor is too long for a device.
pub const REMEDY: &str = "choose another --backend or --device (`arithmo devices` lists them with their limits); 16-bit \
                          weights are half as long where the device computes in them";

/// The longest tensor of a model, with its bytes.
fn longest(config: &MistralConfig, dtype: DType) -> (String, u64) {
    let tensors = config.tensors().into_iter();
    let bytes = |shape: &[usize]| (shape.iter().product::<usize>() * dtype.size()) as u64;
    let sized = tensors.map(|(name, shape)| (name, bytes(&shape)));
    sized.max_by_key(|(_, bytes)| *bytes).unwrap_or_default()
}
