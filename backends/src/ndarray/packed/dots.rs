//! Dot products of a few rows with quantized rows, directly from the words.
//!
//! The indices at one position of a vector of words belong to columns that are as far apart as a
//! word has indices. So `x` is rearranged to that order once ([`ArrangeRows`]), and each position
//! takes a shift, a look-up and a multiply-add. A block's scale multiplies the sum of its products.
//! The order of additions is the same for any number of rows, so no row's result depends on the
//! others.

use faer::MatMut;
use faer::reborrow::ReborrowMut;

use super::BLOCK;
use super::vectors::{Decoder, Lookup, SimdJob};
use crate::ndarray::few_rows::{RowBlock, prefetch};
use crate::ndarray::gemm::WriteMode;
use crate::ndarray::vector::LANES;

/// The largest number of rows of `W` in a tile.
pub(super) const TILE_W_ROWS: usize = 4;

/// The largest number of values in a word.
const MAX_PER_WORD: usize = 8;

/// Rearranges `x` to the order of the indices in vectors of words, padded with 0.
pub(super) struct ArrangeRows<'a> {
    pub(super) x: RowBlock<'a>,
    pub(super) arranged: &'a mut Vec<f32>,
}

impl SimdJob for ArrangeRows<'_> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(self, _simd: S, _decoder: D) {
        let (lanes, per_word) = (S::F32_LANES, D::PER_WORD);
        let chunk = lanes * per_word;
        let length = self.x.columns.next_multiple_of(chunk);
        self.arranged.resize(self.x.count * length, 0.0);
        let mut last = [0f32; LANES * MAX_PER_WORD];
        for (index, row) in self.arranged.chunks_exact_mut(length.max(1)).enumerate() {
            let from = self.x.row(index).chunks(chunk);
            for (to, from) in row.chunks_exact_mut(chunk).zip(from) {
                let from = if from.len() == chunk {
                    from
                } else {
                    last[..from.len()].copy_from_slice(from);
                    &last[..chunk]
                };
                for at in 0..per_word {
                    for lane in 0..lanes {
                        to[at * lanes + lane] = from[lane * per_word + at];
                    }
                }
            }
        }
    }
}

/// Dot products of rearranged rows with quantized rows that start at a word and at a block.
pub(super) struct Dots<'a> {
    /// `[rows of x, rows of W]`
    pub(super) target: MatMut<'a, f32>,
    pub(super) mode: WriteMode,
    pub(super) factor: f32,
    pub(super) x: &'a [f32],
    /// Words from the first row of `W`.
    pub(super) words: &'a [u32],
    /// Scales of all rows.
    pub(super) scales: &'a [f32],
    /// Number of columns of `W`.
    pub(super) columns: usize,
}

/// [`Dots`] with `M` rows of `x`.
pub(super) struct DotsOfRows<'a, const M: usize>(pub(super) Dots<'a>);

impl<const M: usize> SimdJob for DotsOfRows<'_, M> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(self, simd: S, decoder: D) {
        // Looking up 8 bits needs registers, so fewer rows of `W` are summed at once.
        if D::BITS == 8 && M > 1 {
            self.0.all::<S, D, M, { TILE_W_ROWS / 2 }>(simd, decoder);
        } else {
            self.0.all::<S, D, M, TILE_W_ROWS>(simd, decoder);
        }
    }
}

impl Dots<'_> {
    /// Computes all rows of `W`, `N` at a time.
    #[inline(always)]
    fn all<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
        mut self,
        simd: S,
        decoder: D,
    ) {
        let length = self.x.len() / M;
        let mut x = [&[][..]; M];
        for m in 0..M {
            x[m] = S::as_simd_f32s(&self.x[m * length..][..length]).0;
        }
        let (per_row, blocks) = (self.columns / D::PER_WORD, self.columns / BLOCK);
        let count = self.target.ncols();
        for first in (0..count).step_by(N) {
            let mut w = QuantizedRows {
                words: [&[][..]; N],
                scales: [&[][..]; N],
                from: &self.words[first * per_row..],
            };
            for n in 0..N {
                // Beyond the last row the last one is used again, and its sums are dropped.
                let row = (first + n).min(count - 1);
                w.words[n] = &self.words[row * per_row..][..per_row];
                if D::SCALED {
                    w.scales[n] = &self.scales[row * blocks..][..blocks];
                }
            }
            let sums = dots::<S, D, M, N>(simd, decoder, x, w);
            for m in 0..M {
                for n in 0..N.min(count - first) {
                    let value = self.target.rb_mut().get_mut(m, first + n);
                    *value = match self.mode {
                        WriteMode::Overwrite => self.factor * sums[m][n],
                        WriteMode::Add => *value + self.factor * sums[m][n],
                    };
                }
            }
        }
    }
}

