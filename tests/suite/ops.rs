//! Every operation and its gradient on a backend, against the reference bodies in f64 on the CPU, through Burn's own
//! autodiff. Sizes are odd, and inputs also come as views whose rows are not next to each other.

use arithmo::data::batch::Sight;
use arithmo_backends::ops::{
    accumulator, adapted_linear, attention, linear, log_probs, rms_norm, rope, swiglu,
};
use arithmo_backends::{
    Adapter, AttentionConfig, AttentionMask, LogProbStats, Projection, RotaryAngles, TrainBackend,
    graph_lock,
};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::golden::assert_close;

type Cpu = burn_ndarray::NdArray<f32>;
pub(super) type Exact = Autodiff<burn_ndarray::NdArray<f64>>;

/// The CPU, for [`Exact`]. Burn 0.21 keeps default types per device, not per backend: f32 is settled first, and
/// everything here that is f64 says so.
pub(super) fn exact_device() -> burn_ndarray::NdArrayDevice {
    let device = Default::default();
    let _ = Tensor::<burn_ndarray::NdArray<f32>, 1>::zeros([1], &device);
    device
}

/// Numbers on the host, of which every backend gets the same.
#[derive(Clone)]
pub(super) struct Host {
    shape: Vec<usize>,
    pub(super) values: Vec<f64>,
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Layout {
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

pub(super) struct Source(ChaCha8Rng);

impl Source {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[-1.5, 1.5]`, exact in f16 and every larger type.
    pub(super) fn floats(&mut self, shape: &[usize]) -> Host {
        let mut value = || f64::from(self.0.next_u32() % 3073) / 1024.0 - 1.5;
        Host {
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|_| value()).collect(),
        }
    }

    pub(super) fn ints(&mut self, count: usize, below: usize) -> Vec<i64> {
        (0..count).map(|_| i64::from(self.0.next_u32()) % below as i64).collect()
    }
}

impl Host {
    /// On the device of `B`, in `dtype`, laid out as asked.
    pub(super) fn on<B: Backend, const D: usize>(
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

pub(super) fn numbers<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Results of one operation: its output, then its gradients.
pub(super) type Results = Vec<Vec<f64>>;

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
pub(super) fn check<B: TrainBackend>(
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

/// `[T, D_in, D_out]`, from one to beyond every tile, off the powers of two; the last has rows of whole 16 bytes in every
/// type, as libraries want them.
const LINEAR: [[usize; 3]; 7] = [
    [1, 1, 1],
    [7, 5, 3],
    [1, 129, 65],
    [33, 48, 100],
    [64, 96, 33],
    [130, 257, 31],
    [67, 96, 136],
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
            |x, weight| linear::reference(x, weight.into()),
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
    let [x, weight, dy] = inputs.each_ref().map(|host| host.on::<A, 2>(dtype, layout, device));
    let x = x.detach().require_grad();
    let y = op(x.clone(), weight.detach());
    let grads = (y.clone() * dy).sum().backward();
    vec![numbers(y), numbers(x.grad(&grads).unwrap())]
}

struct AttentionCase {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    width: usize,
    window: Option<usize>,
    /// Whether every third token alone is a query.
    chosen: bool,
}

impl AttentionCase {
    fn new([tokens, heads, kv_heads, width]: [usize; 4], window: usize, chosen: bool) -> Self {
        Self {
            tokens,
            heads,
            kv_heads,
            width,
            window: Some(window).filter(|window| *window > 0),
            chosen,
        }
    }

    fn config(&self) -> AttentionConfig {
        AttentionConfig {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.width,
            scale: 1.0 / (self.width as f64).sqrt(),
        }
    }

    /// What each token sees: padding that sees nothing, then a prompt shared by two completions, then a sequence of its
    /// own.
    fn sight(&self) -> Vec<(Sight, i64)> {
        let n = self.tokens;
        let (pad, prompt) = (n / 9, n / 9 + n / 4);
        let (first, second) = (prompt + n / 5, prompt + n / 2);
        let one = |at: usize| {
            let (shared, start) = match at {
                _ if at < pad => return (Sight::default(), 0),
                _ if at < prompt => ([0, 0], pad),
                _ if at < first => ([pad, prompt], prompt),
                _ if at < second => ([pad, prompt], first),
                _ => ([0, 0], second),
            };
            let sight =
                Sight { shared: shared.map(|at| at as i64), own: [start as i64, at as i64 + 1] };
            let position = at - start + shared[1] - shared[0];
            (sight, position as i64)
        };
        (0..n).map(one).collect()
    }

    fn mask<B: Backend>(&self, device: &B::Device) -> AttentionMask<B> {
        let sight = self.sight();
        let queries: Vec<i64> = match self.chosen {
            true => (0..self.tokens as i64).step_by(3).collect(),
            false => (0..self.tokens as i64).collect(),
        };
        let ranges = queries.iter().flat_map(|at| {
            let (sight, position) = sight[*at as usize];
            let sight = sight.within(self.window, position);
            [sight.shared, sight.own].concat()
        });
        let ranges: Vec<i64> = ranges.collect();
        let hidden: Vec<i64> = (0..self.tokens).map(|at| i64::from(at % 7 == 4)).collect();
        AttentionMask {
            ranges: ints(&ranges, [queries.len(), 4], device),
            hidden: Some(ints(&hidden, [self.tokens], device)).filter(|_| self.tokens > 20),
            queries: self.chosen.then(|| ints(&queries, [queries.len()], device)),
        }
    }

    fn run<A: burn::tensor::backend::AutodiffBackend>(
        &self,
        inputs: &[Host; 2],
        dtype: DType,
        layout: Layout,
        device: &A::Device,
        op: impl Fn(Tensor<A, 2>, &AttentionMask<A>, &AttentionConfig) -> Tensor<A, 2>,
    ) -> Results {
        let _only_graph = graph_lock();
        let [qkv, dy] =
            inputs.each_ref().map(|host| host.on::<A, 2>(dtype, layout, device).detach());
        let qkv = qkv.require_grad();
        let y = op(qkv.clone(), &self.mask::<A>(device), &self.config());
        let grads = (y.clone() * dy).sum().backward();
        vec![numbers(y), numbers(qkv.grad(&grads).unwrap())]
    }
}

/// Attention: grouped queries, padding, a shared prompt, hidden keys, windows, chosen queries.
pub fn attention<B: TrainBackend>(device: &B::Device) {
    let cases = [
        AttentionCase::new([1, 1, 1, 2], 0, false),
        AttentionCase::new([15, 6, 2, 4], 3, false),
        AttentionCase::new([37, 6, 3, 20], 0, true),
        AttentionCase::new([170, 4, 1, 34], 64, false),
        AttentionCase::new([261, 4, 2, 10], 0, true),
        AttentionCase::new([19, 3, 3, 7], 0, false),
    ];
    for case in cases {
        let config = case.config();
        let mask = case.mask::<Cpu>(&Default::default());
        let (queries, width) = (mask.ranges.dims()[0], case.heads * case.width);
        let mut source = Source::new((case.tokens * case.width) as u64);
        let inputs = [[case.tokens, config.packed_width()], [queries, width]];
        let inputs = inputs.map(|shape| source.floats(&shape));
        let exact = case.run::<Exact>(
            &inputs,
            DType::F64,
            Layout::Contiguous,
            &exact_device(),
            |qkv, mask, config| {
                let [query, key, value] = attention::split(qkv, mask, config);
                attention::reference(query, key, value, mask, config).output
            },
        );
        let what = format!("attention {inputs:?}", inputs = inputs.each_ref().map(|i| &i.shape));
        check::<B>(
            &what,
            device,
            |dtype, layout| {
                let op = attention::self_attention;
                case.run::<Autodiff<B>>(&inputs, dtype, layout, device, op)
            },
            &exact,
        );
        cached::<B>(&what, &case, &inputs[0], &exact[0], device);
    }
}

/// The same with queries, keys and values apart, as a cache gives them.
fn cached<B: TrainBackend>(
    what: &str,
    case: &AttentionCase,
    qkv: &Host,
    exact: &[f64],
    device: &B::Device,
) {
    for layout in LAYOUTS {
        let mask = case.mask::<B>(device);
        let qkv = qkv.on::<B, 2>(DType::F32, layout, device);
        let [query, key, value] = attention::split(qkv, &mask, &case.config());
        let mask = AttentionMask { queries: None, ..mask };
        let y = attention::attention(query, key, value, &mask, &case.config());
        let what = format!("{what} cached {layout:?}");
        compare(&what, &vec![numbers(y)], &vec![exact.to_vec()], TOLERANCE);
    }
}

/// `[T, D_in]`, the widths and ranks of up to three projections (rank 0: without a branch), whether a residual is added,
/// and whether branches have dropout.
type AdaptedCase = ([usize; 2], &'static [[usize; 2]], bool, bool);

const ADAPTED: [AdaptedCase; 6] = [
    ([1, 1], &[[1, 1]], false, false),
    ([7, 5], &[[3, 2], [4, 0], [6, 5]], false, false),
    ([33, 48], &[[100, 16]], true, false),
    ([130, 65], &[[31, 4], [31, 4]], false, true),
    ([70, 129], &[[64, 0], [33, 0]], false, false),
    ([65, 40], &[[40, 7]], true, true),
];

/// Projections with branches.
pub fn adapted_linear<B: TrainBackend>(device: &B::Device) {
    for case @ ([tokens, d_in], shapes, residual, _) in ADAPTED {
        let mut source = Source::new((tokens * d_in) as u64);
        let width: usize = shapes.iter().map(|[d_out, _]| d_out).sum();
        let mut hosts = vec![source.floats(&[tokens, d_in])];
        for [d_out, rank] in shapes {
            hosts.push(source.floats(&[*d_out, d_in]));
            hosts.extend((*rank > 0).then(|| source.floats(&[*rank, d_in])));
            hosts.extend((*rank > 0).then(|| source.floats(&[*d_out, *rank])));
        }
        hosts.extend(residual.then(|| source.floats(&[tokens, width])));
        let dy = source.floats(&[tokens, width]);
        let reference = |x, projections: &[Projection<Exact>], residual| {
            adapted_linear::reference(x, projections, residual).output
        };
        let exact = (exact_device(), DType::F64, Layout::Contiguous);
        let exact = adapted_on::<Exact>(&case, &hosts, &dy, exact, reference);
        check::<B>(
            &format!("adapted_linear {tokens}x{d_in} {shapes:?}"),
            device,
            |dtype, layout| {
                let place = (device.clone(), dtype, layout);
                adapted_on::<Autodiff<B>>(&case, &hosts, &dy, place, adapted_linear::adapted_linear)
            },
            &exact,
        );
    }
}

fn adapted_on<A: burn::tensor::backend::AutodiffBackend>(
    (shape, shapes, _, dropout): &AdaptedCase,
    hosts: &[Host],
    dy: &Host,
    (device, dtype, layout): (A::Device, DType, Layout),
    op: impl Fn(Tensor<A, 2>, &[Projection<A>], Option<Tensor<A, 2>>) -> Tensor<A, 2>,
) -> Results {
    let _only_graph = graph_lock();
    let branch_dtype = accumulator(dtype);
    let mut hosts = hosts.iter();
    let mut next = |dtype, layout| {
        let tensor = hosts.next().map(|host| host.on::<A, 2>(dtype, layout, &device));
        tensor.map(Tensor::detach)
    };
    let mut leaves = vec![next(dtype, layout).unwrap().require_grad()];
    let mut projections = Vec::new();
    for [_, rank] in *shapes {
        let weight = next(dtype, layout).unwrap();
        let adapter = (*rank > 0).then(|| {
            let [a, b] = [(); 2].map(|()| next(branch_dtype, Layout::Contiguous).unwrap());
            let [a, b] = [a, b].map(Tensor::require_grad);
            leaves.extend([a.clone(), b.clone()]);
            let ones = Tensor::<A, 2>::ones(*shape, (&device, branch_dtype));
            // Every third element falls out, a different one for every branch.
            let kept: Vec<i64> =
                (0..shape[0] * shape[1]).map(|at| i64::from((at + rank) % 3 > 0)).collect();
            let kept = ints::<A, 2>(&kept, *shape, &device).float().cast(branch_dtype);
            Adapter { a, b, scaling: 1.75, dropout_mask: dropout.then(|| ones * kept * 1.5) }
        });
        projections.push(Projection { weight: weight.into(), adapter });
    }
    let residual = next(dtype, layout).map(Tensor::require_grad);
    leaves.extend(residual.clone());
    let y = op(leaves[0].clone(), &projections, residual);
    let dy = dy.on::<A, 2>(dtype, layout, &device);
    let grads = (y.clone() * dy).sum().backward();
    let grads = leaves.into_iter().map(|leaf| numbers(leaf.grad(&grads).unwrap()));
    std::iter::once(numbers(y)).chain(grads).collect()
}

/// RMSNorm, rotary embedding and SwiGLU, of rows from one to beyond every tile.
pub fn row_wise<B: TrainBackend>(device: &B::Device) {
    for [tokens, half] in [[1, 1], [5, 24], [67, 50], [130, 129]] {
        let mut source = Source::new((tokens + half) as u64);
        let hosts = RowWise {
            // Three heads in all, two of which turn.
            x: source.floats(&[tokens, 6 * half]),
            weight: source.floats(&[6 * half]),
            angles: [(); 2].map(|()| source.floats(&[tokens, half])),
            dy: source.floats(&[tokens, 6 * half]),
            d_half: source.floats(&[tokens, 3 * half]),
        };
        let place = (exact_device(), DType::F64, Layout::Contiguous);
        let exact = hosts.run::<Exact>(
            place,
            |x, weight| rms_norm::reference(x, weight, 1e-3),
            |x, angles| rope::reference(x, angles, 2, rope::Turn::Forward),
            swiglu::reference,
        );
        check::<B>(
            &format!("rms_norm, rope, swiglu {tokens}x{}", 6 * half),
            device,
            |dtype, layout| {
                hosts.run::<Autodiff<B>>(
                    (device.clone(), dtype, layout),
                    |x, weight| rms_norm::rms_norm(x, weight, 1e-3),
                    |x, angles| rope::rope(x, angles, 2),
                    swiglu::swiglu,
                )
            },
            &exact,
        );
    }
}

type Op<'a, A> = &'a dyn Fn(Tensor<A, 2>) -> Tensor<A, 2>;

struct RowWise {
    x: Host,
    weight: Host,
    angles: [Host; 2],
    dy: Host,
    d_half: Host,
}

impl RowWise {
    fn run<A: burn::tensor::backend::AutodiffBackend>(
        &self,
        (device, dtype, layout): (A::Device, DType, Layout),
        norm: impl Fn(Tensor<A, 2>, Tensor<A, 1>) -> Tensor<A, 2>,
        turn: impl Fn(Tensor<A, 2>, &RotaryAngles<A>) -> Tensor<A, 2>,
        gate: impl Fn(Tensor<A, 2>) -> Tensor<A, 2>,
    ) -> Results {
        let weight = self.weight.on::<A, 1>(dtype, Layout::Contiguous, &device);
        let [cos, sin] = self
            .angles
            .each_ref()
            .map(|angles| angles.on::<A, 2>(accumulator(dtype), Layout::Contiguous, &device));
        let angles = RotaryAngles { cos, sin };
        let ops: [(Op<'_, A>, &Host); 3] = [
            (&|x| norm(x, weight.clone()), &self.dy),
            (&|x| turn(x, &angles), &self.dy),
            (&gate, &self.d_half),
        ];
        let one = |(op, dy): (Op<'_, A>, &Host)| {
            let _only_graph = graph_lock();
            let x = self.x.on::<A, 2>(dtype, layout, &device).detach().require_grad();
            let y = op(x.clone());
            let dy = dy.on::<A, 2>(dtype, layout, &device);
            let grads = (y.clone() * dy).sum().backward();
            [numbers(y), numbers(x.grad(&grads).unwrap())]
        };
        ops.into_iter().flat_map(one).collect()
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
            |hidden, head, targets, stats| {
                log_probs::reference(hidden, head.into(), targets, stats, false).columns
            },
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
    let expected = hidden.values.chunks(width).zip(&targets).map(|(row, target)| {
        let target = *target as usize;
        let others = (0..vocabulary).filter(|token| *token != target);
        let best = others.map(|token| logit(row, token)).fold(f64::MIN, f64::max);
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
    let [hidden, head] =
        inputs.each_ref().map(|host| host.on::<A, 2>(dtype, layout, device).detach());
    let hidden = hidden.require_grad();
    let targets = ints(targets, [targets.len()], device);
    let all = op(hidden.clone(), head, targets, LogProbStats::All);
    let dy = dy.on::<A, 2>(all.dtype(), Layout::Contiguous, device);
    let grads = (all.clone().narrow(1, 0, 1) * dy).sum().backward();
    // The third column is compared by `most_likely`, away from ties.
    let columns = [0, 1, 3].map(|column| all.clone().narrow(1, column, 1));
    vec![numbers(Tensor::cat(columns.to_vec(), 1)), numbers(hidden.grad(&grads).unwrap())]
}
