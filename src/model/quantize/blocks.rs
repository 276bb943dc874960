//! Quantizes blocks of values: finds the nearest code of each scaled value and packs the codes into 32-bit words.

use std::sync::LazyLock;

use arithmo_backends::Format;
use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK};

/// Smallest divisor of a block's values, as in bitsandbytes; it avoids 0 / 0 in blocks of zeros.
const SMALLEST: f32 = 1e-38;

/// The codes of a format sorted by value, for finding the nearest one.
#[derive(Clone, Debug)]
pub(super) struct Codebook {
    /// Midpoints between neighboring codes; a value on a midpoint gets the lower code.
    bounds: Vec<f32>,
    /// The code of each rank.
    codes: Vec<u8>,
    bits: usize,
}

impl Codebook {
    /// Builds the codebook of `format`.
    ///
    /// # Panics
    /// Panics if the format has more than 256 codes.
    pub(super) fn new(format: Format) -> Self {
        let code = format.code();
        assert!(code.len() <= 256, "{format:?} has no codes to choose from");
        let mut ranked: Vec<(u8, f32)> = (0..=u8::MAX).zip(code.iter().copied()).collect();
        // The sort is stable: of fp4's two zeros, the first is the lower.
        ranked.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        let halves = ranked.windows(2).map(|pair| (pair[0].1 + pair[1].1) / 2.0);
        Self {
            bounds: halves.collect(),
            codes: ranked.iter().map(|(code, _)| *code).collect(),
            bits: format.bits(),
        }
    }

    /// Returns the number of words that hold `values` codes.
    pub(super) fn words(&self, values: usize) -> usize {
        (values * self.bits).div_ceil(32)
    }

    /// Quantizes `values` block by block from the start of a block; `absmax` receives one scale per block.
    pub(super) fn quantize(&self, values: &[f32], words: &mut [u32], absmax: &mut [f32]) {
        let words = words.chunks_mut(self.words(BLOCK));
        for ((values, words), absmax) in values.chunks(BLOCK).zip(words).zip(absmax) {
            *absmax = self.quantize_block(values, words);
        }
    }

    /// Returns the code nearest to a scaled value; of two equally near codes, the lower.
    fn nearest_one(&self, value: f32) -> u8 {
        self.codes[self.bounds.partition_point(|bound| *bound < value)]
    }

    /// Quantizes one block (the last block of a matrix may be shorter) and returns its scale.
    fn quantize_block(&self, values: &[f32], words: &mut [u32]) -> f32 {
        let largest = magnitude(values);
        let mut scaled = [0f32; BLOCK];
        // bitsandbytes multiplies by the inverse, but divides in an incomplete 4-bit block, whose scale is never 0.
        let incomplete = self.bits == 4 && values.len() < BLOCK;
        let (absmax, inverse) = if incomplete {
            (largest.max(SMALLEST), 1.0)
        } else {
            (largest, 1.0 / largest.max(SMALLEST))
        };
        for (scaled, value) in scaled.iter_mut().zip(values) {
            *scaled = if incomplete { value / absmax } else { value * inverse };
        }
        let codes =
            if self.bits == 8 && largest == 0.0 { [0; BLOCK] } else { self.nearest(&scaled) };
        self.write(&codes, values.len(), words);
        absmax
    }

    /// Returns the code nearest to each value.
    fn nearest(&self, scaled: &[f32; BLOCK]) -> [u8; BLOCK] {
        if self.bits == 8 {
            return scaled.map(nearest_int8);
        }
        // Compares bound by bound over the block, which compiles to vector comparisons: twice as fast as a search per
        // value.
        let mut ranks = [0i32; BLOCK];
        for bound in &self.bounds {
            for (rank, value) in ranks.iter_mut().zip(scaled) {
                *rank += i32::from(value > bound);
            }
        }
        ranks.map(|rank| self.codes[rank as usize])
    }

    /// Packs the first `count` codes, four bytes per word; of two 4-bit codes in a byte, the first is the high one.
    fn write(&self, codes: &[u8; BLOCK], count: usize, words: &mut [u32]) {
        let mut bytes = *codes;
        let used = (count * self.bits).div_ceil(8);
        if self.bits == 4 {
            for (index, pair) in codes.as_chunks::<2>().0.iter().enumerate() {
                bytes[index] = pair[0] << 4 | pair[1];
            }
        }
        bytes[used..].fill(0);
        for (word, four) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*four);
        }
    }
}

/// Quantizes the scales (double quantization): 8-bit codes of the scales minus their mean, four per word, their own
/// scales, and the mean.
pub(super) fn quantize_scales(absmax: &[f32]) -> (Vec<u32>, Vec<f32>, f32) {
    // The mean is rounded once; torch sums in f32 in a machine-dependent order, at most an ulp or two away.
    let sum: f64 = absmax.iter().copied().map(f64::from).sum();
    let offset = (sum / absmax.len().max(1) as f64) as f32;
    let (mut codes, mut nested) = (Vec::with_capacity(absmax.len()), Vec::new());
    for block in absmax.chunks(NESTED_BLOCK) {
        let rest: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
        let largest = magnitude(&rest);
        let inverse = 1.0 / largest.max(SMALLEST);
        if largest == 0.0 {
            codes.resize(codes.len() + rest.len(), 0);
        } else {
            codes.extend(rest.iter().map(|value| nearest_int8(value * inverse)));
        }
        nested.push(largest);
    }
    (words(&codes), nested, offset)
}

/// Number of steps between -1 and 1 at which the nearest 8-bit code is tabulated.
const STEPS: usize = 1 << 16;

/// Returns the 8-bit code nearest to the scaled value rounded to a step. bitsandbytes' CPU backend does the same and
/// may miss a slightly nearer code; its GPU backends find the nearest.
fn nearest_int8(value: f32) -> u8 {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let codebook = Codebook::new(Format::Int8);
        let step = |step: usize| -1.0 + 2.0 * step as f32 / (STEPS - 1) as f32;
        (0..STEPS).map(|at| codebook.nearest_one(step(at))).collect()
    });
    let step = (value.clamp(-1.0, 1.0) + 1.0) * 0.5 * (STEPS - 1) as f32 + 0.5;
    TABLE[step as usize & (STEPS - 1)]
}

/// Converts bytes to little-endian words, the last one padded with zeros.
pub fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| (four.iter().rev()).fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

/// Returns the largest magnitude. NaN counts as larger than infinity: the bits of magnitudes are ordered like their
/// values.
fn magnitude(values: &[f32]) -> f32 {
    let bits = values.iter().map(|value| value.abs().to_bits() as i32);
    f32::from_bits(bits.fold(0, i32::max) as u32)
}
