//! Blocks of values as codes: the nearest code of each scaled value, packed into words.

use std::sync::LazyLock;

use arithmo_backends::Format;
use arithmo_backends::ops::packed::{BLOCK, NESTED_BLOCK};

/// Smallest scale a value is divided by, as in bitsandbytes: of a block of zeros 0 / 0 is not asked for.
const SMALLEST: f32 = 1e-38;

/// The codes of a format in rising order, to find the nearest.
#[derive(Clone, Debug)]
pub(super) struct Codebook {
    /// Halfway between neighbours; what lies on one goes to the lower.
    bounds: Vec<f32>,
    /// The code of each rank.
    codes: Vec<u8>,
    bits: usize,
}

impl Codebook {
    /// # Panics
    /// If the format has more than 256 codes.
    pub(super) fn new(format: Format) -> Self {
        let code = format.code();
        assert!(code.len() <= 256, "{format:?} has no codes to choose from");
        let mut ranked: Vec<(u8, f32)> = (0..=u8::MAX).zip(code.iter().copied()).collect();
        // Stable: of fp4's two zeros, the first is the lower.
        ranked.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        let halves = ranked.windows(2).map(|pair| (pair[0].1 + pair[1].1) / 2.0);
        Self {
            bounds: halves.collect(),
            codes: ranked.iter().map(|(code, _)| *code).collect(),
            bits: format.bits(),
        }
    }

    /// Words that hold `values` codes.
    pub(super) fn words(&self, values: usize) -> usize {
        (values * self.bits).div_ceil(32)
    }

    /// Packs `values`, block after block, from a block's first on; `absmax` gets a scale a block.
    pub(super) fn pack(&self, values: &[f32], words: &mut [u32], absmax: &mut [f32]) {
        let words = words.chunks_mut(self.words(BLOCK));
        for ((values, words), absmax) in values.chunks(BLOCK).zip(words).zip(absmax) {
            *absmax = self.pack_block(values, words);
        }
    }

    /// The code nearest to a scaled value; of two as near, the lower.
    fn nearest_one(&self, value: f32) -> u8 {
        self.codes[self.bounds.partition_point(|bound| *bound < value)]
    }

    /// Packs one block, the last one of a matrix perhaps shorter, and returns its scale.
    fn pack_block(&self, values: &[f32], words: &mut [u32]) -> f32 {
        let largest = magnitude(values);
        let mut scaled = [0f32; BLOCK];
        // bitsandbytes multiplies by the inverse, but divides in an incomplete block of 4 bits, whose scale is never 0.
        let incomplete = self.bits == 4 && values.len() < BLOCK;
        let (absmax, inverse) = match incomplete {
            true => (largest.max(SMALLEST), 1.0),
            false => (largest, 1.0 / largest.max(SMALLEST)),
        };
        for (scaled, value) in scaled.iter_mut().zip(values) {
            *scaled = match incomplete {
                true => value / absmax,
                false => value * inverse,
            };
        }
        let codes = match self.bits == 8 && largest == 0.0 {
            true => [0; BLOCK],
            false => self.nearest(&scaled),
        };
        self.write(&codes, values.len(), words);
        absmax
    }

    /// The code nearest to each value.
    fn nearest(&self, scaled: &[f32; BLOCK]) -> [u8; BLOCK] {
        if self.bits == 8 {
            return scaled.map(nearest_of_256);
        }
        // Bound by bound over the block, which compiles to vector comparisons: twice as fast as searching.
        let mut ranks = [0i32; BLOCK];
        for bound in &self.bounds {
            for (rank, value) in ranks.iter_mut().zip(scaled) {
                *rank += i32::from(value > bound);
            }
        }
        ranks.map(|rank| self.codes[rank as usize])
    }

    /// The first `count` codes, four bytes a word; of two 4-bit codes in a byte, the first is the high one.
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

/// The scales of double quantisation: 8-bit codes of what is left without the mean, four a word, and their own scales.
pub(super) fn pack_scales(absmax: &[f32]) -> (Vec<u32>, Vec<f32>, f32) {
    // The mean rounded once; torch's own, summed in f32 in an order of the machine's, is at most an ulp or two away.
    let sum: f64 = absmax.iter().copied().map(f64::from).sum();
    let offset = (sum / absmax.len().max(1) as f64) as f32;
    let (mut codes, mut nested) = (Vec::with_capacity(absmax.len()), Vec::new());
    for block in absmax.chunks(NESTED_BLOCK) {
        let rest: Vec<f32> = block.iter().map(|scale| scale - offset).collect();
        let largest = magnitude(&rest);
        let inverse = 1.0 / largest.max(SMALLEST);
        match largest == 0.0 {
            true => codes.resize(codes.len() + rest.len(), 0),
            false => codes.extend(rest.iter().map(|value| nearest_of_256(value * inverse))),
        }
        nested.push(largest);
    }
    (words(&codes), nested, offset)
}

/// Steps between -1 and 1 for which the nearest 8-bit code is known.
const STEPS: usize = 1 << 16;

/// The 8-bit code nearest to a scaled value rounded to a step: what bitsandbytes' CPU backend takes, where a code a little
/// nearer may be missed (on GPUs it takes that).
fn nearest_of_256(value: f32) -> u8 {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let codebook = Codebook::new(Format::Int8);
        let step = |step: usize| -1.0 + 2.0 * step as f32 / (STEPS - 1) as f32;
        (0..STEPS).map(|at| codebook.nearest_one(step(at))).collect()
    });
    let step = (value.clamp(-1.0, 1.0) + 1.0) * 0.5 * (STEPS - 1) as f32 + 0.5;
    TABLE[step as usize & (STEPS - 1)]
}

/// Bytes as words, little-endian, the last one filled with zeros.
pub fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| (four.iter().rev()).fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

/// The largest magnitude. NaN counts as larger than infinity: of magnitudes, the bits have the order of the values.
fn magnitude(values: &[f32]) -> f32 {
    let bits = values.iter().map(|value| value.abs().to_bits() as i32);
    f32::from_bits(bits.fold(0, i32::max) as u32)
}
