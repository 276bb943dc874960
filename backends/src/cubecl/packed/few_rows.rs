//! GEMM of a few rows with a quantized weight, `x W^T`, directly from its words. This is what decoding computes;
//! dequantizing the weight first would write and read many times the bytes of the words.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{Plan, QuantizedTensors, block_scale, dequantize_word, load_codebooks};
use crate::cubecl::launch::{THREADS, block_grid, dense_rows, empty, vector_size, vector_sum};
use crate::cubecl::runtime::GpuRuntime;
use crate::ops::packed::BLOCK;

/// The largest number of rows of `x`.
const MAX_ROWS: usize = 8;

/// Threads of a group. They process a row of the weight together, one word each at a time.
const GROUP_THREADS: usize = 32;

/// Groups per block.
const GROUPS: usize = THREADS / GROUP_THREADS;

/// Rows of the weight per group, so that a value read from `x` is used more than once.
const ROWS_PER_GROUP: usize = 2;

/// Words of a row that a thread reads before it computes, so that several reads are in flight.
const WORDS_AHEAD: usize = 4;

/// Distance between the partial sums of two groups in shared memory. It is odd so that the threads that add them up
/// read different banks.
const PITCH: usize = GROUP_THREADS + 1;

impl<R: GpuRuntime> QuantizedTensors<R> {
    /// Computes `x W^T` for a few rows `[T, D_in]` into `dtype`, accumulated in f32. Returns `None` for more than
    /// [`MAX_ROWS`] rows, and where a row of the weight begins within a word.
    pub(in crate::cubecl) fn few_rows_matmul(
        &self,
        x: &CubeTensor<R>,
        dtype: DType,
    ) -> Option<CubeTensor<R>> {
        let (spec, [count, d_in]) = (self.spec, x.meta.shape().dims());
        let per_word = spec.format.per_word();
        if !(1..=MAX_ROWS).contains(&count) || !d_in.is_multiple_of(per_word) {
            return None;
        }
        let x = dense_rows(x.clone());
        let output = empty(&x, [count, spec.d_out], dtype);
        // The weights that meet a vector of x must lie within one word.
        let vector = vector_size(&[&x], &[d_in, per_word]);
        let dtypes = [x.dtype.into(), dtype.into()];
        few_rows::launch::<R>(
            &output.client,
            block_grid(spec.d_out.div_ceil(GROUPS * ROWS_PER_GROUP)),
            CubeDim::new_1d(THREADS as u32),
            vector,
            x.into_tensor_arg(),
            self.words.clone().into_tensor_arg(),
            self.absmax.clone().into_tensor_arg(),
            self.scale_words.clone().into_tensor_arg(),
            self.codebooks.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            spec.offset,
            spec.plan(false),
            count,
            dtypes,
        );
        Some(output)
    }
}

/// Computes [`ROWS_PER_GROUP`] columns of the output per group. Each thread accumulates its share of the terms, which
/// are added up at the end.
#[cube(launch)]
fn few_rows<F: Float, O: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    scale_words: &Tensor<u32>,
    codebooks: &Tensor<f32>,
    output: &mut Tensor<O>,
    offset: f32,
    #[comptime] plan: Plan,
    #[comptime] count: usize,
    #[define(F, O)] _dtypes: [StorageType; 2],
) {
    let mut table = SharedMemory::<f32>::new(comptime!(plan.codebook_len().max(1)));
    load_codebooks(&mut table, codebooks, plan);
    let per_word = comptime!(32 / plan.bits);
    let words_per_row = x.shape(1) / per_word;
    let d_out = output.shape(1);
    let lane = UNIT_POS as usize % GROUP_THREADS;
    let first_row = (CUBE_POS * GROUPS + UNIT_POS as usize / GROUP_THREADS) * ROWS_PER_GROUP;

    let mut sums = Array::<f32>::new(comptime!(count * ROWS_PER_GROUP));
    #[unroll]
    for i in 0..comptime!(count * ROWS_PER_GROUP) {
        sums[i] = 0.0f32;
    }
    for step in 0..(words_per_row - 1) / (GROUP_THREADS * WORDS_AHEAD) + 1 {
        let mut loaded_words = Array::<u32>::new(comptime!(WORDS_AHEAD * ROWS_PER_GROUP));
        let mut scales = Array::<f32>::new(comptime!(WORDS_AHEAD * ROWS_PER_GROUP));
        let first_word = step * (GROUP_THREADS * WORDS_AHEAD) + lane;
        #[unroll]
        for ahead in 0..WORDS_AHEAD {
            #[unroll]
            for r in 0..ROWS_PER_GROUP {
                // Beyond the last word or row, that one is read again; its terms are left out of the sums or the
                // result.
                let word = min(first_word + ahead * GROUP_THREADS, words_per_row - 1);
                let position = min(first_row + r, d_out - 1) * words_per_row + word;
                let block = position * per_word / BLOCK;
                loaded_words[ahead * ROWS_PER_GROUP + r] = words[position];
                scales[ahead * ROWS_PER_GROUP + r] =
                    block_scale(absmax, scale_words, &table, block, offset, plan);
            }
        }
        #[unroll]
        for ahead in 0..WORDS_AHEAD {
            let word = first_word + ahead * GROUP_THREADS;
            if word < words_per_row {
                let column = word * per_word;
                accumulate_words(
                    x,
                    &loaded_words,
                    &scales,
                    &table,
                    &mut sums,
                    column,
                    ahead,
                    plan.bits,
                    count,
                );
            }
        }
    }
    write_sums(&sums, output, count);
}

