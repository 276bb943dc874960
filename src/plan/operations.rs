//! What the operations of a block take, on the CPU and on GPUs, beside their inputs: results, and what they compute in.
//!
//! The CPU's kernels (`backends/src/`) change in place what nobody else holds; a GPU's write their results elsewhere, put
//! every projection's product beside its branch, and multiply branches in f32.

use super::job::Job;
use super::layers::Group;
use super::memory::{Category, Held, Memory};

/// Queries that attention works off together on the CPU.
const QUERIES: usize = 48;

/// Logits alive at once, on the CPU and on a GPU.
const LOGITS: [usize; 2] = [1 << 22, 1 << 24];

/// What a projection is added to.
#[derive(Clone, Copy)]
pub(super) enum Residual {
    None,
    /// Something that nobody else holds: the result takes its place if it can.
    Own(Held),
    /// Something that stays.
    Shared,
}

/// Operations on some rows.
pub(super) struct Operations<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) job: &'a Job,
    /// Whether these are the CPU's.
    pub(super) heap: bool,
    pub(super) threads: usize,
    pub(super) rows: usize,
    /// Tokens that a query sees at most.
    pub(super) span: usize,
}

impl Operations<'_> {
    /// Bytes of all rows of `columns` activations.
    fn bytes(&self, columns: usize) -> usize {
        self.rows * columns * self.job.size()
    }

    /// Bytes of all rows of `columns` floats in full.
    fn wide(&self, columns: usize) -> usize {
        4 * self.rows * columns
    }

    /// Whether weights are narrower than what branches compute in.
    fn narrow(&self) -> bool {
        self.job.size() < 4
    }

    fn work(&mut self, bytes: usize) -> Held {
        self.memory.take(Category::Workspace, bytes)
    }

    /// Keeps what backward needs.
    pub(super) fn keep_if(&mut self, needed: bool, held: Held) -> Option<Held> {
        if !needed {
            self.memory.give(held);
        }
        needed.then_some(held)
    }

    pub(super) fn norm(&mut self, category: Category) -> Held {
        let bytes = self.bytes(self.job.shape.hidden_size);
        self.memory.take(category, bytes)
    }

    pub(super) fn norm_backward(&mut self) {
        if !self.heap {
            let bytes = self.bytes(self.job.shape.hidden_size);
            self.memory.pass_by(Category::Workspace, bytes);
        }
    }

    /// In place on the CPU.
    pub(super) fn rope(&mut self, qkv: Held) -> Held {
        if self.heap {
            return qkv;
        }
        let bytes = self.bytes(self.width_of_qkv());
        let turned = self.work(bytes);
        self.memory.give(qkv);
        turned
    }

    fn width_of_qkv(&self) -> usize {
        let shape = &self.job.shape;
        (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim()
    }

    /// Projections side by side: the result, and `x A^T` where there are branches.
    pub(super) fn project(&mut self, group: &Group, residual: Residual) -> (Held, Option<Held>) {
        let (rank, width) = (group.rank(), group.width());
        match self.heap {
            true => {
                let in_place = match residual {
                    Residual::Own(held) => Some(held),
                    _ => None,
                };
                let bytes = self.bytes(width);
                let out = in_place.unwrap_or_else(|| self.work(bytes));
                let low = (rank > 0)
                    .then(|| self.memory.take(Category::Activations, 4 * self.rows * rank));
                self.memory.pass_by(Category::Workspace, 4 * rank * group.d_in);
                (out, low)
            }
            false => self.project_on_gpu(group, residual),
        }
    }

    /// Rows of a piece of a projection, if it is in pieces.
    fn cut(&self, d_out: usize, d_in: usize) -> Option<usize> {
        let piece = self.job.piece([d_out, d_in], true);
        (piece < d_out).then_some(piece)
    }

    /// The product with a piece, before it joins the others.
    fn pass_by_piece(&mut self, d_out: usize, d_in: usize) {
        if let Some(piece) = self.cut(d_out, d_in) {
            let bytes = self.bytes(piece);
            self.memory.pass_by(Category::Workspace, bytes);
        }
    }

    fn project_on_gpu(&mut self, group: &Group, residual: Residual) -> (Held, Option<Held>) {
        let (rank, branches) = (group.rank(), group.branches());
        let stacked = (branches > 1).then(|| self.work(4 * rank * group.d_in));
        let low = (rank > 0).then(|| {
            let wide = self.narrow().then(|| {
                let bytes = self.wide(group.d_in);
                self.work(bytes)
            });
            let bytes = self.wide(rank);
            let low = self.memory.take(Category::Activations, bytes);
            self.memory.give_all(wide);
            low
        });
        let alone = group.outs.len() == 1 && rank == 0 && matches!(residual, Residual::None);
        let bytes = self.bytes(group.width());
        let out = self.work(bytes);
        if alone {
            self.pass_by_piece(group.width(), group.d_in);
        } else {
            for (width, rank) in group.outs.iter().zip(&group.ranks) {
                let (base, of_low) = (self.bytes(*width), self.wide(*rank));
                let base = self.work(base);
                self.pass_by_piece(*width, group.d_in);
                self.memory.pass_by(Category::Workspace, of_low);
                self.memory.give(base);
            }
        }
        self.memory.give_all(stacked);
        if let Residual::Own(held) = residual {
            self.memory.give(held);
        }
        (out, low)
    }

    /// Gradient of the input, if needed; those of branches and trained weights join `grads`.
    pub(super) fn project_backward(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Held>,
    ) -> Option<Held> {
        if self.job.trains_all() {
            self.weight_gradients(group, grads);
        }
        match self.heap {
            true => self.backward_on_cpu(group, needs_x, grads),
            false => self.backward_on_gpu(group, needs_x, grads),
        }
    }

    /// All of them below each other, then each by itself.
    fn weight_gradients(&mut self, group: &Group, grads: &mut Vec<Held>) {
        let all = self.work(4 * group.width() * group.d_in);
        for out in &group.outs {
            let bytes = 4 * out * group.d_in;
            grads.push(self.memory.take(Category::Gradients, bytes));
        }
        self.memory.give(all);
    }

    fn branch_gradients(&mut self, group: &Group, grads: &mut Vec<Held>) {
        for (out, rank) in group.outs.iter().zip(&group.ranks) {
            if *rank > 0 {
                let both = [4 * rank * group.d_in, 4 * out * rank];
                grads.extend(both.map(|bytes| self.memory.take(Category::Gradients, bytes)));
            }
        }
    }

    fn backward_on_cpu(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Held>,
    ) -> Option<Held> {
        let rank = group.rank();
        let bytes = self.wide(rank);
        let d_low = self.work(bytes);
        let bytes = self.bytes(group.d_in);
        let d_x = needs_x.then(|| self.work(bytes));
        let stacked = self.work(4 * rank * group.d_in);
        let all = self.work(4 * rank * group.d_in);
        self.branch_gradients(group, grads);
        self.memory.give_all([d_low, stacked, all]);
        d_x
    }

    fn backward_on_gpu(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Held>,
    ) -> Option<Held> {
        let rank = group.rank();
        let wide = (rank > 0 && self.narrow()).then(|| {
            let bytes = self.wide(group.d_in);
            self.work(bytes)
        });
        let mut d_x: Option<Held> = None;
        for (width, rank) in group.outs.iter().zip(&group.ranks) {
            let dy = self.bytes(*width);
            let mut held = Vec::new();
            if group.outs.len() > 1 {
                held.push(self.work(dy));
            }
            let mut d_low = None;
            if *rank > 0 {
                if self.narrow() {
                    let bytes = self.wide(*width);
                    held.push(self.work(bytes));
                }
                let bytes = self.wide(*rank);
                d_low = Some(self.work(bytes));
            }
            if needs_x {
                let bytes = self.bytes(group.d_in);
                let base = self.work(bytes);
                if let Some(piece) = self.cut(*width, group.d_in) {
                    // What a piece reads of the gradient, and its product.
                    let of_piece = self.bytes(piece) + bytes;
                    self.memory.pass_by(Category::Workspace, of_piece);
                }
                d_x = match (d_x, d_low) {
                    (None, None) => Some(base),
                    (before, _) => {
                        let sum = self.work(bytes);
                        self.memory.give_all(before.into_iter().chain([base]));
                        Some(sum)
                    }
                };
            }
            self.memory.give_all(held.into_iter().chain(d_low));
        }
        self.branch_gradients(group, grads);
        self.memory.give_all(wide);
        d_x
    }

    /// What attention made for `queries` rows, and its log-sum-exp.
    pub(super) fn attention(&mut self, _qkv: Held, queries: usize) -> [Held; 2] {
        let shape = &self.job.shape;
        let (heads, head_dim) = (shape.num_attention_heads, shape.head_dim());
        let output = queries * heads * head_dim * self.job.size();
        let lse = 4 * queries * heads;
        let results = [output, lse].map(|bytes| self.memory.take(Category::Attention, bytes));
        if self.heap {
            // Each span's results are made apart, with its keys transposed and the scores of a block of queries.
            let of_span = 4 * self.span.min(queries) * heads * (head_dim + 1);
            let beside = 4 * (QUERIES + head_dim) * (self.span + 32);
            self.on_threads(of_span, beside);
        }
        results
    }

    /// What attention computes in on the CPU: the results of a span, shared among the threads or one for each, and what
    /// every thread needs `beside`.
    fn on_threads(&mut self, of_span: usize, beside: usize) {
        let shared = match self.rows > self.span {
            true => of_span,
            false => of_span / self.threads,
        };
        let one = shared + beside;
        let here = self.memory.take(Category::Attention, one);
        let there = (self.threads - 1) * one;
        let there = self.memory.take_elsewhere(Category::Attention, there);
        self.memory.give_all([here, there]);
    }

    /// The gradient of queries, keys and values.
    pub(super) fn attention_backward(&mut self, queries: usize) -> Held {
        let shape = &self.job.shape;
        let (heads, head_dim) = (shape.num_attention_heads, shape.head_dim());
        let bytes = self.bytes(self.width_of_qkv());
        let d_qkv = self.memory.take(Category::Attention, bytes);
        if self.heap {
            let of_span = 4 * self.span * self.width_of_qkv();
            let beside = 8 * (QUERIES + head_dim) * (self.span + 32);
            self.on_threads(of_span, beside);
        } else {
            self.memory.pass_by(Category::Attention, 4 * queries * heads);
        }
        d_qkv
    }

    pub(super) fn swiglu(&mut self, category: Category) -> Held {
        let bytes = self.bytes(self.job.shape.intermediate_size);
        self.memory.take(category, bytes)
    }

    /// In place on the CPU.
    pub(super) fn swiglu_backward(&mut self, gate_up: Held) -> Held {
        if self.heap {
            return gate_up;
        }
        let bytes = self.bytes(2 * self.job.shape.intermediate_size);
        let d = self.work(bytes);
        self.memory.give(gate_up);
        d
    }

    /// Log-probabilities of all rows from the normed states, which are given back; the slopes, if wanted.
    pub(super) fn head(&mut self, normed: Held, with_slopes: bool) -> Option<Held> {
        let (width, vocabulary) = (self.job.shape.hidden_size, self.job.shape.vocab_size);
        let bytes = self.bytes(width);
        let states = self.memory.take(Category::Head, bytes);
        self.memory.give(normed);
        let columns = self.memory.take(Category::Head, 16 * self.rows);
        let slopes = match self.heap {
            true => {
                let slopes = with_slopes.then(|| self.memory.take(Category::Head, bytes));
                let chunk = (LOGITS[0] / vocabulary.max(1)).clamp(16, 1024);
                let logits = 4 * chunk.min(self.rows) * vocabulary;
                self.memory.pass_by(Category::Head, logits);
                slopes
            }
            false => self.head_on_gpu(with_slopes),
        };
        self.memory.give_all([states, columns]);
        slopes
    }

    fn head_on_gpu(&mut self, with_slopes: bool) -> Option<Held> {
        let (width, vocabulary) = (self.job.shape.hidden_size, self.job.shape.vocab_size);
        let chunk = match LOGITS[1] / vocabulary.max(1) {
            many if many > 256 => many / 256 * 256,
            few => few.max(1),
        };
        let size = self.job.size();
        // In pieces where the matrix is.
        let piece = self.job.piece([vocabulary, width], false);
        let unpacked: Vec<Held> = match self.job.halves {
            true => (0..vocabulary)
                .step_by(piece.max(1))
                .map(|start| {
                    let rows = piece.min(vocabulary - start);
                    self.memory.take(Category::Head, rows * width * size)
                })
                .collect(),
            false => Vec::new(),
        };
        // The head's rows of the targets.
        let of_targets = with_slopes.then(|| {
            let bytes = self.bytes(width);
            self.memory.take(Category::Head, bytes)
        });
        let mut parts = Vec::new();
        for start in (0..self.rows).step_by(chunk) {
            let rows = chunk.min(self.rows - start);
            let mut held = vec![
                self.memory.take(Category::Head, rows * width * size),
                self.memory.take(Category::Head, 4 * rows * vocabulary),
            ];
            if with_slopes {
                held.push(self.memory.take(Category::Head, rows * width * size));
                held.push(self.memory.take(Category::Head, rows * vocabulary * size));
                held.push(self.memory.take(Category::Head, 4 * rows * width));
                parts.push(self.memory.take(Category::Head, rows * width * size));
            }
            if piece < vocabulary {
                self.memory.pass_by(Category::Head, 4 * rows * piece);
            }
            self.memory.give_all(held);
        }
        self.memory.give_all(unpacked.into_iter().chain(of_targets));
        if parts.len() < 2 {
            return parts.pop();
        }
        let bytes = self.bytes(width);
        let slopes = self.memory.take(Category::Head, bytes);
        self.memory.give_all(parts);
        Some(slopes)
    }
}
