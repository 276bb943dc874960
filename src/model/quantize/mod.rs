//! Weights in 4 or 8 bits a value, bit for bit as bitsandbytes packs them (QLoRA, arXiv 2305.14314).
//!
//! The flattened matrix is cut into blocks of 64. A block is scaled by its largest magnitude, its `absmax`, and each value
//! becomes the nearest of the format's codes. Double quantisation packs the scales too: less their mean, in blocks of 256,
//! in 8 bits. Codes, halfway points and the rule for what lies on one are those of bitsandbytes 0.50's CPU backend
//! (MIT; `bitsandbytes/functional.py`: `get_4bit_type`, `create_dynamic_map`; 4 bits: `backends/default/ops.py`; 8 bits:
//! `csrc/cpu_ops.cpp`).

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
use self::blocks::{Codebook, pack_scales};
use super::mistral::PROJECTIONS;
use crate::error::{Error, Result};

/// Values packed by a thread at once: whole blocks, and they stay in its cache.
const PIECE: usize = 1 << 16;

/// How projections are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// The codes.
    pub format: Format,
    /// Whether the scales are packed too.
    pub double_quant: bool,
}

impl Quantization {
    /// Values that are kept together where a matrix is cut: those that share a scale, or a scale of scales.
    pub fn unit(&self) -> usize {
        match self.double_quant {
            false => BLOCK,
            true => BLOCK * NESTED_BLOCK,
        }
    }

    /// Bytes that `count` values take.
    pub fn bytes(&self, count: usize) -> usize {
        let blocks = count.div_ceil(BLOCK);
        let of_scales = match self.double_quant {
            false => 4 * blocks,
            true => blocks + 4 * blocks.div_ceil(NESTED_BLOCK),
        };
        (count * self.format.bits()).div_ceil(8) + of_scales
    }
}

/// Whether the weight `name` (`model.layers.0.mlp.up_proj.weight`) is a projection's: these are packed; embeddings, norms
/// and the head are not.
pub fn is_projection(name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or_default();
    let in_layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    in_layer.is_some_and(|(_, path)| PROJECTIONS.contains(&path))
}

/// A packed matrix on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The codes.
    pub format: Format,
    /// `[D_out, D_in]`.
    pub dims: [usize; 2],
    /// bitsandbytes' packed bytes, four a word, little-endian.
    pub words: Vec<u32>,
    /// A scale for every 64 values.
    pub scales: HostScales,
}

/// The scales of a packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum HostScales {
    /// As they are.
    Plain(Vec<f32>),
    /// Packed.
    Double {
        /// 8-bit codes of `absmax - offset`, four a word.
        words: Vec<u32>,
        /// A scale for every 256 of them.
        absmax: Vec<f32>,
        /// Their mean.
        offset: f32,
    },
}

impl Quantized {
    /// Packs the matrix `name` of `dims`. `read` gives its values: threads call it, each with the index of an element and
    /// room for the values from there on.
    ///
    /// # Errors
    /// `read` fails, or a value is not finite.
    pub fn pack(
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
            codebook.pack(values, words, absmax);
            match absmax.iter().all(|scale| scale.is_finite()) {
                true => Ok(()),
                false => Err(not_finite(name, first, values)),
            }
        })?;
        let scales = match to.double_quant {
            false => HostScales::Plain(absmax),
            true => {
                let (words, absmax, offset) = pack_scales(&absmax);
                HostScales::Double { words, absmax, offset }
            }
        };
        Ok(Self { format: to.format, dims, words, scales })
    }

    /// Random codes, for measurements: of about this standard deviation.
    pub fn random(dims: [usize; 2], to: Quantization, deviation: f32, rng: &mut impl Rng) -> Self {
        let code = to.format.code();
        let square: f32 = code.iter().map(|value| value * value).sum();
        let scale = deviation / (square / code.len() as f32).sqrt();
        let count = dims[0] * dims[1];
        let blocks = count.div_ceil(BLOCK);
        let mut words = vec![0u32; Codebook::new(to.format).words(count)];
        rng.fill_bytes(bytemuck::cast_slice_mut(&mut words));
        let scales = match to.double_quant {
            false => HostScales::Plain(vec![scale; blocks]),
            true => HostScales::Double {
                words: vec![0; blocks.div_ceil(4)],
                absmax: vec![0.0; blocks.div_ceil(NESTED_BLOCK)],
                offset: scale,
            },
        };
        Self { format: to.format, dims, words, scales }
    }

    /// What it is packed as.
    pub fn quantization(&self) -> Quantization {
        Quantization {
            format: self.format,
            double_quant: matches!(self.scales, HostScales::Double { .. }),
        }
    }

    /// The values it stands for, `code * absmax` in f32.
    pub fn unpack(&self) -> Vec<f32> {
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

    /// Some of the rows, which begin and end with a [`Quantization::unit`].
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

    /// The same on a device.
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
    /// The scales themselves.
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

fn not_finite(name: &str, first: usize, values: &[f32]) -> Error {
    let at = values.iter().position(|value| !value.is_finite());
    let at = at.unwrap_or_default();
    Error::invalid(
        name,
        format!(
            "element {} is {}: it cannot be packed",
            first + at,
            values.get(at).copied().unwrap_or(f32::NAN)
        ),
        "fetch the model again; weights must be finite",
    )
}
