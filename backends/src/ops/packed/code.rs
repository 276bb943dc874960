//! The codebooks of bitsandbytes: the value of each quantized index.

use std::sync::LazyLock;

/// NormalFloat4 (QLoRA, appendix E).
pub(super) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// FP4: a sign, two bits of exponent and one of mantissa, divided by the largest value.
pub(super) const FP4: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut code = [0.0; 16];
    let mut index = 1;
    while index < 8 {
        (code[index], code[index + 8]) = (twelfths[index] / 12.0, -twelfths[index] / 12.0);
        index += 1;
    }
    code
};

/// Returns the dynamic map (arXiv 2110.02861, section 2.1) in ascending order: from one power of ten to the next
/// twice as many values, with both signs, plus 0 and 1.
pub(super) fn dynamic() -> &'static [f32] {
    static CODE: LazyLock<Vec<f32>> = LazyLock::new(|| dynamic_map(true));
    &CODE
}

/// Returns the dynamic map without negative values, which has twice as many values in each power of ten.
pub(super) fn unsigned_dynamic() -> &'static [f32] {
    static CODE: LazyLock<Vec<f32>> = LazyLock::new(|| dynamic_map(false));
    &CODE
}

fn dynamic_map(signed: bool) -> Vec<f32> {
    let mut code = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = 1 << if signed { exponent } else { exponent + 1 };
        let scale = 10f64.powi(exponent - 6) as f32;
        for pair in linspace(0.1, 1.0, parts).windows(2) {
            let value = scale * ((pair[0] + pair[1]) / 2.0);
            code.push(value);
            code.extend(signed.then_some(-value));
        }
    }
    code.sort_by(f32::total_cmp);
    code
}

/// Returns the bounds of `parts` equal parts, each rounded once and computed from the nearer end (torch's
/// `linspace`).
fn linspace(start: f32, end: f32, parts: usize) -> Vec<f32> {
    let step = f64::from((end - start) / parts as f32);
    let bound = |index: usize| {
        if index < parts.div_ceil(2) {
            (f64::from(start) + step * index as f64) as f32
        } else {
            (f64::from(end) - step * (parts - index) as f64) as f32
        }
    };
    (0..=parts).map(bound).collect()
}

/// Returns the f32 value of each 16-bit upper half.
pub(super) fn bf16() -> &'static [f32] {
    static CODE: LazyLock<Vec<f32>> = LazyLock::new(|| {
        let value = |half: u16| f32::from_bits(u32::from(half) << 16);
        (0..=u16::MAX).map(value).collect()
    });
    &CODE
}
