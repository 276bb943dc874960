//! The forms in which a GGUF file stores the values of a tensor.

use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks::{BLOCK, Q4_0_BYTES, Q5_0_BYTES, Q8_0_BYTES, q4_0, q5_0, q8_0};
use super::super_blocks::{Q4_K_BYTES, Q6_K_BYTES, SUPER_BLOCK, q4_k, q6_k};

/// Number of blocks that a thread encodes at once, for types whose blocks are single values.
const VALUES_PER_TASK: usize = 1 << 14;

/// A form of storage, with ggml's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorType {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits (IEEE 754 binary16).
    F16,
    /// Floats of 16 bits with the range of f32.
    BF16,
    /// 4.5 bits per value: blocks of 32 with one scale.
    Q4_0,
    /// 5.5 bits per value: blocks of 32 with one scale.
    Q5_0,
    /// 8.5 bits per value: blocks of 32 with one scale.
    Q8_0,
    /// 4.5 bits per value: super-blocks of 256 with scales and minima.
    Q4K,
    /// 6.5625 bits per value: super-blocks of 256 with scales.
    Q6K,
}

impl TensorType {
    /// Returns the number of the type in files (`ggml_type`).
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    /// Returns the number of values per block. Rows are multiples of it.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => BLOCK,
            Self::Q4K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Returns the number of bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => Q4_0_BYTES,
            Self::Q5_0 => Q5_0_BYTES,
            Self::Q8_0 => Q8_0_BYTES,
            Self::Q4K => Q4_K_BYTES,
            Self::Q6K => Q6_K_BYTES,
        }
    }

    /// Returns the number of bytes of `values` values.
    pub fn bytes(self, values: usize) -> usize {
        values / self.block_values() * self.block_bytes()
    }

    /// Encodes `values` on all threads.
    ///
    /// # Panics
    /// Panics if the values do not fill their last block.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let (block, bytes) = (self.block_values(), self.block_bytes());
        assert!(values.len().is_multiple_of(block), "{} values in blocks of {block}", values.len());
        let blocks = VALUES_PER_TASK / block;
        let mut out = vec![0; self.bytes(values.len())];
        let tasks = out.par_chunks_mut(blocks * bytes).zip(values.par_chunks(blocks * block));
        tasks.for_each(|(out, values)| {
            for (out, values) in out.chunks_exact_mut(bytes).zip(values.chunks_exact(block)) {
                self.encode_block(values, out);
            }
        });
        out
    }

    /// Encodes one block.
    fn encode_block(self, values: &[f32], out: &mut [u8]) {
        match self {
            Self::F32 => out.copy_from_slice(&values[0].to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes()),
            Self::BF16 => out.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes()),
            Self::Q4_0 => q4_0(values, out),
            Self::Q5_0 => q5_0(values, out),
            Self::Q8_0 => q8_0(values, out),
            Self::Q4K => q4_k(values, out),
            Self::Q6K => q6_k(values, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Number of different random values.
    const VALUES: usize = 64 * SUPER_BLOCK;

    fn golden(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
        fs::read(folder.join(name)).unwrap()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    /// `tests/golden/make/09_gguf.py` made the bytes with ggml's own functions.
    #[test]
    fn blocks_equal_those_of_ggml_byte_for_byte() {
        let values = floats(&golden("values.f32"));
        for (kind, file) in [
            (TensorType::Q8_0, "q8_0.bin"),
            (TensorType::Q5_0, "q5_0.bin"),
            (TensorType::Q4_0, "q4_0.bin"),
            (TensorType::Q4K, "q4_k.bin"),
            (TensorType::Q6K, "q6_k.bin"),
        ] {
            let (ours, theirs) = (kind.encode(&values), golden(file));
            assert_eq!(ours.len(), theirs.len(), "{kind:?}");
            let size = kind.block_bytes();
            for (block, (ours, theirs)) in ours.chunks(size).zip(theirs.chunks(size)).enumerate() {
                assert_eq!(ours, theirs, "{kind:?}, block {block}");
            }
        }
    }

    /// Returns values with a normal distribution of variance 1: sums of twelve uniform ones.
    fn normal_values() -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..VALUES).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    fn half(bytes: &[u8]) -> f32 {
        f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }

    /// Returns the values of a super-block of Q4_K: scale and minimum of block `j` are bits 0 to 5 of bytes `j` and `j + 4`
    /// for `j < 4`, else the halves of byte `j + 4` with the high bits of bytes `j - 4` and `j`.
    fn q4_k_values(block: &[u8]) -> Vec<f32> {
        let (scale, minimum, packed, codes) =
            (half(block), half(&block[2..]), &block[4..16], &block[16..]);
        let value = |index: usize| {
            let j = index / 32;
            let (s, m) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                let (low, high) = (packed[j + 4], (packed[j - 4] >> 6, packed[j] >> 6));
                ((low & 15) | high.0 << 4, (low >> 4) | high.1 << 4)
            };
            let byte = codes[index / 64 * 32 + index % 32];
            let code = if j.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            scale * f32::from(s) * f32::from(code) - minimum * f32::from(m)
        };
        (0..256).map(value).collect()
    }

    /// Returns the values of a super-block of Q6_K: in each half of 128, value `32 q + l` has its low four bits in byte
    /// `l` (`q` even) or `32 + l` (odd), in the high half if `q >= 2`, and its high bits in bits `2 q` of byte `l`.
    fn q6_k_values(block: &[u8]) -> Vec<f32> {
        let (low, high, scales, scale) =
            (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
        let value = |index: usize| {
            let (part, q, l) = (index / 128, index % 128 / 32, index % 32);
            let byte = low[64 * part + 32 * (q % 2) + l];
            let low = if q < 2 { byte & 15 } else { byte >> 4 };
            let high = high[32 * part + l] >> (2 * q) & 3;
            let code = i32::from(low | high << 4) - 32;
            scale * f32::from(scales[index / 16] as i8) * code as f32
        };
        (0..256).map(value).collect()
    }

    fn simple_values(block: &[u8], zero: f32, code: impl Fn(usize) -> u8) -> Vec<f32> {
        (0..32).map(|index| half(block) * (f32::from(code(index)) - zero)).collect()
    }

    /// A block of n normal values spans about 4.1 standard deviations for n = 32, 3.5 for n = 16, and its largest magnitude
    /// is about 2.2. With a step of span / levels, the error is uniform with the standard deviation step / sqrt(12). Scales
    /// of 6 bits add a few percent, the choice of the best scale takes some away.
    #[test]
    fn errors_are_those_of_the_number_of_levels() {
        let q8 = |block: &[u8]| {
            block[2..].iter().map(|code| half(block) * f32::from(*code as i8)).collect()
        };
        let nibble = |codes: &[u8], index: usize| {
            if index < 16 { codes[index] & 15 } else { codes[index - 16] >> 4 }
        };
        let values = normal_values();
        for (kind, step, decode) in [
            (TensorType::Q8_0, 2.0 * 2.2 / 254.0, &q8 as &dyn Fn(&[u8]) -> Vec<f32>),
            (TensorType::Q4_0, 2.2 / 8.0, &|block| {
                simple_values(block, 8.0, |index| nibble(&block[2..], index))
            }),
            (TensorType::Q5_0, 2.2 / 16.0, &|block| {
                let fifth = u32::from_le_bytes(block[2..6].try_into().unwrap());
                simple_values(block, 16.0, |index| {
                    nibble(&block[6..], index) | ((fifth >> index & 1) as u8) << 4
                })
            }),
            (TensorType::Q4K, 4.1 / 15.0, &q4_k_values),
            (TensorType::Q6K, 2.0 * 1.8 / 63.0, &q6_k_values),
        ] {
            let decoded = kind.encode(&values);
            let decoded = decoded.chunks_exact(kind.block_bytes()).flat_map(decode);
            let squares: f64 =
                values.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let ratio = (squares / VALUES as f64).sqrt() / (step / 12f64.sqrt());
            assert!((0.8..1.2).contains(&ratio), "{kind:?}: {ratio}");
        }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest() {
        let values = [1.0f32, -0.1, 65504.0, 1e-8];
        let stored = |kind: TensorType| kind.encode(&values);
        assert_eq!(floats(&stored(TensorType::F32)), values);
        let halves: Vec<f32> = stored(TensorType::F16).chunks_exact(2).map(half).collect();
        assert_eq!(halves, values.map(|value| f16::from_f32(value).to_f32()));
        let brains = stored(TensorType::BF16);
        let brains: Vec<f32> = brains
            .chunks_exact(2)
            .map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32())
            .collect();
        assert_eq!(brains, values.map(|value| bf16::from_f32(value).to_f32()));
    }
}