/// `N` rows of a quantized weight.
#[derive(Clone, Copy)]
struct QuantizedRows<'a, const N: usize> {
    /// Words of each row.
    words: [&'a [u32]; N],
    /// Scales of each row.
    scales: [&'a [f32]; N],
    /// Words from the first row to the end of the weight, for prefetching.
    from: &'a [u32],
}

/// Returns the dot products of `M` rearranged rows with `N` quantized rows.
///
/// The next rows are prefetched meanwhile: rows are too short for the hardware prefetcher.
#[inline(always)]
fn dots<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
    simd: S,
    decoder: D,
    x: [&[S::f32s]; M],
    w: QuantizedRows<'_, N>,
) -> [[f32; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let (count, lanes) = (w.words[0].len(), S::U32_LANES);
    let whole = count / lanes;
    let mut vectors = [&[][..]; N];
    for n in 0..N {
        vectors[n] = &S::as_simd_u32s(w.words[n]).0[..whole];
    }
    // Compared with the number of words in a vector.
    let words_per_block = BLOCK / D::PER_WORD;
    let (mut words, mut scale) = ([simd.splat_u32s(0); N], [simd.splat_f32s(0.0); N]);
    for chunk in 0..whole {
        for n in 0..N {
            prefetch(w.from, (N + n) * count + chunk * lanes);
            words[n] = vectors[n][chunk];
            if D::SCALED {
                let scales = w.scales[n];
                scale[n] = if lanes > words_per_block {
                    simd.splat_halves(scales[2 * chunk], scales[2 * chunk + 1])
                } else {
                    simd.splat_f32s(scales[chunk * lanes / words_per_block])
                };
            }
        }
        add::<S, D, M, N>(simd, decoder, x, (words, scale), chunk, &mut sums);
    }
    if whole * lanes < count {
        for n in 0..N {
            words[n] = simd.partial_load_u32s(&w.words[n][whole * lanes..]);
            if D::SCALED {
                // Less than a vector is left; blocks are whole, so there is one scale.
                scale[n] = simd.splat_f32s(w.scales[n][whole * lanes / words_per_block]);
            }
        }
        add::<S, D, M, N>(simd, decoder, x, (words, scale), whole, &mut sums);
    }
    let mut totals = [[0f32; N]; M];
    for m in 0..M {
        for n in 0..N {
            totals[m][n] = simd.reduce_sum_f32s(sums[m][n]);
        }
    }
    totals
}

/// Adds the products of vector `chunk` of each row's words to the sums.
#[inline(always)]
fn add<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
    simd: S,
    decoder: D,
    x: [&[S::f32s]; M],
    (words, scale): ([S::u32s; N], [S::f32s; N]),
    chunk: usize,
    sums: &mut [[S::f32s; N]; M],
) {
    let mut products = if D::SCALED { [[simd.splat_f32s(0.0); N]; M] } else { *sums };
    let mut here = [&[][..]; M];
    for m in 0..M {
        here[m] = &x[m][chunk * D::PER_WORD..][..D::PER_WORD];
    }
    for at in 0..D::PER_WORD {
        for n in 0..N {
            let value = decoder.look_up_at(simd, words[n], at);
            for m in 0..M {
                products[m][n] = simd.mul_add_e_f32s(here[m][at], value, products[m][n]);
            }
        }
    }
    if !D::SCALED {
        *sums = products;
        return;
    }
    for n in 0..N {
        for m in 0..M {
            sums[m][n] = simd.mul_add_e_f32s(products[m][n], scale[n], sums[m][n]);
        }
    }
}
