//! A run, walked through without computing: what is taken and given back, in the order in which
//! [`crate::train::gradient`] and the learners do it, so that the worst moment is where it is in the run.
//!
//! Operations are in [`super::operations`]; here is what is kept between them.

use super::blocks::Block;
use super::job::Job;
use super::layers::Layer;
use super::memory::{Category, Held, Memory, Table};
use super::operations::Operations;
use super::passes::PassShape;
use super::profile::Profile;

/// Logits alive at once where the head is trained: see `head_gradient` in the backends.
const HEAD_LOGITS: usize = 1 << 23;

/// Walks through a run; its bytes by category at the worst moment, and what happens then.
pub(super) fn walk(
    job: &Job,
    profile: &Profile,
    pass: PassShape,
    passes: usize,
) -> (Table, &'static str) {
    let mut walk = Walk {
        job,
        memory: Memory::new(profile.allocation),
        heap: profile.is_heap(),
        threads: profile.threads.max(1),
        keep: job.kept_blocks(profile, pass.tokens),
    };
    walk.load(profile);
    if let Some(pass) = job.precomputed_pass() {
        walk.memory.moment("computing the reference beforehand");
        walk.reference(pass);
    }
    let mut moments = Vec::new();
    // From the second step on the moments are there, and a model trained whole differs from its reference.
    for step in 0..2 {
        let grads = walk.gradients(pass, passes);
        walk.optimizer(grads, &mut moments);
        if step == 0 && job.copies_reference() {
            for count in job.trained() {
                walk.memory.hold(Category::Reference, 4 * count);
            }
        }
    }
    if let Some(pass) = job.eval_pass(profile) {
        walk.memory.moment("evaluating held-out samples");
        walk.evaluate(pass);
    }
    walk.checkpoint();
    walk.memory.worst()
}

pub(super) struct Walk<'a> {
    pub(super) job: &'a Job,
    pub(super) memory: Memory,
    heap: bool,
    threads: usize,
    /// Upper blocks that keep their activations.
    keep: usize,
}

