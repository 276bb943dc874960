//! Looks up packed indices in vectors and puts them in order. The shuffles are called through the
//! safe functions of `pulp`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512i;

use pulp::{Scalar, Simd};

use crate::Format;
#[cfg(target_arch = "x86_64")]
use pulp::{
    u16x32,
    x86::{V3, V4},
};

/// Vectors that can look up indices in a code.
pub(super) trait Lookup: Simd {
    /// A code of 16 values in registers.
    type Code16: Copy;

    /// A code of 256 values, prepared for look-ups. Its last value is 1; apart from it, values at
    /// equal distances from index 127, whose value is 0, differ only in their sign.
    type Code256: Copy;

    /// Prepares a code of 16 values.
    fn code16(self, code: &[f32; 16]) -> Self::Code16;

    /// Prepares a code of 256 values.
    fn code256(self, code: &'static [f32; 256]) -> Self::Code256;

    /// Returns the code values of the lowest four bits of each lane.
    fn look_up16(self, code: Self::Code16, indices: Self::u32s) -> Self::f32s;

    /// Returns the code values of byte `at` of each lane, counted from the lowest.
    fn look_up256(self, code: Self::Code256, words: Self::u32s, at: usize) -> Self::f32s;

    /// Returns for each lane the word whose number is in `lanes`.
    fn permute_words(self, words: Self::u32s, lanes: Self::u32s) -> Self::u32s;

    /// Returns a vector with `low` in the lower half of its lanes and `high` in the upper half.
    fn splat_halves(self, low: f32, high: f32) -> Self::f32s;

    /// Calls `f`, which must be `#[inline(always)]`, in a function compiled for these vectors.
    fn within(self, f: impl FnOnce());
}

/// Decodes the indices of one format.
pub(super) trait Decoder<S: Lookup>: Copy {
    /// Number of bits of an index.
    const BITS: usize;

    /// Number of indices in a word.
    const PER_WORD: usize = 32 / Self::BITS;

    /// Whether blocks have scales.
    const SCALED: bool = true;

    /// Returns the values of the lowest [`Self::BITS`] bits of each lane.
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s;

    /// Returns the values of index `at` of each word.
    #[inline(always)]
    fn look_up_at(self, simd: S, words: S::u32s, at: usize) -> S::f32s {
        let shift = simd.splat_u32s(Self::shift(at));
        self.look_up(simd, simd.wrapping_dyn_shr_u32s(words, shift))
    }

    /// Returns the number of bits below index `at` of a word.
    #[inline(always)]
    fn shift(at: usize) -> u32 {
        let at = at % Self::PER_WORD;
        // The first of the two indices in a byte is in its upper half.
        let at = if Self::BITS == 4 { at ^ 1 } else { at };
        (at * Self::BITS) as u32
    }
}

/// Decodes [`Format::Nf4`] and [`Format::Fp4`].
#[derive(Clone, Copy)]
pub(super) struct Nibbles<S: Lookup>(S::Code16);

/// Decodes [`Format::Int8`].
#[derive(Clone, Copy)]
pub(super) struct Bytes<S: Lookup>(S::Code256);

/// Decodes [`Format::Bf16`].
#[derive(Clone, Copy)]
pub(super) struct Bf16Values;

impl<S: Lookup> Decoder<S> for Nibbles<S> {
    const BITS: usize = 4;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        simd.look_up16(self.0, indices)
    }
}

impl<S: Lookup> Decoder<S> for Bytes<S> {
    const BITS: usize = 8;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        simd.look_up256(self.0, indices, 0)
    }

    #[inline(always)]
    fn look_up_at(self, simd: S, words: S::u32s, at: usize) -> S::f32s {
        simd.look_up256(self.0, words, at)
    }
}

impl<S: Lookup> Decoder<S> for Bf16Values {
    const BITS: usize = 16;

    const SCALED: bool = false;

    #[inline(always)]
    fn look_up(self, simd: S, indices: S::u32s) -> S::f32s {
        let upper = simd.wrapping_dyn_shl_u32s(indices, simd.splat_u32s(16));
        simd.transmute_f32s_u32s(upper)
    }
}

/// A computation on vectors with a format's decoder. `run` and everything it calls must be
/// `#[inline(always)]`: functions that are not inlined are compiled for the narrowest vectors.
pub(super) trait SimdJob {
    fn run<S: Lookup, D: Decoder<S>>(self, simd: S, decoder: D);
}

