//! Gradients of what is trained (an adapter, or all weights), block by block.
//!
//! Each block (decoder layer) has a graph of its own. The upper blocks may keep theirs from the forward pass; the others
//! keep their input alone and are computed again in backward (gradient checkpointing, arXiv 1604.06174). Backward goes
//! from the last block to the first trained one, outside autodiff's own backward, so it works on every backend; what is
//! kept changes no bit of the gradients, because each block's graph is the same.

use arithmo_backends::{TrainBackend, backward_from, graph_lock};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use crate::model::input::{ModelInput, SequenceContext};
use crate::model::mistral::Mistral;
use crate::train::parameters::{gradients_of, is_trained};

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
    /// Nothing: nothing at or below it is trained.
    Frozen,
}

/// Gradients of `loss(final hidden states [Q, D])` with respect to the trained tensors, in the order of
/// [`crate::train::parameters`]; of the upper `keep` blocks the activations are kept, the others are computed again.
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
    let grads = loss.backward();
    let mut above = top.grad(&grads);
    drop(top);
    let mut by_part = vec![gradients_of(&policy.lm_head, &grads)];
    by_part.push(gradients_of(&policy.norm, &grads));
    // Where the embedding is the head too.
    let of_head = gradients_of(&policy.embed_tokens, &grads);
    drop(grads);

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
        by_part.push(gradients_of(&policy.layers[index], &grads));
    }
    if is_trained(&policy.embed_tokens) {
        let y = policy.embed(Tensor::from_inner(input.token_ids.clone()));
        let of_y = above.unwrap_or_else(|| y.clone().inner().zeros_like());
        let grads = backward_from(y, of_y);
        let of_rows = gradients_of(&policy.embed_tokens, &grads).into_iter();
        by_part.push(of_rows.zip(of_head).map(|(rows, head)| rows + head).collect());
    }
    (output, by_part.into_iter().rev().flatten().collect())
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
    let (first, count) = (first_trained(policy), policy.layers.len());
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

/// A block's input as the start of its graph. Where nothing below the block is trained, no gradient is wanted.
fn leaf<B: TrainBackend>(
    policy: &Mistral<Autodiff<B>>,
    index: usize,
    x: Tensor<B, 2>,
) -> Tensor<Autodiff<B>, 2> {
    let x = Tensor::from_inner(x);
    match index == first_trained(policy) && !is_trained(&policy.embed_tokens) {
        true => x,
        false => x.require_grad(),
    }
}

/// The lowest block with something trained at or below it; the number of blocks if there is none.
fn first_trained<B: TrainBackend>(policy: &Mistral<Autodiff<B>>) -> usize {
    if is_trained(&policy.embed_tokens) {
        return 0;
    }
    let layers = &policy.layers;
    layers.iter().position(is_trained).unwrap_or(layers.len())
}
