//! Quantized frozen weights: in the format of bitsandbytes (QLoRA, arXiv 2305.14314), or two 16-bit values per word.
//!
//! A value is `code[index] * absmax` of its block of 64, in f32, then rounded to the dtype of the computation. Blocks
//! run through the flattened weight and may span rows. The indices are in bitsandbytes' byte order: four bytes make a
//! word, the first byte is the lowest, and the first of the two 4-bit indices in a byte is in the high half. A
//! quantized weight never gets a gradient.

mod code;
pub(super) mod module;

use std::ops::Range;

use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData, backend::Backend};

use super::split::SplitWeight;
use crate::TrainBackend;

/// The number of values that share a scale.
pub const BLOCK: usize = 64;

/// The number of quantized scales that share a scale of their own.
pub const NESTED_BLOCK: usize = 256;

/// The format of quantized values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bits: quantiles of the normal distribution.
    Nf4,
    /// 4 bits: a sign, two bits of exponent, one of mantissa.
    Fp4,
    /// 8 bits: bitsandbytes' dynamic map.
    Int8,
    /// 16 bits: the upper half of an f32, without scales.
    Bf16,
}

impl Format {
    /// Returns the number of bits per value.
    pub fn bits(self) -> usize {
        match self {
            Self::Nf4 | Self::Fp4 => 4,
            Self::Int8 => 8,
            Self::Bf16 => 16,
        }
    }

    /// Returns the number of values per word.
    pub fn per_word(self) -> usize {
        32 / self.bits()
    }

    /// Returns the codebook: the value of each index.
    pub fn code(self) -> &'static [f32] {
        match self {
            Self::Nf4 => &code::NF4,
            Self::Fp4 => &code::FP4,
            Self::Int8 => dynamic_code(),
            Self::Bf16 => code::bf16(),
        }
    }
}

/// Returns the codebook of [`Format::Int8`] and of the 8-bit scales of [`Scales::Double`], in ascending order.
pub fn dynamic_code() -> &'static [f32] {
    code::dynamic()
}

/// Returns the codebook of 8-bit values that are never negative, in ascending order.
pub fn unsigned_dynamic_code() -> &'static [f32] {
    code::unsigned_dynamic()
}

/// A frozen weight: in floats, quantized, or split because no buffer can hold it whole.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// Floats, `[D_out, D_in]`.
    Float(Tensor<B, 2>),
    /// Quantized, `[D_out, D_in]`.
    Packed(PackedWeight<B>),
    /// Parts, one below the other.
    Split(SplitWeight<B>),
}

/// A quantized weight.
#[derive(Clone, Debug)]
pub struct PackedWeight<B: Backend> {
    /// The format of its values.
    pub format: Format,
    /// `[D_out, D_in]`
    pub dims: [usize; 2],
    /// The indices of the values, U32; unused bits of the last word are 0.
    pub words: Tensor<B, 1, Int>,
    /// One scale per block of [`BLOCK`] values of the flattened weight; `None` for [`Format::Bf16`].
    pub scales: Option<Scales<B>>,
}

/// The scale of each block: its largest absolute value.
#[derive(Clone, Debug)]
pub enum Scales<B: Backend> {
    /// In f32.
    Plain(Tensor<B, 1>),
    /// In 8 bits ("double quantization"): `dynamic_code[index] * absmax + offset`.
    Double {
        /// The indices of the scales, U32, four per word.
        words: Tensor<B, 1, Int>,
        /// One scale for every [`NESTED_BLOCK`] scales, f32.
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
    /// Returns the shape, `[D_out, D_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Packed(weight) => weight.dims,
            Self::Split(weight) => weight.dims(),
        }
    }

    /// Returns the whole weight as floats of `dtype`, `[D_out, D_in]`.
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

    /// Returns consecutive rows as floats of `dtype`, `[rows, D_in]`.
    pub fn row_range(&self, rows: Range<usize>, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) => weight.clone().narrow(0, rows.start, rows.len()).cast(dtype),
            Self::Packed(weight) => B::unpack(weight, rows, dtype),
            Self::Split(weight) => weight.row_range(rows, dtype),
        }
    }

    /// Returns the rows `ids`, which may repeat, as floats of `dtype`, `[T, D_in]`.
    pub fn rows(self, ids: Tensor<B, 1, Int>, dtype: DType) -> Tensor<B, 2> {
        match self {
            Self::Float(weight) => weight.select(0, ids),
            Self::Packed(weight) => B::unpack_rows(&weight, ids, dtype),
            Self::Split(weight) => weight.rows(&ids, dtype),
        }
    }

    /// Returns whether the weight can be multiplied with tensors of `dtype`. Floats must have that dtype; quantized
    /// values are converted to it.
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
    /// Asserts that the shapes and dtypes of the tensors match `dims` and `format`.
    ///
    /// # Panics
    /// If they do not match.
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

    /// Returns the number of bytes of all tensors.
    pub fn bytes(&self) -> usize {
        let scale_words = match &self.scales {
            None => 0,
            Some(Scales::Plain(absmax)) => absmax.dims()[0],
            Some(Scales::Double { words, absmax, .. }) => words.dims()[0] + absmax.dims()[0],
        };
        4 * (self.words.dims()[0] + scale_words)
    }
}

