//! Optimizer state in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), like bitsandbytes' block-wise optimizers.
//!
//! A block of 256 values shares a scale, its largest absolute value. Each value is the nearest of 256 of a codebook, times
//! the scale. A step converts the state of one parameter to floats, updates it, and converts it back.

use arithmo_backends::ops::packed::{dynamic_code, unsigned_dynamic_code};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, ElementConversion, Int, Tensor, TensorData};

/// The number of values that share a scale.
pub const BLOCK: usize = 256;

/// The number of values of the smallest matrix whose state is kept in 8 bits.
pub const MIN_VALUES: usize = 4096;

/// The names of state matrices whose values are never negative. They have a codebook of their own.
const UNSIGNED: [&str; 1] = ["exp_avg_sq"];

/// The name of the words and of the scales of a matrix in a checkpoint.
pub const PARTS: [&str; 2] = ["words", "absmax"];

/// A matrix in 8 bits.
#[derive(Clone, Debug)]
pub struct Blocks<B: Backend> {
    /// Shape of the matrix.
    pub dims: [usize; 2],
    /// Indices into the codebook, four per word with the first in the lowest byte, U32. The last block is padded with
    /// zeros.
    pub words: Tensor<B, 1, Int>,
    /// Scale of each block, f32.
    pub absmax: Tensor<B, 1>,
    /// The codebook, in ascending order.
    code: &'static [f32],
}

impl<B: Backend> Blocks<B> {
    /// Converts the state matrix `name` to 8 bits.
    pub fn new(name: &str, values: Tensor<B, 2>) -> Self {
        let (dims, device, code) = (values.dims(), values.device(), codebook(name));
        let count = dims[0] * dims[1];
        let (values, dtype) = (values.reshape([count]), DType::F32);
        let padding = Tensor::zeros([count.next_multiple_of(BLOCK) - count], (&device, dtype));
        let values = Tensor::cat(vec![values.cast(dtype), padding], 0);
        let values = values.reshape([-1, BLOCK as i64]);
        let absmax = values.clone().abs().max_dim(1);
        // Every value of a block of zeros is 0, whatever it is divided by.
        let divisor = absmax.clone() + absmax.clone().equal_elem(0.0).float().cast(dtype);
        let scaled: Tensor<B, 1> = (values / divisor).reshape([-1]);
        let words = pack(nearest(scaled, code));
        Self { dims, words, absmax: absmax.reshape([-1]), code }
    }

    /// Creates a matrix from its parts in a checkpoint, or returns `None` if their shapes or types do not fit `dims`.
    pub fn from_parts(
        name: &str,
        dims: [usize; 2],
        [words, absmax]: [TensorData; 2],
        device: &B::Device,
    ) -> Option<Self> {
        let blocks = (dims[0] * dims[1]).div_ceil(BLOCK);
        let fits = words.shape == [blocks * BLOCK / 4].into()
            && absmax.shape == [blocks].into()
            && (words.dtype, absmax.dtype) == (DType::U32, DType::F32);
        fits.then(|| Self {
            dims,
            words: Tensor::from_data(words, (device, DType::U32)),
            absmax: Tensor::from_data(absmax, (device, DType::F32)),
            code: codebook(name),
        })
    }

    /// Returns the matrix as floats of `dtype`.
    pub fn floats(&self, dtype: DType) -> Tensor<B, 2> {
        let count = self.dims[0] * self.dims[1];
        let values = look_up(self.code, unpack(&self.words)).reshape([-1, BLOCK as i64]);
        let values = values * self.absmax.clone().unsqueeze_dim::<2>(1);
        let values: Tensor<B, 1> = values.reshape([-1]);
        values.narrow(0, 0, count).reshape(self.dims).cast(dtype)
    }
}

/// Returns the codebook of a state matrix, in ascending order (bitsandbytes' `create_dynamic_map`).
fn codebook(name: &str) -> &'static [f32] {
    if UNSIGNED.contains(&name) { unsigned_dynamic_code() } else { dynamic_code() }
}

/// Returns the index of the nearest value of `code` for each of `values`, the lower one if two are equally near. It is found
/// by bisection.
fn nearest<B: Backend>(values: Tensor<B, 1>, code: &[f32]) -> Tensor<B, 1, Int> {
    let device = values.device();
    let middles: Vec<f32> = code
        .windows(2)
        .map(|pair| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32)
        .collect();
    let count = middles.len();
    let middles =
        Tensor::<B, 1>::from_data(TensorData::new(middles, [count]), (&device, DType::F32));
    let mut indices = values.zeros_like().int();
    for bit in (0..8).rev() {
        let step = 1i64 << bit;
        let below = middles.clone().select(0, indices.clone().add_scalar(step - 1));
        indices = indices + values.clone().greater(below).int().mul_scalar(step);
    }
    indices
}

