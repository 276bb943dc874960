//! Horizontal sums of several vectors at once.
//!
//! The horizontal sum of one vector takes eight instructions, half of which move lanes; sixteen
//! vectors together take 45. Each sum is added in the order of `reduce_sum_f32s`, halves onto
//! halves, so the result is the same either way.

use pulp::Simd;

/// Returns the horizontal sums of `N` vectors for each of `M` rows.
#[inline(always)]
pub(super) fn reduce_sums<S: Simd, const M: usize, const N: usize>(
    simd: S,
    vectors: [[S::f32s; N]; M],
) -> [[f32; N]; M] {
    const { assert!(M * N <= 32, "more vectors than there are registers") };
    let mut sums = [[0f32; N]; M];
    #[cfg(target_arch = "x86_64")]
    if S::F32_LANES == 16
        && M * N >= 8
        && let Some(v4) = pulp::x86::V4::try_new()
    {
        // Every index is a compile-time constant, so the vectors stay in registers.
        let mut all = [v4.splat_f32x16(0.0); 32];
        for m in 0..M {
            for n in 0..N {
                all[m * N + n] = pulp::bytemuck::cast(vectors[m][n]);
            }
        }
        let (first, second) = all.split_at(16);
        let first = x86::sum_sixteen(v4, first);
        let second = if M * N > 16 { x86::sum_sixteen(v4, second) } else { first };
        for (m, row) in sums.iter_mut().enumerate() {
            for (n, sum) in row.iter_mut().enumerate() {
                let at = m * N + n;
                *sum = if at < 16 { first[at] } else { second[at - 16] };
            }
        }
        return sums;
    }
    for (sums, vectors) in sums.iter_mut().zip(vectors) {
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = simd.reduce_sum_f32s(vector);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::__m512;

    use pulp::bytemuck::cast;
    use pulp::f32x16;
    use pulp::x86::V4;

    /// Selections of quarters, or of lanes within quarters: two from the first vector, two from the
    /// second.
    const FIRST_HALVES: i32 = 0b01_00_01_00;
    const SECOND_HALVES: i32 = 0b11_10_11_10;
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;

    /// Returns the horizontal sum of each of 16 vectors.
    ///
    /// Closures are avoided: they would not be inlined and would be compiled for narrow vectors.
    #[inline(always)]
    pub(super) fn sum_sixteen(v4: V4, vectors: &[f32x16]) -> [f32; 16] {
        let mut v = [cast(v4.splat_f32x16(0.0)); 16];
        for at in 0..16 {
            v[at] = cast(vectors[at]);
        }
        let low = pairs(v4, four(v4, [v[0], v[1], v[2], v[3]]), four(v4, [v[4], v[5], v[6], v[7]]));
        let high =
            pairs(v4, four(v4, [v[8], v[9], v[10], v[11]]), four(v4, [v[12], v[13], v[14], v[15]]));
        let f = v4.avx512f;
        let sums = f._mm512_add_ps(
            f._mm512_shuffle_ps::<EVEN>(low, high),
            f._mm512_shuffle_ps::<ODD>(low, high),
        );
        // The sum of vector `4 q + j` is lane `q` of quarter `j`.
        let lane_order: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        cast(f._mm512_permutexvar_ps(cast(lane_order), sums))
    }

    /// Adds up four vectors to one whose quarters hold a partial sum of each.
    #[inline(always)]
    fn four(v4: V4, v: [__m512; 4]) -> __m512 {
        let (a, b, f) = (halves(v4, v[0], v[1]), halves(v4, v[2], v[3]), v4.avx512f);
        f._mm512_add_ps(f._mm512_shuffle_f32x4::<EVEN>(a, b), f._mm512_shuffle_f32x4::<ODD>(a, b))
    }

    /// Adds halves onto halves: the first half of the result comes from `a`, the second from `b`.
    #[inline(always)]
    fn halves(v4: V4, a: __m512, b: __m512) -> __m512 {
        let f = v4.avx512f;
        f._mm512_add_ps(
            f._mm512_shuffle_f32x4::<FIRST_HALVES>(a, b),
            f._mm512_shuffle_f32x4::<SECOND_HALVES>(a, b),
        )
    }

    /// Adds pairs onto pairs within each quarter.
    #[inline(always)]
    fn pairs(v4: V4, a: __m512, b: __m512) -> __m512 {
        let f = v4.avx512f;
        f._mm512_add_ps(
            f._mm512_shuffle_ps::<FIRST_HALVES>(a, b),
            f._mm512_shuffle_ps::<SECOND_HALVES>(a, b),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    struct Both;

    impl WithSimd for Both {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            check::<S, 4, 6>(simd);
            check::<S, 2, 4>(simd);
            check::<S, 3, 6>(simd);
            check::<S, 1, 6>(simd);
        }
    }

    #[inline(always)]
    fn check<S: Simd, const M: usize, const N: usize>(simd: S) {
        let mut vectors = [[simd.splat_f32s(0.0); N]; M];
        for (at, vector) in vectors.iter_mut().flatten().enumerate() {
            let values: Vec<f32> =
                (0..S::F32_LANES).map(|lane| ((at * 31 + lane) as f32 * 1.37).sin()).collect();
            *vector = simd.partial_load_f32s(&values);
        }
        let together = reduce_sums(simd, vectors);
        for (sums, vectors) in together.iter().zip(vectors) {
            for (sum, vector) in sums.iter().zip(vectors) {
                assert_eq!(sum.to_bits(), simd.reduce_sum_f32s(vector).to_bits());
            }
        }
    }

    #[test]
    fn joint_sums_equal_single_sums() {
        Arch::new().dispatch(Both);
    }
}
