//! Log-probabilities of targets and their slopes, in chunks of rows: a GEMM for the logits, one kernel over each row
//! of them, and a GEMM back for the slopes. See [`crate::ops::log_probs`].

use burn::tensor::{DType, Int as IntKind, Tensor as BurnTensor};
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::branch::write_columns;
use super::launch::{
    THREADS, block_grid, block_max, block_sum, dense_rows, empty, matmul_into, transposed,
    vector_size,
};
use super::queue::{
    CubeGpu, Kernel, burn_tensor, next_input, queue, queued_int_tensor, queued_tensor,
};
use super::runtime::GpuRuntime;
use crate::ops::log_probs::{chunks, gpu_chunk_rows};
use crate::{LogProbStats, LogProbs, Weight};

/// The largest number of columns that one GEMM sums over. A GEMM may add them one by one in f32, where the rounding error
/// grows with their number: over 2^17 columns it exceeded the tolerance of the conformance cases. (Mesa's software driver
/// also ends every loop after 65,535 steps.)
const MAX_SUMMED_COLUMNS: usize = 1 << 15;

/// A value below every logit.
const MIN_LOGIT: f32 = -3e38;

/// Queues one [`LogProbsKernel`] per chunk of rows: see [`crate::TrainBackend::completion_log_probs`].
pub(crate) fn completion_log_probs<B: CubeGpu>(
    hidden: BurnTensor<B, 2>,
    lm_head: Weight<B>,
    targets: BurnTensor<B, 1, IntKind>,
    stats: LogProbStats,
    with_slopes: bool,
) -> LogProbs<B> {
    let ([count, width], [vocabulary, _]) = (hidden.dims(), lm_head.dims());
    let dtype = hidden.dtype();
    let target_rows = with_slopes.then(|| lm_head.clone().rows(targets.clone(), dtype));
    let head: Vec<_> = float_parts(lm_head, dtype).iter().map(queued_tensor).collect();
    let (mut columns, mut slopes) = (Vec::new(), Vec::new());
    for (start, len) in chunks(count, gpu_chunk_rows(vocabulary)) {
        let chunk_hidden = queued_tensor(&hidden.clone().narrow(0, start, len));
        let chunk_targets = queued_int_tensor(&targets.clone().narrow(0, start, len));
        let mut outputs = vec![([len, stats.columns()].into(), DType::F32)];
        if with_slopes {
            outputs.push(([len, width].into(), dtype));
        }
        let kernel = LogProbsKernel { stats, with_slopes };
        let rows = target_rows.clone().map(|rows| rows.narrow(0, start, len));
        let mut inputs = vec![chunk_hidden, chunk_targets];
        inputs.extend(rows.as_ref().map(queued_tensor));
        inputs.extend(head.iter().cloned());
        let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(burn_tensor);
        columns.extend(outputs.next());
        slopes.extend(outputs.next());
    }
    LogProbs {
        columns: BurnTensor::cat(columns, 0),
        slopes: with_slopes.then(|| BurnTensor::cat(slopes, 0)),
    }
}

/// Returns the head as floats; one tensor for each part of a split head.
fn float_parts<B: CubeGpu>(head: Weight<B>, dtype: DType) -> Vec<BurnTensor<B, 2>> {
    match head {
        Weight::Split(head) => {
            let parts = head.parts();
            parts.flat_map(|(_, part)| float_parts(part.clone(), dtype)).collect()
        }
        head => vec![head.floats(dtype)],
    }
}

/// Computes the log-probabilities of one chunk of rows, and their slopes if `with_slopes` is set. Its inputs are the
/// hidden states, the targets, with slopes the head's rows of the targets, and the head in one or more parts.
#[derive(Debug)]
struct LogProbsKernel {
    stats: LogProbStats,
    with_slopes: bool,
}

impl Kernel for LogProbsKernel {
    const NAME: &'static str = "completion_log_probs";

