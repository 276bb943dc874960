//! A block of the model, walked through: without a graph, with one, and backward.

use super::job::Job;
use super::layers::{Group, Layer};
use super::memory::{Category, Held};
use super::operations::Residual;
use super::passes::PassShape;
use super::walk::Walk;

/// What a block leaves behind in the forward pass.
pub(super) enum Block {
    /// Its input alone.
    Input(Held),
    /// Everything backward needs.
    Kept(Box<Kept>),
}

/// A block with its graph.
pub(super) struct Kept {
    x: Held,
    normed: Option<Held>,
    qkv: Held,
    attended: [Held; 2],
    x_between: Held,
    normed_between: Option<Held>,
    gate_up: Held,
    gated: Option<Held>,
    /// `x A^T` of the four groups.
    lows: [Option<Held>; 4],
}

/// Numbers that a block in the middle keeps of each token: those of [`Kept`], as far as backward needs them.
pub(super) fn kept_values(job: &Job) -> usize {
    let shape = &job.shape;
    let Some(layer) = job.layers.get(job.layers.len() / 2) else {
        return 0;
    };
    let if_kept = |group: &Group| match job.trains_all() || group.branches() > 0 {
        true => group.d_in,
        false => 0,
    };
    let queries = shape.num_attention_heads * shape.head_dim();
    let inputs = if_kept(&layer.qkv) + if_kept(&layer.gate_up) + if_kept(&layer.down);
    2 * shape.hidden_size + layer.qkv.width() + queries + layer.gate_up.width() + inputs
}

