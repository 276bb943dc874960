//! Quantized weights on the device: dequantized before a GEMM, a vector of values per thread at a time, or multiplied
//! as they are with a few rows. See [`crate::ops::packed`].

mod few_rows;

use std::ops::Range;

use burn::tensor::{DType, Int as IntKind, Tensor as BurnTensor, TensorData};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{THREADS, block_grid, dense_rows, empty, vector_size};
use super::queue::{
    CubeGpu, Kernel, QueuedTensor, burn_tensor, into_array, next_input, queue, queued_int_tensor,
    queued_tensor,
};
use super::runtime::GpuRuntime;
use crate::ops::packed::{BLOCK, NESTED_BLOCK, dynamic_code};
use crate::{Format, PackedWeight, Scales};

/// Vectors of values that each thread dequantizes.
const VECTORS_PER_THREAD: usize = 8;

/// Queues the dequantization of consecutive rows: see [`crate::TrainBackend::unpack`].
pub(crate) fn unpack<B: CubeGpu>(
    weight: &PackedWeight<B>,
    rows: Range<usize>,
    dtype: DType,
) -> BurnTensor<B, 2> {
    let [_, d_in] = weight.dims;
    let kernel = Dequantize { spec: QuantizedSpec::new(weight), rows: Some(rows.clone()), dtype };
    let output = ([rows.len(), d_in].into(), dtype);
    let [values] = into_array(queue(kernel, quantized_tensors(weight), &[output]));
    burn_tensor(values)
}

/// Queues the dequantization of the rows `ids`: see [`crate::TrainBackend::unpack_rows`].
pub(crate) fn unpack_rows<B: CubeGpu>(
    weight: &PackedWeight<B>,
    ids: BurnTensor<B, 1, IntKind>,
    dtype: DType,
) -> BurnTensor<B, 2> {
    let ([count], [_, d_in]) = (ids.dims(), weight.dims);
    let kernel = Dequantize { spec: QuantizedSpec::new(weight), rows: None, dtype };
    let mut inputs = quantized_tensors(weight);
    inputs.push(queued_int_tensor(&ids));
    let [values] = into_array(queue(kernel, inputs, &[([count, d_in].into(), dtype)]));
    burn_tensor(values)
}

/// Returns the tensors of a quantized weight, in the order in which [`QuantizedSpec::take_tensors`] reads them.
pub(super) fn quantized_tensors<B: CubeGpu>(
    weight: &PackedWeight<B>,
) -> Vec<QueuedTensor<B::Runtime>> {
    let mut tensors = vec![queued_int_tensor(&weight.words)];
    match &weight.scales {
        None => {}
        Some(Scales::Plain(absmax)) => tensors.push(queued_tensor(absmax)),
        Some(Scales::Double { words, absmax, .. }) => {
            tensors.extend([queued_tensor(absmax), queued_int_tensor(words)]);
        }
    }
    let codebooks = QuantizedSpec::new(weight).codebooks();
    if !codebooks.is_empty() {
        let shape = [codebooks.len()];
        let options = (&weight.words.device(), DType::F32);
        let codebooks = BurnTensor::<B, 1>::from_data(TensorData::new(codebooks, shape), options);
        tensors.push(queued_tensor(&codebooks));
    }
    tensors
}

/// The metadata of a quantized weight, known before its tensors are on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantizedSpec {
    format: Format,
    d_out: usize,
    d_in: usize,
    scales: Scaling,
    offset: f32,
}

/// How the scale of a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scaling {
    None,
    Plain,
    Double,
}

/// The tensors of a quantized weight on the device. Absent ones are bound to another tensor, which the kernels never
/// read in their place.
pub(super) struct QuantizedTensors<R: GpuRuntime> {
    spec: QuantizedSpec,
    words: CubeTensor<R>,
    absmax: CubeTensor<R>,
    /// The 8-bit scales of [`Scales::Double`], four in a word.
    scale_words: CubeTensor<R>,
    /// The output of [`QuantizedSpec::codebooks`].
    codebooks: CubeTensor<R>,
}

