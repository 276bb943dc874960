//! Packed weights on the device: unpacked for the product that follows, a vector of values a unit at a time, or
//! multiplied as they are with a few rows. See [`crate::ops::packed`].

mod few_rows;

use std::ops::Range;

use burn::tensor::{DType, Int as IntKind, Tensor as BurnTensor, TensorData};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, empty, rows, vector_size};
use super::queue::{CubeGpu, Kernel, Queued, fixed, queue, queued, queued_int, taken, tensor};
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
    let kernel = Unpack { shape: PackedShape::of(weight), rows: Some(rows.clone()), dtype };
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
    let kernel = Unpack { shape: PackedShape::of(weight), rows: None, dtype };
    let mut inputs = tensors(weight);
    inputs.push(queued_int(&ids));
    let [values] = fixed(queue(kernel, inputs, &[([count, d_in].into(), dtype)]));
    tensor(values)
}

/// The tensors of a packed weight, in the order in which [`PackedShape::parts`] takes them.
pub(super) fn tensors<B: CubeGpu>(weight: &PackedWeight<B>) -> Vec<Queued<B::Runtime>> {
    let mut tensors = vec![queued_int(&weight.words)];
    match &weight.scales {
        None => {}
        Some(Scales::Plain(absmax)) => tensors.push(queued(absmax)),
        Some(Scales::Double { words, absmax, .. }) => {
            tensors.extend([queued(absmax), queued_int(words)]);
        }
    }
    let codes = PackedShape::of(weight).codes();
    if !codes.is_empty() {
        let shape = [codes.len()];
        let place = (&weight.words.device(), DType::F32);
        let codes = BurnTensor::<B, 1>::from_data(TensorData::new(codes, shape), place);
        tensors.push(queued(&codes));
    }
    tensors
}

/// What is known of a packed weight before its tensors are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedShape {
    format: Format,
    d_out: usize,
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
pub(super) struct Parts<R: CubeRuntime> {
    shape: PackedShape,
    words: CubeTensor<R>,
    absmax: CubeTensor<R>,
    nested: CubeTensor<R>,
    /// [`PackedShape::codes`]
    codes: CubeTensor<R>,
}

impl PackedShape {
    pub(super) fn of<B: CubeGpu>(weight: &PackedWeight<B>) -> Self {
        let (scales, offset) = match &weight.scales {
            None => (Scaling::None, 0.0),
            Some(Scales::Plain(_)) => (Scaling::Plain, 0.0),
            Some(Scales::Double { offset, .. }) => (Scaling::Double, *offset),
        };
        Self { format: weight.format, d_out: weight.dims[0], d_in: weight.dims[1], scales, offset }
    }

    pub(super) fn parts<R: CubeRuntime>(
        self,
        from: &mut impl Iterator<Item = CubeTensor<R>>,
    ) -> Parts<R> {
        let mut next = || rows(taken(from));
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
        let codes = match self.plan(false).codes() {
            0 => absmax.clone(),
            _ => next(),
        };
        Parts { shape: self, words, absmax, nested, codes }
    }

    fn plan(self, gather: bool) -> Plan {
        Plan { bits: self.format.bits(), scales: self.scales, gather }
    }

    /// The code of the values, then that of the scales, where there are any.
    fn codes(self) -> Vec<f32> {
        let of_values = match self.format {
            Format::Bf16 => &[],
            format => format.code(),
        };
        let of_scales = match self.scales {
            Scaling::Double => dynamic_code(),
            _ => &[],
        };
        [of_values, of_scales].concat()
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
        let mut inputs = inputs.into_iter();
        let parts = self.shape.parts(&mut inputs);
        let values = match (&self.rows, inputs.next()) {
            (Some(rows), _) => parts.unpacked(rows.clone(), None, self.dtype),
            (None, Some(ids)) => parts.unpacked(0..ids.meta.shape()[0], Some(ids), self.dtype),
            (None, None) => unreachable!("rows are counted or named"),
        };
        vec![values]
    }
}

