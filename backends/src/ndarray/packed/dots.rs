//! Sums of products of a few rows with packed rows, straight from the words.
//!
//! A vector of words holds, at the same place of each, indices whose values are as many columns apart as a word holds. So
//! `x` is put in that order once ([`arranged`]), and for each place a shift, a look-up and a multiplication with what
//! belongs to it are all there is to do; a block's scale multiplies the sum of its products. The order of sums is the same
//! whatever the number of rows, so that no row's result depends on the others.

use faer::MatMut;
use faer::reborrow::ReborrowMut;

use super::BLOCK;
use super::vectors::{Decoder, Job, Lookup};
use crate::ndarray::few_rows::{Rows, fetch};
use crate::ndarray::gemm::Old;
use crate::ndarray::vector::LANES;

/// Rows of `W` whose products are computed together, at most.
pub(super) const W_ROWS: usize = 4;

/// The most values of a word.
const MOST: usize = 8;

/// Puts `x` in the order of the places in vectors of words; what follows the last column is 0.
pub(super) struct Arrange<'a> {
    pub(super) x: Rows<'a>,
    pub(super) arranged: &'a mut Vec<f32>,
}

impl Job for Arrange<'_> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(self, _simd: S, _decoder: D) {
        let (lanes, per_word) = (S::F32_LANES, D::PER_WORD);
        let chunk = lanes * per_word;
        let length = self.x.columns.next_multiple_of(chunk);
        self.arranged.resize(self.x.count * length, 0.0);
        let mut last = [0f32; LANES * MOST];
        for (index, row) in self.arranged.chunks_exact_mut(length.max(1)).enumerate() {
            let from = self.x.row(index).chunks(chunk);
            for (to, from) in row.chunks_exact_mut(chunk).zip(from) {
                let from = match from.len() == chunk {
                    true => from,
                    false => {
                        last[..from.len()].copy_from_slice(from);
                        &last[..chunk]
                    }
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

/// The products of some arranged rows with packed rows that begin a word and a block.
pub(super) struct Dots<'a> {
    /// `[rows of x, rows of W]`
    pub(super) target: MatMut<'a, f32>,
    pub(super) old: Old,
    pub(super) factor: f32,
    pub(super) x: &'a [f32],
    /// From the first row of `W` on.
    pub(super) words: &'a [u32],
    /// Of all rows.
    pub(super) scales: &'a [f32],
    /// Of a row of `W`.
    pub(super) columns: usize,
}

/// [`Dots`] with `M` rows of `x`.
pub(super) struct Of<'a, const M: usize>(pub(super) Dots<'a>);

impl<const M: usize> Job for Of<'_, M> {
    #[inline(always)]
    fn run<S: Lookup, D: Decoder<S>>(self, simd: S, decoder: D) {
        // Looking up 8 bits takes registers: sums of fewer rows have room.
        match D::BITS == 8 && M > 1 {
            true => self.0.all::<S, D, M, { W_ROWS / 2 }>(simd, decoder),
            false => self.0.all::<S, D, M, W_ROWS>(simd, decoder),
        }
    }
}

impl Dots<'_> {
    /// All rows of `W`, `N` at a time.
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
            let mut w = PackedRows {
                words: [&[][..]; N],
                scales: [&[][..]; N],
                from: &self.words[first * per_row..],
            };
            for n in 0..N {
                // Where there are fewer, the last is taken again, for nothing.
                let row = (first + n).min(count - 1);
                w.words[n] = &self.words[row * per_row..][..per_row];
                if D::SCALED {
                    w.scales[n] = &self.scales[row * blocks..][..blocks];
                }
            }
            let sums = dots::<S, D, M, N>(simd, decoder, x, w);
            for m in 0..M {
                for n in 0..N.min(count - first) {
                    let place = self.target.rb_mut().get_mut(m, first + n);
                    *place = match self.old {
                        Old::Replace => self.factor * sums[m][n],
                        Old::Add => *place + self.factor * sums[m][n],
                    };
                }
            }
        }
    }
}

/// Some rows of a packed weight.
#[derive(Clone, Copy)]
struct PackedRows<'a, const N: usize> {
    /// Of each row.
    words: [&'a [u32]; N],
    /// Of each row.
    scales: [&'a [f32]; N],
    /// From the first row on, and what comes behind the last.
    from: &'a [u32],
}

/// The products of `M` arranged rows with `N` packed rows.
///
/// The rows that come next are fetched meanwhile: they are too short for the processor to see what will be read.
#[inline(always)]
fn dots<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
    simd: S,
    decoder: D,
    x: [&[S::f32s]; M],
    w: PackedRows<'_, N>,
) -> [[f32; N]; M] {
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let (count, lanes) = (w.words[0].len(), S::U32_LANES);
    let whole = count / lanes;
    let mut vectors = [&[][..]; N];
    for n in 0..N {
        vectors[n] = &S::as_simd_u32s(w.words[n]).0[..whole];
    }
    // Words of a block against those of a vector.
    let of_a_block = BLOCK / D::PER_WORD;
    let (mut these, mut scale) = ([simd.splat_u32s(0); N], [simd.splat_f32s(0.0); N]);
    for chunk in 0..whole {
        for n in 0..N {
            fetch(w.from, (N + n) * count + chunk * lanes);
            these[n] = vectors[n][chunk];
            if D::SCALED {
                let scales = w.scales[n];
                scale[n] = match lanes > of_a_block {
                    true => simd.halves(scales[2 * chunk], scales[2 * chunk + 1]),
                    false => simd.splat_f32s(scales[chunk * lanes / of_a_block]),
                };
            }
        }
        add::<S, D, M, N>(simd, decoder, x, (these, scale), chunk, &mut sums);
    }
    if whole * lanes < count {
        for n in 0..N {
            these[n] = simd.partial_load_u32s(&w.words[n][whole * lanes..]);
            if D::SCALED {
                // Less than a vector, but blocks are whole: one.
                scale[n] = simd.splat_f32s(w.scales[n][whole * lanes / of_a_block]);
            }
        }
        add::<S, D, M, N>(simd, decoder, x, (these, scale), whole, &mut sums);
    }
    let mut totals = [[0f32; N]; M];
    for m in 0..M {
        for n in 0..N {
            totals[m][n] = simd.reduce_sum_f32s(sums[m][n]);
        }
    }
    totals
}

/// Adds to the sums what vector `chunk` of each row's words gives.
#[inline(always)]
fn add<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
    simd: S,
    decoder: D,
    x: [&[S::f32s]; M],
    (words, scale): ([S::u32s; N], [S::f32s; N]),
    chunk: usize,
    sums: &mut [[S::f32s; N]; M],
) {
    let mut products = match D::SCALED {
        true => [[simd.splat_f32s(0.0); N]; M],
        false => *sums,
    };
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