impl QuantizedSpec {
    pub(super) fn new<B: CubeGpu>(weight: &PackedWeight<B>) -> Self {
        let (scales, offset) = match &weight.scales {
            None => (Scaling::None, 0.0),
            Some(Scales::Plain(_)) => (Scaling::Plain, 0.0),
            Some(Scales::Double { offset, .. }) => (Scaling::Double, *offset),
        };
        Self { format: weight.format, d_out: weight.dims[0], d_in: weight.dims[1], scales, offset }
    }

    /// Takes the weight's tensors from a kernel's inputs.
    pub(super) fn take_tensors<R: GpuRuntime>(
        self,
        from: &mut impl Iterator<Item = CubeTensor<R>>,
    ) -> QuantizedTensors<R> {
        let mut next = || dense_rows(next_input(from));
        let words = next();
        let absmax = match self.scales {
            // A placeholder of the dtype that the kernel expects; it is never read.
            Scaling::None => empty(&words, [1], DType::F32),
            _ => next(),
        };
        let scale_words = match self.scales {
            Scaling::Double => next(),
            _ => words.clone(),
        };
        let codebooks = match self.plan(false).codebook_len() {
            0 => absmax.clone(),
            _ => next(),
        };
        QuantizedTensors { spec: self, words, absmax, scale_words, codebooks }
    }

    /// Returns the compile-time parameters of the kernels; `gather` says whether a tensor of ids selects the rows.
    fn plan(self, gather: bool) -> Plan {
        Plan { bits: self.format.bits(), scales: self.scales, gather }
    }

    /// Returns the codebook of the values followed by that of the scales. Either may be empty.
    fn codebooks(self) -> Vec<f32> {
        let value_codes = match self.format {
            Format::Bf16 => &[],
            format => format.code(),
        };
        let scale_codes = match self.scales {
            Scaling::Double => dynamic_code(),
            _ => &[],
        };
        [value_codes, scale_codes].concat()
    }
}

/// Dequantizes some rows of a weight.
#[derive(Debug)]
struct Dequantize {
    spec: QuantizedSpec,
    /// Consecutive rows; `None` if the last input holds the ids of the rows.
    rows: Option<Range<usize>>,
    dtype: DType,
}

impl Kernel for Dequantize {
    const NAME: &'static str = "unpack";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let weight = self.spec.take_tensors(&mut inputs);
        let values = match (&self.rows, inputs.next()) {
            (Some(rows), _) => weight.dequantize_rows(rows.clone(), None, self.dtype),
            (None, Some(ids)) => {
                weight.dequantize_rows(0..ids.meta.shape()[0], Some(ids), self.dtype)
            }
            (None, None) => unreachable!("neither a range nor ids of rows"),
        };
        vec![values]
    }
}

impl<R: GpuRuntime> QuantizedTensors<R> {
    /// Dequantizes the whole weight, `[D_out, D_in]`.
    pub(super) fn dequantize(&self, dtype: DType) -> CubeTensor<R> {
        self.dequantize_rows(0..self.spec.d_out, None, dtype)
    }

    /// Dequantizes `rows`, or, with `ids`, as many rows as `rows` counts and `ids` names.
    fn dequantize_rows(
        &self,
        rows: Range<usize>,
        ids: Option<CubeTensor<R>>,
        dtype: DType,
    ) -> CubeTensor<R> {
        let (spec, count) = (self.spec, rows.len());
        let output = empty(&self.words, [count, spec.d_in], dtype);
        // All values of a vector must lie within one word.
        let vector = vector_size(&[&output], &[spec.d_in, spec.format.per_word()]);
        let plan = spec.plan(ids.is_some());
        let ids = ids.map_or_else(|| self.words.clone(), dense_rows);
        let dtypes = [dtype.into(), ids.dtype.into()];
        dequantize_kernel::launch::<R>(
            &output.client,
            block_grid((count * spec.d_in / vector).div_ceil(THREADS * VECTORS_PER_THREAD)),
            CubeDim::new_1d(THREADS as u32),
            vector,
            self.words.clone().into_tensor_arg(),
            self.absmax.clone().into_tensor_arg(),
            self.scale_words.clone().into_tensor_arg(),
            ids.into_tensor_arg(),
            self.codebooks.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            rows.start * spec.d_in,
            spec.offset,
            plan,
            dtypes,
        );
        output
    }
}

