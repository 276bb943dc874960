//! Gradients of the adapter, through the whole graph at once or block by block.
//!
//! Block by block (gradient checkpointing, arXiv 1604.06174): the forward pass runs on the inner backend and keeps each
//! block's input alone; then, from the last block to the first, the block is computed again on the autodiff backend and
//! differentiated by itself. It runs outside autodiff's own backward, so it works on every backend, and gives the same
//! gradients bit for bit, because each block's graph is the one the whole graph contains.

use arithmo_backends::{TrainBackend, graph_lock};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::lora::linear::parameters;
use crate::model::input::ModelInput;
use crate::model::linear::Linear;
use crate::model::mistral::{DecoderLayer, Mistral};

/// A loss and whatever else is wanted of the forward pass.
pub struct Loss<B: AutodiffBackend, Out> {
    /// What is differentiated, `[1]`.
    pub loss: Tensor<B, 1>,
    /// Handed back to the caller.
    pub output: Out,
}

type Grads<B> = Vec<Tensor<B, 2>>;

/// Gradients of `loss(final hidden states [B, S, D])` with respect to the adapter's tensors, in the order of
/// [`parameters`]; with `recompute`, block by block.
pub fn gradients<B: TrainBackend, Out>(
    policy: &Mistral<Autodiff<B>>,
    input: &ModelInput<B>,
    recompute: bool,
    loss: impl FnOnce(Tensor<Autodiff<B>, 3>) -> Loss<Autodiff<B>, Out>,
) -> (Out, Grads<B>) {
    let _only_graph = graph_lock();
    match recompute {
        false => whole_graph(policy, input, loss),
        true => block_by_block(policy, input, loss),
    }
}

fn whole_graph<B: TrainBackend, Out>(
    policy: &Mistral<Autodiff<B>>,
    input: &ModelInput<B>,
    loss: impl FnOnce(Tensor<Autodiff<B>, 3>) -> Loss<Autodiff<B>, Out>,
) -> (Out, Grads<B>) {
    let hidden = policy.hidden_states(&input.to_autodiff());
    let Loss { loss, output } = loss(hidden);
    let grads = loss.backward();
    (
        output,
        collect(
            parameters(policy).into_iter().map(|(_, tensor)| tensor),
            &grads,
        ),
    )
}

fn block_by_block<B: TrainBackend, Out>(
    policy: &Mistral<Autodiff<B>>,
    input: &ModelInput<B>,
    loss: impl FnOnce(Tensor<Autodiff<B>, 3>) -> Loss<Autodiff<B>, Out>,
) -> (Out, Grads<B>) {
    let inner = policy.valid();
    let mut x = inner.embed(input.token_ids.clone());
    let mut block_inputs = Vec::with_capacity(inner.layers.len());
    for layer in &inner.layers {
        block_inputs.push(x.clone());
        x = layer.forward(x, &input.context, None);
    }

    let top = Tensor::from_inner(x).require_grad();
    let Loss { loss, output } = loss(policy.norm.forward(top.clone()));
    let mut grad = top.grad(&loss.backward());

    let context = input.context.to_autodiff();
    let adapted = |layer: &DecoderLayer<_>| layer.projections().iter().any(|l| l.lora.is_some());
    let first_adapted = policy
        .layers
        .iter()
        .position(adapted)
        .unwrap_or(policy.layers.len());
    let mut by_layer = Vec::new();
    for (layer, x) in policy
        .layers
        .iter()
        .zip(block_inputs)
        .skip(first_adapted)
        .rev()
    {
        let x = Tensor::from_inner(x).require_grad();
        let y = layer.forward(x.clone(), &context, None);
        let above = grad.unwrap_or_else(|| y.clone().inner().zeros_like());
        let grads = (y * Tensor::from_inner(above)).sum().backward();
        grad = x.grad(&grads);
        by_layer.push(collect(
            layer.projections().into_iter().flat_map(branch),
            &grads,
        ));
    }
    (output, by_layer.into_iter().rev().flatten().collect())
}

fn branch<B: TrainBackend>(linear: &Linear<B>) -> Vec<Tensor<B, 2>> {
    match &linear.lora {
        Some(lora) => vec![lora.lora_a.val(), lora.lora_b.val()],
        None => Vec::new(),
    }
}

/// The gradient of each tensor; zero for one the loss does not depend on.
fn collect<B: TrainBackend>(
    tensors: impl Iterator<Item = Tensor<Autodiff<B>, 2>>,
    grads: &<Autodiff<B> as AutodiffBackend>::Gradients,
) -> Grads<B> {
    tensors
        .map(|tensor| {
            tensor
                .grad(grads)
                .unwrap_or_else(|| tensor.inner().zeros_like())
        })
        .collect()
}
