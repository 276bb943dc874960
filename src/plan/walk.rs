//! Simulates a run without computing: allocations and frees happen in the same order as in
//! [`crate::train::gradient`] and the learners, so that the peak occurs where it does in the run.
//!
//! [`super::operations`] simulates the operations; this file simulates the buffers between them.

use arithmo_backends::ops::log_probs::reference_chunk_rows;

use super::blocks::Block;
use super::job::Job;
use super::layers::Layer;
use super::memory::{Buffer, Category, Memory, Table};
use super::operations::Operations;
use super::passes::PassShape;
use super::profile::Profile;
use crate::model::positions::tabulated;

/// Simulates a run; returns the bytes by category at the peak, and the phase in which it occurs.
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
        walk.memory.set_phase("computing the reference beforehand");
        walk.reference(pass);
    }
    let mut moments = Vec::new();
    // In the second step the optimizer's moments exist, and a fully trained model differs from its
    // reference.
    for step in 0..2 {
        let grads = walk.gradients(pass, passes);
        walk.optimizer(grads, &mut moments);
        if step == 0 && job.copies_reference() {
            for count in job.trained_sizes() {
                walk.memory.allocate_for_run(Category::Reference, 4 * count);
            }
        }
    }
    if let Some(pass) = job.eval_pass(profile) {
        walk.memory.set_phase("evaluating held-out samples");
        walk.evaluate(pass);
    }
    walk.checkpoint();
    walk.memory.peak()
}

pub(super) struct Walk<'a> {
    /// The state of a simulated run.
    pub(super) job: &'a Job,
    pub(super) memory: Memory,
    heap: bool,
    threads: usize,
    /// Number of upper blocks that keep their activations.
    keep: usize,
}