impl Walk<'_> {
    pub(super) fn rows(&mut self, rows: usize, longest: usize) -> Operations<'_> {
        Operations {
            memory: &mut self.memory,
            job: self.job,
            heap: self.heap,
            threads: self.threads,
            rows,
            span: longest,
        }
    }

    /// Bytes of `rows` of `columns` activations.
    pub(super) fn bytes(&self, rows: usize, columns: usize) -> usize {
        rows * columns * self.job.size()
    }

    fn load(&mut self, profile: &Profile) {
        let job = self.job;
        self.memory.moment("loading");
        self.memory.keep(Category::Program, profile.program as usize);
        for bytes in job.weight_bytes() {
            self.memory.keep(Category::Weights, bytes);
        }
        if !job.trains_all() {
            for count in job.trained() {
                self.memory.hold(Category::Adapter, 4 * count);
            }
        }
        let angles = job.shape.max_position_embeddings * job.shape.head_dim();
        self.memory.hold(Category::Tables, 2 * angles);
        self.memory.hold(Category::Tables, 2 * angles);
        // Packed weights are multiplied from a tile on the CPU; elsewhere the largest is unpacked in one place.
        if (job.is_quantized() || job.halves) && !self.heap {
            let scratch = job.largest_projection() * job.size();
            self.memory.hold(Category::Workspace, scratch);
        }
    }

    /// Ids, ranges and angles of a pass.
    fn tables(&mut self, pass: PassShape) -> Vec<Held> {
        let int = if self.heap { 8 } else { 4 };
        let half = self.job.shape.head_dim() / 2;
        let counts = [
            pass.tokens * int,
            4 * pass.tokens * int,
            4 * pass.queries * int,
            4 * pass.tokens * half,
            4 * pass.tokens * half,
            3 * pass.scored * int,
        ];
        let taken = counts.map(|bytes| self.memory.take(Category::Tables, bytes));
        taken.to_vec()
    }

    /// The forward pass of the reference.
    fn reference(&mut self, pass: PassShape) {
        let tables = self.tables(pass);
        self.score(pass, false);
        self.memory.give_all(tables);
    }

    /// Policy, then reference.
    fn evaluate(&mut self, pass: PassShape) {
        let tables = self.tables(pass);
        self.score(pass, true);
        self.score(pass, false);
        self.memory.give_all(tables);
    }

    /// A forward pass without a graph.
    fn score(&mut self, pass: PassShape, with_branches: bool) {
        let width = self.job.shape.hidden_size;
        let bytes = self.bytes(pass.tokens, width);
        let mut x = self.memory.take(Category::Activations, bytes);
        for index in 0..self.job.layers.len() {
            let layer = self.layer(index, with_branches);
            x = self.plain_block(&layer, x, pass, index, false);
        }
        let bytes = self.bytes(pass.queries, width);
        let normed = self.memory.take(Category::Head, bytes);
        self.memory.give(x);
        let slopes = self.rows(pass.scored, 0).head(normed, false);
        self.memory.give_all(slopes);
    }

    pub(super) fn layer(&self, index: usize, with_branches: bool) -> Layer {
        let layer = &self.job.layers[index];
        match with_branches {
            true => layer.clone(),
            false => Layer {
                qkv: layer.qkv.bare(),
                o: layer.o.bare(),
                gate_up: layer.gate_up.bare(),
                down: layer.down.bare(),
            },
        }
    }

    /// Rows that block `index` gives: of the last, those that are wanted.
    pub(super) fn rows_after(&self, index: usize, pass: PassShape) -> usize {
        match index + 1 == self.job.layers.len() {
            true => pass.queries,
            false => pass.tokens,
        }
    }

    /// Forward and backward of the largest pass, as often as it makes a difference; the gradients.
    fn gradients(&mut self, pass: PassShape, passes: usize) -> Vec<Held> {
        let mut sum: Vec<Held> = Vec::new();
        for _ in 0..passes.min(2) {
            let grads = self.one_pass(pass);
            if sum.is_empty() {
                sum = grads;
                continue;
            }
            // Each sum takes the place of one of the two.
            self.memory.give_all(grads);
        }
        sum
    }

    fn one_pass(&mut self, pass: PassShape) -> Vec<Held> {
        let tables = self.tables(pass);
        if self.job.sides() == 2 {
            self.memory.moment("the reference's forward pass");
            self.score(pass, false);
        }
        self.memory.moment("the forward pass");
        let layers = self.job.layers.len();
        let width = self.job.shape.hidden_size;
        let bytes = self.bytes(pass.tokens, width);
        let mut x = self.memory.take(Category::Activations, bytes);
        let mut blocks = Vec::new();
        for index in 0..layers {
            let (block, y) = if index < layers - self.keep.min(layers) {
                let layer = self.layer(index, true);
                let y = self.plain_block(&layer, x, pass, index, true);
                self.memory.recount(y, Category::Activations);
                (Block::Input(x), y)
            } else {
                let (kept, y) = self.kept_block(x, pass, index);
                self.memory.recount(y, Category::Activations);
                (Block::Kept(Box::new(kept)), y)
            };
            blocks.push(block);
            x = y;
        }
        let mut above = self.loss(x, pass);
        let mut grads = self.of_head(pass.scored);
        for (index, block) in blocks.into_iter().enumerate().rev() {
            let kept = match block {
                Block::Kept(kept) => {
                    self.memory.moment("the backward pass");
                    *kept
                }
                Block::Input(x) => {
                    self.memory.moment("computing a block again");
                    let (kept, y) = self.kept_block(x, pass, index);
                    self.memory.give(y);
                    kept
                }
            };
            above = self.backward(kept, above, pass, index, &mut grads);
        }
        if self.job.trains_all() {
            let rows = 4 * self.job.shape.vocab_size * width;
            self.memory.pass_by(Category::Workspace, rows);
            grads.push(self.memory.take(Category::Gradients, rows));
        }
        self.memory.give_all(tables.into_iter().chain([above]));
        grads
    }

    /// The head and its backward: from the hidden states at the top to their gradient.
    fn loss(&mut self, top: Held, pass: PassShape) -> Held {
        self.memory.moment("the head");
        let bytes = self.bytes(pass.queries, self.job.shape.hidden_size);
        let normed = self.memory.take(Category::Head, bytes);
        let mut head = self.rows(pass.scored, 0);
        let slopes = head.head(normed, true);
        if self.job.trains_all() {
            let scored = self.bytes(pass.scored, self.job.shape.hidden_size);
            self.memory.pass_by(Category::Head, scored);
        }
        // Of the scored rows, then of all that are wanted.
        let scored = self.bytes(pass.scored, self.job.shape.hidden_size);
        let of_scored = self.memory.take(Category::Head, scored);
        self.memory.give_all(slopes);
        let above = self.memory.take(Category::Workspace, bytes);
        self.memory.give(of_scored);
        self.memory.give(top);
        above
    }

    /// Gradients of norm and head, where those are trained.
    fn of_head(&mut self, scored: usize) -> Vec<Held> {
        if !self.job.trains_all() {
            return Vec::new();
        }
        let shape = &self.job.shape;
        let of_head = 4 * shape.vocab_size * shape.hidden_size;
        // The logits again, their softmax, and what it is multiplied with.
        let rows = (HEAD_LOGITS / shape.vocab_size.max(1)).clamp(1, scored.max(1));
        let chunk = 4 * rows * shape.vocab_size;
        let held = [chunk; 3].map(|bytes| self.memory.take(Category::Head, bytes));
        self.memory.give_all(held);
        let bytes = [of_head, 4 * shape.hidden_size];
        let taken = bytes.map(|bytes| self.memory.take(Category::Gradients, bytes));
        taken.to_vec()
    }

    /// Clipping and AdamW.
    fn optimizer(&mut self, grads: Vec<Held>, moments: &mut Vec<Held>) {
        self.memory.moment("the optimizer");
        let trained = self.job.trained();
        if moments.is_empty() {
            for count in &trained {
                let both = [4 * count; 2].map(|b| self.memory.take(Category::Optimizer, b));
                moments.extend(both);
            }
        }
        // New values stand beside the old ones until all are there.
        let category = match self.job.trains_all() {
            true => Category::Weights,
            false => Category::Adapter,
        };
        let new: Vec<Held> =
            trained.iter().map(|count| self.memory.take(category, 4 * count)).collect();
        self.memory.give_all(grads);
        self.memory.give_all(new);
    }

    /// What is trained and its moments, copied by the host before they are written.
    fn checkpoint(&mut self) {
        if !self.heap {
            return;
        }
        self.memory.moment("writing a checkpoint");
        let copies: Vec<Held> = self
            .job
            .trained()
            .into_iter()
            .map(|count| self.memory.take(Category::Checkpoint, 12 * count))
            .collect();
        self.memory.give_all(copies);
    }
}
