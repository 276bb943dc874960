//! Quantized weights on slices (see [`crate::ops::packed`]).
//!
//! GEMMs of many rows dequantize a tile of the weight once for all rows ([`tiles`]); GEMMs of a few
//! rows multiply directly by the stored indices ([`few`]).

#![allow(
    clippy::needless_range_loop,
    reason = "plain loops: closures would not be inlined and would be compiled for narrow vectors"
)]

mod dots;
mod few;
mod tiles;
mod vectors;

use std::ops::Range;

use burn::tensor::{Int, Tensor};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};
use pulp::Simd;
use rayon::prelude::*;

use self::vectors::{Decoder, Lookup, SimdJob, SimdKind};
use super::matrix::{Matrix, filled};
use super::vector::LANES;
use crate::ops::packed::{BLOCK, NESTED_BLOCK};
use crate::{Format, PackedWeight, Scales};

pub(super) use self::few::gemm as quantized_gemm;
pub(super) use self::tiles::{times, times_transposed};

/// Number of blocks that are dequantized at a time.
const BLOCKS_PER_RUN: usize = 128;

/// Number of values that a thread dequantizes at a time.
const VALUES_PER_PART: usize = 1 << 16;

/// A quantized weight as slices.
pub(super) struct HostPacked {
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) columns: usize,
    words: Words,
    scales: HostScales,
}

enum HostScales {
    None,
    Plain(Matrix),
    Double { words: Words, absmax: Matrix, offset: f32 },
}

/// Words in storage order.
struct Words {
    tensor: NdArrayTensor,
    /// The words, if `tensor` does not hold them in order or has another type.
    ordered: Option<Vec<u32>>,
}

impl Words {
    fn new<E, I, Q>(tensor: Tensor<NdArray<E, I, Q>, 1, Int>) -> Self
    where
        E: FloatNdArrayElement,
        I: IntNdArrayElement,
        Q: QuantElement,
        NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    {
        let data = tensor.clone();
        let tensor = tensor.into_primitive();
        let lies_in_order = match &tensor {
            NdArrayTensor::U32(storage) => storage.view().to_slice().is_some(),
            _ => false,
        };
        let ordered = (!lies_in_order).then(|| data.into_data().iter::<u32>().collect());
        Self { tensor, ordered }
    }

    fn values(&self) -> &[u32] {
        match (&self.ordered, &self.tensor) {
            (Some(values), _) => values,
            (None, NdArrayTensor::U32(storage)) => storage.view().to_slice().unwrap_or(&[]),
            (None, _) => &[],
        }
    }
}

impl HostPacked {
    /// Returns `None` if a scale is not f32.
    pub(super) fn new<E, I, Q>(weight: PackedWeight<NdArray<E, I, Q>>) -> Option<Self>
    where
        E: FloatNdArrayElement,
        I: IntNdArrayElement,
        Q: QuantElement,
        NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    {
        let PackedWeight { format, dims: [rows, columns], words, scales } = weight;
        let scales = match scales {
            None => HostScales::None,
            Some(Scales::Plain(absmax)) => HostScales::Plain(Matrix::new(absmax)?),
            Some(Scales::Double { words, absmax, offset }) => HostScales::Double {
                words: Words::new(words),
                absmax: Matrix::new(absmax)?,
                offset,
            },
        };
        Some(Self { format, rows, columns, words: Words::new(words), scales })
    }

    /// Dequantizes values of the flattened weight from `start` on the calling thread.
    pub(super) fn unpack(&self, start: usize, values: &mut [f32]) {
        // As many blocks at a time as the stack buffer has room for their scales.
        let mut scales = [0f32; BLOCKS_PER_RUN];
        let (mut start, mut rest) = (start, values);
        while !rest.is_empty() {
            let end = (start / BLOCK + BLOCKS_PER_RUN) * BLOCK;
            let (values, behind) = rest.split_at_mut(rest.len().min(end - start));
            let blocks = (start + values.len()).div_ceil(BLOCK) - start / BLOCK;
            let scales = match self.scales {
                HostScales::None => &mut [],
                _ => &mut scales[..blocks],
            };
            self.scales(start / BLOCK, scales);
            let job = Dequantize {
                words: self.words.values(),
                start,
                values,
                scales,
                block: BLOCK,
                offset: None,
            };
            SimdKind::best().run(self.format, job);
            (start, rest) = (end, behind);
        }
    }

