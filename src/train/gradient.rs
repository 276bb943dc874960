//! Computes the gradients of the trained tensors (an adapter's, or all weights), one decoder layer at a time.
//!
//! Each layer has a separate graph. The upper layers may keep theirs from the forward pass. The others keep only their
//! input and are recomputed in the backward pass (gradient checkpointing, arXiv 1604.06174). The backward pass goes from
//! the last layer to the first trained one, outside of autodiff's own backward, so that it works on every backend. The
//! gradients are bit-identical whichever layers keep their graphs, because each layer's graph is the same.

use arithmo_backends::{TrainBackend, backward_from, graph_lock};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::model::decoder::Decoder;
use crate::model::input::{ModelInput, SequenceContext};
use crate::train::parameters::{gradients_of, is_trained};

/// A loss, and another output of the forward pass for the caller.
pub struct Loss<B: AutodiffBackend, Out> {
    /// The loss, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Output that [`gradients`] returns.
    pub output: Out,
}

type Grads<B> = Vec<Tensor<B, 2>>;

/// State of a decoder layer that the forward pass keeps for the backward pass.
enum LayerState<B: TrainBackend> {
    /// The layer's input and its output, with the graph between them.
    Kept(Tensor<Autodiff<B>, 2>, Tensor<Autodiff<B>, 2>),
    /// The layer's input only.
    Input(Tensor<B, 2>),
    /// Nothing, because nothing at or below the layer is trained.
    Frozen,
}

/// Computes the gradients of `loss(final hidden states [Q, D])` with respect to the trained tensors, in the order of
/// [`crate::train::parameters`]. The upper `keep` layers keep their activations, and the others are recomputed.
pub fn gradients<B: TrainBackend, Out>(
    policy: &Decoder<Autodiff<B>>,
    input: &ModelInput<B>,
    keep: usize,
    loss: impl FnOnce(Tensor<Autodiff<B>, 2>) -> Loss<Autodiff<B>, Out>,
) -> (Out, Grads<B>) {
    let _only_graph = graph_lock();
    let context = input.context.to_autodiff();
    let (layers, top) = forward(policy, input, &context, keep);
    let top = Tensor::from_inner(top).require_grad();
    let Loss { loss, output } = loss(policy.final_states(top.clone()));
    let grads = loss.backward();
    let mut grad_above = top.grad(&grads);
    drop(top);
    let mut by_part = vec![gradients_of(&policy.lm_head, &grads)];
    by_part.push(gradients_of(&policy.norm, &grads));
    // The gradient of the embedding as a tied head.
    let head_grads = gradients_of(&policy.embed_tokens, &grads);
    drop(grads);

    for (index, layer) in layers.into_iter().enumerate().rev() {
        let (x, y) = match layer {
            LayerState::Frozen => break,
            LayerState::Kept(x, y) => (x, y),
            LayerState::Input(x) => {
                let x = leaf(policy, index, x);
                let y = policy.layer(index, x.clone(), &context);
                (x, y)
            }
        };
        let grad_y = grad_above.unwrap_or_else(|| y.clone().inner().zeros_like());
        let grads = backward_from(y, grad_y);
        grad_above = x.grad(&grads);
        by_part.push(gradients_of(&policy.layers[index], &grads));
    }
    if is_trained(&policy.embed_tokens) {
        let y = policy.embed(Tensor::from_inner(input.token_ids.clone()));
        let grad_y = grad_above.unwrap_or_else(|| y.clone().inner().zeros_like());
        let grads = backward_from(y, grad_y);
        let row_grads = gradients_of(&policy.embed_tokens, &grads).into_iter();
        by_part.push(row_grads.zip(head_grads).map(|(rows, head)| rows + head).collect());
    }
    (output, by_part.into_iter().rev().flatten().collect())
}

/// Runs the forward pass through all layers. Returns the state of each layer and the residual stream after the last one.
/// `context` is the context of `input`, for layers with a graph.
fn forward<B: TrainBackend>(
    policy: &Decoder<Autodiff<B>>,
    input: &ModelInput<B>,
    context: &SequenceContext<Autodiff<B>>,
    keep: usize,
) -> (Vec<LayerState<B>>, Tensor<B, 2>) {
    let inner = policy.valid();
    let (first, count) = (first_trained(policy), policy.layers.len());
    let mut x = inner.embed(input.token_ids.clone());
    let mut layers = Vec::with_capacity(count);
    for index in 0..count {
        let (layer, y) = if index < first {
            (LayerState::Frozen, inner.layer(index, x, &input.context))
        } else if index < count.saturating_sub(keep) {
            let y = inner.layer(index, x.clone(), &input.context);
            (LayerState::Input(x), y)
        } else {
            let x = leaf(policy, index, x);
            let y = policy.layer(index, x.clone(), context);
            let output = y.clone().inner();
            (LayerState::Kept(x, y), output)
        };
        layers.push(layer);
        x = y;
    }
    (layers, x)
}

/// Returns a layer's input as the start of its graph. It requires no gradient if nothing below the layer is trained.
fn leaf<B: TrainBackend>(
    policy: &Decoder<Autodiff<B>>,
    index: usize,
    x: Tensor<B, 2>,
) -> Tensor<Autodiff<B>, 2> {
    let x = Tensor::from_inner(x);
    let is_lowest_trained = index == first_trained(policy) && !is_trained(&policy.embed_tokens);
    if is_lowest_trained { x } else { x.require_grad() }
}

/// Returns the index of the lowest layer with trained tensors at or below it, or the number of layers if there is none.
fn first_trained<B: TrainBackend>(policy: &Decoder<Autodiff<B>>) -> usize {
    if is_trained(&policy.embed_tokens) {
        return 0;
    }
    let layers = &policy.layers;
    layers.iter().position(is_trained).unwrap_or(layers.len())
}
