//! Frozen weights in few bits: packed as bitsandbytes packs them (QLoRA, arXiv 2305.14314), or two 16-bit values a word.
//!
//! A value is `code[index] * absmax` of its block of 64, in f32, then rounded to the type that is computed in. Blocks run
//! through the flattened weight, so that they may span rows. Indices stand in bitsandbytes' bytes, four of which make a
//! word, the first the lowest; of two 4-bit indices in a byte the first stands in the high half. A packed weight never
//! gets a gradient.

mod code;
pub(super) mod module;

use std::ops::Range;

use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData, backend::Backend};

use super::split::SplitWeight;
use crate::TrainBackend;

/// Values that share a scale.
pub const BLOCK: usize = 64;

/// Scales that share a scale of their own.
pub const NESTED_BLOCK: usize = 256;

/// How values are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bits: quantiles of the normal distribution.
    Nf4,
    /// 4 bits: sign, two of exponent, one of mantissa.
    Fp4,
    /// 8 bits: bitsandbytes' dynamic map.
    Int8,
    /// The upper half of an f32, without scales.
    Bf16,
}

impl Format {
    /// Bits a value takes.
    pub fn bits(self) -> usize {
        match self {
            Self::Nf4 | Self::Fp4 => 4,
            Self::Int8 => 8,
            Self::Bf16 => 16,
        }
    }

    /// Values a word holds.
    pub fn per_word(self) -> usize {
        32 / self.bits()
    }

    /// What each index stands for.
    pub fn code(self) -> &'static [f32] {
        match self {
            Self::Nf4 => &code::NF4,
            Self::Fp4 => &code::FP4,
            Self::Int8 => dynamic_code(),
            Self::Bf16 => code::bf16(),
        }
    }
}

/// What the 8-bit indices of [`Format::Int8`] and of [`Scales::Double`] stand for, rising.
pub fn dynamic_code() -> &'static [f32] {
    code::dynamic()
}

/// A frozen weight: floats of the type that is computed in, or packed; or in parts, because no buffer takes it whole.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// `[D_out, D_in]`
    Float(Tensor<B, 2>),
    /// In few bits.
    Packed(PackedWeight<B>),
    /// One part below the other.
    Split(SplitWeight<B>),
}

/// A weight in few bits.
#[derive(Clone, Debug)]
pub struct PackedWeight<B: Backend> {
    /// How.
    pub format: Format,
    /// `[D_out, D_in]`
    pub dims: [usize; 2],
    /// The packed indices, U32; what the last word has too many is 0.
    pub words: Tensor<B, 1, Int>,
    /// A scale for each block of [`BLOCK`] values of the flattened weight; none for [`Format::Bf16`].
    pub scales: Option<Scales<B>>,
}

/// The largest absolute value of each block.
#[derive(Clone, Debug)]
pub enum Scales<B: Backend> {
    /// As it is, f32.
    Plain(Tensor<B, 1>),
    /// In 8 bits ("double quantisation"): `dynamic_code[index] * absmax + offset`.
    Double {
        /// Indices, U32, four a word.
        words: Tensor<B, 1, Int>,
        /// Of each [`NESTED_BLOCK`] scales, f32.
        absmax: Tensor<B, 1>,
        /// The mean of all scales.
        offset: f32,
    },
}

impl<B: Backend> From<Tensor<B, 2>> for Weight<B> {
    fn from(weight: Tensor<B, 2>) -> Self {
        Self::Float(weight)
    }
}

impl<B: Backend> From<PackedWeight<B>> for Weight<B> {
    fn from(weight: PackedWeight<B>) -> Self {
        Self::Packed(weight)
    }
}

impl<B: Backend> From<SplitWeight<B>> for Weight<B> {
    fn from(weight: SplitWeight<B>) -> Self {
        Self::Split(weight)
    }
}

impl<B: TrainBackend> Weight<B> {
    /// `[D_out, D_in]`
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Packed(weight) => weight.dims,
            Self::Split(weight) => weight.dims(),
        }
    }

    /// The whole weight as floats of `dtype`, `[D_out, D_in]`.
    pub fn floats(self, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) if weight.dtype() == dtype => weight,
            Self::Float(weight) => weight.cast(dtype),
            Self::Packed(weight) => B::unpack(&weight, 0..weight.dims[0], dtype),
            Self::Split(weight) => {
                Tensor::cat(weight.parts().map(|(_, part)| part.clone().floats(dtype)).collect(), 0)
            }
        }
    }

    /// Some of its rows, as often as named, `[T, D_in]`: floats of `dtype`.
    pub fn rows(self, ids: Tensor<B, 1, Int>, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) => weight.select(0, ids),
            Self::Packed(weight) => B::unpack_rows(&weight, ids, dtype),
            Self::Split(weight) => weight.rows(&ids, dtype),
        }
    }

    /// Whether it can be multiplied with what is of `dtype`: floats are, packed values become so.
    pub fn fits(&self, dtype: DType) -> bool {
        match self {
            Self::Float(weight) => weight.dtype() == dtype,
            Self::Packed(weight) => {
                weight.check();
                true
            }
            Self::Split(weight) => weight.parts().all(|(_, part)| part.fits(dtype)),
        }
    }
}