/// Adds the products of one word of each row with the values of `x` from `column` on.
#[cube]
fn accumulate_words<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    loaded_words: &Array<u32>,
    scales: &Array<f32>,
    table: &SharedMemory<f32>,
    sums: &mut Array<f32>,
    column: usize,
    #[comptime] ahead: usize,
    #[comptime] bits: usize,
    #[comptime] count: usize,
) {
    let vector = N::value().comptime();
    #[unroll]
    for part in 0..comptime!(32 / bits / vector) {
        let start = part * N::value();
        let mut values = Array::<Vector<f32, N>>::new(ROWS_PER_GROUP);
        #[unroll]
        for r in 0..ROWS_PER_GROUP {
            let i = ahead * ROWS_PER_GROUP + r;
            values[r] = dequantize_word::<f32, N>(loaded_words[i], table, start, scales[i], bits);
        }
        #[unroll]
        for row in 0..count {
            let at = (row * x.stride(0) + column + start) / N::value();
            let x_vector = Vector::<f32, N>::cast_from(x[at]);
            #[unroll]
            for r in 0..ROWS_PER_GROUP {
                sums[row * ROWS_PER_GROUP + r] += vector_sum(x_vector * values[r]);
            }
        }
    }
}

/// Adds up the partial sums of each group and writes them; one thread per row of `x` and group.
#[cube]
fn write_sums<O: Float>(sums: &Array<f32>, output: &mut Tensor<O>, #[comptime] count: usize) {
    let thread = UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(count * GROUPS * PITCH));
    #[unroll]
    for r in 0..ROWS_PER_GROUP {
        #[unroll]
        for row in 0..count {
            shared[(row * GROUPS + thread / GROUP_THREADS) * PITCH + thread % GROUP_THREADS] =
                sums[row * ROWS_PER_GROUP + r];
        }
        sync_cube();
        if thread < comptime!(count * GROUPS) {
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for i in 0..GROUP_THREADS {
                sum += shared[thread * PITCH + i];
            }
            let row = (CUBE_POS * GROUPS + thread % GROUPS) * ROWS_PER_GROUP + r;
            if row < output.shape(1) {
                output[thread / GROUPS * output.stride(0) + row] = O::cast_from(sum);
            }
        }
        sync_cube();
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::Format;
    use crate::cubecl::packed::{QuantizedSpec, Scaling};
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};
    use crate::cubecl::queue::Kernel;

    #[derive(Debug)]
    struct FewRowsMatmul(QuantizedSpec);

    impl Kernel for FewRowsMatmul {
        const NAME: &'static str = "few_product";

        fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
            let mut inputs = inputs.into_iter();
            let x = inputs.next();
            let weight = self.0.take_tensors(&mut inputs);
            let output = x.and_then(|x| weight.few_rows_matmul(&x, DType::F32));
            output.into_iter().collect()
        }
    }

    #[test]
    fn pitched_rows_give_the_same_values() {
        for [count, d_in] in [[1, 6], [8, 48], [3, 100]] {
            let spec = QuantizedSpec {
                format: Format::Bf16,
                d_out: 19,
                d_in,
                scales: Scaling::None,
                offset: 0.0,
            };
            // Each word holds two bf16 numbers between 1/2 and 2.
            let words = (0..19 * d_in as i32 / 2).map(|i| 0x3f11_3f00 + i * 0x0003_0007 % 0x80);
            let words = KernelInput::IntVector(words.collect());
            assert_same_when_pitched(
                &FewRowsMatmul(spec),
                &[KernelInput::Floats([count, d_in]), words],
            );
        }
    }
}
