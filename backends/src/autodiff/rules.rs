//! The backward rule of each operation.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, ops::FloatTensor};

use super::{float, primitive};
use crate::{
    Attended, AttentionConfig, AttentionMask, HeadNorm, Projection, RotaryAngles, Rotation,
    TrainBackend, Weight, ops,
};
/// The rule of a frozen linear projection. It saves only a handle of the weight.
#[derive(Debug)]
pub(super) struct LinearBackward;

impl<B: TrainBackend> Backward<B, 1> for LinearBackward {
    type State = Weight<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            let d_x = B::frozen_linear_backward(grad, ops.state);
            grads.register::<B>(parent.id, primitive(d_x));
        }
    }
}

/// The rule of projections with branches. Its inputs are `x`, then `a` and `b` of each branch, then the residual if
/// there is one, then the weights if any of them is trained.
#[derive(Debug)]
pub(super) struct AdaptedBackward;

#[derive(Clone, Debug)]
pub(super) struct AdaptedState<B: Backend> {
    pub(super) x: Option<Tensor<B, 2>>,
    /// Handles of the weights and branches.
    pub(super) projections: Vec<Projection<B>>,
    pub(super) low: Option<Tensor<B, 2>>,
    pub(super) has_residual: bool,
    /// Whether any weight is trained.
    pub(super) trained: bool,
}

impl<B: TrainBackend, const N: usize> Backward<B, N> for AdaptedBackward {
    type State = AdaptedState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let needs_x = ops.parents.first().is_some_and(Option::is_some);
        let AdaptedState { x, projections, low, has_residual, trained } = ops.state;
        let d_residual = has_residual.then(|| grad.clone());
        let d_weights = match (trained, &x) {
            (true, Some(x)) => weight_gradients(&projections, x.clone(), grad.clone()),
            _ => Vec::new(),
        };
        let d = B::adapted_linear_backward(x, &projections, low, grad, needs_x);
        let d_adapters = d.adapters.into_iter().flatten().map(Some);
        let all = std::iter::once(d.x)
            .chain(d_adapters)
            .chain(has_residual.then_some(d_residual))
            .chain(d_weights);
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, primitive(grad));
            }
        }
    }
}

/// Returns the gradient of each float weight, in order; quantized and split weights have none.
fn weight_gradients<B: TrainBackend>(
    projections: &[Projection<B>],
    x: Tensor<B, 2>,
    grad: Tensor<B, 2>,
) -> Vec<Option<Tensor<B, 2>>> {
    let all = B::linear_weight_gradient(x, grad);
    let mut row = 0;
    let rows = projections.iter().filter_map(|projection| {
        let [d_out, _] = projection.weight.dims();
        row += d_out;
        match projection.weight {
            Weight::Float(_) => Some(Some(all.clone().narrow(0, row - d_out, d_out))),
            Weight::Packed(_) | Weight::Split(_) => None,
        }
    });
    rows.collect()
}

/// The rule of the RMS norm. It saves the input.
#[derive(Debug)]
pub(super) struct NormBackward;

impl<B: TrainBackend> Backward<B, 2> for NormBackward {
    type State = (FloatTensor<Autodiff<B>>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent, weight_parent] = ops.parents;
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let (input, weight, epsilon) = ops.state;
        let x: Tensor<B, 2> = float(input.primitive.clone());
        if let Some(weight_parent) = weight_parent {
            let d_weight = B::rms_norm_weight_gradient(x.clone(), epsilon, grad.clone());
            grads.register::<B>(weight_parent.id, primitive(d_weight));
        }
        if let Some(parent) = parent {
            // The residual's gradient has been registered by now. Burn would add the two gradients in another pass.
            let d_x = match grads.remove(&input).map(float) {
                Some(other) => B::rms_norm_backward_onto(x, weight, epsilon, grad, other),
                None => B::rms_norm_backward(x, weight, epsilon, grad),
            };
            grads.register::<B>(parent.id, primitive(d_x));
        }
    }
}

/// The rule of the norms of heads. It saves the input.
#[derive(Debug)]
pub(super) struct HeadNormBackward;

