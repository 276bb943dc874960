//! ggml's quantizations in blocks of 32 values: Q8_0, Q5_0 and Q4_0. A block is one scale in f16 and one small integer per
//! value. Results equal those of ggml's reference functions (`quantize_row_q8_0_ref` and the like), byte for byte.

use half::f16;

/// Number of values per block.
pub(super) const BLOCK: usize = 32;
/// Bytes of a block of Q8_0: the scale, then one byte per value.
pub(super) const Q8_0_BYTES: usize = 2 + BLOCK;
/// Bytes of a block of Q5_0: the scale, the fifth bits, then two values per byte.
pub(super) const Q5_0_BYTES: usize = 2 + BLOCK / 8 + BLOCK / 2;
/// Bytes of a block of Q4_0: the scale, then two values per byte.
pub(super) const Q4_0_BYTES: usize = 2 + BLOCK / 2;

/// Quantizes a block to integers from -127 to 127, whose largest magnitude is that of the largest value.
pub(super) fn q8_0(values: &[f32], out: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let inverse = write_scale(largest / 127.0, out);
    for (code, value) in out[2..].iter_mut().zip(values) {
        *code = (value * inverse).round() as i8 as u8;
    }
}

/// Quantizes a block to integers from -16 to 15, of which -16 stands for the value of the largest magnitude.
pub(super) fn q5_0(values: &[f32], out: &mut [u8]) {
    let inverse = write_scale(value_of_largest_magnitude(values) / -16.0, out);
    let code = |value: f32| ((value * inverse + 16.5) as i8).min(31) as u8;
    let (mut fifth_bits, half) = (0u32, BLOCK / 2);
    for index in 0..half {
        let (low, high) = (code(values[index]), code(values[index + half]));
        out[6 + index] = (low & 0x0f) | (high << 4);
        fifth_bits |= u32::from(low >> 4) << index | u32::from(high >> 4) << (index + half);
    }
    out[2..6].copy_from_slice(&fifth_bits.to_le_bytes());
}

/// Quantizes a block to integers from -8 to 7, of which -8 stands for the value of the largest magnitude.
pub(super) fn q4_0(values: &[f32], out: &mut [u8]) {
    let inverse = write_scale(value_of_largest_magnitude(values) / -8.0, out);
    let code = |value: f32| ((value * inverse + 8.5) as i8).min(15) as u8;
    let half = BLOCK / 2;
    for index in 0..half {
        out[2 + index] = code(values[index]) | code(values[index + half]) << 4;
    }
}

/// Writes `scale` in f16 to the start of a block. Returns the inverse of the unrounded scale, or 0 if that is 0.
fn write_scale(scale: f32, out: &mut [u8]) -> f32 {
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Returns the value of the largest magnitude, with its sign; of several, the first.
fn value_of_largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(
        0.0f32,
        |largest, value| {
            if largest.abs() < value.abs() { *value } else { largest }
        },
    )
}