/// Packs four indices per word.
fn pack<B: Backend>(indices: Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    let indices = indices.cast(DType::U32).reshape([-1, 4]);
    let columns = indices.chunk(4, 1).into_iter().zip(0i32..);
    let shifted = columns
        .map(|(column, byte)| column.reshape([-1]).bitwise_left_shift_scalar((8 * byte).elem()));
    let words: Option<Tensor<B, 1, Int>> = shifted.reduce(Tensor::bitwise_or);
    words.unwrap_or_else(|| unreachable!("four columns"))
}

/// Returns the indices in `words`.
fn unpack<B: Backend>(words: &Tensor<B, 1, Int>) -> Tensor<B, 1, Int> {
    let bytes = (0i32..4).map(|byte| {
        let shifted = words.clone().bitwise_right_shift_scalar((8 * byte).elem());
        shifted.bitwise_and_scalar(255.elem()).unsqueeze_dim::<2>(1)
    });
    Tensor::cat(bytes.collect(), 1).reshape([-1])
}

/// Returns the value of `code` at each index.
fn look_up<B: Backend>(code: &[f32], indices: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let table = TensorData::new(code.to_vec(), [code.len()]);
    let device = indices.device();
    let index_type = Tensor::<B, 1, Int>::zeros([1], &device).dtype();
    Tensor::from_data(table, (&device, DType::F32)).select(0, indices.cast(index_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    type B = burn_ndarray::NdArray<f32>;

    fn matrix(values: Vec<f32>, dims: [usize; 2]) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(values, dims), &Default::default())
    }

    #[test]
    fn codebooks_are_ascending_and_hold_zero_and_one() {
        for name in ["exp_avg", "exp_avg_sq"] {
            let code = codebook(name);
            assert_eq!(code.len(), 256);
            assert!(code.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
            assert!(code.contains(&0.0) && code[255] == 1.0, "{name}");
        }
        // The largest decade of the unsigned code has steps of 0.9 / 128.
        let code = codebook("exp_avg_sq");
        assert!((code[254] - (1.0 - 0.45 / 128.0)).abs() < 1e-6, "{}", code[254]);
    }

    /// Every value comes back as the nearest code times its block's scale. The last block is not full, and one is zero.
    #[test]
    fn values_become_the_nearest_code() {
        let dims = [3, 300];
        let mut values: Vec<f32> =
            (0..900).map(|i| ((i * 7919 % 1000) as f32 - 500.0).powi(3)).collect();
        values[256..512].fill(0.0);
        for name in ["exp_avg", "exp_avg_sq"] {
            let values: Vec<f32> = if name == "exp_avg" {
                values.clone()
            } else {
                values.iter().map(|value| value.abs()).collect()
            };
            let blocks = Blocks::new(name, matrix(values.clone(), dims));
            let back: Vec<f32> = blocks.floats(DType::F32).into_data().to_vec().unwrap();
            for (block, (values, back)) in values.chunks(BLOCK).zip(back.chunks(BLOCK)).enumerate()
            {
                let scale = values.iter().fold(0f32, |max, value| max.max(value.abs()));
                for (value, back) in values.iter().zip(back) {
                    let distances = blocks.code.iter().map(|code| (code * scale - value).abs());
                    let nearest = distances.fold(f32::INFINITY, f32::min);
                    let ours = (back - value).abs();
                    assert!(
                        ours <= nearest * 1.0001 + scale * 1e-6,
                        "{name} {block}: {value} {back}"
                    );
                }
            }
            let data = [blocks.words.to_data(), blocks.absmax.to_data()];
            let read = Blocks::<B>::from_parts(name, dims, data, &Default::default()).unwrap();
            assert_eq!(read.floats(DType::F32).into_data(), blocks.floats(DType::F32).into_data());
        }
        let data = [TensorData::new(vec![0u32; 3], [3]), TensorData::new(vec![0f32; 1], [1])];
        assert!(Blocks::<B>::from_parts("exp_avg", [1, 5], data, &Default::default()).is_none());
    }
}
