//! The backward rule of every operation, written once for every backend.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::{DType, Int, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

use crate::{AttentionConfig, AttentionMask, LogProbStats, TrainBackend};

type Ad<B, C> = Autodiff<B, C>;

/// Waits until no other thread of this process has an autodiff graph under construction, and keeps them out until the
/// guard is dropped. Hold it from the first tracked operation of a forward pass to the end of its backward.
///
/// Burn 0.21 keeps the graphs of all threads in one place, and the clean-up after a backward in one thread takes steps
/// that another thread has just recorded for unused: that thread's gradients then silently lack terms.
pub fn graph_lock() -> MutexGuard<'static, ()> {
    static GRAPH: Mutex<()> = Mutex::new(());
    GRAPH.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: TrainBackend, C: CheckpointStrategy> TrainBackend for Autodiff<B, C> {
    fn peak_memory_bytes(device: &Self::Device) -> Option<u64> {
        B::peak_memory_bytes(device)
    }

    fn computes_in(device: &Self::Device, dtype: DType) -> bool {
        B::computes_in(device, dtype)
    }

    fn widest_row() -> usize {
        B::widest_row()
    }

    fn frozen_linear(x: Tensor<Self, 2>, weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (x, weight) = (
            x.into_primitive().tensor(),
            frozen("linear: weight", weight),
        );
        let output = B::frozen_linear(float(x.primitive.clone()), weight.clone());
        match LinearBackward
            .prepare::<C>([x.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => wrap(prep.finish(weight, primitive(output))),
            OpsKind::UnTracked(prep) => wrap(prep.finish(primitive(output))),
        }
    }

    fn masked_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        mask: &AttentionMask<Self>,
        config: &AttentionConfig,
    ) -> Tensor<Self, 4> {
        let inputs = [query, key, value].map(|t| t.into_primitive().tensor());
        let nodes = inputs.clone().map(|t| t.node);
        let [query, key, value] = inputs.map(|t| float::<B, 4>(t.primitive));
        let mask = inner_mask(mask);
        let output = B::masked_attention(query.clone(), key.clone(), value.clone(), &mask, config);
        match AttentionBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                wrap(prep.finish(([query, key, value], mask, *config), primitive(output)))
            }
            OpsKind::UnTracked(prep) => wrap(prep.finish(primitive(output))),
        }
    }

    fn swiglu(gate: Tensor<Self, 3>, up: Tensor<Self, 3>) -> Tensor<Self, 3> {
        let inputs = [gate, up].map(|t| t.into_primitive().tensor());
        let nodes = inputs.clone().map(|t| t.node);
        let [gate, up] = inputs.map(|t| float::<B, 3>(t.primitive));
        let output = B::swiglu(gate.clone(), up.clone());
        match SwigluBackward
            .prepare::<C>(nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => wrap(prep.finish([gate, up], primitive(output))),
            OpsKind::UnTracked(prep) => wrap(prep.finish(primitive(output))),
        }
    }

    fn completion_log_probs(
        hidden: Tensor<Self, 2>,
        lm_head: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        stats: LogProbStats,
    ) -> Tensor<Self, 2> {
        let (hidden, lm_head) = (
            hidden.into_primitive().tensor(),
            frozen("log_probs: head", lm_head),
        );
        let (states, targets) = (float::<B, 2>(hidden.primitive), targets.inner());
        let output =
            B::completion_log_probs(states.clone(), lm_head.clone(), targets.clone(), stats);
        match LogProbsBackward
            .prepare::<C>([hidden.node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                wrap(prep.finish((states, lm_head, targets), primitive(output)))
            }
            OpsKind::UnTracked(prep) => wrap(prep.finish(primitive(output))),
        }
    }
}

/// Saves a handle of the weight alone.
#[derive(Debug)]
struct LinearBackward;

impl<B: TrainBackend> Backward<B, 1> for LinearBackward {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            grads.register::<B>(
                parent.id,
                primitive(B::frozen_linear_backward(grad, ops.state)),
            );
        }
    }
}

/// Saves query, key and value.
#[derive(Debug)]
struct AttentionBackward;

impl<B: TrainBackend> Backward<B, 3> for AttentionBackward {
    type State = ([Tensor<B, 4>; 3], AttentionMask<B>, AttentionConfig);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = float(grads.consume::<B>(&ops.node));
        let ([query, key, value], mask, config) = ops.state;
        let d = B::masked_attention_backward(query, key, value, grad, &mask, &config);
        for (parent, grad) in ops.parents.into_iter().zip([d.query, d.key, d.value]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(grad));
            }
        }
    }
}

/// Saves gate and up.
#[derive(Debug)]
struct SwigluBackward;

impl<B: TrainBackend> Backward<B, 2> for SwigluBackward {
    type State = [Tensor<B, 3>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = float(grads.consume::<B>(&ops.node));
        let [gate, up] = ops.state;
        let d = B::swiglu_backward(gate, up, grad);
        for (parent, grad) in ops.parents.into_iter().zip(d) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, primitive(grad));
            }
        }
    }
}

/// Saves the hidden states; the logits are computed again.
#[derive(Debug)]
struct LogProbsBackward;

impl<B: TrainBackend> Backward<B, 1> for LogProbsBackward {
    type State = (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1, Int>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let Some(parent) = parent else { return };
        let (hidden, lm_head, targets) = ops.state;
        let of_log_probs = grad.narrow(1, 0, 1).squeeze_dim(1);
        let d_hidden = B::completion_log_probs_backward(hidden, lm_head, targets, of_log_probs);
        grads.register::<B>(parent.id, primitive(d_hidden));
    }
}

/// The inner tensor of a weight that must not be trained.
fn frozen<B: Backend, C: CheckpointStrategy, const D: usize>(
    name: &str,
    weight: Tensor<Ad<B, C>, D>,
) -> Tensor<B, D> {
    let weight = weight.into_primitive().tensor();
    assert!(
        weight.node.requirement.is_none(),
        "{name} requires a gradient, which would be dropped"
    );
    float(weight.primitive)
}

fn inner_mask<B: Backend, C: CheckpointStrategy>(
    mask: &AttentionMask<Ad<B, C>>,
) -> AttentionMask<B> {
    AttentionMask {
        query_segments: mask.query_segments.clone().inner(),
        query_positions: mask.query_positions.clone().inner(),
        key_segments: mask.key_segments.clone().inner(),
        key_positions: mask.key_positions.clone().inner(),
    }
}

fn float<B: Backend, const D: usize>(tensor: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn wrap<B: Backend, C: CheckpointStrategy, const D: usize>(
    tensor: FloatTensor<Ad<B, C>>,
) -> Tensor<Ad<B, C>, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}