    /// Writes the scales from block `first`, as many as `scales` holds; nothing is written if the
    /// format has none.
    fn scales(&self, first: usize, scales: &mut [f32]) {
        match &self.scales {
            HostScales::None => (),
            HostScales::Plain(absmax) => {
                scales.copy_from_slice(&absmax.values()[first..][..scales.len()]);
            }
            HostScales::Double { words, absmax, offset } => SimdKind::best().run(
                Format::Int8,
                Dequantize {
                    words: words.values(),
                    start: first,
                    values: scales,
                    scales: &absmax.values()[first / NESTED_BLOCK..],
                    block: NESTED_BLOCK,
                    offset: Some(*offset),
                },
            ),
        }
    }

    /// Dequantizes `columns` of `rows` into a contiguous tile, on the calling thread.
    fn unpack_tile(&self, rows: Range<usize>, columns: Range<usize>, tile: &mut [f32]) {
        if columns.len() == self.columns {
            return self.unpack(rows.start * self.columns, tile);
        }
        for (row, values) in rows.zip(tile.chunks_exact_mut(columns.len().max(1))) {
            self.unpack(row * self.columns + columns.start, values);
        }
    }

    /// Dequantizes one row.
    pub(super) fn unpack_row(&self, row: usize, values: &mut [f32]) {
        self.unpack(row * self.columns, values);
    }

    /// Dequantizes `rows` on all threads.
    pub(super) fn unpack_rows(&self, rows: Range<usize>) -> Vec<f32> {
        filled(rows.len() * self.columns, |values| {
            let parts = values.par_chunks_mut(VALUES_PER_PART).enumerate();
            parts.for_each(|(part, values)| {
                self.unpack(rows.start * self.columns + part * VALUES_PER_PART, values);
            });
        })
    }
}

/// Dequantizes indices from `start`: `code * scale + offset`.
struct Dequantize<'a> {
    words: &'a [u32],
    start: usize,
    values: &'a mut [f32],
    /// Scales from the block of `start` on; empty if all are 1.
    scales: &'a [f32],
    /// Number of values that share a scale, a power of two.
    block: usize,
    offset: Option<f32>,
}

impl SimdJob for Dequantize<'_> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(mut self, simd: S, decoder: D) {
        let layout = Layout::of::<D>(simd);
        let (lanes, chunk) = (S::F32_LANES, S::F32_LANES * D::PER_WORD);
        let (start, end) = (self.start, self.start + self.values.len());
        for first in (start / chunk * chunk..end).step_by(chunk) {
            let from = &self.words[(first / D::PER_WORD).min(self.words.len())..];
            let words = load_first(simd, from);
            if first >= start && first + chunk <= end {
                for at in 0..D::PER_WORD {
                    let value = layout.look_up(simd, decoder, words, at);
                    let value = self.scaled(simd, value, first + at * lanes);
                    let target = &mut self.values[first - start + at * lanes..][..lanes];
                    S::as_mut_simd_f32s(target).0[0] = value;
                }
                continue;
            }
            for at in 0..D::PER_WORD {
                let position = first + at * lanes;
                if position + lanes > start && position < end {
                    let value = layout.look_up(simd, decoder, words, at);
                    let value = self.scaled(simd, value, position.max(start));
                    self.store_part(simd, value, position);
                }
            }
        }
    }
}

