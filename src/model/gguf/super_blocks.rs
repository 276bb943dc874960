//! ggml's "K" quantizations in super-blocks of 256 values: Q4_K and Q6_K. The scales of the blocks in a super-block are
//! small integers themselves, with one f16 scale for all of them. Results equal those of ggml's reference functions
//! (`quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`), byte for byte, so sums are computed in the same order.

use half::f16;

/// Number of values per super-block.
pub(super) const SUPER_BLOCK: usize = 256;
/// Bytes of a super-block of Q4_K: two f16 scales, 12 bytes of block scales and minima, then two values per byte.
pub(super) const Q4_K_BYTES: usize = 2 * 2 + 12 + SUPER_BLOCK / 2;
/// Bytes of a super-block of Q6_K: the low four bits of the values, their high two bits, 16 block scales, one f16 scale.
pub(super) const Q6_K_BYTES: usize = SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + 16 + 2;

/// Values per block of Q4_K.
const Q4_BLOCK: usize = 32;
/// Values per block of Q6_K.
const Q6_BLOCK: usize = 16;
/// Largest integer of Q4_K.
const Q4_MAX: i32 = 15;
/// Number of scales that Q4_K tries beyond the first.
const Q4_STEPS: i32 = 20;
/// Magnitude of the smallest integer of Q6_K.
const Q6_MAX: i32 = 32;
/// Blocks whose values are all smaller count as zero.
const ZERO: f32 = 1e-15;

/// Quantizes a super-block to `scale * q - minimum` per block of 32, with `q` from 0 to 15, and scales and minima of 6 bits.
pub(super) fn q4_k(values: &[f32], out: &mut [u8]) {
    let mut codes = [0u8; SUPER_BLOCK];
    let (mut scales, mut minima) = ([0.0f32; 8], [0.0f32; 8]);
    for (block, values) in values.chunks_exact(Q4_BLOCK).enumerate() {
        let codes = &mut codes[Q4_BLOCK * block..][..Q4_BLOCK];
        (scales[block], minima[block]) = affine_codes(values, codes);
    }
    let largest = |of: &[f32; 8]| {
        of.iter().fold(0.0f32, |largest, x| if *x > largest { *x } else { largest })
    };
    let (largest_scale, largest_minimum) = (largest(&scales), largest(&minima));
    let inverse = |largest: f32| if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let six_bits = |value: f32, inverse: f32| (nearest(inverse * value) as u8).min(63);
    let six_bit_scales = scales.map(|scale| six_bits(scale, inverse(largest_scale)));
    let six_bit_minima = minima.map(|minimum| six_bits(minimum, inverse(largest_minimum)));
    let scale = f16::from_f32(largest_scale / 63.0);
    let minimum = f16::from_f32(largest_minimum / 63.0);
    for (block, values) in values.chunks_exact(Q4_BLOCK).enumerate() {
        let step = scale.to_f32() * f32::from(six_bit_scales[block]);
        if step == 0.0 {
            continue;
        }
        let offset = minimum.to_f32() * f32::from(six_bit_minima[block]);
        let codes = &mut codes[Q4_BLOCK * block..][..Q4_BLOCK];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = nearest((value + offset) / step).clamp(0, Q4_MAX) as u8;
        }
    }
    out[..2].copy_from_slice(&scale.to_le_bytes());
    out[2..4].copy_from_slice(&minimum.to_le_bytes());
    pack_scales(&six_bit_scales, &six_bit_minima, &mut out[4..16]);
    for (pair, codes) in out[16..].chunks_exact_mut(Q4_BLOCK).zip(codes.chunks_exact(2 * Q4_BLOCK))
    {
        for (index, byte) in pair.iter_mut().enumerate() {
            *byte = codes[index] | codes[index + Q4_BLOCK] << 4;
        }
    }
}

/// Packs eight scales and eight minima of 6 bits into 12 bytes: the first four of each with the high bits of the others.
fn pack_scales(scales: &[u8; 8], minima: &[u8; 8], out: &mut [u8]) {
    for block in 0..4 {
        out[block] = scales[block] | (scales[block + 4] >> 4) << 6;
        out[block + 4] = minima[block] | (minima[block + 4] >> 4) << 6;
        out[block + 8] = (scales[block + 4] & 0x0f) | (minima[block + 4] & 0x0f) << 4;
    }
}

