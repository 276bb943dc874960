//! Every operation and its gradient on a backend, against the reference bodies in f64 on the CPU, through Burn's own
//! autodiff. Sizes are odd, and inputs also come as views whose rows are not next to each other.

use arithmo_backends::ops::{attention, linear, log_probs};
use arithmo_backends::{AttentionConfig, AttentionMask, LogProbStats, TrainBackend, graph_lock};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::golden::assert_close;

type Exact = Autodiff<burn_ndarray::NdArray<f64>>;

/// The CPU, for [`Exact`]. Burn 0.21 keeps default types per device, not per backend: f32 is settled first, and
/// everything here that is f64 says so.
fn exact_device() -> burn_ndarray::NdArrayDevice {
    let device = Default::default();
    let _ = Tensor::<burn_ndarray::NdArray<f32>, 1>::zeros([1], &device);
    device
}

/// Numbers on the host, of which every backend gets the same.
#[derive(Clone)]
struct Host {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Row after row.
    Contiguous,
    /// Rows of a wider tensor.
    Pitched,
    /// Dimensions 0 and 1 swapped in memory.
    Swapped,
}

const LAYOUTS: [Layout; 3] = [Layout::Contiguous, Layout::Pitched, Layout::Swapped];

/// Rounding of sums of some hundred terms of size one, relative to the largest value of the result.
const TOLERANCE: f64 = 1e-5;

struct Source(ChaCha8Rng);

