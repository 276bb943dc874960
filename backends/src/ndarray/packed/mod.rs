//! Packed weights on slices: see [`crate::ops::packed`].
//!
//! Products of many rows take a tile of the weight at a time, unpacked once for all rows ([`tiles`]); those of a few rows
//! multiply with the indices as they lie ([`few`]).

#![allow(
    clippy::needless_range_loop,
    reason = "plain loops: what closures do would not be inlined, and so compiled for narrow vectors"
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

use self::vectors::{Decoder, Job, Kind, Lookup};
use super::matrix::{Matrix, written};
use super::vector::LANES;
use crate::ops::packed::{BLOCK, NESTED_BLOCK};
use crate::{Format, PackedWeight, Scales};

pub(super) use self::few::product as few_product;
pub(super) use self::tiles::{times, times_transposed};

/// Blocks that are unpacked at a time.
const SCALES: usize = 128;

/// Values a thread unpacks at a time.
const SHARE: usize = 1 << 16;

/// A packed weight whose parts are slices.
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

/// Words in order.
struct Words {
    tensor: NdArrayTensor,
    /// If they do not lie so in `tensor`, or are of another type.
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
    /// `None` where a scale is not f32.
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

    /// Values of the flattened weight from `start` on, on the calling thread.
    pub(super) fn unpack(&self, start: usize, values: &mut [f32]) {
        // As many blocks at a time as their scales have room on the stack.
        let mut scales = [0f32; SCALES];
        let (mut start, mut rest) = (start, values);
        while !rest.is_empty() {
            let end = (start / BLOCK + SCALES) * BLOCK;
            let (values, behind) = rest.split_at_mut(rest.len().min(end - start));
            let blocks = (start + values.len()).div_ceil(BLOCK) - start / BLOCK;
            let scales = match self.scales {
                HostScales::None => &mut [],
                _ => &mut scales[..blocks],
            };
            self.scales(start / BLOCK, scales);
            let run = Run {
                words: self.words.values(),
                start,
                values,
                scales,
                block: BLOCK,
                offset: None,
            };
            Kind::best().run(self.format, run);
            (start, rest) = (end, behind);
        }
    }

    /// The scales from block `first` on, as many as `scales` holds; where the format has none, nothing is written.
    fn scales(&self, first: usize, scales: &mut [f32]) {
        match &self.scales {
            HostScales::None => (),
            HostScales::Plain(absmax) => {
                scales.copy_from_slice(&absmax.values()[first..][..scales.len()]);
            }
            HostScales::Double { words, absmax, offset } => Kind::best().run(
                Format::Int8,
                Run {
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

    /// `count` rows from `first` on, of each `columns`, side by side; on the calling thread.
    fn unpack_tile(&self, rows: Range<usize>, columns: Range<usize>, tile: &mut [f32]) {
        if columns.len() == self.columns {
            return self.unpack(rows.start * self.columns, tile);
        }
        for (row, values) in rows.zip(tile.chunks_exact_mut(columns.len().max(1))) {
            self.unpack(row * self.columns + columns.start, values);
        }
    }

    /// One row.
    pub(super) fn unpack_row(&self, row: usize, values: &mut [f32]) {
        self.unpack(row * self.columns, values);
    }

    /// `rows`, on all threads.
    pub(super) fn unpack_rows(&self, rows: Range<usize>) -> Vec<f32> {
        written(rows.len() * self.columns, |values| {
            let parts = values.par_chunks_mut(SHARE).enumerate();
            parts.for_each(|(part, values)| {
                self.unpack(rows.start * self.columns + part * SHARE, values);
            });
        })
    }
}

/// Values of packed indices from `start` on: `code * scale + offset`.
struct Run<'a> {
    words: &'a [u32],
    start: usize,
    values: &'a mut [f32],
    /// From the block on that `start` is in; none: 1 everywhere.
    scales: &'a [f32],
    /// Values that share a scale, a power of two.
    block: usize,
    offset: Option<f32>,
}

impl Job for Run<'_> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(mut self, simd: S, decoder: D) {
        let layout = Layout::of::<D>(simd);
        let (lanes, chunk) = (S::F32_LANES, S::F32_LANES * D::PER_WORD);
        let (start, end) = (self.start, self.start + self.values.len());
        for first in (start / chunk * chunk..end).step_by(chunk) {
            let from = &self.words[(first / D::PER_WORD).min(self.words.len())..];
            let these = first_of(simd, from);
            if first >= start && first + chunk <= end {
                for at in 0..D::PER_WORD {
                    let value = layout.look_up(simd, decoder, these, at);
                    let value = self.scaled(simd, value, first + at * lanes);
                    let target = &mut self.values[first - start + at * lanes..][..lanes];
                    S::as_mut_simd_f32s(target).0[0] = value;
                }
                continue;
            }
            for at in 0..D::PER_WORD {
                let place = first + at * lanes;
                if place + lanes > start && place < end {
                    let value = layout.look_up(simd, decoder, these, at);
                    let value = self.scaled(simd, value, place.max(start));
                    self.store_part(simd, value, place);
                }
            }
        }
    }
}

impl Run<'_> {
    /// A vector of what indices stand for, with the scale of `place` and the offset.
    #[inline(always)]
    fn scaled<S: Simd>(&self, simd: S, mut value: S::f32s, place: usize) -> S::f32s {
        if !self.scales.is_empty() {
            // Blocks are powers of two: no division for each vector.
            let block = self.block.trailing_zeros();
            let scale = self.scales[(place >> block) - (self.start >> block)];
            value = simd.mul_f32s(value, simd.splat_f32s(scale));
        }
        if let Some(offset) = self.offset {
            value = simd.add_f32s(value, simd.splat_f32s(offset));
        }
        value
    }

