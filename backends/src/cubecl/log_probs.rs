//! Log-probabilities of targets and their slopes, some rows at a time: a product for the logits, one kernel over each
//! row of them, and a product back. See [`crate::ops::log_probs`].

use burn::tensor::{DType, Int as IntKind, Tensor as BurnTensor};
use burn_cubecl::kernel::slice;
use burn_cubecl::ops::numeric::add;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::branch::put;
use super::launch::{
    UNITS, cube_max, cube_sum, cubes, empty, matmul, rows, transposed, vector_size,
};
use super::queue::{CubeGpu, Kernel, queue, queued, queued_int, taken, tensor};
use crate::{LogProbStats, LogProbs, Weight};

/// Logits alive at once: 2^24 values are 64 MiB in f32.
const CHUNK_VALUES: usize = 1 << 24;

/// Rows of a chunk are a multiple of this where there are enough: what a product of matrices takes in one tile.
const TILE: usize = 256;

/// Columns that one product sums over. (Mesa's software driver ends every loop after 65,535 steps, which a product of
/// 2^20 columns reaches.)
const SUMMED: usize = 1 << 17;

/// Below every logit.
const LOWEST: f32 = -3e38;

/// [`crate::TrainBackend::completion_log_probs`].
pub(crate) fn completion_log_probs<B: CubeGpu>(
    hidden: BurnTensor<B, 2>,
    lm_head: Weight<B>,
    targets: BurnTensor<B, 1, IntKind>,
    stats: LogProbStats,
    with_slopes: bool,
) -> LogProbs<B> {
    let ([count, width], [vocabulary, _]) = (hidden.dims(), lm_head.dims());
    let dtype = hidden.dtype();
    let of_targets = with_slopes.then(|| lm_head.clone().rows(targets.clone(), dtype));
    let head: Vec<_> = pieces(lm_head, dtype).iter().map(queued).collect();
    let (mut columns, mut slopes) = (Vec::new(), Vec::new());
    for (start, len) in chunks(count, vocabulary) {
        let of_hidden = queued(&hidden.clone().narrow(0, start, len));
        let targets_here = queued_int(&targets.clone().narrow(0, start, len));
        let mut outputs = vec![([len, stats.columns()].into(), DType::F32)];
        if with_slopes {
            outputs.push(([len, width].into(), dtype));
        }
        let kernel = OfRows { stats, with_slopes };
        let rows = of_targets.clone().map(|rows| rows.narrow(0, start, len));
        let mut inputs = vec![of_hidden, targets_here];
        inputs.extend(rows.as_ref().map(queued));
        inputs.extend(head.iter().cloned());
        let mut outputs = queue(kernel, inputs, &outputs).into_iter().map(tensor);
        columns.extend(outputs.next());
        slopes.extend(outputs.next());
    }
    LogProbs {
        columns: BurnTensor::cat(columns, 0),
        slopes: with_slopes.then(|| BurnTensor::cat(slopes, 0)),
    }
}

/// The floats of a head: in parts, where it is.
fn pieces<B: CubeGpu>(head: Weight<B>, dtype: DType) -> Vec<BurnTensor<B, 2>> {
    match head {
        Weight::Split(head) => {
            let parts = head.parts();
            parts.flat_map(|(_, part)| pieces(part.clone(), dtype)).collect()
        }
        head => vec![head.floats(dtype)],
    }
}

/// `(start, length)` of chunks of rows whose logits stay within [`CHUNK_VALUES`].
fn chunks(rows: usize, vocabulary: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = match CHUNK_VALUES / vocabulary {
        many if many > TILE => many / TILE * TILE,
        few => few.max(1),
    };
    (0..rows).step_by(size).map(move |start| (start, size.min(rows - start)))
}

/// Inputs: hidden states, targets, with slopes the head's rows of the targets, and the head in one or more parts.
#[derive(Debug)]
struct OfRows {
    stats: LogProbStats,
    with_slopes: bool,
}

impl Kernel for OfRows {
    const NAME: &'static str = "completion_log_probs";

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut inputs = inputs.into_iter();
        let (hidden, targets) = (taken(&mut inputs), taken(&mut inputs));
        let of_targets = self.with_slopes.then(|| taken(&mut inputs));
        let head: Vec<_> = inputs.collect();
        let (dtype, [len, _]) = (hidden.dtype, hidden.meta.shape().dims());
        let logits = logits(&hidden, &head);
        let [_, vocabulary] = logits.meta.shape().dims();
        let columns = empty(&logits, [len, self.stats.columns()], DType::F32);
        let others = self.with_slopes.then(|| empty(&logits, [len, vocabulary], dtype));
        let doubt = empty(&logits, [len, 1], DType::F32);
        let targets = rows(targets);
        let written = [&columns, &doubt].map(Clone::clone);
        self.launch(logits, targets, written, others.clone());
        let slopes = others.zip(of_targets).map(|(others, of_targets)| {
            let of_others = contracted(&others, &head);
            add_targets(of_others, rows(of_targets), doubt)
        });
        std::iter::once(columns).chain(slopes).collect()
    }
}

