//! Quantization to 4 or 8 bits per value, bit for bit like bitsandbytes (QLoRA, arXiv 2305.14314).
//!
//! The flattened matrix is divided into blocks of 64 values. A block is scaled by its largest magnitude, its
//! `absmax`, and each value becomes the nearest code of the format. Double quantization also quantizes the scales:
//! minus their mean, in blocks of 256, to 8 bits. Codes, midpoints and the rule for ties are those of bitsandbytes
//! 0.50's CPU backend (MIT; `bitsandbytes/functional.py`: `get_4bit_type`, `create_dynamic_map`; 4 bits:
//! `backends/default/ops.py`; 8 bits: `csrc/cpu_ops.cpp`).

pub mod bitsandbytes;
mod blocks;
pub mod cache;
mod checksum;

use std::ops::Range;

use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use arithmo_backends::{Format, PackedWeight, Scales, TrainBackend};
use burn::tensor::{DType, Int, Tensor, TensorData};
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;

pub use self::blocks::words;
use self::blocks::{Codebook, quantize_scales};
use crate::error::{Error, Result};

/// Number of values that a thread quantizes at once: whole blocks that stay in its cache.
const PIECE: usize = 1 << 16;

/// The quantization of a model's projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Format of the codes.
    pub format: Format,
    /// Whether the scales are quantized too.
    pub double_quant: bool,
}

impl Quantization {
    /// Returns the number of values that must stay together when a matrix is split, because they share a scale or a
    /// nested scale.
    pub fn unit(&self) -> usize {
        if self.double_quant { BLOCK * NESTED_BLOCK } else { BLOCK }
    }

    /// Returns the bytes that `count` values take.
    pub fn bytes(&self, count: usize) -> usize {
        let blocks = count.div_ceil(BLOCK);
        let scale_bytes =
            if self.double_quant { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) } else { 4 * blocks };
        (count * self.format.bits()).div_ceil(8) + scale_bytes
    }
}

/// A quantized matrix in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Format of the codes.
    pub format: Format,
    /// Shape `[D_out, D_in]`.
    pub dims: [usize; 2],
    /// bitsandbytes' packed bytes, four per word, little-endian.
    pub words: Vec<u32>,
    /// Scales, one per 64 values.
    pub scales: HostScales,
}

/// The scales of a quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum HostScales {
    /// Scales in f32.
    Plain(Vec<f32>),
    /// Quantized scales.
    Double {
        /// 8-bit codes of `absmax - offset`, four per word.
        words: Vec<u32>,
        /// Scales of these codes, one per 256.
        absmax: Vec<f32>,
        /// Mean of the scales.
        offset: f32,
    },
}

impl Quantized {
    /// Quantizes the matrix `name` of `dims`. Several threads call `read`, each with the index of an element and a
    /// buffer that it fills with the values from there on.
    ///
    /// # Errors
    /// `read` fails, or a value is not finite.
    pub fn quantize(
        name: &str,
        dims: [usize; 2],
        to: Quantization,
        read: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let codebook = Codebook::new(to.format);
        let count = dims[0] * dims[1];
        let mut words = vec![0; codebook.words(count)];
        let mut absmax = vec![0f32; count.div_ceil(BLOCK)];
        let pieces = words.par_chunks_mut(codebook.words(PIECE));
        let pieces = pieces.zip(absmax.par_chunks_mut(PIECE / BLOCK)).enumerate();
        let room = || vec![0f32; PIECE];
        pieces.try_for_each_init(room, |values, (index, (words, absmax))| {
            let first = index * PIECE;
            let values = &mut values[..PIECE.min(count - first)];
            read(first, values)?;
            codebook.quantize(values, words, absmax);
            if absmax.iter().all(|scale| scale.is_finite()) {
                Ok(())
            } else {
                Err(not_finite(name, first, values))
            }
        })?;
        let scales = if to.double_quant {
            let (words, absmax, offset) = quantize_scales(&absmax);
            HostScales::Double { words, absmax, offset }
        } else {
            HostScales::Plain(absmax)
        };
        Ok(Self { format: to.format, dims, words, scales })
    }

