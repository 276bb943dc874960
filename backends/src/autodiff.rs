//! The operations on `Autodiff`, written once for all backends: each records its backward rule ([`rules`]).

mod rules;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorPrimitive, ops::FloatTensor};

use self::rules::{
    AdaptedBackward, AdaptedState, AttentionBackward, GegluBackward, HeadNormBackward,
    LinearBackward, LogProbsBackward, NormBackward, RopeBackward, SwigluBackward,
};
use crate::{
    Adapted, Adapter, Allocation, Attended, AttentionConfig, AttentionMask, BufferLimits,
    DropoutMask, HeadNorm, LogProbStats, LogProbs, MatmulProvider, PackedWeight, Projection,
    RotaryAngles, Rotation, TrainBackend, Weight,
};

type Ad<B, C> = Autodiff<B, C>;

/// Waits until no other thread of this process is building an autodiff graph, and keeps other threads out until the
/// guard is dropped. Hold it from the first tracked operation of a forward pass to the end of its backward.
///
/// Burn 0.21 keeps the graphs of all threads in one place. The clean-up after a backward in one thread may discard
/// steps that another thread has just recorded; that thread's gradients then lack terms without any error.
pub fn graph_lock() -> MutexGuard<'static, ()> {
    static GRAPH: Mutex<()> = Mutex::new(());
    GRAPH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records an operation on `$nodes` with the backward rule `$rule`. The result is tracked, and `$state` is kept, if
/// an input is tracked.
macro_rules! record {
    ($rule:expr, $nodes:expr, $state:expr, $output:expr) => {
        match $rule.prepare::<C>($nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => wrap(prep.finish($state, primitive($output))),
            OpsKind::UnTracked(prep) => wrap(prep.finish(primitive($output))),
        }
    };
}

