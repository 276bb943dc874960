//! Gradients of the adapter, block by block.
//!
//! Each block (decoder layer) has a graph of its own. The upper blocks may keep theirs from the forward pass; the others
//! keep their input alone and are computed again in backward (gradient checkpointing, arXiv 1604.06174). Backward goes
//! from the last block to the first adapted one, outside autodiff's own backward, so it works on every backend; what is
//! kept changes no bit of the gradients, because each block's graph is the same.

use arithmo_backends::{TrainBackend, backward_from, graph_lock};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::model::input::{ModelInput, SequenceContext};
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

/// What a block leaves behind in the forward pass.
enum Block<B: TrainBackend> {
    /// Its input, and its output with the graph between them.
    Kept(Tensor<Autodiff<B>, 2>, Tensor<Autodiff<B>, 2>),
    /// Its input alone.
    Input(Tensor<B, 2>),
    /// Nothing: no adapter at or below it.
    Frozen,
}

/// Gradients of `loss(final hidden states [Q, D])` with respect to the adapter's tensors, in the order of
/// [`crate::lora::linear::parameters`]; of the upper `keep` blocks the activations are kept, the others are computed
/// again.
pub fn gradients<B: TrainBackend, Out>(
    policy: &Mistral<Autodiff<B>>,
    input: &ModelInput<B>,
    keep: usize,
    loss: impl FnOnce(Tensor<Autodiff<B>, 2>) -> Loss<Autodiff<B>, Out>,
) -> (Out, Grads<B>) {
    let _only_graph = graph_lock();
    let context = input.context.to_autodiff();
    let (blocks, top) = forward(policy, input, &context, keep);
    let top = Tensor::from_inner(top).require_grad();
    let Loss { loss, output } = loss(policy.norm.forward(top.clone()));
    let mut above = top.grad(&loss.backward());
    drop(top);

    let mut by_block = Vec::new();
    for (index, block) in blocks.into_iter().enumerate().rev() {
        let (x, y) = match block {
            Block::Frozen => break,
            Block::Kept(x, y) => (x, y),
            Block::Input(x) => {
                let x = leaf(policy, index, x);
                let y = policy.layer(index, x.clone(), &context);
                (x, y)
            }
        };
        let of_y = above.unwrap_or_else(|| y.clone().inner().zeros_like());
        let grads = backward_from(y, of_y);
        above = x.grad(&grads);
        let branches = policy.layers[index].projections();
        by_block.push(collect(branches.into_iter().flat_map(branch), &grads));
    }
    (output, by_block.into_iter().rev().flatten().collect())
}

/// The forward pass through all blocks: what each leaves behind, and the residual stream above the last. `context` is that
/// of `input`, for blocks with a graph.
fn forward<B: TrainBackend>(
    policy: &Mistral<Autodiff<B>>,
    input: &ModelInput<B>,
    context: &SequenceContext<Autodiff<B>>,
    keep: usize,
) -> (Vec<Block<B>>, Tensor<B, 2>) {
    let inner = policy.valid();
    let (first, count) = (first_adapted(policy), policy.layers.len());
    let mut x = inner.embed(input.token_ids.clone());
    let mut blocks = Vec::with_capacity(count);
    for index in 0..count {
        let (block, y) = if index < first {
            (Block::Frozen, inner.layer(index, x, &input.context))
        } else if index < count.saturating_sub(keep) {
            let y = inner.layer(index, x.clone(), &input.context);
            (Block::Input(x), y)
        } else {
            let x = leaf(policy, index, x);
            let y = policy.layer(index, x.clone(), context);
            let above = y.clone().inner();
            (Block::Kept(x, y), above)
        };
        blocks.push(block);
        x = y;
    }
    (blocks, x)
}

/// A block's input as the start of its graph. Below the first adapted block no gradient is wanted.
fn leaf<B: TrainBackend>(
    policy: &Mistral<Autodiff<B>>,
    index: usize,
    x: Tensor<B, 2>,
) -> Tensor<Autodiff<B>, 2> {
    let x = Tensor::from_inner(x);
    match index == first_adapted(policy) {
        true => x,
        false => x.require_grad(),
    }
}

/// The lowest block with an adapter; the number of blocks if none has.
fn first_adapted<B: TrainBackend>(policy: &Mistral<Autodiff<B>>) -> usize {
    let adapted = |layer: &DecoderLayer<_>| layer.projections().iter().any(|l| l.lora.is_some());
    let layers = &policy.layers;
    layers.iter().position(adapted).unwrap_or(layers.len())
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
