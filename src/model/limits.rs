//! The largest buffer a device can bind. Longer frozen matrices are split between rows when they are loaded; a model
//! with a matrix that cannot be split is refused beforehand.

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Element};

use super::config::DecoderConfig;
use super::names::is_projection;
use super::quantize::Quantization;
use crate::error::{Error, Result};

/// Limits on the parts into which matrices are split.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    /// Largest number of bytes per part; `None` if the device has no limit.
    pub longest: Option<u64>,
    /// Bytes per value in computation: quantized weights are dequantized for it.
    pub size: usize,
}

impl Pieces {
    /// Returns the limits of `device` for a model in `dtype`.
    pub fn of<B: TrainBackend>(dtype: DType, device: &B::Device) -> Self {
        let computed =
            if B::computes_in(device, dtype) { dtype } else { <B::FloatElem as Element>::dtype() };
        Self {
            longest: B::buffer_limits(device).map(|limits| limits.binding),
            size: computed.size(),
        }
    }

    /// Returns the number of rows per part, all rows if they fit. Parts end at a multiple of `unit` values, see
    /// [`Quantization::unit`]. Returns `None` if even the smallest splittable number of rows is too long.
    pub fn rows(&self, [rows, columns]: [usize; 2], unit: usize) -> Option<usize> {
        let row_bytes = columns * self.size;
        let fit = match self.longest {
            Some(longest) => (longest / row_bytes.max(1) as u64) as usize,
            None => rows,
        };
        if fit >= rows {
            return Some(rows);
        }
        let step = unit / greatest_common_divisor(unit, columns);
        Some(fit / step * step).filter(|rows| *rows > 0)
    }

    /// Returns the name and byte count of the first tensor that is too long and cannot be split, with projections
    /// quantized as `to`.
    pub fn too_long(
        &self,
        config: &DecoderConfig,
        to: Option<Quantization>,
    ) -> Option<(String, u64)> {
        let quantization = to.or(config.quantization);
        self.longer(config, |name, dims| {
            let quantization = quantization.filter(|_| is_projection(name));
            let unit = quantization.map_or(HALVES, |quantization| quantization.unit());
            self.rows(dims, unit).is_none()
        })
    }

    /// Returns the name and byte count of the first matrix that is longer than one part.
    pub fn longer_than_a_piece(&self, config: &DecoderConfig) -> Option<(String, u64)> {
        self.longer(config, |_, [rows, columns]| self.rows([rows, columns], 1) != Some(rows))
    }

    /// Returns the name and byte count of the first matrix among those of the modules `names` that is longer than one
    /// part.
    pub fn longer_among(&self, config: &DecoderConfig, names: &[&str]) -> Option<(String, u64)> {
        self.longer(config, |name, [rows, columns]| {
            names.contains(&name.trim_end_matches(".weight"))
                && self.rows([rows, columns], 1) != Some(rows)
        })
    }

    /// Returns the name and byte count of the first matrix for which `is_long` holds.
    fn longer(
        &self,
        config: &DecoderConfig,
        is_long: impl Fn(&str, [usize; 2]) -> bool,
    ) -> Option<(String, u64)> {
        let tensors = config.tensors().into_iter();
        let mut matrices = tensors.filter_map(|tensor| {
            let dims = tensor.dims()?;
            Some((tensor.name, dims))
        });
        let (name, [rows, columns]) = matrices.find(|(name, dims)| is_long(name, *dims))?;
        Some((name, (rows * columns * self.size) as u64))
    }
}

/// Number of bf16 values per 32-bit word, for matrices that are kept in 16 bits but not computed in.
pub const HALVES: usize = 2;

/// Checks that `device` can take every matrix of the model, whole or split, with the projections quantized as `to`.
/// Without this check, loading such a model would fail in the middle of a computation, with no hint at the cause.
///
/// # Errors
/// A matrix is too long and cannot be split; the error names it.
pub fn check<B: TrainBackend>(
    config: &DecoderConfig,
    to: Option<Quantization>,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let pieces = Pieces::of::<B>(dtype, device);
    refuse::<B>(pieces, pieces.too_long(config, to), device)
}

