//! Packed indices in vectors: looked up, and laid out in order. What the processor's shuffles do is called by the safe
//! names that `pulp` gives them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512i};

use pulp::{Scalar, Simd};

use crate::Format;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

/// Vectors that can look up indices.
pub(super) trait Lookup: Simd {
    /// A code of 16 values, ready for use.
    type Code16: Copy;

    /// Makes `code` ready.
    fn code16(self, code: &[f32; 16]) -> Self::Code16;

    /// What the lowest four bits of each lane stand for.
    fn look_up16(self, code: Self::Code16, indices: Self::u32s) -> Self::f32s;

    /// What the lowest eight bits of each lane stand for, in a code that changes but its sign with the distance from
    /// index 127; the last may stand alone.
    fn look_up256(self, code: &[f32; 256], indices: Self::u32s) -> Self::f32s;

    /// For each lane the word whose number stands in `lanes`.
    fn spread(self, words: Self::u32s, lanes: Self::u32s) -> Self::u32s;

    /// The first in the lower half of the lanes, the second in the others.
    fn halves(self, low: f32, high: f32) -> Self::f32s;
}

/// What indices of one format stand for.
pub(super) trait Decoder<S: Lookup>: Copy {
    /// Bits of an index.
    const BITS: usize;

    /// Indices in a word.
    const PER_WORD: usize = 32 / Self::BITS;

    /// Whether blocks have scales.
    const SCALED: bool = true;

    /// The values of the lowest [`Self::BITS`] of each lane.
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s;

    /// Bits below index `at` of a word.
    #[inline(always)]
    fn shift(at: usize) -> u32 {
        let at = at % Self::PER_WORD;
        // Of two in a byte the first stands higher.
        let at = if Self::BITS == 4 { at ^ 1 } else { at };
        (at * Self::BITS) as u32
    }
}

/// [`Format::Nf4`] and [`Format::Fp4`].
#[derive(Clone, Copy)]
pub(super) struct Nibbles<S: Lookup>(S::Code16);

/// [`Format::Int8`].
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(&'a [f32; 256]);

/// [`Format::Bf16`].
#[derive(Clone, Copy)]
pub(super) struct Halves;

impl<S: Lookup> Decoder<S> for Nibbles<S> {
    const BITS: usize = 4;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        simd.look_up16(self.0, indices)
    }
}

impl<S: Lookup> Decoder<S> for Bytes<'_> {
    const BITS: usize = 8;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        simd.look_up256(self.0, indices)
    }
}

impl<S: Lookup> Decoder<S> for Halves {
    const BITS: usize = 16;

    const SCALED: bool = false;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        let upper = simd.wrapping_dyn_shl_u32s(indices, simd.splat_u32s(16));
        simd.transmute_f32s_u32s(upper)
    }
}

/// Something to do with the best vectors there are and a format's decoder. `run` must be `#[inline(always)]`, and so must
/// be what it calls: what is not inlined is compiled for the narrowest vectors.
pub(super) trait Job {
    fn run<S: Lookup, D: Decoder<S>>(self, simd: S, decoder: D);
}

/// Does `job` on values of `format`.
#[inline(always)]
pub(super) fn dispatch(format: Format, job: impl Job) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = V4::try_new() {
            return simd.vectorize(
                #[inline(always)]
                || with_decoder(simd, format, job),
            );
        }
        if let Some(simd) = V3::try_new() {
            return simd.vectorize(
                #[inline(always)]
                || with_decoder(simd, format, job),
            );
        }
    }
    with_decoder(Scalar, format, job);
}

#[inline(always)]
pub(super) fn with_decoder<S: Lookup>(simd: S, format: Format, job: impl Job) {
    match format {
        Format::Nf4 | Format::Fp4 => job.run(simd, Nibbles::<S>(simd.code16(table(format.code())))),
        Format::Int8 => job.run(simd, Bytes(table(format.code()))),
        Format::Bf16 => job.run(simd, Halves),
    }
}

#[inline(always)]
fn table<const N: usize>(code: &[f32]) -> &[f32; N] {
    match code.first_chunk() {
        Some(table) => table,
        None => unreachable!("a code of {} values, not {N}", code.len()),
    }
}

impl Lookup for Scalar {
    type Code16 = [f32; 16];

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        *code
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: u32) -> f32 {
        code[(indices & 15) as usize]
    }

    #[inline(always)]
    fn look_up256(self, code: &[f32; 256], indices: u32) -> f32 {
        code[(indices & 255) as usize]
    }

    #[inline(always)]
    fn spread(self, words: u32, _lanes: u32) -> u32 {
        words
    }

    #[inline(always)]
    fn halves(self, low: f32, _high: f32) -> f32 {
        low
    }
}