impl Walk<'_> {
    /// Returns the operations on `rows` rows, whose queries attend to at most `longest` tokens.
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

    /// Returns the bytes of `rows` rows of `columns` activations.
    pub(super) fn bytes(&self, rows: usize, columns: usize) -> usize {
        rows * columns * self.job.size()
    }

    /// Simulates loading the model.
    fn load(&mut self, profile: &Profile) {
        let job = self.job;
        self.memory.set_phase("loading");
        self.memory.allocate_persistent(Category::Program, profile.program as usize);
        for bytes in job.weight_bytes() {
            self.memory.allocate_persistent(Category::Weights, bytes);
        }
        if !job.trains_all() {
            for count in job.trained_sizes().into_iter().chain(job.norm_sizes()) {
                self.memory.allocate_for_run(Category::Adapter, 4 * count);
            }
        }
        let angles = tabulated(job.shape.max_position_embeddings) * job.shape.head_dim();
        for _ in job.shape.ropes() {
            self.memory.allocate_for_run(Category::Tables, 2 * angles);
            self.memory.allocate_for_run(Category::Tables, 2 * angles);
        }
        // The CPU dequantizes weights tile by tile; other devices dequantize the largest one into a
        // single buffer.
        if (job.is_quantized() || job.bf16_storage) && !self.heap {
            let scratch = job.largest_projection() * job.size();
            self.memory.allocate_for_run(Category::Workspace, scratch);
        }
    }

    /// Allocates the token ids, attention ranges and rotary angles of a pass.
    fn tables(&mut self, pass: PassShape) -> Vec<Buffer> {
        let int = if self.heap { 8 } else { 4 };
        let half = self.job.shape.head_dim() / 2;
        let mut counts = vec![pass.tokens * int, 3 * pass.scored * int];
        for _ in self.job.shape.windows() {
            counts.extend([4 * pass.tokens * int, 4 * pass.queries * int]);
        }
        for _ in self.job.shape.ropes() {
            counts.extend([4 * pass.tokens * half; 2]);
        }
        counts.into_iter().map(|bytes| self.memory.allocate(Category::Tables, bytes)).collect()
    }

    /// Simulates the forward pass of the reference.
    fn reference(&mut self, pass: PassShape) {
        let tables = self.tables(pass);
        self.score(pass, false);
        self.memory.free_all(tables);
    }

    /// Simulates the evaluation of the policy, then of the reference.
    fn evaluate(&mut self, pass: PassShape) {
        let tables = self.tables(pass);
        self.score(pass, true);
        if self.job.has_reference() {
            self.score(pass, false);
        }
        self.memory.free_all(tables);
    }

    /// Simulates a forward pass without a graph.
    fn score(&mut self, pass: PassShape, with_branches: bool) {
        let width = self.job.shape.hidden_size;
        let bytes = self.bytes(pass.tokens, width);
        let mut x = self.memory.allocate(Category::Activations, bytes);
        for index in 0..self.job.layers.len() {
            let layer = self.layer(index, with_branches);
            x = self.block_without_graph(&layer, x, pass, index, false);
        }
        let bytes = self.bytes(pass.queries, width);
        let normed = self.memory.allocate(Category::Head, bytes);
        self.memory.free(x);
        let state_grads = self.rows(pass.scored, 0).head(normed, false);
        self.memory.free_all(state_grads);
    }

    /// Returns a layer, either with or without its LoRA branches.
    pub(super) fn layer(&self, index: usize, with_branches: bool) -> Layer {
        let layer = &self.job.layers[index];
        if with_branches {
            layer.clone()
        } else {
            Layer {
                qkv: layer.qkv.bare(),
                o: layer.o.bare(),
                gate_up: layer.gate_up.bare(),
                down: layer.down.bare(),
            }
        }
    }

    /// Returns how many rows block `index` outputs: the last block outputs only those whose hidden
    /// states are needed.
    pub(super) fn rows_after(&self, index: usize, pass: PassShape) -> usize {
        if index + 1 == self.job.layers.len() { pass.queries } else { pass.tokens }
    }

    /// Simulates forward and backward of the largest pass, twice if a step has several; returns the
    /// gradients.
    fn gradients(&mut self, pass: PassShape, passes: usize) -> Vec<Buffer> {
        let mut sum: Vec<Buffer> = Vec::new();
        for _ in 0..passes.min(2) {
            let grads = self.one_pass(pass);
            if sum.is_empty() {
                sum = grads;
                continue;
            }
            // The sum overwrites one of the two.
            self.memory.free_all(grads);
        }
        sum
    }

    /// Simulates the reference's forward pass, then forward and backward of the policy.
    fn one_pass(&mut self, pass: PassShape) -> Vec<Buffer> {
        if self.job.config.has_mismatched_completions() {
            self.memory.set_phase("scoring mismatched completions");
            self.evaluate(pass);
        }
        let tables = self.tables(pass);
        if self.job.has_reference() {
            self.memory.set_phase("the reference's forward pass");
            self.score(pass, false);
        }
        self.memory.set_phase("the forward pass");
        let layers = self.job.layers.len();
        let width = self.job.shape.hidden_size;
        let bytes = self.bytes(pass.tokens, width);
        let mut x = self.memory.allocate(Category::Activations, bytes);
        let mut blocks = Vec::new();
        for index in 0..layers {
            let (block, y) = if index < layers - self.keep.min(layers) {
                let layer = self.layer(index, true);
                let y = self.block_without_graph(&layer, x, pass, index, true);
                self.memory.recategorize(y, Category::Activations);
                (Block::Input(x), y)
            } else {
                let (saved, y) = self.block_with_graph(x, pass, index);
                self.memory.recategorize(y, Category::Activations);
                (Block::Activations(Box::new(saved)), y)
            };
            blocks.push(block);
            x = y;
        }
        let mut d_y = self.loss(x, pass);
        let mut grads = self.head_gradients(pass.scored);
        for (index, block) in blocks.into_iter().enumerate().rev() {
            let saved = match block {
                Block::Activations(saved) => {
                    self.memory.set_phase("the backward pass");
                    *saved
                }
                Block::Input(x) => {
                    self.memory.set_phase("recomputing a block");
                    let (saved, y) = self.block_with_graph(x, pass, index);
                    self.memory.free(y);
                    saved
                }
            };
            d_y = self.backward(saved, d_y, pass, index, &mut grads);
        }
        if self.job.trains("model.embed_tokens") {
            let rows = 4 * self.job.shape.vocab_size * width;
            self.memory.allocate_scratch(Category::Workspace, rows);
            grads.push(self.memory.allocate(Category::Gradients, rows));
        }
        self.memory.free_all(tables.into_iter().chain([d_y]));
        grads
    }

    /// Simulates the head and its backward pass; returns the gradient of the hidden states.
    fn loss(&mut self, top: Buffer, pass: PassShape) -> Buffer {
        self.memory.set_phase("the head");
        let bytes = self.bytes(pass.queries, self.job.shape.hidden_size);
        let normed = self.memory.allocate(Category::Head, bytes);
        let mut head = self.rows(pass.scored, 0);
        let state_grads = head.head(normed, true);
        if self.job.trains("lm_head") {
            let scored = self.bytes(pass.scored, self.job.shape.hidden_size);
            self.memory.allocate_scratch(Category::Head, scored);
        }
        // Gradients of the scored rows, then of all rows that block outputs.
        let scored = self.bytes(pass.scored, self.job.shape.hidden_size);
        let scored_states = self.memory.allocate(Category::Head, scored);
        self.memory.free_all(state_grads);
        let d_y = self.memory.allocate(Category::Workspace, bytes);
        self.memory.free(scored_states);
        self.memory.free(top);
        d_y
    }

    /// Allocates the gradients of the last norm and of the head, if they are trained.
    fn head_gradients(&mut self, scored: usize) -> Vec<Buffer> {
        let mut grads = Vec::new();
        let shape = &self.job.shape;
        if self.job.trains("model.norm") {
            grads.push(self.memory.allocate(Category::Gradients, 4 * shape.hidden_size));
        }
        if !self.job.trains("lm_head") {
            return grads;
        }
        let head_bytes = 4 * shape.vocab_size * shape.hidden_size;
        let (chunk_rows, scored) = (reference_chunk_rows(shape.vocab_size), scored.max(1));
        // The logits again, beside their softmax or its gradient.
        let copies = if self.heap { 2 } else { 3 };
        let mut sum = None;
        for start in (0..scored).step_by(chunk_rows) {
            let chunk = 4 * chunk_rows.min(scored - start) * shape.vocab_size;
            let logits = self.memory.allocate(Category::Head, chunk);
            let others: Vec<Buffer> =
                (1..copies).map(|_| self.memory.allocate(Category::Head, chunk)).collect();
            self.memory.free_all(others);
            let head = self.memory.allocate(Category::Gradients, head_bytes);
            self.memory.free(logits);
            sum = Some(match sum {
                Some(before) => {
                    let after = self.memory.allocate(Category::Gradients, head_bytes);
                    self.memory.free_all([before, head]);
                    after
                }
                None => head,
            });
        }
        grads.extend(sum);
        grads
    }

    /// Simulates gradient clipping and the optimizer.
    fn optimizer(&mut self, grads: Vec<Buffer>, moments: &mut Vec<Buffer>) {
        self.memory.set_phase("the optimizer");
        let trained = self.job.trained_sizes();
        let states = self.job.optimizer_states();
        if moments.is_empty() {
            for count in &trained {
                let sizes = std::iter::repeat_n(self.job.optimizer_bytes(*count), states);
                moments.extend(sizes.map(|bytes| self.memory.allocate(Category::Optimizer, bytes)));
            }
        }
        if !self.job.updates_in_one_pass() {
            // The direction, its summands and the new state of one tensor.
            let largest = trained.iter().max().copied().unwrap_or(0);
            self.memory.allocate_scratch(Category::Optimizer, 4 * (2 + states) * largest);
        }
        // The old values are freed only after all new ones are computed.
        let category = if self.job.trains_all() { Category::Weights } else { Category::Adapter };
        let new: Vec<Buffer> =
            trained.iter().map(|count| self.memory.allocate(category, 4 * count)).collect();
        self.memory.free_all(grads);
        self.memory.free_all(new);
    }

    /// Simulates the host copies of trained weights and optimizer state from which a checkpoint is written.
    fn checkpoint(&mut self) {
        if !self.heap {
            return;
        }
        self.memory.set_phase("writing a checkpoint");
        let states = self.job.optimizer_states();
        let copies: Vec<Buffer> = self
            .job
            .trained_sizes()
            .into_iter()
            .map(|count| {
                let bytes = 4 * count + states * self.job.optimizer_bytes(count);
                self.memory.allocate(Category::Checkpoint, bytes)
            })
            .collect();
        self.memory.free_all(copies);
    }
}
