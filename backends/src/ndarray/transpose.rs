//! Fast transposition, which a GEMM with `W^T` applies to every weight before it multiplies.

#[cfg(target_arch = "x86_64")]
use pulp::{f32x16, x86::V4};

use super::tile::Rows;

/// Rows and columns of a block that is transposed in registers.
const BLOCK: usize = 16;

/// Writes a scaled transpose: `target[k * stride + row] = factor * from[row][k]` for `count` rows
/// and `length` columns of `from`.
///
/// # Panics
/// If `from` or `target` is too short.
pub(super) fn transpose(
    from: Rows<'_>,
    [count, length]: [usize; 2],
    factor: f32,
    target: &mut [f32],
    stride: usize,
) {
    let [mut rows, mut columns] = [0, 0];
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V4::try_new() {
        [rows, columns] = [count, length].map(|size| size - size % BLOCK);
        simd.vectorize(
            #[inline(always)]
            || {
                for row in (0..rows).step_by(BLOCK) {
                    for column in (0..columns).step_by(BLOCK) {
                        let block = &from.values[row * from.stride + column..];
                        let target = &mut target[column * stride + row..];
                        transpose_block(simd, (block, from.stride), factor, (target, stride));
                    }
                }
            },
        );
    }
    // The rows and columns that do not fill a block.
    for row in 0..count {
        let transposed_columns = if row < rows { columns } else { 0 };
        let values = &from.values[row * from.stride..][..length];
        for (column, value) in values.iter().enumerate().skip(transposed_columns) {
            target[column * stride + row] = factor * value;
        }
    }
}

/// Transposes a block of 16 x 16: four times, each row of the first half is interleaved with one of
/// the second.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_block(
    simd: V4,
    (from, from_stride): (&[f32], usize),
    factor: f32,
    (target, stride): (&mut [f32], usize),
) {
    use pulp::{Simd, cast};
    const LOWER: [u32; BLOCK] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
    const UPPER: [u32; BLOCK] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
    let interleave = simd.avx512f;
    let [lower, upper] = [cast(LOWER), cast(UPPER)];
    let mut rows = [cast::<_, f32x16>([0f32; BLOCK]); BLOCK];
    for (i, row) in rows.iter_mut().enumerate() {
        let (values, _) = V4::as_simd_f32s(&from[i * from_stride..][..BLOCK]);
        *row = values[0];
    }
    for _ in 0..BLOCK.ilog2() {
        let halves = rows;
        for i in 0..BLOCK / 2 {
            let [a, b] = [cast(halves[i]), cast(halves[i + BLOCK / 2])];
            rows[2 * i] = cast(interleave._mm512_permutex2var_ps(a, lower, b));
            rows[2 * i + 1] = cast(interleave._mm512_permutex2var_ps(a, upper, b));
        }
    }
    let factor = simd.splat_f32s(factor);
    for (i, row) in rows.into_iter().enumerate() {
        let (target, _) = V4::as_mut_simd_f32s(&mut target[i * stride..][..BLOCK]);
        target[0] = simd.mul_f32s(factor, row);
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::small_integers;
    use super::*;

    /// Checks whole blocks, remainders in both directions, and sources and targets within wider
    /// rows.
    #[test]
    fn every_value_is_transposed() {
        for [count, length] in [[1, 1], [16, 16], [5, 40], [48, 3], [35, 50], [64, 33]] {
            let (from_stride, stride) = (length + 3, count + 2);
            let values = small_integers(count * from_stride, 7);
            let before = small_integers(length * stride, 5);
            let mut target = before.clone();
            let from = Rows { values: &values, stride: from_stride };
            transpose(from, [count, length], 0.5, &mut target, stride);
            for (at, value) in target.iter().enumerate() {
                let (column, row) = (at / stride, at % stride);
                let expected =
                    if row < count { 0.5 * values[row * from_stride + column] } else { before[at] };
                assert_eq!(*value, expected, "{count}x{length} at {column}, {row}");
            }
        }
    }
}
