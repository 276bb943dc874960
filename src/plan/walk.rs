//! A run, walked through without computing: what is taken and given back, in the order in which
//! [`crate::train::gradient`] and the learners do it, so that the worst moment is where it is in the run.
//!
//! Operations are in [`super::operations`]; here is what is kept between them.

use super::job::{Group, Job, Layer, PassShape, Profile};
use super::memory::{Category, Held, Memory, Table};
use super::operations::{Operations, Residual};

/// Logits alive at once where the head is trained: see `head_gradient` in the backends.
const HEAD_LOGITS: usize = 1 << 23;

/// What a block leaves behind in the forward pass.
enum Block {
    /// Its input alone.
    Input(Held),
    /// Everything backward needs.
    Kept(Box<Kept>),
}

/// A block with its graph.
struct Kept {
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
            let copied: usize = job.trained().iter().map(|count| 4 * count).sum();
            walk.memory.keep(Category::Reference, copied);
        }
    }
    if let Some(pass) = job.eval_pass(profile) {
        walk.memory.moment("evaluating held-out samples");
        walk.evaluate(pass);
    }
    walk.checkpoint();
    walk.memory.worst()
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

struct Walk<'a> {
    job: &'a Job,
    memory: Memory,
    heap: bool,
    threads: usize,
    /// Upper blocks that keep their activations.
    keep: usize,
}

impl Walk<'_> {
    fn rows(&mut self, rows: usize, longest: usize) -> Operations<'_> {
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
    fn bytes(&self, rows: usize, columns: usize) -> usize {
        rows * columns * self.job.size()
    }

    fn load(&mut self, profile: &Profile) {
        let job = self.job;
        self.memory.moment("loading");
        self.memory
            .keep(Category::Program, profile.program as usize);
        for bytes in job.weight_bytes() {
            self.memory.keep(Category::Weights, bytes);
        }
        if !job.trains_all() {
            for count in job.trained() {
                self.memory.keep(Category::Adapter, 4 * count);
            }
        }
        let angles = job.shape.max_position_embeddings * job.shape.head_dim();
        self.memory.keep(Category::Tables, 2 * angles);
        self.memory.keep(Category::Tables, 2 * angles);
        // Quantised weights are multiplied from a tile on the CPU; elsewhere the largest is unpacked in one place.
        if job.is_quantized() && !self.heap {
            let scratch = job.largest_projection() * job.size();
            self.memory.keep(Category::Workspace, scratch);
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

    fn layer(&self, index: usize, with_branches: bool) -> Layer {
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
    fn rows_after(&self, index: usize, pass: PassShape) -> usize {
        match index + 1 == self.job.layers.len() {
            true => pass.queries,
            false => pass.tokens,
        }
    }

    /// A block without a graph; its input is given back unless it is `shared`.
    fn plain_block(
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
    fn kept_block(&mut self, x: Held, pass: PassShape, index: usize) -> (Kept, Held) {
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

    /// Backward of a block: what it kept goes, the gradients of its branches stay.
    fn backward(
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
        some.memory
            .give_all(d_normed.into_iter().chain([kept.x_between]));
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
        all.memory
            .give_all([kept.qkv].into_iter().chain(kept.attended));
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
        let new: Vec<Held> = trained
            .iter()
            .map(|count| self.memory.take(category, 4 * count))
            .collect();
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