    /// Creates a matrix of random codes with about this standard deviation, for measurements.
    pub fn random(dims: [usize; 2], to: Quantization, deviation: f32, rng: &mut impl Rng) -> Self {
        let code = to.format.code();
        let square: f32 = code.iter().map(|value| value * value).sum();
        let scale = deviation / (square / code.len() as f32).sqrt();
        let count = dims[0] * dims[1];
        let blocks = count.div_ceil(BLOCK);
        let mut words = vec![0u32; Codebook::new(to.format).words(count)];
        rng.fill_bytes(bytemuck::cast_slice_mut(&mut words));
        let scales = if to.double_quant {
            HostScales::Double {
                words: vec![0; blocks.div_ceil(4)],
                absmax: vec![0.0; blocks.div_ceil(NESTED_BLOCK)],
                offset: scale,
            }
        } else {
            HostScales::Plain(vec![scale; blocks])
        };
        Self { format: to.format, dims, words, scales }
    }

    /// Returns the quantization settings of this matrix.
    pub fn quantization(&self) -> Quantization {
        Quantization {
            format: self.format,
            double_quant: matches!(self.scales, HostScales::Double { .. }),
        }
    }

    /// Dequantizes the matrix: `code * absmax` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let (code, absmax) = (self.format.code(), self.scales.absmax());
        let count = self.dims[0] * self.dims[1];
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        let codes = bytes.flat_map(|byte| match self.format.bits() {
            4 => [Some(byte >> 4), Some(byte & 15)],
            _ => [Some(byte), None],
        });
        let values = codes.flatten().take(count).enumerate();
        let values = values.map(|(at, index)| code[usize::from(index)] * absmax[at / BLOCK]);
        values.collect()
    }

    /// Returns some of the rows; both ends lie at a multiple of [`Quantization::unit`] values.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let [_, columns] = self.dims;
        let (first, end) = (rows.start * columns, rows.end * columns);
        let part = |per_item: usize| first / per_item..end.div_ceil(per_item);
        Self {
            format: self.format,
            dims: [rows.len(), columns],
            words: self.words[part(self.format.per_word())].to_vec(),
            scales: match &self.scales {
                HostScales::Plain(absmax) => HostScales::Plain(absmax[part(BLOCK)].to_vec()),
                HostScales::Double { words, absmax, offset } => HostScales::Double {
                    words: words[part(4 * BLOCK)].to_vec(),
                    absmax: absmax[part(BLOCK * NESTED_BLOCK)].to_vec(),
                    offset: *offset,
                },
            },
        }
    }

    /// Copies the matrix to a device.
    pub fn into_weight<B: TrainBackend>(self, device: &B::Device) -> PackedWeight<B> {
        let words = |words: Vec<u32>| {
            let shape = [words.len()];
            Tensor::<B, 1, Int>::from_data(TensorData::new(words, shape), (device, DType::U32))
        };
        let floats = |values: Vec<f32>| {
            let shape = [values.len()];
            Tensor::<B, 1>::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        PackedWeight {
            format: self.format,
            dims: self.dims,
            words: words(self.words),
            scales: Some(match self.scales {
                HostScales::Plain(absmax) => Scales::Plain(floats(absmax)),
                HostScales::Double { words: codes, absmax, offset } => {
                    Scales::Double { words: words(codes), absmax: floats(absmax), offset }
                }
            }),
        }
    }
}

impl HostScales {
    /// Returns the scales in f32, dequantized if need be.
    pub fn absmax(&self) -> Vec<f32> {
        match self {
            Self::Plain(absmax) => absmax.clone(),
            Self::Double { words, absmax, offset } => {
                let code = dynamic_code();
                let codes = words.iter().flat_map(|word| word.to_le_bytes()).enumerate();
                let scales = codes.map_while(|(at, index)| {
                    let scale = absmax.get(at / NESTED_BLOCK)?;
                    Some(code[usize::from(index)] * scale + offset)
                });
                scales.collect()
            }
        }
    }
}

/// Returns the error for the first value that is not finite.
fn not_finite(name: &str, first: usize, values: &[f32]) -> Error {
    let at = values.iter().position(|value| !value.is_finite());
    let at = at.unwrap_or_default();
    Error::invalid(
        name,
        format!(
            "element {} is {}, which cannot be quantized",
            first + at,
            values.get(at).copied().unwrap_or(f32::NAN)
        ),
        "fetch the model again; weights must be finite",
    )
}