    fn run<R: GpuRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let (hidden, targets) = (next_input(&mut inputs), next_input(&mut inputs));
        let target_rows = self.with_slopes.then(|| next_input(&mut inputs));
        let head: Vec<_> = inputs.collect();
        let (dtype, [len, _]) = (hidden.dtype, hidden.meta.shape().dims());
        let logits = logits(&hidden, &head);
        let [_, vocabulary] = logits.meta.shape().dims();
        let columns = empty(&logits, [len, self.stats.columns()], DType::F32);
        let neg_probs = self.with_slopes.then(|| empty(&logits, [len, vocabulary], dtype));
        let one_minus_p = empty(&logits, [len, 1], DType::F32);
        let targets = dense_rows(targets);
        self.launch(logits, targets, columns.clone(), one_minus_p.clone(), neg_probs.clone());
        let slopes = neg_probs.zip(target_rows).map(|(neg_probs, target_rows)| {
            let others_grad = matmul_head(&neg_probs, &head);
            add_target_rows(others_grad, dense_rows(target_rows), one_minus_p)
        });
        std::iter::once(columns).chain(slopes).collect()
    }
}

impl LogProbsKernel {
    /// Launches `log_probs_kernel` on the logits, with one block per row. It writes the statistics to `columns`, and for
    /// slopes also `one_minus_p` and `neg_probs`.
    fn launch<R: GpuRuntime>(
        &self,
        logits: CubeTensor<R>,
        targets: CubeTensor<R>,
        columns: CubeTensor<R>,
        one_minus_p: CubeTensor<R>,
        neg_probs: Option<CubeTensor<R>>,
    ) {
        let [len, vocabulary] = logits.meta.shape().dims();
        // Without slopes, `columns` is bound in place of `neg_probs`; the kernel never writes to it.
        let neg_probs = neg_probs.unwrap_or_else(|| columns.clone());
        let dtypes = [neg_probs.dtype.into(), targets.dtype.into()];
        log_probs_kernel::launch::<R>(
            &logits.client.clone(),
            block_grid(len),
            CubeDim::new_1d(THREADS as u32),
            vector_size(&[&logits], &[vocabulary]),
            logits.into_tensor_arg(),
            targets.into_tensor_arg(),
            columns.into_tensor_arg(),
            one_minus_p.into_tensor_arg(),
            neg_probs.into_tensor_arg(),
            self.stats != LogProbStats::None,
            self.stats == LogProbStats::Squares,
            self.with_slopes,
            THREADS,
            dtypes,
        );
    }
}

/// Computes the logits `hidden head^T` in f32.
fn logits<R: GpuRuntime>(hidden: &CubeTensor<R>, head: &[CubeTensor<R>]) -> CubeTensor<R> {
    let [len, _] = hidden.meta.shape().dims();
    let project = |head: &CubeTensor<R>| {
        let [rows, _] = head.meta.shape().dims();
        let output = empty(hidden, [len, rows], DType::F32);
        matmul_into(hidden.clone(), transposed(head.clone()), output.clone());
        output
    };
    if let [head] = head {
        return project(head);
    }
    let vocabulary = head.iter().map(|part| part.meta.shape()[0]).sum();
    let logits = empty(hidden, [len, vocabulary], DType::F32);
    let mut column = 0;
    for part in head {
        write_columns(project(part), None, None, &logits, column);
        column += part.meta.shape()[0];
    }
    logits
}

/// Returns `others_grad + one_minus_p * target_rows` of each row, in the head's dtype, where `others_grad` is the
/// term of all tokens but the target.
fn add_target_rows<R: GpuRuntime>(
    others_grad: CubeTensor<R>,
    target_rows: CubeTensor<R>,
    one_minus_p: CubeTensor<R>,
) -> CubeTensor<R> {
    let shape: [usize; 2] = others_grad.meta.shape().dims();
    let slopes = empty(&others_grad, shape, target_rows.dtype);
    let dtype = target_rows.dtype.into();
    add_target_row::launch::<R>(
        &slopes.client,
        block_grid((shape[0] * shape[1]).div_ceil(THREADS)),
        CubeDim::new_1d(THREADS as u32),
        others_grad.into_tensor_arg(),
        target_rows.into_tensor_arg(),
        one_minus_p.into_tensor_arg(),
        slopes.clone().into_tensor_arg(),
        dtype,
    );
    slopes
}

