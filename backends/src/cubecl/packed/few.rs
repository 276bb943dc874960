//! Products of a few rows with a packed weight, `x W^T`, straight from its words: decoding's.

use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::{Parts, Plan, Scaling, fill, scale_of, vector_at};
use crate::cubecl::launch::{UNITS, cubes, empty, rows, vector_size, vector_sum};
use crate::ops::packed::BLOCK;

/// Up to this many rows are multiplied with the words themselves.
const FEW: usize = 8;

/// Units that share a row of the weight.
const GROUP: usize = 32;

impl<R: CubeRuntime> Parts<R> {
    /// `x W^T` of a few rows `[T, D_in]`; `None` of more, or where a row of the weight begins within a word or a block.
    pub(in crate::cubecl) fn few_product(&self, x: &CubeTensor<R>) -> Option<CubeTensor<R>> {
        let (shape, [count, d_in]) = (self.shape, x.meta.shape().dims());
        let begins = match shape.scales {
            Scaling::None => shape.format.per_word(),
            _ => BLOCK,
        };
        if count > FEW || !d_in.is_multiple_of(begins) {
            return None;
        }
        let x = rows(x.clone());
        let output = empty(&x, [count, shape.d_out], x.dtype);
        let vector = vector_size(&[&x], &[d_in, shape.format.per_word()]);
        let [code, nested_code] = shape.codes();
        let dtype = x.dtype.into();
        few_rows::launch::<R>(
            &output.client,
            cubes(shape.d_out.div_ceil(UNITS / GROUP)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.into_tensor_arg(),
            self.words.clone().into_tensor_arg(),
            self.absmax.clone().into_tensor_arg(),
            self.nested.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            d_in,
            shape.offset,
            shape.plan(false),
            count,
            code,
            nested_code,
            dtype,
        );
        Some(output)
    }
}

/// A group of units a row of the weight, each a word at a time; what the units of a group have found is added up at the
/// end.
#[cube(launch)]
fn few_rows<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    output: &mut Tensor<F>,
    width: usize,
    offset: f32,
    #[comptime] plan: Plan,
    #[comptime] count: usize,
    #[comptime] code: Vec<u32>,
    #[comptime] nested_code: Vec<u32>,
    #[define(F)] _dtype: StorageType,
) {
    let of_values = comptime!(code.len().max(1));
    let of_scales = comptime!(nested_code.len().max(1));
    let mut table = SharedMemory::<f32>::new(of_values);
    let mut scale_table = SharedMemory::<f32>::new(of_scales);
    fill(&mut table, code);
    fill(&mut scale_table, nested_code);
    sync_cube();
    let per_word = comptime!(32 / plan.bits);
    let unit = UNIT_POS as usize;
    let lane = unit % GROUP;
    let row = CUBE_POS * comptime!(UNITS / GROUP) + unit / GROUP;
    let mut sums = Array::<f32>::new(count);
    #[unroll]
    for m in 0..count {
        sums[m] = 0.0f32;
    }
    if row < output.shape(1) {
        let mut word = lane;
        while word < width / per_word {
            let place = row * width + word * per_word;
            let scale = scale_of(
                absmax,
                nested,
                &scale_table,
                place / BLOCK,
                offset,
                plan.scales,
            );
            #[unroll]
            for part in 0..per_word / N::value() {
                let column = part * N::value();
                let values = vector_at::<f32, N>(words, &table, place + column, scale, plan.bits);
                #[unroll]
                for m in 0..count {
                    let at = (m * x.stride(0) + word * per_word + column) / N::value();
                    let terms = Vector::<f32, N>::cast_from(x[at]) * values;
                    sums[m] += vector_sum(terms);
                }
            }
            word += GROUP;
        }
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    #[unroll]
    for m in 0..count {
        sync_cube();
        shared[unit] = sums[m];
        sync_cube();
        let mut step = comptime!(GROUP / 2).runtime();
        while step > 0 {
            if lane < step {
                let other = shared[unit + step];
                shared[unit] += other;
            }
            sync_cube();
            step /= 2;
        }
        if lane == 0 && row < output.shape(1) {
            output[m * output.stride(0) + row] = F::cast_from(shared[unit]);
        }
    }
}