#[cfg(target_arch = "x86_64")]
impl Lookup for V3 {
    type Code16 = [pulp::f32x8; 2];

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        pulp::cast(*code)
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: pulp::u32x8) -> pulp::f32x8 {
        let (avx, avx2, index) = (self.avx, self.avx2, pulp::cast(indices));
        let [low, high] = code.map(|half| avx2._mm256_permutevar8x32_ps(pulp::cast(half), index));
        // Bit 3 chooses, from the place of the sign.
        let upper = avx._mm256_castsi256_ps(avx2._mm256_slli_epi32::<28>(index));
        pulp::cast(avx._mm256_blendv_ps(low, high, upper))
    }

    #[inline(always)]
    fn look_up256(self, code: &[f32; 256], indices: pulp::u32x8) -> pulp::f32x8 {
        let indices: [u32; 8] = pulp::cast(indices);
        pulp::cast(indices.map(|index| code[(index & 255) as usize]))
    }

    #[inline(always)]
    fn spread(self, words: pulp::u32x8, lanes: pulp::u32x8) -> pulp::u32x8 {
        let (words, lanes) = (pulp::cast(words), pulp::cast(lanes));
        pulp::cast(self.avx2._mm256_permutevar8x32_epi32(words, lanes))
    }

    #[inline(always)]
    fn halves(self, low: f32, high: f32) -> pulp::f32x8 {
        pulp::f32x8(low, low, low, low, high, high, high, high)
    }
}

#[cfg(target_arch = "x86_64")]
impl Lookup for V4 {
    type Code16 = pulp::f32x16;

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        pulp::cast(*code)
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: pulp::u32x16) -> pulp::f32x16 {
        let (code, index) = (pulp::cast(code), pulp::cast(indices));
        pulp::cast(self.avx512f._mm512_permutexvar_ps(index, code))
    }

    /// The distance from index 127 looked up in four parts of 32, of which bits 5 and 6 choose, with the sign put back.
    #[inline(always)]
    fn look_up256(self, code: &[f32; 256], indices: pulp::u32x16) -> pulp::f32x16 {
        let avx512 = self.avx512f;
        let index = avx512._mm512_and_si512(pulp::cast(indices), avx512._mm512_set1_epi32(255));
        let distance = avx512._mm512_sub_epi32(index, avx512._mm512_set1_epi32(127));
        let size = avx512._mm512_abs_epi32(distance);
        let parts: &[[[f32; 16]; 2]] = code[127..].as_chunks().0.as_chunks().0;
        let low = either(
            self,
            size,
            32,
            of_32(self, size, &parts[0]),
            of_32(self, size, &parts[1]),
        );
        let high = either(
            self,
            size,
            32,
            of_32(self, size, &parts[2]),
            of_32(self, size, &parts[3]),
        );
        let value = either(self, size, 64, low, high);
        let last = pulp::cast(self.splat_f32s(code[255]));
        let value = either(self, size, 128, value, last);
        let sign = avx512._mm512_and_si512(distance, avx512._mm512_set1_epi32(i32::MIN));
        pulp::cast(avx512._mm512_xor_si512(pulp::cast(value), sign))
    }

    #[inline(always)]
    fn spread(self, words: pulp::u32x16, lanes: pulp::u32x16) -> pulp::u32x16 {
        let (words, lanes) = (pulp::cast(words), pulp::cast(lanes));
        pulp::cast(self.avx512f._mm512_permutexvar_epi32(lanes, words))
    }

    #[inline(always)]
    fn halves(self, low: f32, high: f32) -> pulp::f32x16 {
        let [low, high] = [low, high].map(|half| pulp::cast(self.splat_f32s(half)));
        pulp::cast(self.avx512f._mm512_mask_blend_ps(0xff00, low, high))
    }
}

/// What the lowest five bits of each lane stand for in `part`. No closure: it would be compiled for narrow vectors.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn of_32(simd: V4, indices: __m512i, part: &[[f32; 16]; 2]) -> __m512 {
    let [low, high] = *part;
    let (low, high) = (pulp::cast(low), pulp::cast(high));
    simd.avx512f._mm512_permutex2var_ps(low, indices, high)
}

/// Of each lane `set` where `indices` has the bit, else `unset`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn either(simd: V4, indices: __m512i, bit: i32, unset: __m512, set: __m512) -> __m512 {
    let bit = simd.avx512f._mm512_set1_epi32(bit);
    let mask = simd.avx512f._mm512_test_epi32_mask(indices, bit);
    simd.avx512f._mm512_mask_blend_ps(mask, unset, set)
}

/// Does `job` on one of three kinds of processor, the simplest first; `false` if this one is not of that kind.
#[cfg(test)]
pub(super) fn on_kind(kind: usize, format: Format, job: impl Job) -> bool {
    match kind {
        0 => with_decoder(Scalar, format, job),
        #[cfg(target_arch = "x86_64")]
        1 => match V3::try_new() {
            Some(simd) => simd.vectorize(|| with_decoder(simd, format, job)),
            None => return false,
        },
        #[cfg(target_arch = "x86_64")]
        2 => match V4::try_new() {
            Some(simd) => simd.vectorize(|| with_decoder(simd, format, job)),
            None => return false,
        },
        _ => return false,
    }
    true
}