/// Returns `neg_probs head`, `[rows, D]`, in f32.
fn matmul_head<R: GpuRuntime>(neg_probs: &CubeTensor<R>, head: &[CubeTensor<R>]) -> CubeTensor<R> {
    let [len, vocabulary] = neg_probs.meta.shape().dims();
    let mut first = 0;
    let mut sum: Option<CubeTensor<R>> = None;
    for part in head {
        let [rows, width] = part.meta.shape().dims();
        for start in (0..rows).step_by(MAX_SUMMED_COLUMNS) {
            let end = rows.min(start + MAX_SUMMED_COLUMNS);
            let columns = if end - start == vocabulary {
                neg_probs.clone()
            } else {
                slice(neg_probs.clone(), &[0..len, first + start..first + end])
            };
            let head_rows = if end - start == rows {
                part.clone()
            } else {
                slice(part.clone(), &[start..end, 0..width])
            };
            let product = empty(neg_probs, [len, width], DType::F32);
            matmul_into(columns, head_rows, product.clone());
            sum = Some(match sum {
                Some(sum) => add(sum, product),
                None => product,
            });
        }
        first += rows;
    }
    sum.unwrap_or_else(|| unreachable!("a head without rows"))
}

/// Computes the columns of [`LogProbStats`] for one row of logits per block.
///
/// For the slopes it also writes `-softmax`, with 0 for the target, into `neg_probs`, and 1 minus the probability of
/// the target into `one_minus_p`. The target's term is added separately: it may be millions of times larger, and in
/// one sum with it the terms of rare tokens would be lost.
#[cube(launch)]
fn log_probs_kernel<F: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    targets: &Tensor<I>,
    columns: &mut Tensor<f32>,
    one_minus_p: &mut Tensor<f32>,
    neg_probs: &mut Tensor<Vector<F, N>>,
    #[comptime] all: bool,
    #[comptime] with_squares: bool,
    #[comptime] with_slopes: bool,
    #[comptime] threads: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= logits.shape(0) {
        terminate!();
    }
    let vectors = logits.shape(1) / N::value();
    let start = row * vectors;
    let target = usize::cast_from(targets[row]);
    let target_logit = vector_value(logits[start + target / N::value()], target % N::value());

    let max = block_max(thread_max(logits, start, vectors, threads), threads);
    let mut sum_exp = 0.0f32.runtime();
    let mut sum_exp_shifted = 0.0f32.runtime();
    let mut sum_exp_squares = 0.0f32.runtime();
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let shifted = values[j] - max;
            let weight = shifted.exp();
            sum_exp += weight;
            sum_exp_shifted += weight * shifted;
            if comptime!(with_squares) {
                sum_exp_squares += weight * weight;
            }
        }
        i += threads;
    }
    let sum_exp = block_sum(sum_exp, threads);
    let index = row * columns.shape(1);
    if UNIT_POS == 0 {
        columns[index] = target_logit - max - sum_exp.ln();
    }
    if comptime!(all) {
        let entropy = sum_exp.ln() - block_sum(sum_exp_shifted, threads) / sum_exp;
        write_statistics(logits, columns, index, start, target, target_logit, entropy, threads);
    }
    if comptime!(with_squares) {
        let squares = block_sum(sum_exp_squares, threads);
        if UNIT_POS == 0 {
            columns[index + 4] = squares.ln() - 2.0 * sum_exp.ln();
        }
    }
    if comptime!(with_slopes) {
        write_neg_probs(logits, neg_probs, start, vectors, target, max, sum_exp, threads);
        if UNIT_POS == 0 {
            one_minus_p[row] = (sum_exp - (target_logit - max).exp()) / sum_exp;
        }
    }
}