/// Quantizes a block of Q4_K to `scale * q - minimum` with the smallest weighted squared error of several scales. Large
/// values weigh more. Writes `q` to `codes` and returns scale and minimum.
fn affine_codes(values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    let mean_square = values.iter().fold(0.0f32, |sum, x| sum + x * x) / Q4_BLOCK as f32;
    let root = mean_square.sqrt();
    let weight = |x: f32| root + x.abs();
    let (mut min, mut max) = (values[0], values[0]);
    let (mut sum_w, mut sum_x) = (weight(values[0]), weight(values[0]) * values[0]);
    for x in &values[1..] {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += weight(*x);
        sum_x += weight(*x) * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |x: f32, min: f32, inverse: f32| nearest(inverse * (x - min)).clamp(0, Q4_MAX) as u8;
    let error = |codes: &[u8], scale: f32, min: f32| {
        values.iter().zip(codes).fold(0.0f32, |sum, (x, q)| {
            let difference = scale * f32::from(*q) + min - x;
            sum + weight(*x) * (difference * difference)
        })
    };
    let inverse = Q4_MAX as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    values.iter().zip(&mut *codes).for_each(|(x, q)| *q = code(*x, min, inverse));
    let mut best = error(codes, scale, min);
    let mut tried = [0u8; Q4_BLOCK];
    for step in 0..=Q4_STEPS {
        // From the best minimum so far, as ggml does.
        let inverse = (-1.0 + 0.1 * step as f32 + Q4_MAX as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (x, q) in values.iter().zip(&mut tried) {
            *q = code(*x, min, inverse);
            let (w, l) = (weight(*x), f32::from(*q));
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        // The least-squares solution for scale and minimum with these integers.
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(&tried, this_scale, this_min);
            if this_error < best {
                codes.copy_from_slice(&tried);
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// Quantizes a super-block to `scale * q` per block of 16, with `q` from -32 to 31 and scales of 8 bits.
pub(super) fn q6_k(values: &[f32], out: &mut [u8]) {
    let mut codes = [0u8; SUPER_BLOCK];
    let mut scales = [0.0f32; SUPER_BLOCK / Q6_BLOCK];
    for (block, values) in values.chunks_exact(Q6_BLOCK).enumerate() {
        scales[block] = symmetric_codes(values, &mut codes[Q6_BLOCK * block..][..Q6_BLOCK]);
    }
    let largest = scales
        .iter()
        .fold(0.0f32, |largest, scale| if scale.abs() > largest.abs() { *scale } else { largest });
    if largest.abs() < ZERO {
        out.fill(0);
        return;
    }
    let inverse = -128.0 / largest;
    let super_scale = f16::from_f32(1.0 / inverse);
    let eight_bits = scales.map(|scale| nearest(inverse * scale).min(127) as i8);
    for (block, values) in values.chunks_exact(Q6_BLOCK).enumerate() {
        let step = super_scale.to_f32() * f32::from(eight_bits[block]);
        if step == 0.0 {
            continue;
        }
        let codes = &mut codes[Q6_BLOCK * block..][..Q6_BLOCK];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (nearest(value / step).clamp(-Q6_MAX, Q6_MAX - 1) + Q6_MAX) as u8;
        }
    }
    let (low, rest) = out.split_at_mut(SUPER_BLOCK / 2);
    let (high, rest) = rest.split_at_mut(SUPER_BLOCK / 4);
    for (half, codes) in codes.chunks_exact(SUPER_BLOCK / 2).enumerate() {
        let (low, high) = (&mut low[64 * half..][..64], &mut high[32 * half..][..32]);
        for index in 0..32 {
            let four = [0, 32, 64, 96].map(|from| codes[index + from]);
            low[index] = (four[0] & 0x0f) | (four[2] & 0x0f) << 4;
            low[index + 32] = (four[1] & 0x0f) | (four[3] & 0x0f) << 4;
            high[index] =
                four[0] >> 4 | (four[1] >> 4) << 2 | (four[2] >> 4) << 4 | (four[3] >> 4) << 6;
        }
    }
    rest[..16].copy_from_slice(&eight_bits.map(|scale| scale as u8));
    rest[16..].copy_from_slice(&super_scale.to_le_bytes());
}

/// Quantizes a block of Q6_K to `scale * (q - 32)` with the smallest weighted squared error of several scales. Values weigh
/// by their squares. Writes `q` to `codes` and returns the scale.
fn symmetric_codes(values: &[f32], codes: &mut [u8]) -> f32 {
    let largest =
        values.iter().fold(0.0f32, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    if largest.abs() < ZERO {
        return 0.0;
    }
    let code = |x: f32, inverse: f32| nearest(inverse * x).clamp(-Q6_MAX, Q6_MAX - 1);
    let sums = |inverse: f32| {
        values.iter().fold((0.0f32, 0.0f32), |(sum_lx, sum_l2), x| {
            let (w, l) = (x * x, code(*x, inverse) as f32);
            (sum_lx + w * x * l, sum_l2 + w * l * l)
        })
    };
    let (mut scale, mut best) = (0.0, 0.0);
    let steps = std::iter::once(0).chain((-9..=9).filter(|step| *step != 0));
    for step in steps {
        let inverse = -(Q6_MAX as f32 + 0.1 * step as f32) / largest;
        let (sum_lx, sum_l2) = sums(inverse);
        if step == 0 || sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            // The least-squares solution for the scale with these integers.
            scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
            best = scale * sum_lx;
            for (q, x) in codes.iter_mut().zip(values) {
                *q = (code(*x, inverse) + Q6_MAX) as u8;
            }
        }
    }
    scale
}

/// Rounds to the nearest integer, and halves to the even one. Values beyond a million are clamped; all of them lie outside
/// the integers of every quantization.
fn nearest(value: f32) -> i32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction. This is faster than `round_ties_even` without SSE 4.1.
    const MAGIC: f32 = 12_582_912.0;
    (value.clamp(-1e6, 1e6) + MAGIC) as i32 - MAGIC as i32
}