impl<B: TrainBackend, C: CheckpointStrategy> TrainBackend for Autodiff<B, C> {
    fn device_name(device: &Self::Device) -> Option<String> {
        B::device_name(device)
    }

    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        B::peak_memory_bytes(device)
    }

    fn available_memory_bytes(device: &Self::Device) -> Option<u64> {
        B::available_memory_bytes(device)
    }

    fn allocation(device: &Self::Device) -> Allocation {
        B::allocation(device)
    }

    fn buffer_limits(device: &Self::Device) -> Option<BufferLimits> {
        B::buffer_limits(device)
    }

    fn pass_tokens() -> usize {
        B::pass_tokens()
    }

    fn speculative_tokens() -> usize {
        B::speculative_tokens()
    }

    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        B::computes_in(device, dtype)
    }

    fn matmul_provider(device: &Self::Device) -> MatmulProvider {
        B::matmul_provider(device)
    }

    fn without_library<T>(device: &Self::Device, compute: impl FnOnce() -> T) -> T {
        B::without_library(device, compute)
    }

    fn unpack(weight: &PackedWeight<Self>, rows: Range<usize>, dtype: DType) -> Tensor<Self, 2> {
        Tensor::from_inner(B::unpack(&weight.valid(), rows, dtype))
    }

    fn unpack_rows(
        weight: &PackedWeight<Self>,
        ids: Tensor<Self, 1, Int>,
        dtype: DType,
    ) -> Tensor<Self, 2> {
        Tensor::from_inner(B::unpack_rows(&weight.valid(), ids.inner(), dtype))
    }

    fn frozen_linear(x: Tensor<Self, 2>, weight: Weight<Self>) -> Tensor<Self, 2> {
        let weight = all_frozen(weight);
        let x = tensor(x);
        let output = B::frozen_linear(float(x.primitive), weight.clone());
        record!(LinearBackward, [x.node], weight, output)
    }

    fn adapted_linear(
        x: Tensor<Self, 2>,
        projections: &[Projection<Self>],
        residual: Option<Tensor<Self, 2>>,
    ) -> Adapted<Self> {
        let x = tensor(x);
        let (mut nodes, mut weight_nodes) = (vec![x.node], Vec::new());
        let x = float::<B, 2>(x.primitive);
        let inner: Vec<_> = projections
            .iter()
            .map(|projection| {
                let adapter = projection.adapter.as_ref().map(|adapter| {
                    let [a, b] = [&adapter.a, &adapter.b].map(|t| tensor(t.clone()));
                    nodes.extend([a.node, b.node]);
                    Adapter {
                        a: float(a.primitive),
                        b: float(b.primitive),
                        scaling: adapter.scaling,
                        dropout_mask: adapter.dropout_mask.clone().map(Tensor::inner),
                    }
                });
                let (weight, tracked_weight) = inner_weight(projection.weight.clone());
                weight_nodes.extend(tracked_weight.map(|weight| weight.node));
                Projection { weight, adapter }
            })
            .collect();
        let residual = residual.map(|residual| {
            let residual = tensor(residual);
            nodes.push(residual.node);
            float::<B, 2>(residual.primitive)
        });
        let has_residual = residual.is_some();
        let trained = weight_nodes.iter().any(|node| !node.requirement.is_none());
        if trained {
            nodes.extend(weight_nodes);
        }
        let Adapted { output, low } = B::adapted_linear(x.clone(), &inner, residual);
        let tracked_low = low.clone().map(Tensor::from_inner);
        let state = AdaptedState {
            // Only the gradients of branches and weights need the input.
            x: (trained || low.is_some()).then_some(x),
            projections: inner,
            low,
            has_residual,
            trained,
        };
        macro_rules! with_inputs {
            ($($count:literal)*) => {
                match nodes.len() {
                    $($count => match <[_; $count]>::try_from(nodes) {
                        Ok(nodes) => record!(AdaptedBackward, nodes, state, output),
                        Err(_) => unreachable!("the length was just matched"),
                    },)*
                    count => unreachable!("{count} inputs: more than three projections"),
                }
            };
        }
        // The inputs: `x`, two matrices per branch, a residual, and the weights if any of them is trained.
        Adapted { output: with_inputs!(1 2 3 4 5 6 7 8 9 10 11), low: tracked_low }
    }

    fn dropout_mask(mask: &DropoutMask, device: &Self::Device) -> Tensor<Self, 2> {
        Tensor::from_inner(B::dropout_mask(mask, device))
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        let (mut input, weight) = (tensor(x), tensor(weight));
        let nodes = [input.node.clone(), weight.node];
        // The input is kept to look up its gradient in backward. It gets an `rc` of its own, because a shared one
        // would keep the graph below it alive.
        input.rc = Arc::new(input.node.id);
        let weight = float::<B, 1>(weight.primitive);
        let output = B::rms_norm(float(input.primitive.clone()), weight.clone(), epsilon);
        record!(NormBackward, nodes, (input, weight, epsilon), output)
    }

    fn head_norm(qkv: Tensor<Self, 2>, norm: &HeadNorm<Self>) -> Tensor<Self, 2> {
        let qkv = tensor(qkv);
        let [queries, keys] = norm.weights.clone().map(tensor);
        let nodes = [qkv.node, queries.node, keys.node];
        let qkv = float::<B, 2>(qkv.primitive);
        let norm = HeadNorm {
            weights: [queries.primitive, keys.primitive].map(float::<B, 1>),
            heads: norm.heads,
            epsilon: norm.epsilon,
        };
        // The input is kept only if a gradient needs it, so that it may be overwritten otherwise.
        let tracked = nodes.iter().any(|node| !node.requirement.is_none());
        let saved = tracked.then(|| qkv.clone());
        let output = B::head_norm(qkv, &norm);
        record!(HeadNormBackward, nodes, (saved, norm), output)
    }

    fn rope(
        x: Tensor<Self, 2>,
        angles: &RotaryAngles<Self>,
        rotated_heads: usize,
        rotation: Rotation,
    ) -> Tensor<Self, 2> {
        let x = tensor(x);
        let angles =
            RotaryAngles { cos: angles.cos.clone().inner(), sin: angles.sin.clone().inner() };
        let output = B::rope(float(x.primitive), &angles, rotated_heads, rotation);
        record!(RopeBackward, [x.node], (angles, rotated_heads, rotation), output)
    }

    fn self_attention(
        qkv: Tensor<Self, 2>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Attended<Self> {
        let qkv = tensor(qkv);
        let (node, qkv) = (qkv.node, float::<B, 2>(qkv.primitive));
        let mask = inner_mask(mask);
        let attended = B::self_attention(qkv.clone(), &mask, config);
        let lse = Tensor::from_inner(attended.lse.clone());
        let output = attended.output.clone();
        let state = (qkv, attended, mask, *config);
        Attended { output: record!(AttentionBackward, [node], state, output), lse }
    }

    fn swiglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let gate_up = tensor(gate_up);
        let (node, gate_up) = (gate_up.node, float::<B, 2>(gate_up.primitive));
        let output = B::swiglu(gate_up.clone());
        record!(SwigluBackward, [node], gate_up, output)
    }

    fn geglu(gate_up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let gate_up = tensor(gate_up);
        let (node, gate_up) = (gate_up.node, float::<B, 2>(gate_up.primitive));
        let output = B::geglu(gate_up.clone());
        record!(GegluBackward, [node], gate_up, output)
    }

    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Weight<Self>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
        _with_slopes: bool,
    ) -> LogProbs<Self> {
        let (hidden, (head, tracked_head)) = (tensor(hidden), inner_weight(lm_head));
        let tracked = !hidden.node.requirement.is_none();
        let head_node = tracked_head.map(|head| head.node);
        let head_node = head_node.filter(|node| !node.requirement.is_none());
        let (states, targets) = (float::<B, 2>(hidden.primitive), targets.inner());
        // These handles are kept only if the head is trained.
        let trained = match (&head, &head_node) {
            (Weight::Float(head), Some(_)) => Some((states.clone(), head.clone(), targets.clone())),
            _ => None,
        };
        let LogProbs { columns, slopes } =
            B::completion_log_probs(states, head, targets, stats, tracked);
        let state = (slopes, trained);
        let columns = match head_node {
            Some(node) => record!(LogProbsBackward, [hidden.node, node], state, columns),
            None => record!(LogProbsBackward, [hidden.node], state, columns),
        };
        LogProbs { columns, slopes: None }
    }
}