/// The instruction sets that are supported.
#[derive(Clone, Copy, Debug)]
pub(super) enum SimdKind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    V3(V3),
    #[cfg(target_arch = "x86_64")]
    V4(V4),
}

impl SimdKind {
    /// Returns the best instruction set of this processor.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = V4::try_new() {
                return Self::V4(simd);
            }
            if let Some(simd) = V3::try_new() {
                return Self::V3(simd);
            }
        }
        Self::Scalar
    }

    /// Returns all instruction sets of this processor.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(V3::try_new().map(Self::V3));
            all.extend(V4::try_new().map(Self::V4));
        }
        all
    }

    /// Runs `job` with the decoder of `format`.
    pub(super) fn run(self, format: Format, job: impl SimdJob) {
        match self {
            Self::Scalar => with_decoder(Scalar, format, job),
            #[cfg(target_arch = "x86_64")]
            Self::V3(simd) => with_decoder(simd, format, job),
            #[cfg(target_arch = "x86_64")]
            Self::V4(simd) => with_decoder(simd, format, job),
        }
    }
}

/// Runs `job` in a function per format, so that registers are allocated for that format alone.
fn with_decoder<S: Lookup>(simd: S, format: Format, job: impl SimdJob) {
    match format {
        Format::Nf4 | Format::Fp4 => simd.within(
            #[inline(always)]
            || job.run(simd, Nibbles::<S>(simd.code16(table(format.code())))),
        ),
        Format::Int8 => simd.within(
            #[inline(always)]
            || job.run(simd, Bytes::<S>(simd.code256(table(format.code())))),
        ),
        Format::Bf16 => simd.within(
            #[inline(always)]
            || job.run(simd, Bf16Values),
        ),
    }
}

#[inline(always)]
fn table<const N: usize>(code: &'static [f32]) -> &'static [f32; N] {
    match code.first_chunk() {
        Some(table) => table,
        None => unreachable!("a code of {} values, not {N}", code.len()),
    }
}

impl Lookup for Scalar {
    type Code16 = [f32; 16];
    type Code256 = &'static [f32; 256];

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        *code
    }

    #[inline(always)]
    fn code256(self, code: &'static [f32; 256]) -> Self::Code256 {
        code
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: u32) -> f32 {
        code[(indices & 15) as usize]
    }

    #[inline(always)]
    fn look_up256(self, code: Self::Code256, word: u32, at: usize) -> f32 {
        code[(word >> (8 * at) & 255) as usize]
    }

    #[inline(always)]
    fn permute_words(self, words: u32, _lanes: u32) -> u32 {
        words
    }

    #[inline(always)]
    fn splat_halves(self, low: f32, _high: f32) -> f32 {
        low
    }

    #[inline(always)]
    fn within(self, f: impl FnOnce()) {
        f();
    }
}

#[cfg(target_arch = "x86_64")]
impl Lookup for V3 {
    type Code16 = [pulp::f32x8; 2];
    type Code256 = &'static [f32; 256];

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        pulp::cast(*code)
    }

    #[inline(always)]
    fn code256(self, code: &'static [f32; 256]) -> Self::Code256 {
        code
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: pulp::u32x8) -> pulp::f32x8 {
        let (avx, avx2, index) = (self.avx, self.avx2, pulp::cast(indices));
        let [low, high] = code.map(|half| avx2._mm256_permutevar8x32_ps(pulp::cast(half), index));
        // Bit 3 selects the upper half of the code, by way of the sign bit.
        let upper = avx._mm256_castsi256_ps(avx2._mm256_slli_epi32::<28>(index));
        pulp::cast(avx._mm256_blendv_ps(low, high, upper))
    }

    #[inline(always)]
    fn look_up256(self, code: Self::Code256, words: pulp::u32x8, at: usize) -> pulp::f32x8 {
        let words: [u32; 8] = pulp::cast(words);
        pulp::cast(words.map(|word| code[(word >> (8 * at) & 255) as usize]))
    }

    #[inline(always)]
    fn permute_words(self, words: pulp::u32x8, lanes: pulp::u32x8) -> pulp::u32x8 {
        let (words, lanes) = (pulp::cast(words), pulp::cast(lanes));
        pulp::cast(self.avx2._mm256_permutevar8x32_epi32(words, lanes))
    }

    #[inline(always)]
    fn splat_halves(self, low: f32, high: f32) -> pulp::f32x8 {
        pulp::f32x8(low, low, low, low, high, high, high, high)
    }

    #[inline(always)]
    fn within(self, f: impl FnOnce()) {
        self.vectorize(f);
    }
}

