//! Dropout masks: each element is 0 with probability `p`, else `1 / (1 - p)`.
//!
//! The random numbers are those of Philox 4x32-10, a generator that computes any number from its index (Salmon et al.
//! 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3): element `i` has word `i mod 4` of block `i / 4`.
//! So a mask is computed where it is used, in parallel, and every backend, a resumed run and a recomputed block get the
//! same one.

use burn::tensor::{DType, ElementConversion, Int, Tensor, backend::Backend};

/// A mask to compute.
#[derive(Clone, Copy, Debug)]
pub struct DropoutMask {
    /// `[T, D_in]`
    pub shape: [usize; 2],
    /// Probability of 0, at least 0 and less than 1.
    pub p: f64,
    /// The key of the generator.
    pub seed: u64,
    /// The third and fourth word of the generator's counter: masks of one seed differ if these do.
    pub stream: u64,
    /// Dtype of the mask.
    pub dtype: DType,
}

/// The multipliers of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];

/// The amounts by which the key changes after each round.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

const ROUNDS: u32 = 10;

/// Returns a block of four random words.
pub fn philox(mut counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    for key in round_keys(key) {
        let [first, second] =
            [0, 1].map(|side| u64::from(counter[2 * side]) * u64::from(MULTIPLIERS[side]));
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// Returns the key of each round.
fn round_keys(key: [u32; 2]) -> impl Iterator<Item = [u32; 2]> {
    (0..ROUNDS).map(move |round| {
        [0, 1].map(|index| key[index].wrapping_add(round.wrapping_mul(KEY_STEPS[index])))
    })
}

impl DropoutMask {
    /// Returns the four factors of block `block`.
    pub fn block(&self, block: usize) -> [f32; 4] {
        let [low, high] = self.stream_words();
        let counter = [block as u32, (block as u64 >> 32) as u32, low, high];
        philox(counter, self.key())
            .map(|word| if word < self.limit() { self.factor() } else { 0.0 })
    }

    /// Returns the two words of the key.
    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    fn stream_words(&self) -> [u32; 2] {
        [self.stream as u32, (self.stream >> 32) as u32]
    }

    /// Returns the first word that makes an element 0.
    fn limit(&self) -> u32 {
        ((1.0 - self.p) * 4_294_967_296.0) as u32
    }

    /// Returns the factor of an element that is kept.
    fn factor(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }
}

/// A word of every block in two tensors of 16 bits each, the high one first. Products of 16-bit values fit into U32, the
/// only unsigned type that every backend has.
type Halves<B> = [Tensor<B, 1, Int>; 2];

/// The reference body of [`TrainBackend::dropout_mask`](crate::TrainBackend::dropout_mask), in integer operations on the
/// device.
///
/// # Panics
/// If the mask has more than 2^33 elements.
pub fn reference<B: Backend>(mask: &DropoutMask, device: &B::Device) -> Tensor<B, 2> {
    let count = mask.shape[0] * mask.shape[1];
    let blocks = count.div_ceil(4);
    assert!(blocks < 1 << 31, "dropout_mask: {count} elements");
    let index = Tensor::<B, 1, Int>::arange(0..blocks as i64, device).cast(DType::U32);
    let constant = |word: u32| {
        let zero = index.zeros_like();
        [word >> 16, word & 0xFFFF].map(|half| zero.clone().add_scalar(i64::from(half)))
    };
    let [low, high] = mask.stream_words();
    let mut counter =
        [[high_half(&index), low_half(&index)], constant(0), constant(low), constant(high)];
    for key in round_keys(mask.key()) {
        let [first, second] = [0, 1].map(|side| product(&counter[2 * side], MULTIPLIERS[side]));
        let [_, one, _, three] = counter;
        counter = [xor(second.0, one, key[0]), second.1, xor(first.0, three, key[1]), first.1];
    }
    let factors = counter.map(|word| {
        let [limit_high, limit_low] = [mask.limit() >> 16, mask.limit() & 0xFFFF].map(i64::from);
        let [high, low] = word;
        let equal = high.clone().equal_elem(limit_high).bool_and(low.lower_elem(limit_low));
        let kept = high.lower_elem(limit_high).bool_or(equal);
        let zeros = Tensor::<B, 1>::zeros([blocks], (device, mask.dtype));
        zeros.mask_fill(kept, mask.factor())
    });
    let all = Tensor::stack::<2>(factors.to_vec(), 1).reshape([4 * blocks]);
    all.narrow(0, 0, count).reshape(mask.shape)
}

fn high_half<B: Backend>(value: &Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    value.clone().bitwise_right_shift_scalar(16.elem())
}

fn low_half<B: Backend>(value: &Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    value.clone().bitwise_and_scalar(0xFFFF.elem())
}

/// Returns the high and the low word of the 64-bit product of `word` and `by`.
fn product<B: Backend>([high, low]: &Halves<B>, by: u32) -> (Halves<B>, Halves<B>) {
    let by = [by >> 16, by & 0xFFFF].map(i64::from);
    let [high_high, high_low] = by.map(|half| high.clone().mul_scalar(half));
    let [low_high, low_low] = by.map(|half| low.clone().mul_scalar(half));
    let second = high_half(&low_low) + low_half(&low_high) + low_half(&high_low);
    let third =
        high_half(&low_high) + high_half(&high_low) + low_half(&high_high) + high_half(&second);
    let fourth = high_half(&high_high) + high_half(&third);
    ([fourth, low_half(&third)], [low_half(&second), low_half(&low_low)])
}

/// Returns the exclusive or of two words and a constant.
fn xor<B: Backend>(a: Halves<B>, b: Halves<B>, constant: u32) -> Halves<B> {
    let ([a_high, a_low], [b_high, b_low]) = (a, b);
    let [high, low] = [constant >> 16, constant & 0xFFFF].map(i64::from);
    [
        a_high.bitwise_xor(b_high).bitwise_xor_scalar(high.elem()),
        a_low.bitwise_xor(b_low).bitwise_xor_scalar(low.elem()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123 1.14 (`kat_vectors`, philox4x32 with 10 rounds).
    #[test]
    fn words_are_those_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }
}
