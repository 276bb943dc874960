//! Products of a few rows with a packed weight, `x W^T`, straight from its words: what decoding computes, for which
//! unpacking would write and read many times the bytes of the words.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{Parts, Plan, fill, scale_of, values_of};
use crate::cubecl::launch::{UNITS, cubes, empty, rows, vector_size, vector_sum};
use crate::ops::packed::BLOCK;

/// Up to this many rows are multiplied with the words themselves.
const FEW: usize = 8;

/// Units that go through a row of the weight together, a word each.
const LANES: usize = 32;

/// Such groups in a cube.
const GROUPS: usize = UNITS / LANES;

/// Rows of the weight that a group has, so that what is read of `x` serves more than one.
const EACH: usize = 2;

/// Words of a row that a unit reads before it computes, so that several reads are under way.
const AHEAD: usize = 4;

/// Sums of a group from those of the next one: odd, so that units which add them up read different banks.
const PITCH: usize = LANES + 1;

impl<R: CubeRuntime> Parts<R> {
    /// `x W^T` of a few rows `[T, D_in]` in `dtype`, summed in f32. `None` of more rows, or where a row of the weight begins
    /// within a word.
    pub(in crate::cubecl) fn few_product(
        &self,
        x: &CubeTensor<R>,
        dtype: DType,
    ) -> Option<CubeTensor<R>> {
        let (shape, [count, d_in]) = (self.shape, x.meta.shape().dims());
        let per_word = shape.format.per_word();
        if !(1..=FEW).contains(&count) || !d_in.is_multiple_of(per_word) {
            return None;
        }
        let x = rows(x.clone());
        let output = empty(&x, [count, shape.d_out], dtype);
        // What is multiplied with a vector of x lies within one word.
        let vector = vector_size(&[&x], &[d_in, per_word]);
        let dtypes = [x.dtype.into(), dtype.into()];
        few_rows::launch::<R>(
            &output.client,
            cubes(shape.d_out.div_ceil(GROUPS * EACH)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.into_tensor_arg(),
            self.words.clone().into_tensor_arg(),
            self.absmax.clone().into_tensor_arg(),
            self.nested.clone().into_tensor_arg(),
            self.codes.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            shape.offset,
            shape.plan(false),
            count,
            dtypes,
        );
        Some(output)
    }
}

/// A group of units has [`EACH`] rows of the weight; what its units have found is added up at the end.
#[cube(launch)]
fn few_rows<F: Float, O: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    codes: &Tensor<f32>,
    output: &mut Tensor<O>,
    offset: f32,
    #[comptime] plan: Plan,
    #[comptime] count: usize,
    #[define(F, O)] _dtypes: [StorageType; 2],
) {
    let mut table = SharedMemory::<f32>::new(comptime!(plan.codes().max(1)));
    fill(&mut table, codes, plan);
    let per_word = comptime!(32 / plan.bits);
    let in_row = x.shape(1) / per_word;
    let d_out = output.shape(1);
    let lane = UNIT_POS as usize % LANES;
    let first = (CUBE_POS * GROUPS + UNIT_POS as usize / LANES) * EACH;

    let mut sums = Array::<f32>::new(comptime!(count * EACH));
    #[unroll]
    for i in 0..comptime!(count * EACH) {
        sums[i] = 0.0f32;
    }
    for step in 0..(in_row - 1) / (LANES * AHEAD) + 1 {
        let mut read = Array::<u32>::new(comptime!(AHEAD * EACH));
        let mut scales = Array::<f32>::new(comptime!(AHEAD * EACH));
        let begin = step * (LANES * AHEAD) + lane;
        #[unroll]
        for ahead in 0..AHEAD {
            #[unroll]
            for r in 0..EACH {
                // Behind the last word or row, that one again: the sums leave it out.
                let word = min(begin + ahead * LANES, in_row - 1);
                let at = min(first + r, d_out - 1) * in_row + word;
                let block = at * per_word / BLOCK;
                read[ahead * EACH + r] = words[at];
                scales[ahead * EACH + r] = scale_of(absmax, nested, &table, block, offset, plan);
            }
        }
        #[unroll]
        for ahead in 0..AHEAD {
            let word = begin + ahead * LANES;
            if word < in_row {
                let column = word * per_word;
                add(x, &read, &scales, &table, &mut sums, column, ahead, plan.bits, count);
            }
        }
    }
    write_sums(&sums, output, count);
}

/// Adds the products of a word of each row with what stands from `column` on in `x`.
#[cube]
fn add<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    read: &Array<u32>,
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
        let mut values = Array::<Vector<f32, N>>::new(EACH);
        #[unroll]
        for r in 0..EACH {
            let i = ahead * EACH + r;
            values[r] = values_of::<f32, N>(read[i], table, start, scales[i], bits);
        }
        #[unroll]
        for m in 0..count {
            let at = (m * x.stride(0) + column + start) / N::value();
            let of_x = Vector::<f32, N>::cast_from(x[at]);
            #[unroll]
            for r in 0..EACH {
                sums[m * EACH + r] += vector_sum(of_x * values[r]);
            }
        }
    }
}

/// Adds up what the units of each group have found: a unit for each row of `x` and each group.
#[cube]
fn write_sums<O: Float>(sums: &Array<f32>, output: &mut Tensor<O>, #[comptime] count: usize) {
    let unit = UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(count * GROUPS * PITCH));
    #[unroll]
    for r in 0..EACH {
        #[unroll]
        for m in 0..count {
            shared[(m * GROUPS + unit / LANES) * PITCH + unit % LANES] = sums[m * EACH + r];
        }
        sync_cube();
        if unit < comptime!(count * GROUPS) {
            let mut sum = 0.0f32.runtime();
            #[unroll]
            for i in 0..LANES {
                sum += shared[unit * PITCH + i];
            }
            let row = (CUBE_POS * GROUPS + unit % GROUPS) * EACH + r;
            if row < output.shape(1) {
                output[unit / GROUPS * output.stride(0) + row] = O::cast_from(sum);
            }
        }
        sync_cube();
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::Format;
    use crate::cubecl::packed::{PackedShape, Scaling};
    use crate::cubecl::pitched::{Given, same_when_pitched};
    use crate::cubecl::queue::Kernel;

    #[derive(Debug)]
    struct Product(PackedShape);

    impl Kernel for Product {
        const NAME: &'static str = "few_product";

        fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
            let mut inputs = inputs.into_iter();
            let x = inputs.next();
            let parts = self.0.parts(&mut inputs);
            let product = x.and_then(|x| parts.few_product(&x, DType::F32));
            product.into_iter().collect()
        }
    }

    #[test]
    fn on_pitched_rows() {
        for [count, d_in] in [[1, 6], [8, 48], [3, 100]] {
            let shape = PackedShape {
                format: Format::Bf16,
                d_out: 19,
                d_in,
                scales: Scaling::None,
                offset: 0.0,
            };
            // Two numbers between 1/2 and 2 a word.
            let words = (0..19 * d_in as i32 / 2).map(|i| 0x3f11_3f00 + i * 0x0003_0007 % 0x80);
            let words = Given::IntVector(words.collect());
            same_when_pitched(&Product(shape), &[Given::Floats([count, d_in]), words]);
        }
    }
}