impl Dequantize<'_> {
    /// Applies the scale of `position` and the offset to a vector of code values.
    #[inline(always)]
    fn scaled<S: Simd>(&self, simd: S, mut value: S::f32s, position: usize) -> S::f32s {
        if !self.scales.is_empty() {
            // Blocks are powers of two, so that no division per vector is needed.
            let block = self.block.trailing_zeros();
            let scale = self.scales[(position >> block) - (self.start >> block)];
            value = simd.mul_f32s(value, simd.splat_f32s(scale));
        }
        if let Some(offset) = self.offset {
            value = simd.add_f32s(value, simd.splat_f32s(offset));
        }
        value
    }

    /// Stores the requested part of a vector that starts at `position`.
    #[inline(always)]
    fn store_part<S: Simd>(&mut self, simd: S, value: S::f32s, position: usize) {
        let (lanes, start, end) = (S::F32_LANES, self.start, self.start + self.values.len());
        let mut all = [0f32; LANES];
        simd.partial_store_f32s(&mut all[..lanes], value);
        let wanted = position.max(start)..(position + lanes).min(end);
        let range = wanted.start - position..wanted.end - position;
        self.values[wanted.start - start..wanted.end - start].copy_from_slice(&all[range]);
    }
}

/// How the indices in a vector of words are distributed over vectors of values.
struct Layout<S: Simd> {
    /// For each vector of values, the word of each lane.
    lane_words: [S::u32s; 8],
    /// The position of each lane's index in its word, if a vector covers whole words.
    shifts: S::u32s,
}

impl<S: Lookup> Layout<S> {
    #[inline(always)]
    fn of<D: Decoder<S>>(simd: S) -> Self {
        let lanes = S::F32_LANES;
        let (mut lane_words, mut shifts) = ([simd.splat_u32s(0); 8], simd.splat_u32s(0));
        let mut numbers = [0u32; LANES];
        for at in 0..D::PER_WORD {
            for lane in 0..lanes {
                numbers[lane] = ((at * lanes + lane) / D::PER_WORD) as u32;
            }
            lane_words[at] = load_first(simd, &numbers);
        }
        if lanes >= D::PER_WORD {
            for lane in 0..lanes {
                numbers[lane] = D::shift(lane);
            }
            shifts = load_first(simd, &numbers);
        }
        Self { lane_words, shifts }
    }

    /// Returns the code values of vector `at`.
    #[inline(always)]
    fn look_up<D: Decoder<S>>(&self, simd: S, decoder: D, words: S::u32s, at: usize) -> S::f32s {
        let shift =
            if S::F32_LANES >= D::PER_WORD { self.shifts } else { simd.splat_u32s(D::shift(at)) };
        let indices = simd.permute_words(words, self.lane_words[at]);
        decoder.look_up(simd, simd.wrapping_dyn_shr_u32s(indices, shift))
    }
}

/// Loads the first vector of `words`; missing words are 0.
#[inline(always)]
fn load_first<S: Simd>(simd: S, words: &[u32]) -> S::u32s {
    match S::as_simd_u32s(words).0.first() {
        Some(vector) => *vector,
        None => simd.partial_load_u32s(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Covers every format on every instruction set, with starts and ends within words, vectors and
    /// blocks.
    #[test]
    fn dequantized_values_equal_a_naive_loop() {
        let words: Vec<u32> = (0..500u32).map(|at| at.wrapping_mul(2_654_435_769)).collect();
        let scales: Vec<f32> = (0..40).map(|at| 0.5 + at as f32 / 8.0).collect();
        for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
            let bits = format.bits();
            let index = |position: usize| {
                let at = position % format.per_word();
                let at = if bits == 4 { at ^ 1 } else { at };
                let mask = (1u64 << bits) - 1;
                (u64::from(words[position / format.per_word()]) >> (at * bits) & mask) as usize
            };
            for (start, count) in [(0, 1), (0, 64), (3, 5), (60, 10), (64, 640), (77, 801)] {
                let first = start / BLOCK;
                let expected: Vec<f32> = (start..start + count)
                    .map(|position| {
                        format.code()[index(position)] * scales[position / BLOCK - first] - 1.5
                    })
                    .collect();
                for kind in SimdKind::all() {
                    let mut values = vec![f32::NAN; count];
                    let job = Dequantize {
                        words: &words,
                        start,
                        values: &mut values,
                        scales: &scales,
                        block: BLOCK,
                        offset: Some(-1.5),
                    };
                    kind.run(format, job);
                    let equal = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
                    assert!(
                        values.iter().zip(&expected).all(equal),
                        "{format:?} {start}+{count} {kind:?}: {values:?}"
                    );
                }
            }
        }
    }
}
