//! What a device takes in one piece. Frozen matrices that are longer are cut between their rows when they are loaded; what
//! cannot be cut is refused before.

use arithmo_backends::TrainBackend;
use burn::tensor::{DType, Element};

use super::config::MistralConfig;
use super::quantize::{Quantization, is_projection};
use crate::error::{Error, Result};

/// How long the pieces of a model may be.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    /// Most bytes of a piece, where there is a limit.
    pub longest: Option<u64>,
    /// Bytes that a value takes where it is computed with: what is packed is unpacked for that.
    pub size: usize,
}

impl Pieces {
    /// Those that `device` takes of a model in `dtype`.
    pub fn of<B: TrainBackend>(dtype: DType, device: &B::Device) -> Self {
        let computed = match B::computes_in(device, dtype) {
            true => dtype,
            false => <B::FloatElem as Element>::dtype(),
        };
        Self {
            longest: B::buffer_limits(device).map(|limits| limits.binding),
            size: computed.size(),
        }
    }

    /// Rows of a matrix that make a piece, all of them if possible; `unit`: values that are kept together, as
    /// [`Quantization::unit`]. `None`: not even the fewest rows that can be cut off are short enough.
    pub fn rows(&self, [rows, columns]: [usize; 2], unit: usize) -> Option<usize> {
        let of_row = columns * self.size;
        let fit = match self.longest {
            Some(longest) => (longest / of_row.max(1) as u64) as usize,
            None => rows,
        };
        if fit >= rows {
            return Some(rows);
        }
        let step = unit / greatest_common_divisor(unit, columns);
        Some(fit / step * step).filter(|rows| *rows > 0)
    }

    /// The first tensor of a model that is too long, and cannot be cut, with its bytes; projections are packed as `to`.
    pub fn too_long(
        &self,
        config: &MistralConfig,
        to: Option<Quantization>,
    ) -> Option<(String, u64)> {
        let packed = to.or(config.quantization);
        self.longer(config, |name, dims| {
            let packed = packed.filter(|_| is_projection(name));
            let unit = packed.map_or(HALVES, |packed| packed.unit());
            self.rows(dims, unit).is_none()
        })
    }

    /// The first matrix that would have to be cut.
    pub fn longer_than_a_piece(&self, config: &MistralConfig) -> Option<(String, u64)> {
        self.longer(config, |_, [rows, columns]| self.rows([rows, columns], 1) != Some(rows))
    }

    fn longer(
        &self,
        config: &MistralConfig,
        is_long: impl Fn(&str, [usize; 2]) -> bool,
    ) -> Option<(String, u64)> {
        let mut matrices = config.tensors().into_iter().filter_map(|(name, shape)| {
            let dims = <[usize; 2]>::try_from(shape).ok()?;
            Some((name, dims))
        });
        let (name, [rows, columns]) = matrices.find(|(name, dims)| is_long(name, *dims))?;
        Some((name, (rows * columns * self.size) as u64))
    }
}

/// Values that stand in one word where a matrix is held in 16 bits and nothing computes in them.
pub const HALVES: usize = 2;

/// Refuses a model of which `device` cannot take a matrix, whole or in pieces, with the projections packed as `to`: loading
/// it would end in the middle of a computation, without a word about why.
///
/// # Errors
/// There is such a matrix; the error names it.
pub fn check<B: TrainBackend>(
    config: &MistralConfig,
    to: Option<Quantization>,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let pieces = Pieces::of::<B>(dtype, device);
    refuse::<B>(pieces, pieces.too_long(config, to), device)
}

/// As [`check`], where every matrix is needed whole, in f32: those that are trained, or compared with packed ones.
///
/// # Errors
/// One is too long; the error names it.
pub fn check_whole<B: TrainBackend>(config: &MistralConfig, device: &B::Device) -> Result<()> {
    let pieces = Pieces::of::<B>(DType::F32, device);
    refuse::<B>(pieces, pieces.longer_than_a_piece(config), device)
}

fn refuse<B: TrainBackend>(
    pieces: Pieces,
    found: Option<(String, u64)>,
    device: &B::Device,
) -> Result<()> {
    let (Some((name, bytes)), Some(longest)) = (found, pieces.longest) else {
        return Ok(());
    };
    let problem = format!(
        "{name} is {} MiB as it is computed with, and {} takes at most {} MiB in one piece",
        bytes >> 20,
        B::name(device),
        longest >> 20
    );
    Err(Error::invalid("model", problem, REMEDY))
}

/// What helps where a tensor is too long for a device.
pub const REMEDY: &str = "choose another --backend or --device (`arithmo devices` lists them with their limits), or train \
                          an adapter (model.use_peft = true), not LoftQ's: its frozen base is cut into pieces";

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
        let config = MistralConfig::parse(text, "config.json".as_ref()).unwrap();
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