impl<B: TrainBackend> Backward<B, 3> for HeadNormBackward {
    type State = (Option<Tensor<B, 2>>, HeadNorm<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent, query_parent, key_parent] = ops.parents;
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let (Some(qkv), norm) = ops.state else { return };
        if query_parent.is_some() || key_parent.is_some() {
            let [d_query, d_key] =
                ops::head_norm::weight_gradients(qkv.clone(), &norm, grad.clone());
            for (parent, d_weight) in [(query_parent, d_query), (key_parent, d_key)] {
                if let Some(parent) = parent {
                    grads.register::<B>(parent.id, primitive(d_weight));
                }
            }
        }
        if let Some(parent) = parent {
            let d_qkv = B::head_norm_backward(qkv, &norm, grad);
            grads.register::<B>(parent.id, primitive(d_qkv));
        }
    }
}

/// The rule of the rotary embedding. It saves the angles.
#[derive(Debug)]
pub(super) struct RopeBackward;

impl<B: TrainBackend> Backward<B, 1> for RopeBackward {
    type State = (RotaryAngles<B>, usize, Rotation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            let (angles, rotated_heads, rotation) = ops.state;
            let inverse = match rotation {
                Rotation::Forward => Rotation::Inverse,
                Rotation::Inverse => Rotation::Forward,
            };
            let d_x = B::rope(grad, &angles, rotated_heads, inverse);
            grads.register::<B>(parent.id, primitive(d_x));
        }
    }
}

/// The rule of attention. It saves queries, keys and values, the output and the log-sum-exp of each row.
#[derive(Debug)]
pub(super) struct AttentionBackward;

impl<B: TrainBackend> Backward<B, 1> for AttentionBackward {
    type State = (Tensor<B, 2>, Attended<B>, AttentionMask<B>, AttentionConfig);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            let (qkv, attended, mask, config) = ops.state;
            let d_qkv = B::self_attention_backward(qkv, attended, grad, &mask, &config);
            grads.register::<B>(parent.id, primitive(d_qkv));
        }
    }
}

/// The rule of SwiGLU. It saves gate and up.
#[derive(Debug)]
pub(super) struct SwigluBackward;

impl<B: TrainBackend> Backward<B, 1> for SwigluBackward {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            let d = B::swiglu_backward(ops.state, grad);
            grads.register::<B>(parent.id, primitive(d));
        }
    }
}

/// The rule of GeGLU. It saves gate and up.
#[derive(Debug)]
pub(super) struct GegluBackward;

impl<B: TrainBackend> Backward<B, 1> for GegluBackward {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = float(grads.consume::<B>(&ops.node));
        if let Some(parent) = parent {
            let d = B::geglu_backward(ops.state, grad);
            grads.register::<B>(parent.id, primitive(d));
        }
    }
}

/// The rule of the log-probabilities. It saves the slope of each log-probability, which forward computed, and, for a
/// trained head, handles of the states, the head and the targets. Its inputs are the states, and the head if it is
/// trained.
#[derive(Debug)]
pub(super) struct LogProbsBackward;

/// The states, the head and the targets, from which the gradient of a trained head is computed.
pub(super) type TrainedHead<B> = (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1, Int>);

impl<B: TrainBackend, const N: usize> Backward<B, N> for LogProbsBackward {
    type State = (Option<Tensor<B, 2>>, Option<TrainedHead<B>>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (mut parents, (slopes, trained_head)) = (ops.parents.into_iter(), ops.state);
        let (parent, head_parent) = (parents.next().flatten(), parents.next().flatten());
        let grad: Tensor<B, 2> = float(grads.consume::<B>(&ops.node));
        let d_log_probs = grad.narrow(1, 0, 1);
        if let (Some(parent), Some((states, head, targets))) = (head_parent, trained_head) {
            let d_head = ops::log_probs::head_gradient(states, head, targets, d_log_probs.clone());
            grads.register::<B>(parent.id, primitive(d_head));
        }
        if let (Some(parent), Some(slopes)) = (parent, slopes) {
            let d_log_probs = d_log_probs.cast(slopes.dtype());
            grads.register::<B>(parent.id, primitive(slopes * d_log_probs));
        }
    }
}