/// The compile-time parameters of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    bits: usize,
    scales: Scaling,
    /// Whether `ids` selects the rows.
    gather: bool,
}

impl Plan {
    /// Returns the length of the codebook of the values.
    fn value_code_len(self) -> usize {
        match self.bits {
            16 => 0,
            bits => 1 << bits,
        }
    }

    /// Returns the length of both codebooks together.
    fn codebook_len(self) -> usize {
        let scale_code_len = match self.scales {
            Scaling::Double => 256,
            _ => 0,
        };
        self.value_code_len() + scale_code_len
    }
}

/// Dequantizes [`VECTORS_PER_THREAD`] vectors of `output` per thread: the rows `ids`, or the values from
/// `first_position` of the flattened weight on.
#[cube(launch)]
fn dequantize_kernel<F: Float, I: Int, N: Size>(
    words: &Tensor<u32>,
    absmax: &Tensor<f32>,
    scale_words: &Tensor<u32>,
    ids: &Tensor<I>,
    codebooks: &Tensor<f32>,
    output: &mut Tensor<Vector<F, N>>,
    first_position: usize,
    offset: f32,
    #[comptime] plan: Plan,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let mut table = SharedMemory::<f32>::new(comptime!(plan.codebook_len().max(1)));
    load_codebooks(&mut table, codebooks, plan);
    let width = output.shape(1);
    let count = output.shape(0) * width;
    #[unroll]
    for item in 0..VECTORS_PER_THREAD {
        let index = (CUBE_POS * VECTORS_PER_THREAD + item) * THREADS + UNIT_POS as usize;
        let element = index * N::value();
        if element < count {
            let mut position = first_position + element;
            if comptime!(plan.gather) {
                position = usize::cast_from(ids[element / width]) * width + element % width;
            }
            let scale = block_scale(absmax, scale_words, &table, position / BLOCK, offset, plan);
            output[index] = dequantize_at::<F, N>(words, &table, position, scale, plan.bits);
        }
    }
}

/// Copies the codebooks, if there are any, into shared memory.
#[cube]
fn load_codebooks(table: &mut SharedMemory<f32>, codebooks: &Tensor<f32>, #[comptime] plan: Plan) {
    let count = comptime!(plan.codebook_len());
    let mut i = UNIT_POS as usize;
    while i < count {
        table[i] = codebooks[i];
        i += THREADS;
    }
    sync_cube();
}

/// Returns the scale of a block, which is 1 for formats without scales.
#[cube]
fn block_scale(
    absmax: &Tensor<f32>,
    scale_words: &Tensor<u32>,
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
        let index = (scale_words[block / 4] >> (8 * (block % 4) as u32)) & 255u32;
        let code = table[comptime!(plan.value_code_len()) + index as usize];
        scale = code * absmax[block / NESTED_BLOCK] + offset;
    }
    scale
}

/// Dequantizes the `N` values from `position` of the flattened weight on. They must lie within one word.
#[cube]
fn dequantize_at<F: Float, N: Size>(
    words: &Tensor<u32>,
    table: &SharedMemory<f32>,
    position: usize,
    scale: f32,
    #[comptime] bits: usize,
) -> Vector<F, N> {
    let per_word = comptime!(32 / bits);
    let word = words[position / per_word];
    dequantize_word::<F, N>(word, table, position % per_word, scale, bits)
}

/// Dequantizes `N` values of a word, from its value `start` on.
#[cube]
fn dequantize_word<F: Float, N: Size>(
    word: u32,
    table: &SharedMemory<f32>,
    start: usize,
    scale: f32,
    #[comptime] bits: usize,
) -> Vector<F, N> {
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for j in 0..N::value() {
        let mut slot = (start + j) as u32;
        if comptime!(bits == 4) {
            // The first of the two values in a byte is in its high half.
            slot ^= 1u32;
        }
        let shifted = word >> (slot * comptime!(bits as u32));
        let value = if comptime!(bits == 16) {
            f32::reinterpret(shifted << 16u32)
        } else {
            let index = shifted & comptime!((1u32 << bits) - 1);
            table[index as usize] * scale
        };
        values[j] = F::cast_from(value);
    }
    values
}