/// Runs backward from `y`, given `grad_y`, the gradient of the differentiated quantity with respect to `y`.
pub fn backward_from<B: TrainBackend, C: CheckpointStrategy, const D: usize>(
    y: Tensor<Ad<B, C>, D>,
    grad_y: Tensor<B, D>,
) -> <Ad<B, C> as AutodiffBackend>::Gradients {
    assert_eq!(y.dims(), grad_y.dims(), "backward_from: gradient of y");
    let end = Tensor::<B, 1>::zeros([1], &grad_y.device());
    let end: Tensor<Ad<B, C>, 1> = record!(GivenGradient::<D>, [tensor(y).node], grad_y, end);
    end.backward()
}

/// The end point of a graph whose gradient is given instead of computed.
#[derive(Debug)]
struct GivenGradient<const D: usize>;

impl<B: Backend, const D: usize> Backward<B, 1> for GivenGradient<D> {
    type State = Tensor<B, D>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        grads.consume::<B>(&ops.node);
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, primitive(ops.state));
        }
    }
}

/// Returns the inner tensor of a weight that must not be trained.
///
/// # Panics
/// If the weight requires a gradient.
fn frozen<B: Backend, C: CheckpointStrategy, const D: usize>(
    name: &str,
    weight: Tensor<Ad<B, C>, D>,
) -> Tensor<B, D> {
    let weight = tensor(weight);
    assert!(
        weight.node.requirement.is_none(),
        "{name} requires a gradient, which would be dropped"
    );
    float(weight.primitive)
}

/// Returns the inner weight, and, if it is a float weight, which may be trained, its autodiff tensor.
fn inner_weight<B: TrainBackend, C: CheckpointStrategy>(
    weight: Weight<Ad<B, C>>,
) -> (Weight<B>, Option<FloatTensor<Ad<B, C>>>) {
    match weight {
        Weight::Float(weight) => {
            let weight = tensor(weight);
            let inner = float(weight.primitive.clone());
            (Weight::Float(inner), Some(weight))
        }
        weight => (all_frozen(weight), None),
    }
}

/// Returns the inner weight of a weight that must not be trained.
fn all_frozen<B: TrainBackend, C: CheckpointStrategy>(weight: Weight<Ad<B, C>>) -> Weight<B> {
    match weight {
        Weight::Float(weight) => Weight::Float(frozen("a frozen weight", weight)),
        Weight::Packed(weight) => Weight::Packed(weight.valid()),
        Weight::Split(weight) => Weight::Split(weight.map(all_frozen)),
    }
}

/// Returns the mask on the inner backend.
fn inner_mask<B: Backend, C: CheckpointStrategy>(
    mask: &AttentionMask<Ad<B, C>>,
) -> AttentionMask<B> {
    AttentionMask {
        ranges: mask.ranges.clone().inner(),
        hidden: mask.hidden.clone().map(Tensor::inner),
        queries: mask.queries.clone().map(Tensor::inner),
    }
}

/// Returns the autodiff primitive of a tensor.
fn tensor<B: Backend, C: CheckpointStrategy, const D: usize>(
    tensor: Tensor<Ad<B, C>, D>,
) -> FloatTensor<Ad<B, C>> {
    tensor.into_primitive().tensor()
}

/// Wraps a float primitive as a tensor.
fn float<B: Backend, const D: usize>(tensor: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Returns the float primitive of a tensor.
fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Wraps an autodiff primitive as a tensor.
fn wrap<B: Backend, C: CheckpointStrategy, const D: usize>(
    tensor: FloatTensor<Ad<B, C>>,
) -> Tensor<Ad<B, C>, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}
