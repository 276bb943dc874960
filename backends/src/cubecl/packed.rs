//! Packed weights unpacked on the device, for the products that follow: a vector of values a unit at a time. See
//! [`crate::ops::packed`].

use std::ops::Range;

use burn::tensor::{DType, Int as IntKind, Tensor as BurnTensor};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty, rows, vector_size};
use super::queue::{CubeGpu, Kernel, Queued, fixed, queue, queued, queued_int, tensor};
use crate::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use crate::{Format, PackedWeight, Scales};

/// Vectors of values a unit unpacks.
const ITEMS: usize = 8;

/// [`crate::TrainBackend::unpack`].
pub(crate) fn unpack<B: CubeGpu>(
    weight: &PackedWeight<B>,
    rows: Range<usize>,
    dtype: DType,
) -> BurnTensor<B, 2> {
    let [_, d_in] = weight.dims;
    let kernel = Unpack {
        shape: PackedShape::of(weight),
        rows: Some(rows.clone()),
        dtype,
    };
    let output = ([rows.len(), d_in].into(), dtype);
    let [values] = fixed(queue(kernel, tensors(weight), &[output]));
    tensor(values)
}

/// [`crate::TrainBackend::unpack_rows`].
pub(crate) fn unpack_rows<B: CubeGpu>(
    weight: &PackedWeight<B>,
    ids: BurnTensor<B, 1, IntKind>,
    dtype: DType,
) -> BurnTensor<B, 2> {
    let ([count], [_, d_in]) = (ids.dims(), weight.dims);
    let kernel = Unpack {
        shape: PackedShape::of(weight),
        rows: None,
        dtype,
    };
    let mut inputs = tensors(weight);
    inputs.push(queued_int(&ids));
    let [values] = fixed(queue(kernel, inputs, &[([count, d_in].into(), dtype)]));
    tensor(values)
}

/// The tensors of a packed weight, in the order in which [`PackedShape::parts`] takes them.
fn tensors<B: CubeGpu>(weight: &PackedWeight<B>) -> Vec<Queued<B::Runtime>> {
    let mut tensors = vec![queued_int(&weight.words)];
    match &weight.scales {
        None => {}
        Some(Scales::Plain(absmax)) => tensors.push(queued(absmax)),
        Some(Scales::Double { words, absmax, .. }) => {
            tensors.extend([queued(absmax), queued_int(words)]);
        }
    }
    tensors
}

/// What is known of a packed weight before its tensors are there.
#[derive(Clone, Copy, Debug)]
struct PackedShape {
    format: Format,
    d_in: usize,
    scales: Scaling,
    offset: f32,
}

/// How values are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scaling {
    None,
    Plain,
    Double,
}

/// A packed weight on the device; what is not there is stood for by what is, unread.
struct Parts<R: CubeRuntime> {
    words: CubeTensor<R>,
    absmax: CubeTensor<R>,
    nested: CubeTensor<R>,
}

impl PackedShape {
    fn of<B: CubeGpu>(weight: &PackedWeight<B>) -> Self {
        let (scales, offset) = match &weight.scales {
            None => (Scaling::None, 0.0),
            Some(Scales::Plain(_)) => (Scaling::Plain, 0.0),
            Some(Scales::Double { offset, .. }) => (Scaling::Double, *offset),
        };
        Self {
            format: weight.format,
            d_in: weight.dims[1],
            scales,
            offset,
        }
    }

    fn parts<R: CubeRuntime>(self, from: &mut impl Iterator<Item = CubeTensor<R>>) -> Parts<R> {
        let mut next = || {
            let next = from.next().map(rows);
            next.unwrap_or_else(|| unreachable!("fewer tensors than were queued"))
        };
        let words = next();
        let absmax = match self.scales {
            // Of the kernel's type, and never read.
            Scaling::None => empty(&words, [1], DType::F32),
            _ => next(),
        };
        let nested = match self.scales {
            Scaling::Double => next(),
            _ => words.clone(),
        };
        Parts {
            words,
            absmax,
            nested,
        }
    }
}

#[derive(Debug)]
struct Unpack {
    shape: PackedShape,
    /// Consecutive rows, or those that a last tensor names.
    rows: Option<Range<usize>>,
    dtype: DType,
}