/// Checks that `device` can take every matrix whole and in f32, as training it or comparing it with its quantized
/// form needs.
///
/// # Errors
/// A matrix is too long; the error names it.
pub fn check_whole<B: TrainBackend>(config: &DecoderConfig, device: &B::Device) -> Result<()> {
    let pieces = Pieces::of::<B>(DType::F32, device);
    refuse::<B>(pieces, pieces.longer_than_a_piece(config), device)
}

/// Checks that `device` can take the weights of the modules `names` whole and in f32, as training them needs.
///
/// # Errors
/// A matrix is too long; the error names it.
pub fn check_whole_weights<B: TrainBackend>(
    config: &DecoderConfig,
    names: &[&str],
    device: &B::Device,
) -> Result<()> {
    let pieces = Pieces::of::<B>(DType::F32, device);
    refuse::<B>(pieces, pieces.longer_among(config, names), device)
}

/// Returns the error for a matrix that was found too long, if any.
fn refuse<B: TrainBackend>(
    pieces: Pieces,
    found: Option<(String, u64)>,
    device: &B::Device,
) -> Result<()> {
    let (Some((name, bytes)), Some(longest)) = (found, pieces.longest) else {
        return Ok(());
    };
    let problem = format!(
        "{name} takes {} MiB in computation, and {} takes at most {} MiB in one buffer",
        bytes >> 20,
        B::name(device),
        longest >> 20
    );
    Err(Error::invalid("model", problem, REMEDY))
}

/// Remedy for a tensor that is too long for a device.
pub const REMEDY: &str = "choose another --backend or --device (`arithmo devices` lists them with their limits), or train \
                          an adapter (model.use_peft = true) without LoftQ, PiSSA and OLoRA: its frozen base model can be split";

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => greatest_common_divisor(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use arithmo_backends::Format;

    use super::*;

    #[test]
    fn pieces_are_as_long_as_they_may_be() {
        let pieces = |longest| Pieces { longest, size: 4 };
        assert_eq!(pieces(None).rows([7, 5], 64), Some(7));
        assert_eq!(pieces(Some(140)).rows([7, 5], 64), Some(7));
        assert_eq!(pieces(Some(139)).rows([7, 5], 1), Some(6));
        // A word of two values ends with every second row of five.
        assert_eq!(pieces(Some(119)).rows([7, 5], 2), Some(4));
        // A block of 64 values ends with every 64th row of five, and with every second of 32.
        assert_eq!(pieces(Some(139)).rows([7, 5], 64), None);
        assert_eq!(pieces(Some(400)).rows([7, 32], 64), Some(2));
        assert_eq!(pieces(Some(19)).rows([7, 5], 1), None);
    }

    #[test]
    fn only_what_cannot_be_cut_is_too_long() {
        let text = r#"{"model_type": "mistral", "vocab_size": 700, "hidden_size": 60, "intermediate_size": 5000,
            "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2,
            "max_position_embeddings": 16, "sliding_window": null}"#;
        let config = DecoderConfig::parse(text, "config.json".as_ref()).unwrap();
        let pieces = Pieces { longest: Some(1 << 18), size: 4 };
        let nf4 = |double_quant| Some(Quantization { format: Format::Nf4, double_quant });
        assert_eq!(pieces.too_long(&config, None), None);
        // A block of 64 ends with every 16th row of 60, 256 of them with every 4096th.
        assert_eq!(pieces.too_long(&config, nf4(false)), None);
        let (name, bytes) = pieces.too_long(&config, nf4(true)).unwrap();
        assert!(name.ends_with("gate_proj.weight"), "{name}");
        assert_eq!(bytes, 4 * 5000 * 60);
        let (name, bytes) = pieces.longer_than_a_piece(&config).unwrap();
        assert!(name.ends_with("gate_proj.weight"), "{name}");
        assert_eq!(bytes, 4 * 5000 * 60);
    }
}