#[cfg(target_arch = "x86_64")]
impl Lookup for V4 {
    type Code16 = pulp::f32x16;
    /// The lower and upper 16 bits of the values at index 127 and the 127 after it, times two.
    type Code256 = [[u16x32; 4]; 2];

    #[inline(always)]
    fn code16(self, code: &[f32; 16]) -> Self::Code16 {
        pulp::cast(*code)
    }

    #[inline(always)]
    fn code256(self, code: &'static [f32; 256]) -> Self::Code256 {
        let mut halves = [[0u16; 128]; 2];
        for at in 0..128 {
            let bits = (2.0 * code[127 + at]).to_bits();
            (halves[0][at], halves[1][at]) = (bits as u16, (bits >> 16) as u16);
        }
        pulp::cast(halves)
    }

    #[inline(always)]
    fn look_up16(self, code: Self::Code16, indices: pulp::u32x16) -> pulp::f32x16 {
        let (code, index) = (pulp::cast(code), pulp::cast(indices));
        pulp::cast(self.avx512f._mm512_permutexvar_ps(index, code))
    }

    /// Looks up two bytes of each word at once in lanes of 16 bits: both halves of a value are
    /// found by the distance from index 127, then the sign is restored. The compiler computes once
    /// what does not depend on `at`, or only on `at / 2`.
    #[inline(always)]
    fn look_up256(self, code: Self::Code256, words: pulp::u32x16, at: usize) -> pulp::f32x16 {
        let (f, bw) = (self.avx512f, self.avx512bw);
        let words = pulp::cast(words);
        let distance = bw._mm512_sub_epi8(words, f._mm512_set1_epi8(127));
        let mut size = bw._mm512_abs_epi8(distance);
        // Index 255, at distance 128, looks up 0. Its doubled value is 2, whose bits are all in the upper byte.
        let sign = f._mm512_and_si512(distance, f._mm512_set1_epi8(i8::MIN));
        let is_last = bw._mm512_cmpeq_epi8_mask(words, f._mm512_set1_epi8(-1));
        let mut upper_byte = bw._mm512_mask_blend_epi8(is_last, sign, f._mm512_set1_epi8(0x40));
        if at.is_multiple_of(2) {
            upper_byte = bw._mm512_slli_epi16::<8>(upper_byte);
        } else {
            size = bw._mm512_srli_epi16::<8>(size);
            upper_byte = f._mm512_and_si512(upper_byte, f._mm512_set1_epi16(!0xff));
        }
        let lower = look_up_128(self, code[0], size);
        let upper = f._mm512_or_si512(look_up_128(self, code[1], size), upper_byte);
        let value = match at / 2 {
            0 => {
                let upper = f._mm512_slli_epi32::<16>(upper);
                bw._mm512_mask_blend_epi16(0xaaaa_aaaa, lower, upper)
            }
            _ => {
                let lower = f._mm512_srli_epi32::<16>(lower);
                bw._mm512_mask_blend_epi16(0xaaaa_aaaa, lower, upper)
            }
        };
        self.mul_f32s(pulp::cast(value), self.splat_f32s(0.5))
    }

    #[inline(always)]
    fn permute_words(self, words: pulp::u32x16, lanes: pulp::u32x16) -> pulp::u32x16 {
        let (words, lanes) = (pulp::cast(words), pulp::cast(lanes));
        pulp::cast(self.avx512f._mm512_permutexvar_epi32(lanes, words))
    }

    #[inline(always)]
    fn splat_halves(self, low: f32, high: f32) -> pulp::f32x16 {
        let [low, high] = [low, high].map(|half| pulp::cast(self.splat_f32s(half)));
        pulp::cast(self.avx512f._mm512_mask_blend_ps(0xff00, low, high))
    }

    #[inline(always)]
    fn within(self, f: impl FnOnce()) {
        self.vectorize(f);
    }
}

/// Returns the table values of the lowest seven bits of each 16-bit lane. A closure would be
/// compiled for narrow vectors.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn look_up_128(simd: V4, table: [u16x32; 4], indices: __m512i) -> __m512i {
    let (f, bw) = (simd.avx512f, simd.avx512bw);
    let [a, b, c, d] = pulp::cast::<_, [__m512i; 4]>(table);
    let low = bw._mm512_permutex2var_epi16(a, indices, b);
    let high = bw._mm512_permutex2var_epi16(c, indices, d);
    let is_high = bw._mm512_test_epi16_mask(indices, f._mm512_set1_epi16(64));
    bw._mm512_mask_blend_epi16(is_high, low, high)
}