impl OfRows {
    fn launch<R: CubeRuntime>(
        &self,
        logits: CubeTensor<R>,
        targets: CubeTensor<R>,
        [columns, doubt]: [CubeTensor<R>; 2],
        others: Option<CubeTensor<R>>,
    ) {
        let [len, vocabulary] = logits.meta.shape().dims();
        // Without slopes, the columns stand in for them, unwritten.
        let others = others.unwrap_or_else(|| columns.clone());
        let dtypes = [others.dtype.into(), targets.dtype.into()];
        of_logits::launch::<R>(
            &logits.client.clone(),
            cubes(len),
            CubeDim::new_1d(UNITS as u32),
            vector_size(&[&logits], &[vocabulary]),
            logits.into_tensor_arg(),
            targets.into_tensor_arg(),
            columns.into_tensor_arg(),
            doubt.into_tensor_arg(),
            others.into_tensor_arg(),
            self.stats == LogProbStats::All,
            self.with_slopes,
            UNITS,
            dtypes,
        );
    }
}

/// `hidden head^T`, in f32.
fn logits<R: CubeRuntime>(hidden: &CubeTensor<R>, head: &[CubeTensor<R>]) -> CubeTensor<R> {
    let [len, _] = hidden.meta.shape().dims();
    let product = |head: &CubeTensor<R>| {
        let [rows, _] = head.meta.shape().dims();
        let product = empty(hidden, [len, rows], DType::F32);
        matmul(hidden.clone(), transposed(head.clone()), product.clone());
        product
    };
    if let [head] = head {
        return product(head);
    }
    let vocabulary = head.iter().map(|part| part.meta.shape()[0]).sum();
    let logits = empty(hidden, [len, vocabulary], DType::F32);
    let mut column = 0;
    for part in head {
        put(product(part), None, None, &logits, column);
        column += part.meta.shape()[0];
    }
    logits
}

/// `of_others + doubt * head[target]` of each row, in the head's dtype.
fn add_targets<R: CubeRuntime>(
    of_others: CubeTensor<R>,
    of_targets: CubeTensor<R>,
    doubt: CubeTensor<R>,
) -> CubeTensor<R> {
    let shape: [usize; 2] = of_others.meta.shape().dims();
    let slopes = empty(&of_others, shape, of_targets.dtype);
    let dtype = of_targets.dtype.into();
    add_target::launch::<R>(
        &slopes.client,
        cubes((shape[0] * shape[1]).div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        of_others.into_tensor_arg(),
        of_targets.into_tensor_arg(),
        doubt.into_tensor_arg(),
        slopes.clone().into_tensor_arg(),
        dtype,
    );
    slopes
}

/// `of_logits head`, `[rows, D]`, in f32.
fn contracted<R: CubeRuntime>(of_logits: &CubeTensor<R>, head: &[CubeTensor<R>]) -> CubeTensor<R> {
    let [len, vocabulary] = of_logits.meta.shape().dims();
    let mut first = 0;
    let mut sum: Option<CubeTensor<R>> = None;
    for part in head {
        let [rows, width] = part.meta.shape().dims();
        for start in (0..rows).step_by(SUMMED) {
            let end = rows.min(start + SUMMED);
            let columns = match end - start == vocabulary {
                true => of_logits.clone(),
                false => slice(of_logits.clone(), &[0..len, first + start..first + end]),
            };
            let of_head = match end - start == rows {
                true => part.clone(),
                false => slice(part.clone(), &[start..end, 0..width]),
            };
            let product = empty(of_logits, [len, width], DType::F32);
            matmul(columns, of_head, product.clone());
            sum = Some(match sum {
                Some(sum) => add(sum, product),
                None => product,
            });
        }
        first += rows;
    }
    sum.unwrap_or_else(|| unreachable!("a head without rows"))
}

/// One cube a row of logits: the columns of [`LogProbStats`]; for the slopes, `-softmax` but for the target into
/// `others`, and one less the probability of the target into `doubt`. In one sum with the target's, which may be
/// millions of times larger, the terms of rare tokens would be lost.
#[cube(launch)]
fn of_logits<F: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    targets: &Tensor<I>,
    columns: &mut Tensor<f32>,
    doubt: &mut Tensor<f32>,
    others: &mut Tensor<Vector<F, N>>,
    #[comptime] all: bool,
    #[comptime] with_slopes: bool,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= logits.shape(0) {
        terminate!();
    }
    let vectors = logits.shape(1) / N::value();
    let start = row * vectors;
    let target = usize::cast_from(targets[row]);
    let of_target = lane(logits[start + target / N::value()], target % N::value());

    let most = cube_max(largest(logits, start, vectors, units), units);
    let mut mass = 0.0f32.runtime();
    let mut moment = 0.0f32.runtime();
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let below = values[j] - most;
            let weight = below.exp();
            mass += weight;
            moment += weight * below;
        }
        i += units;
    }
    let mass = cube_sum(mass, units);
    let at = row * columns.shape(1);
    if UNIT_POS == 0 {
        columns[at] = of_target - most - mass.ln();
    }
    if comptime!(all) {
        let entropy = mass.ln() - cube_sum(moment, units) / mass;
        write_statistics(logits, columns, at, start, target, of_target, entropy, units);
    }
    if comptime!(with_slopes) {
        write_others(logits, others, start, vectors, target, most, mass, units);
        if UNIT_POS == 0 {
            doubt[row] = (mass - (of_target - most).exp()) / mass;
        }
    }
}