/// Returns the largest logit among those that a thread visits.
#[cube]
fn thread_max<N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    start: usize,
    vectors: usize,
    #[comptime] threads: usize,
) -> f32 {
    let mut max = MIN_LOGIT.runtime();
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let z = values[j];
            max = select(z > max, z, max);
        }
        i += threads;
    }
    max
}

/// Writes the columns after the first: entropy, whether the target is the most likely token, and the mean logit.
#[cube]
fn write_statistics<N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    columns: &mut Tensor<f32>,
    index: usize,
    start: usize,
    target: usize,
    target_logit: f32,
    entropy: f32,
    #[comptime] threads: usize,
) {
    let vocabulary = logits.shape(1);
    let mut sum = 0.0f32.runtime();
    let mut beaten = 0.0f32.runtime();
    let mut i = UNIT_POS as usize;
    while i < vocabulary / N::value() {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let z = values[j];
            sum += z;
            // Among equal logits, the first counts as the most likely.
            let before = i * N::value() + j < target;
            let is_larger = z > target_logit || (z == target_logit && before);
            beaten = select(is_larger, 1.0f32, beaten);
        }
        i += threads;
    }
    let sum = block_sum(sum, threads);
    let beaten = block_max(beaten, threads);
    if UNIT_POS == 0 {
        columns[index + 1] = entropy;
        columns[index + 2] = 1.0f32 - beaten;
        columns[index + 3] = sum / f32::cast_from(vocabulary);
    }
}

/// Writes `-softmax`, with 0 for the target.
#[cube]
fn write_neg_probs<F: Float, N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    neg_probs: &mut Tensor<Vector<F, N>>,
    start: usize,
    vectors: usize,
    target: usize,
    max: f32,
    sum_exp: f32,
    #[comptime] threads: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        let mut neg_prob = Vector::<F, N>::empty();
        #[unroll]
        for j in 0..N::value() {
            let prob = (values[j] - max).exp() / sum_exp;
            let is_target = i * N::value() + j == target;
            neg_prob[j] = F::cast_from(select(is_target, 0.0f32, -prob));
        }
        neg_probs[start + i] = neg_prob;
        i += threads;
    }
}

/// Computes `others_grad + one_minus_p * target_rows`; one value per thread.
#[cube(launch)]
fn add_target_row<F: Float>(
    others_grad: &Tensor<f32>,
    target_rows: &Tensor<F>,
    one_minus_p: &Tensor<f32>,
    slopes: &mut Tensor<F>,
    #[define(F)] _dtype: StorageType,
) {
    let width = others_grad.shape(1);
    let row = ABSOLUTE_POS / width;
    if row >= others_grad.shape(0) {
        terminate!();
    }
    let target_value =
        f32::cast_from(target_rows[row * target_rows.stride(0) + ABSOLUTE_POS % width]);
    slopes[ABSOLUTE_POS] =
        F::cast_from(others_grad[ABSOLUTE_POS] + one_minus_p[row] * target_value);
}

/// Returns value `index` of a vector.
#[cube]
fn vector_value<N: Size>(vector: Vector<f32, N>, index: usize) -> f32 {
    let mut value = vector[0];
    #[unroll]
    for j in 1..N::value() {
        value = select(index == j, vector[j], value);
    }
    value
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::cubecl::pitched::{KernelInput, assert_same_when_pitched};

    #[test]
    fn pitched_rows_give_the_same_values() {
        let kernel = LogProbsKernel { stats: LogProbStats::Squares, with_slopes: true };
        for [width, vocabulary] in [[5, 48], [48, 100], [100, 5]] {
            let targets = KernelInput::IntVector(vec![0, 3, 4, 2]);
            let mut inputs =
                vec![KernelInput::Floats([4, width]), targets, KernelInput::Floats([4, width])];
            inputs.push(KernelInput::Floats([vocabulary, width]));
            assert_same_when_pitched(&kernel, &inputs);
            inputs.push(KernelInput::Floats([9, width]));
            assert_same_when_pitched(&kernel, &inputs);
        }
    }
}