impl Kernel for Unpack {
    const NAME: &'static str = "unpack";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let (shape, mut inputs) = (self.shape, inputs.into_iter());
        let parts = shape.parts(&mut inputs);
        let ids = inputs.next().map(rows);
        let count = match (&self.rows, &ids) {
            (Some(rows), _) => rows.len(),
            (None, Some(ids)) => ids.meta.shape()[0],
            (None, None) => unreachable!("rows are counted or named"),
        };
        let first = self.rows.as_ref().map_or(0, |rows| rows.start * shape.d_in);
        let output = empty(&parts.words, [count, shape.d_in], self.dtype);
        // A vector's values lie within one word.
        let vector = vector_size(&[&output], &[shape.d_in, shape.format.per_word()]);
        let plan = Plan {
            bits: shape.format.bits(),
            scales: shape.scales,
            gather: ids.is_some(),
        };
        let values = count * shape.d_in;
        let ids = ids.unwrap_or_else(|| parts.words.clone());
        let code = match shape.format {
            Format::Bf16 => Vec::new(),
            format => bits(format.code()),
        };
        let nested_code = match shape.scales {
            Scaling::Double => bits(dynamic_code()),
            _ => Vec::new(),
        };
        let dtypes = [self.dtype.into(), ids.dtype.into()];
        unpack_values::launch::<R>(
            &output.client,
            cubes((values / vector).div_ceil(UNITS * ITEMS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            parts.words.into_tensor_arg(),
            parts.absmax.into_tensor_arg(),
            parts.nested.into_tensor_arg(),
            ids.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            first,
            shape.offset,
            plan,
            code,
            nested_code,
            dtypes,
        );
        vec![output]
    }
}

/// The patterns of some values: constants of a kernel.
fn bits(code: &[f32]) -> Vec<u32> {
    code.iter().map(|value| value.to_bits()).collect()
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    bits: usize,
    scales: Scaling,
    /// Whether `ids` name the rows.
    gather: bool,
}

#[cube(launch)]
fn unpack_values<F: Float, I: Int, N: Size>(
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    ids: &Tensor<I>,
    output: &mut Tensor<Vector<F, N>>,
    first: usize,
    offset: f32,
    #[comptime] plan: Plan,
    #[comptime] code: Vec<u32>,
    #[comptime] nested_code: Vec<u32>,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let of_values = comptime!(if code.is_empty() { 1 } else { code.len() });
    let of_scales = comptime!(if nested_code.is_empty() {
        1
    } else {
        nested_code.len()
    });
    let mut table = SharedMemory::<f32>::new(of_values);
    let mut scale_table = SharedMemory::<f32>::new(of_scales);
    if comptime!(of_values > 1) {
        fill(&mut table, code);
    }
    if comptime!(of_scales > 1) {
        fill(&mut scale_table, nested_code);
    }
    sync_cube();
    let width = output.shape(1);
    let count = output.shape(0) * width;
    #[unroll]
    for item in 0..ITEMS {
        let index = (CUBE_POS * ITEMS + item) * UNITS + UNIT_POS as usize;
        let value = index * N::value();
        if value < count {
            let mut place = first + value;
            if comptime!(plan.gather) {
                place = usize::cast_from(ids[value / width]) * width + value % width;
            }
            let scale = scale_of(
                absmax,
                nested,
                &scale_table,
                place / BLOCK,
                offset,
                plan.scales,
            );
            output[index] = vector_at::<F, N>(words, &table, place, scale, plan.bits);
        }
    }
}

/// Copies a code to where it can be looked up.
#[cube]
fn fill(table: &mut SharedMemory<f32>, #[comptime] code: Vec<u32>) {
    let count = comptime!(code.len());
    let constants = Array::<u32>::from_data(code);
    let unit = UNIT_POS as usize;
    if unit < count {
        table[unit] = f32::reinterpret(constants[unit]);
    }
}

/// The scale of a block; 1 where there are none.
#[cube]
fn scale_of(
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    table: &SharedMemory<f32>,
    block: usize,
    offset: f32,
    #[comptime] scales: Scaling,
) -> f32 {
    let mut scale = 1.0f32;
    if comptime!(scales == Scaling::Plain) {
        scale = absmax[block];
    }
    if comptime!(scales == Scaling::Double) {
        let index = (nested[block / 4] >> (8 * (block % 4) as u32)) & 255u32;
        scale = table[index as usize] * absmax[block / NESTED_BLOCK] + offset;
    }
    scale
}

/// The values from `place` on, which lie within one word.
#[cube]
fn vector_at<F: Float, N: Size>(
    words: &Tensor<u32>,
    table: &SharedMemory<f32>,
    place: usize,
    scale: f32,
    #[comptime] bits: usize,
) -> Vector<F, N> {
    let per_word = comptime!(32 / bits);
    let word = words[place / per_word];
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for j in 0..N::value() {
        let mut at = (place % per_word + j) as u32;
        if comptime!(bits == 4) {
            // Of two in a byte the first stands higher.
            at ^= 1u32;
        }
        let shifted = word >> (at * comptime!(bits as u32));
        let value = match comptime!(bits == 16) {
            true => f32::reinterpret(shifted << 16u32),
            false => {
                let index = shifted & comptime!((1u32 << bits) - 1);
                table[index as usize] * scale
            }
        };
        values[j] = F::cast_from(value);
    }
    values
}