/// The reference body of [`TrainBackend::unpack`]: dequantizes consecutive rows, `[rows, D_in]`.
pub fn reference<B: Backend>(
    weight: &PackedWeight<B>,
    rows: Range<usize>,
    dtype: DType,
) -> Tensor<B, 2> {
    let [_, d_in] = weight.dims;
    let [first, end] = [rows.start, rows.end].map(|row| (row * d_in) as i64);
    let positions = Tensor::arange(first..end, &weight.words.device());
    let values = values_at(weight, positions).reshape([rows.len(), d_in]);
    values.cast(dtype)
}

/// The reference body of [`TrainBackend::unpack_rows`]: dequantizes the rows `ids` `[T]`, `[T, D_in]`.
pub fn reference_rows<B: Backend>(
    weight: &PackedWeight<B>,
    ids: Tensor<B, 1, Int>,
    dtype: DType,
) -> Tensor<B, 2> {
    let ([count], [_, d_in], device) = (ids.dims(), weight.dims, ids.device());
    let columns = Tensor::<B, 1, Int>::arange(0..d_in as i64, &device).cast(ids.dtype());
    let positions = ids.mul_scalar(d_in as i64).unsqueeze_dim::<2>(1) + columns.unsqueeze();
    let values = values_at(weight, positions.reshape([count * d_in]));
    values.reshape([count, d_in]).cast(dtype)
}

/// Returns the values at `positions` of the flattened weight, in f32.
fn values_at<B: Backend>(weight: &PackedWeight<B>, positions: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let bits = weight.format.bits();
    let indices = indices_at(&weight.words, positions.clone(), bits);
    let values = look_up(weight.format.code(), indices);
    match &weight.scales {
        None => values,
        Some(scales) => values * scales_at(scales, divide_by(positions, BLOCK)),
    }
}

/// Returns the scales of `blocks`.
fn scales_at<B: Backend>(scales: &Scales<B>, blocks: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    match scales {
        Scales::Plain(absmax) => absmax.clone().select(0, blocks),
        Scales::Double { words, absmax, offset } => {
            let code = look_up(dynamic_code(), indices_at(words, blocks.clone(), 8));
            code * absmax.clone().select(0, divide_by(blocks, NESTED_BLOCK)) + *offset
        }
    }
}

/// Returns the indices of `bits` bits at `positions`, in the dtype of `positions`.
fn indices_at<B: Backend>(
    words: &Tensor<B, 1, Int>,
    positions: Tensor<B, 1, Int>,
    bits: usize,
) -> Tensor<B, 1, Int> {
    let (per_word, dtype) = (32 / bits, positions.dtype());
    let slot = positions.clone().bitwise_and_scalar((per_word as i64 - 1).elem());
    let slot = match bits {
        4 => slot.bitwise_xor_scalar(1.elem()),
        _ => slot,
    };
    let shift = slot.mul_scalar(bits as i64).cast(words.dtype());
    let words = words.clone().select(0, divide_by(positions, per_word));
    let indices = words.bitwise_right_shift(shift);
    indices.bitwise_and_scalar(((1i64 << bits) - 1).elem()).cast(dtype)
}

/// Returns the codebook's value for each index.
fn look_up<B: Backend>(code: &[f32], indices: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let table = TensorData::new(code.to_vec(), [code.len()]);
    Tensor::from_data(table, (&indices.device(), DType::F32)).select(0, indices)
}

/// Returns `positions / size`, rounded down; `size` must be a power of two.
fn divide_by<B: Backend>(positions: Tensor<B, 1, Int>, size: usize) -> Tensor<B, 1, Int> {
    positions.bitwise_right_shift_scalar(size.trailing_zeros().elem())
}