impl<B: Backend> PackedWeight<B> {
    /// # Panics
    /// If the parts do not fit together.
    pub fn check(&self) {
        let count = self.dims[0] * self.dims[1];
        let blocks = count.div_ceil(BLOCK);
        let (format, words) = (self.format, self.words.dims());
        assert_eq!(
            words,
            [count.div_ceil(format.per_word())],
            "packed: words of {format:?} {:?}",
            self.dims
        );
        match &self.scales {
            None => assert_eq!(format, Format::Bf16, "packed: {format:?} without scales"),
            Some(Scales::Plain(absmax)) => assert_eq!(
                (absmax.dims(), absmax.dtype()),
                ([blocks], DType::F32),
                "packed: scales of {:?}",
                self.dims
            ),
            Some(Scales::Double { words, absmax, .. }) => assert_eq!(
                (words.dims(), absmax.dims(), absmax.dtype()),
                ([blocks.div_ceil(4)], [blocks.div_ceil(NESTED_BLOCK)], DType::F32),
                "packed: scales of {:?}",
                self.dims
            ),
        }
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        let of_scales = match &self.scales {
            None => 0,
            Some(Scales::Plain(absmax)) => absmax.dims()[0],
            Some(Scales::Double { words, absmax, .. }) => words.dims()[0] + absmax.dims()[0],
        };
        4 * (self.words.dims()[0] + of_scales)
    }
}

/// The reference body of [`TrainBackend::unpack`]: `rows` of a packed weight, `[rows, D_in]`.
pub fn reference<B: Backend>(
    weight: &PackedWeight<B>,
    rows: Range<usize>,
    dtype: DType,
) -> Tensor<B, 2> {
    let [_, d_in] = weight.dims;
    let [first, end] = [rows.start, rows.end].map(|row| (row * d_in) as i64);
    let places = Tensor::arange(first..end, &weight.words.device());
    let values = values_at(weight, places).reshape([rows.len(), d_in]);
    values.cast(dtype)
}

/// The reference body of [`TrainBackend::unpack_rows`]: the rows `ids` `[T]` of a packed weight, `[T, D_in]`.
pub fn reference_rows<B: Backend>(
    weight: &PackedWeight<B>,
    ids: Tensor<B, 1, Int>,
    dtype: DType,
) -> Tensor<B, 2> {
    let ([count], [_, d_in], device) = (ids.dims(), weight.dims, ids.device());
    let columns = Tensor::<B, 1, Int>::arange(0..d_in as i64, &device).cast(ids.dtype());
    let places = ids.mul_scalar(d_in as i64).unsqueeze_dim::<2>(1) + columns.unsqueeze();
    let values = values_at(weight, places.reshape([count * d_in]));
    values.reshape([count, d_in]).cast(dtype)
}

/// The values at `places` of the flattened weight, f32.
fn values_at<B: Backend>(weight: &PackedWeight<B>, places: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let bits = weight.format.bits();
    let indices = indices_at(&weight.words, places.clone(), bits);
    let values = looked_up(weight.format.code(), indices);
    match &weight.scales {
        None => values,
        Some(scales) => values * scales_at(scales, over(places, BLOCK)),
    }
}

/// The scales of `blocks`.
fn scales_at<B: Backend>(scales: &Scales<B>, blocks: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    match scales {
        Scales::Plain(absmax) => absmax.clone().select(0, blocks),
        Scales::Double { words, absmax, offset } => {
            let code = looked_up(dynamic_code(), indices_at(words, blocks.clone(), 8));
            code * absmax.clone().select(0, over(blocks, NESTED_BLOCK)) + *offset
        }
    }
}

/// The indices of `bits` bits at `places`, of the type of `places`.
fn indices_at<B: Backend>(
    words: &Tensor<B, 1, Int>,
    places: Tensor<B, 1, Int>,
    bits: usize,
) -> Tensor<B, 1, Int> {
    let (per_word, dtype) = (32 / bits, places.dtype());
    let within = places.clone().bitwise_and_scalar((per_word as i64 - 1).elem());
    let within = match bits {
        4 => within.bitwise_xor_scalar(1.elem()),
        _ => within,
    };
    let shift = within.mul_scalar(bits as i64).cast(words.dtype());
    let words = words.clone().select(0, over(places, per_word));
    let indices = words.bitwise_right_shift(shift);
    indices.bitwise_and_scalar(((1i64 << bits) - 1).elem()).cast(dtype)
}

fn looked_up<B: Backend>(code: &[f32], indices: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let table = TensorData::new(code.to_vec(), [code.len()]);
    Tensor::from_data(table, (&indices.device(), DType::F32)).select(0, indices)
}

/// `places / size`, rounded down; `size` is a power of two.
fn over<B: Backend>(places: Tensor<B, 1, Int>, size: usize) -> Tensor<B, 1, Int> {
    places.bitwise_right_shift_scalar(size.trailing_zeros().elem())
}