impl<R: CubeRuntime> Parts<R> {
    /// All values, `[D_out, D_in]`.
    pub(super) fn floats(&self, dtype: DType) -> CubeTensor<R> {
        self.unpacked(0..self.shape.d_out, None, dtype)
    }

    /// Some rows, or as many as `ids` names.
    fn unpacked(
        &self,
        rows: Range<usize>,
        ids: Option<CubeTensor<R>>,
        dtype: DType,
    ) -> CubeTensor<R> {
        let (shape, count) = (self.shape, rows.len());
        let output = empty(&self.words, [count, shape.d_in], dtype);
        // A vector's values lie within one word.
        let vector = vector_size(&[&output], &[shape.d_in, shape.format.per_word()]);
        let plan = shape.plan(ids.is_some());
        let ids = ids.map_or_else(|| self.words.clone(), super::launch::rows);
        let dtypes = [dtype.into(), ids.dtype.into()];
        unpack_values::launch::<R>(
            &output.client,
            cubes((count * shape.d_in / vector).div_ceil(UNITS * ITEMS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            self.words.clone().into_tensor_arg(),
            self.absmax.clone().into_tensor_arg(),
            self.nested.clone().into_tensor_arg(),
            ids.into_tensor_arg(),
            self.codes.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            rows.start * shape.d_in,
            shape.offset,
            plan,
            dtypes,
        );
        output
    }
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    bits: usize,
    scales: Scaling,
    /// Whether `ids` name the rows.
    gather: bool,
}

impl Plan {
    /// Values in the code of the values.
    fn of_values(self) -> usize {
        match self.bits {
            16 => 0,
            bits => 1 << bits,
        }
    }

    /// Values in both codes.
    fn codes(self) -> usize {
        let of_scales = match self.scales {
            Scaling::Double => 256,
            _ => 0,
        };
        self.of_values() + of_scales
    }
}

#[cube(launch)]
fn unpack_values<F: Float, I: Int, N: Size>(
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    ids: &Tensor<I>,
    codes: &Tensor<f32>,
    output: &mut Tensor<Vector<F, N>>,
    first: usize,
    offset: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let mut table = SharedMemory::<f32>::new(comptime!(plan.codes().max(1)));
    fill(&mut table, codes, plan);
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
            let scale = scale_of(absmax, nested, &table, place / BLOCK, offset, plan);
            output[index] = vector_at::<F, N>(words, &table, place, scale, plan.bits);
        }
    }
}

/// Copies the codes, if there are any, to where they can be looked up.
#[cube]
fn fill(table: &mut SharedMemory<f32>, codes: &Tensor<f32>, #[comptime] plan: Plan) {
    let count = comptime!(plan.codes());
    let mut at = UNIT_POS as usize;
    while at < count {
        table[at] = codes[at];
        at += UNITS;
    }
    sync_cube();
}

/// The scale of a block; 1 where there are none.
#[cube]
fn scale_of(
    absmax: &Tensor<f32>,
    nested: &Tensor<u32>,
    table: &SharedMemory<f32>,
    block: usize,
    offset: f32,
    #[comptime] plan: Plan,
) -> f32 {
    let mut scale = 1.0f32;
    if comptime!(plan.scales == Scaling::Plain) {
        scale = absmax[block];
    }
    if comptime!(plan.scales == Scaling::Double) {
        let index = (nested[block / 4] >> (8 * (block % 4) as u32)) & 255u32;
        let code = table[comptime!(plan.of_values()) + index as usize];
        scale = code * absmax[block / NESTED_BLOCK] + offset;
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
    values_of::<F, N>(word, table, place % per_word, scale, bits)
}

/// The values of a word from its value `start` on.
#[cube]
fn values_of<F: Float, N: Size>(
    word: u32,
    table: &SharedMemory<f32>,
    start: usize,
    scale: f32,
    #[comptime] bits: usize,
) -> Vector<F, N> {
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for j in 0..N::value() {
        let mut at = (start + j) as u32;
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