impl Walk<'_> {
    /// A block without a graph; its input is given back unless it is `shared`.
    pub(super) fn plain_block(
        &mut self,
        layer: &Layer,
        x: Held,
        pass: PassShape,
        index: usize,
        shared: bool,
    ) -> Held {
        let (shape, last) = (&self.job.shape, self.rows_after(index, pass) != pass.tokens);
        let (width, rows) = (shape.hidden_size, self.rows_after(index, pass));
        let bytes = self.bytes(pass.tokens, width);
        let normed = self.memory.take(Category::Workspace, bytes);
        let residual = match last {
            true => {
                let bytes = self.bytes(rows, width);
                let chosen = self.memory.take(Category::Activations, bytes);
                if !shared {
                    self.memory.give(x);
                }
                Residual::Own(chosen)
            }
            false if shared => Residual::Shared,
            false => Residual::Own(x),
        };
        let mut all = self.rows(pass.tokens, pass.span);
        let (qkv, low) = all.project(&layer.qkv, Residual::None);
        all.memory.give_all(low.into_iter().chain([normed]));
        let qkv = all.rope(qkv);
        let attended = all.attention(qkv, rows);
        let mut some = self.rows(rows, pass.span);
        some.memory.give(qkv);
        let (x, low) = some.project(&layer.o, residual);
        some.memory.give_all(low.into_iter().chain(attended));
        let normed = some.norm(Category::Workspace);
        let (gate_up, low) = some.project(&layer.gate_up, Residual::None);
        some.memory.give_all(low.into_iter().chain([normed]));
        let gated = some.swiglu(Category::Workspace);
        some.memory.give(gate_up);
        let (y, low) = some.project(&layer.down, Residual::Own(x));
        some.memory.give_all(low.into_iter().chain([gated]));
        y
    }

    /// A block with its graph.
    pub(super) fn kept_block(&mut self, x: Held, pass: PassShape, index: usize) -> (Kept, Held) {
        let layer = &self.job.layers[index];
        let (rows, trains_all) = (self.rows_after(index, pass), self.job.trains_all());
        let width = self.job.shape.hidden_size;
        let kept = |group: &Group| trains_all || group.branches() > 0;
        let bytes = self.bytes(pass.tokens, width);
        let normed = self.memory.take(Category::Activations, bytes);
        let residual = match rows != pass.tokens {
            true => {
                let bytes = self.bytes(rows, width);
                Residual::Own(self.memory.take(Category::Activations, bytes))
            }
            false => Residual::Shared,
        };
        let mut all = self.rows(pass.tokens, pass.span);
        let (qkv, low_qkv) = all.project(&layer.qkv, Residual::None);
        let normed = all.keep_if(kept(&layer.qkv), normed);
        let qkv = all.rope(qkv);
        all.memory.recount(qkv, Category::Activations);
        let attended = all.attention(qkv, rows);
        let mut some = self.rows(rows, pass.span);
        let (x_between, low_o) = some.project(&layer.o, residual);
        let normed_between = some.norm(Category::Activations);
        let (gate_up, low_gate_up) = some.project(&layer.gate_up, Residual::None);
        let normed_between = some.keep_if(kept(&layer.gate_up), normed_between);
        some.memory.recount(gate_up, Category::Activations);
        let gated = some.swiglu(Category::Activations);
        let (y, low_down) = some.project(&layer.down, Residual::Shared);
        let gated = some.keep_if(kept(&layer.down), gated);
        let kept = Kept {
            x,
            normed,
            qkv,
            attended,
            x_between,
            normed_between,
            gate_up,
            gated,
            lows: [low_qkv, low_o, low_gate_up, low_down],
        };
        (kept, y)
    }

    /// Backward of a block: what it kept goes, the gradients of its branches stay.
    pub(super) fn backward(
        &mut self,
        kept: Kept,
        above: Held,
        pass: PassShape,
        index: usize,
        grads: &mut Vec<Held>,
    ) -> Held {
        let layer = &self.job.layers[index];
        let rows = self.rows_after(index, pass);
        let (trains_all, first) = (self.job.trains_all(), index == 0);
        let [low_qkv, low_o, low_gate_up, low_down] = kept.lows;
        let mut some = self.rows(rows, pass.span);
        let d_gated = some.project_backward(&layer.down, true, grads);
        some.memory.give_all(kept.gated.into_iter().chain(low_down));
        let d_gate_up = some.swiglu_backward(kept.gate_up);
        some.memory.give_all(d_gated);
        let d_normed = some.project_backward(&layer.gate_up, true, grads);
        let done = kept.normed_between.into_iter().chain(low_gate_up);
        some.memory.give_all(done.chain([d_gate_up]));
        // Its gradient joins that of the residual stream, in the place of one of the two.
        some.norm_backward();
        some.memory.give_all(d_normed.into_iter().chain([kept.x_between]));
        if trains_all {
            let norm = 4 * self.job.shape.hidden_size;
            grads.push(self.memory.take(Category::Gradients, norm));
        }
        let mut some = self.rows(rows, pass.span);
        let d_attended = some.project_backward(&layer.o, true, grads);
        some.memory.give_all(low_o);
        let mut all = self.rows(pass.tokens, pass.span);
        let d_qkv = all.attention_backward(rows);
        all.memory.give_all(d_attended);
        all.memory.give_all([kept.qkv].into_iter().chain(kept.attended));
        let d_qkv = all.rope(d_qkv);
        let needs_x = !first || trains_all;
        let d_normed = all.project_backward(&layer.qkv, needs_x, grads);
        let done = kept.normed.into_iter().chain(low_qkv);
        all.memory.give_all(done.chain([d_qkv]));
        let mut above = above;
        if rows != pass.tokens {
            // The gradient of the chosen rows, spread over all.
            let bytes = self.bytes(pass.tokens, self.job.shape.hidden_size);
            let spread = self.memory.take(Category::Workspace, bytes);
            self.memory.give(above);
            above = spread;
        }
        self.rows(pass.tokens, pass.span).norm_backward();
        self.memory.give_all(d_normed.into_iter().chain([kept.x]));
        if trains_all {
            let norm = 4 * self.job.shape.hidden_size;
            grads.push(self.memory.take(Category::Gradients, norm));
        }
        above
    }
}
