//! Sums of products of rows with packed rows, straight from the words.

use super::BLOCK;
use super::vectors::{Decoder, Lookup};
use crate::ndarray::few_rows::fetch;

/// Some rows of a packed weight.
#[derive(Clone, Copy)]
pub(super) struct PackedRows<'a, const N: usize> {
    /// Of each row.
    pub(super) words: [&'a [u32]; N],
    /// From each row's first block on.
    pub(super) scales: [&'a [f32]; N],
    /// What to fetch meanwhile: as many rows as these, one after the other.
    pub(super) ahead: &'a [u32],
}

/// The products of `M` arranged rows with `N` packed rows.
#[inline(always)]
pub(super) fn dots<S: Lookup, D: Decoder<S>, const M: usize, const N: usize>(
    simd: S,
    decoder: D,
    x: [&[S::f32s]; M],
    rows: PackedRows<'_, N>,
) -> [[f32; N]; M] {
    let PackedRows {
        words,
        scales,
        ahead,
    } = rows;
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let count = words[0].len();
    let (whole, lanes) = (count / S::U32_LANES, S::U32_LANES);
    let mut vectors = [&[][..]; N];
    for n in 0..N {
        vectors[n] = &S::as_simd_u32s(words[n]).0[..whole];
    }
    let mut these = [simd.splat_u32s(0); N];
    for chunk in 0..whole {
        for n in 0..N {
            fetch(ahead, n * count + chunk * lanes);
            these[n] = vectors[n][chunk];
        }
        add::<S, D, M, N>(simd, decoder, x, these, chunk, scales, &mut sums);
    }
    if whole * lanes < count {
        for n in 0..N {
            these[n] = simd.partial_load_u32s(&words[n][whole * lanes..]);
        }
        add::<S, D, M, N>(simd, decoder, x, these, whole, scales, &mut sums);
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
    words: [S::u32s; N],
    chunk: usize,
    scales: [&[f32]; N],
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
        let shift = simd.splat_u32s(D::shift(at));
        for n in 0..N {
            let indices = simd.wrapping_dyn_shr_u32s(words[n], shift);
            let value = decoder.look_up(simd, indices);
            for m in 0..M {
                products[m][n] = simd.mul_add_e_f32s(here[m][at], value, products[m][n]);
            }
        }
    }
    if !D::SCALED {
        *sums = products;
        return;
    }
    // Words of a block against those of a vector.
    let (of_a_block, lanes) = (BLOCK / D::PER_WORD, S::U32_LANES);
    for n in 0..N {
        let scales = scales[n];
        let scale = match lanes > of_a_block {
            true => simd.halves(scales[2 * chunk], scales[2 * chunk + 1]),
            false => simd.splat_f32s(scales[chunk * lanes / of_a_block]),
        };
        for m in 0..M {
            sums[m][n] = simd.mul_add_e_f32s(products[m][n], scale, sums[m][n]);
        }
    }
}