impl Source {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[-1.5, 1.5]`, exact in f16 and every larger type.
    fn floats(&mut self, shape: &[usize]) -> Host {
        let mut value = || f64::from(self.0.next_u32() % 3073) / 1024.0 - 1.5;
        Host {
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|_| value()).collect(),
        }
    }

    fn ints(&mut self, count: usize, below: usize) -> Vec<i64> {
        (0..count)
            .map(|_| i64::from(self.0.next_u32()) % below as i64)
            .collect()
    }
}

impl Host {
    /// On the device of `B`, in `dtype`, laid out as asked.
    fn on<B: Backend, const D: usize>(
        &self,
        dtype: DType,
        layout: Layout,
        device: &B::Device,
    ) -> Tensor<B, D> {
        let data = TensorData::new(self.values.clone(), self.shape.clone()).convert_dtype(dtype);
        let plain = Tensor::<B, D>::from_data(data, (device, dtype));
        match layout {
            Layout::Contiguous => plain,
            Layout::Pitched => {
                let mut wider = self.shape.clone();
                wider[D - 1] = 3;
                let wider: [usize; D] = wider.try_into().unwrap();
                let beside = Tensor::ones(wider, (device, dtype));
                let width = self.shape[D - 1];
                Tensor::cat(vec![plain, beside], D - 1).narrow(D - 1, 0, width)
            }
            Layout::Swapped => {
                // Copied in the other order, then looked at in this one.
                (plain.swap_dims(0, 1) * 1.0).swap_dims(0, 1)
            }
        }
    }
}

fn ints<B: Backend, const D: usize>(
    values: &[i64],
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Results of one operation: its output, then its gradients.
type Results = Vec<Vec<f64>>;

#[track_caller]
fn compare(what: &str, ours: &Results, exact: &Results, tolerance: f64) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    for (index, (ours, exact)) in ours.iter().zip(exact).enumerate() {
        let scale = exact.iter().fold(1.0, |max: f64, v| max.max(v.abs()));
        let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|v| *v as f32).collect() };
        let name = match index {
            0 => format!("{what}: output"),
            index => format!("{what}: gradient {index}"),
        };
        let tolerance = (tolerance * scale) as f32;
        assert_close(&name, &f32s(ours), &f32s(exact), tolerance);
    }
}

/// Runs `results` in `dtype` on `B` in every layout, and compares with f64.
fn check<B: TrainBackend>(
    what: &str,
    device: &B::Device,
    on_b: impl Fn(DType, Layout) -> Results,
    exact: &Results,
) {
    for layout in LAYOUTS {
        let ours = on_b(DType::F32, layout);
        compare(&format!("{what} {layout:?} f32"), &ours, exact, TOLERANCE);
    }
    if B::supports_dtype(device, DType::F16) {
        let ours = on_b(DType::F16, Layout::Contiguous);
        // 11 bits of mantissa, rounded at every named point.
        compare(&format!("{what} f16"), &ours, exact, 1e-2);
    }
}

/// `[T, D_in, D_out]`, from one to beyond every tile, off the powers of two.
const LINEAR: [[usize; 3]; 6] = [
    [1, 1, 1],
    [7, 5, 3],
    [1, 129, 65],
    [33, 48, 100],
    [64, 96, 33],
    [130, 257, 31],
];

/// Frozen projections.
pub fn linear<B: TrainBackend>(device: &B::Device) {
    for [tokens, d_in, d_out] in LINEAR {
        let mut source = Source::new((tokens * d_in + d_out) as u64);
        let inputs = [[tokens, d_in], [d_out, d_in], [tokens, d_out]].map(|s| source.floats(&s));
        let exact = linear_on::<Exact>(
            &inputs,
            DType::F64,
            Layout::Contiguous,
            &exact_device(),
            linear::reference,
        );
        check::<B>(
            &format!("linear {tokens}x{d_in}x{d_out}"),
            device,
            |dtype, layout| {
                linear_on::<Autodiff<B>>(&inputs, dtype, layout, device, linear::linear)
            },
            &exact,
        );
    }
}

fn linear_on<A: burn::tensor::backend::AutodiffBackend>(
    inputs: &[Host; 3],
    dtype: DType,
    layout: Layout,
    device: &A::Device,
    op: impl Fn(Tensor<A, 2>, Tensor<A, 2>) -> Tensor<A, 2>,
) -> Results {
    let _only_graph = graph_lock();
    let [x, weight, dy] = inputs
        .each_ref()
        .map(|host| host.on::<A, 2>(dtype, layout, device));
    let x = x.detach().require_grad();
    let y = op(x.clone(), weight.detach());
    let grads = (y.clone() * dy).sum().backward();
    vec![numbers(y), numbers(x.grad(&grads).unwrap())]
}

struct AttentionCase {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    width: usize,
    window: Option<usize>,
}

impl AttentionCase {
    fn new([batch, queries, keys, heads, kv_heads, width]: [usize; 6], window: usize) -> Self {
        Self {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            width,
            window: Some(window).filter(|window| *window > 0),
        }
    }

    /// The queries are the last of the keys. Row 0 starts with padding, row 1 ends with it; the others hold two
    /// segments.
    fn mask<B: Backend>(&self, device: &B::Device) -> AttentionMask<B> {
        let (mut segments, mut positions) = (Vec::new(), Vec::new());
        for row in 0..self.batch {
            for key in 0..self.keys {
                let half = self.keys / 2;
                let (segment, position) = match row {
                    0 if key < 2.min(self.keys - 1) => (-1, 0),
                    0 => (0, key - 2.min(self.keys - 1)),
                    1 if key + 2 > self.keys => (-1, key),
                    1 => (0, key),
                    _ if key < half => (0, key),
                    _ => (1, key - half),
                };
                segments.push(segment);
                positions.push(position as i64);
            }
        }
        let last = |values: &[i64]| -> Vec<i64> {
            let rows = values.chunks(self.keys);
            rows.flat_map(|row| row[self.keys - self.queries..].to_vec())
                .collect()
        };
        // As in the model: a query of padding looks at segment 0 and is not looked at.
        let query_segments: Vec<i64> = last(&segments).iter().map(|s| (*s).max(0)).collect();
        let (queries, keys) = ([self.batch, self.queries], [self.batch, self.keys]);
        AttentionMask {
            query_segments: ints(&query_segments, queries, device),
            query_positions: ints(&last(&positions), queries, device),
            key_segments: ints(&segments, keys, device),
            key_positions: ints(&positions, keys, device),
        }
    }

    fn run<A: burn::tensor::backend::AutodiffBackend>(
        &self,
        inputs: &[Host; 4],
        dtype: DType,
        layout: Layout,
        device: &A::Device,
        op: impl Fn(
            Tensor<A, 4>,
            Tensor<A, 4>,
            Tensor<A, 4>,
            &AttentionMask<A>,
            &AttentionConfig,
        ) -> Tensor<A, 4>,
    ) -> Results {
        let _only_graph = graph_lock();
        let [q, k, v, dy] = inputs
            .each_ref()
            .map(|host| host.on::<A, 4>(dtype, layout, device).detach());
        let [q, k, v] = [q, k, v].map(Tensor::require_grad);
        let config = AttentionConfig {
            scale: 1.0 / (self.width as f64).sqrt(),
            window: self.window,
        };
        let mask = self.mask::<A>(device);
        let y = op(q.clone(), k.clone(), v.clone(), &mask, &config);
        let grads = (y.clone() * dy).sum().backward();
        let grads = [q, k, v].map(|t| numbers(t.grad(&grads).unwrap()));
        std::iter::once(numbers(y)).chain(grads).collect()
    }
}

/// Attention: grouped queries, padding on both sides, segments, windows, keys of a cache before the queries.
pub fn attention<B: TrainBackend>(device: &B::Device) {
    let cases = [
        AttentionCase::new([1, 1, 1, 1, 1, 2], 0),
        AttentionCase::new([3, 5, 5, 6, 2, 4], 3),
        AttentionCase::new([2, 37, 37, 6, 3, 20], 0),
        AttentionCase::new([1, 70, 70, 4, 1, 33], 64),
        AttentionCase::new([3, 1, 41, 4, 2, 10], 16),
        AttentionCase::new([2, 6, 19, 3, 3, 7], 0),
    ];
    for case in cases {
        let queries = [case.batch, case.queries, case.heads, case.width];
        let keys = [case.batch, case.keys, case.kv_heads, case.width];
        let mut source = Source::new((case.keys * case.width) as u64);
        let inputs = [queries, keys, keys, queries].map(|shape| source.floats(&shape));
        let exact = case.run::<Exact>(
            &inputs,
            DType::F64,
            Layout::Contiguous,
            &exact_device(),
            attention::reference,
        );
        check::<B>(
            &format!("attention {queries:?} over {keys:?}"),
            device,
            |dtype, layout| {
                case.run::<Autodiff<B>>(&inputs, dtype, layout, device, attention::attention)
            },
            &exact,
        );
    }
}

/// `[T, D, V]`; the last is computed in two chunks.
const LOG_PROBS: [[usize; 3]; 4] = [[1, 3, 2], [9, 5, 11], [77, 40, 301], [300, 2, 30_001]];

/// Log-probabilities of completions with their statistics.
pub fn log_probs<B: TrainBackend>(device: &B::Device) {
    log_probs_of::<B>(&LOG_PROBS, device);
}

/// A vocabulary of three millions, in two chunks.
pub fn log_probs_of_a_huge_vocabulary<B: TrainBackend>(device: &B::Device) {
    log_probs_of::<B>(&[[3, 2, 3_000_001]], device);
}

fn log_probs_of<B: TrainBackend>(shapes: &[[usize; 3]], device: &B::Device) {
    for shape @ &[tokens, width, vocabulary] in shapes {
        let mut source = Source::new((tokens * width) as u64);
        let inputs = [[tokens, width], [vocabulary, width]].map(|shape| source.floats(&shape));
        let dy = source.floats(&[tokens, 1]);
        let targets = source.ints(tokens, vocabulary);
        let exact = log_probs_on::<Exact>(
            &inputs,
            &dy,
            &targets,
            DType::F64,
            Layout::Contiguous,
            &exact_device(),
            log_probs::reference,
        );
        let on_b = |dtype, layout| {
            let op = log_probs::completion_log_probs;
            log_probs_on::<Autodiff<B>>(&inputs, &dy, &targets, dtype, layout, device, op)
        };
        if vocabulary > 1 << 20 {
            let ours = on_b(DType::F32, Layout::Contiguous);
            compare(&format!("log_probs {shape:?}"), &ours, &exact, TOLERANCE);
        } else {
            check::<B>(&format!("log_probs {shape:?}"), device, on_b, &exact);
        }
    }
}

/// Whether targets are the most likely tokens: every second one is, by a clear margin.
pub fn most_likely<B: TrainBackend>(device: &B::Device) {
    let (tokens, width, vocabulary) = (41, 6, 97);
    let mut source = Source::new(5);
    let mut hidden = source.floats(&[tokens, width]);
    let head = source.floats(&[vocabulary, width]);
    let targets = source.ints(tokens, vocabulary);
    let rows = hidden.values.chunks_mut(width).zip(&targets);
    // Along the target's own row of the head, scaled so that no other row comes near, or against it.
    for (index, (row, target)) in rows.enumerate() {
        let of_target = &head.values[*target as usize * width..][..width];
        let sign = if index % 2 == 0 { 8.0 } else { -8.0 };
        row.copy_from_slice(&of_target.iter().map(|v| sign * v).collect::<Vec<_>>());
    }
    let logit = |row: &[f64], token: usize| -> f64 {
        let of_token = &head.values[token * width..][..width];
        row.iter().zip(of_token).map(|(a, b)| a * b).sum()
    };
    let expected = hidden
        .values
        .chunks(width)
        .zip(&targets)
        .map(|(row, target)| {
            let target = *target as usize;
            let others = (0..vocabulary).filter(|token| *token != target);
            let best = others
                .map(|token| logit(row, token))
                .fold(f64::MIN, f64::max);
            let margin = logit(row, target) - best;
            (margin.abs() > 1e-2).then_some(f64::from(margin > 0.0))
        });
    let expected: Vec<_> = expected.collect();
    assert!(expected.iter().filter(|e| **e == Some(1.0)).count() > 10);
    assert!(expected.iter().filter(|e| **e == Some(0.0)).count() > 10);

    let layout = Layout::Contiguous;
    let all = log_probs::completion_log_probs(
        hidden.on::<B, 2>(DType::F32, layout, device),
        head.on::<B, 2>(DType::F32, layout, device),
        ints(&targets, [tokens], device),
        LogProbStats::All,
    );
    for (ours, expected) in numbers(all.narrow(1, 2, 1)).into_iter().zip(expected) {
        assert!(expected.is_none_or(|expected| ours == expected));
    }
}

fn log_probs_on<A: burn::tensor::backend::AutodiffBackend>(
    inputs: &[Host; 2],
    dy: &Host,
    targets: &[i64],
    dtype: DType,
    layout: Layout,
    device: &A::Device,
    op: impl Fn(Tensor<A, 2>, Tensor<A, 2>, Tensor<A, 1, Int>, LogProbStats) -> Tensor<A, 2>,
) -> Results {
    let _only_graph = graph_lock();
    let [hidden, head] = inputs
        .each_ref()
        .map(|host| host.on::<A, 2>(dtype, layout, device).detach());
    let hidden = hidden.require_grad();
    let targets = ints(targets, [targets.len()], device);
    let all = op(hidden.clone(), head, targets, LogProbStats::All);
    let dy = dy.on::<A, 2>(all.dtype(), Layout::Contiguous, device);
    let grads = (all.clone().narrow(1, 0, 1) * dy).sum().backward();
    // The third column is compared by `most_likely`, away from ties.
    let columns = [0, 1, 3].map(|column| all.clone().narrow(1, column, 1));
    vec![
        numbers(Tensor::cat(columns.to_vec(), 1)),
        numbers(hidden.grad(&grads).unwrap()),
    ]
}