    /// Stores what is wanted of a vector that begins at `place`.
    #[inline(always)]
    fn store_part<S: Simd>(&mut self, simd: S, value: S::f32s, place: usize) {
        let (lanes, start, end) = (S::F32_LANES, self.start, self.start + self.values.len());
        let mut all = [0f32; LANES];
        simd.partial_store_f32s(&mut all[..lanes], value);
        let wanted = place.max(start)..(place + lanes).min(end);
        let of_all = wanted.start - place..wanted.end - place;
        self.values[wanted.start - start..wanted.end - start].copy_from_slice(&all[of_all]);
    }
}

/// How a vector of words is laid out over as many vectors as a word has indices.
struct Layout<S: Simd> {
    /// For each of these vectors the word of each lane.
    of_lanes: [S::u32s; 8],
    /// Where in its word each lane's index stands, if a vector has all places of a word.
    shifts: S::u32s,
}

impl<S: Lookup> Layout<S> {
    #[inline(always)]
    fn of<D: Decoder<S>>(simd: S) -> Self {
        let lanes = S::F32_LANES;
        let (mut of_lanes, mut shifts) = ([simd.splat_u32s(0); 8], simd.splat_u32s(0));
        let mut numbers = [0u32; LANES];
        for at in 0..D::PER_WORD {
            for lane in 0..lanes {
                numbers[lane] = ((at * lanes + lane) / D::PER_WORD) as u32;
            }
            of_lanes[at] = first_of(simd, &numbers);
        }
        if lanes >= D::PER_WORD {
            for lane in 0..lanes {
                numbers[lane] = D::shift(lane);
            }
            shifts = first_of(simd, &numbers);
        }
        Self { of_lanes, shifts }
    }

    /// What the indices of vector `at` stand for.
    #[inline(always)]
    fn look_up<D: Decoder<S>>(&self, simd: S, decoder: D, words: S::u32s, at: usize) -> S::f32s {
        let shift = match S::F32_LANES >= D::PER_WORD {
            true => self.shifts,
            false => simd.splat_u32s(D::shift(at)),
        };
        let indices = simd.spread(words, self.of_lanes[at]);
        decoder.look_up(simd, simd.wrapping_dyn_shr_u32s(indices, shift))
    }
}

/// The first vector; what `words` are too few for is 0.
#[inline(always)]
fn first_of<S: Simd>(simd: S, words: &[u32]) -> S::u32s {
    match S::as_simd_u32s(words).0.first() {
        Some(vector) => *vector,
        None => simd.partial_load_u32s(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every format on every kind of processor, from and to places within words, vectors and blocks.
    #[test]
    fn runs_are_the_definition() {
        let words: Vec<u32> = (0..500u32).map(|at| at.wrapping_mul(2_654_435_769)).collect();
        let scales: Vec<f32> = (0..40).map(|at| 0.5 + at as f32 / 8.0).collect();
        for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
            let bits = format.bits();
            let index = |place: usize| {
                let at = place % format.per_word();
                let at = if bits == 4 { at ^ 1 } else { at };
                let mask = (1u64 << bits) - 1;
                (u64::from(words[place / format.per_word()]) >> (at * bits) & mask) as usize
            };
            for (start, count) in [(0, 1), (0, 64), (3, 5), (60, 10), (64, 640), (77, 801)] {
                let first = start / BLOCK;
                let expected: Vec<f32> = (start..start + count)
                    .map(|place| format.code()[index(place)] * scales[place / BLOCK - first] - 1.5)
                    .collect();
                for kind in Kind::all() {
                    let mut values = vec![f32::NAN; count];
                    let run = Run {
                        words: &words,
                        start,
                        values: &mut values,
                        scales: &scales,
                        block: BLOCK,
                        offset: Some(-1.5),
                    };
                    kind.run(format, run);
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