/// The largest logit that a unit comes across.
#[cube]
fn largest<N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    start: usize,
    vectors: usize,
    #[comptime] units: usize,
) -> f32 {
    let mut most = LOWEST.runtime();
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let z = values[j];
            most = select(z > most, z, most);
        }
        i += units;
    }
    most
}

/// The columns behind the first.
#[cube]
fn write_statistics<N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    columns: &mut Tensor<f32>,
    at: usize,
    start: usize,
    target: usize,
    of_target: f32,
    entropy: f32,
    #[comptime] units: usize,
) {
    let vocabulary = logits.shape(1);
    let mut sum = 0.0f32.runtime();
    let mut ahead = 0.0f32.runtime();
    let mut i = UNIT_POS as usize;
    while i < vocabulary / N::value() {
        let values = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            let z = values[j];
            sum += z;
            // Of equal ones, the first is the most likely.
            let before = i * N::value() + j < target;
            let beats = z > of_target || (z == of_target && before);
            ahead = select(beats, 1.0f32, ahead);
        }
        i += units;
    }
    let sum = cube_sum(sum, units);
    let ahead = cube_max(ahead, units);
    if UNIT_POS == 0 {
        columns[at + 1] = entropy;
        columns[at + 2] = 1.0f32 - ahead;
        columns[at + 3] = sum / f32::cast_from(vocabulary);
    }
}

/// `-softmax`, 0 for the target.
#[cube]
fn write_others<F: Float, N: Size>(
    logits: &Tensor<Vector<f32, N>>,
    others: &mut Tensor<Vector<F, N>>,
    start: usize,
    vectors: usize,
    target: usize,
    most: f32,
    mass: f32,
    #[comptime] units: usize,
) {
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let values = logits[start + i];
        let mut slope = Vector::<F, N>::empty();
        #[unroll]
        for j in 0..N::value() {
            let share = (values[j] - most).exp() / mass;
            let is_target = i * N::value() + j == target;
            slope[j] = F::cast_from(select(is_target, 0.0f32, -share));
        }
        others[start + i] = slope;
        i += units;
    }
}

/// A value a unit.
#[cube(launch)]
fn add_target<F: Float>(
    of_others: &Tensor<f32>,
    of_targets: &Tensor<F>,
    doubt: &Tensor<f32>,
    slopes: &mut Tensor<F>,
    #[define(F)] _dtype: StorageType,
) {
    let width = of_others.shape(1);
    let row = ABSOLUTE_POS / width;
    if row >= of_others.shape(0) {
        terminate!();
    }
    let of_target = f32::cast_from(of_targets[row * of_targets.stride(0) + ABSOLUTE_POS % width]);
    slopes[ABSOLUTE_POS] = F::cast_from(of_others[ABSOLUTE_POS] + doubt[row] * of_target);
}

/// Value `index` of a vector.
#[cube]
fn lane<N: Size>(vector: Vector<f32, N>, index: usize) -> f32 {
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
    use crate::cubecl::pitched::{Given, same_when_pitched};

    #[test]
    fn on_pitched_rows() {
        let kernel = OfRows { stats: LogProbStats::All, with_slopes: true };
        for [width, vocabulary] in [[5, 48], [48, 100], [100, 5]] {
            let targets = Given::IntVector(vec![0, 3, 4, 2]);
            let mut inputs = vec![Given::Floats([4, width]), targets, Given::Floats([4, width])];
            inputs.push(Given::Floats([vocabulary, width]));
            same_when_pitched(&kernel, &inputs);
            inputs.push(Given::Floats([9, width]));
            same_when_pitched(&kernel, &inputs);
        }
    }
}
