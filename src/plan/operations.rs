//! Simulates the outputs and the workspace that the operations of a block allocate.
//!
//! The CPU's kernels (`backends/src/`) overwrite inputs that are not used elsewhere. A GPU's
//! kernels write new tensors, compute the base matmul of every projection separately from its LoRA
//! branch, and compute branches in f32.

use arithmo_backends::ops::attention::AttentionWorkspace;
use arithmo_backends::ops::log_probs::{cpu_chunk_rows, gpu_chunk_rows};

use super::job::Job;
use super::layers::Group;
use super::memory::{Buffer, Category, Memory};
use crate::model::switches::{NormPlacement, QkNorm};

/// The tensor to which a projection is added.
#[derive(Clone, Copy)]
pub(super) enum Residual {
    None,
    /// A tensor that is not used afterwards: the result may overwrite it.
    Own(Buffer),
    /// A tensor that is used afterwards.
    Shared,
}

/// Simulates operations on a number of rows.
pub(super) struct Operations<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) job: &'a Job,
    /// Whether these are the operations of the CPU.
    pub(super) heap: bool,
    pub(super) threads: usize,
    pub(super) rows: usize,
    /// The largest number of tokens that a query attends to.
    pub(super) span: usize,
}

impl Operations<'_> {
    /// Returns the bytes of `columns` activations per row.
    fn bytes(&self, columns: usize) -> usize {
        self.rows * columns * self.job.size()
    }

    /// Returns the bytes of `columns` f32 values per row.
    fn f32_bytes(&self, columns: usize) -> usize {
        4 * self.rows * columns
    }

    /// Returns whether weights have a narrower type than f32, in which branches are computed.
    fn has_narrow_weights(&self) -> bool {
        self.job.size() < 4
    }

    /// Allocates a temporary buffer.
    fn workspace(&mut self, bytes: usize) -> Buffer {
        self.memory.allocate(Category::Workspace, bytes)
    }

    /// Frees a buffer unless it is `needed` later; returns it if it is.
    pub(super) fn free_unless(&mut self, needed: bool, buffer: Buffer) -> Option<Buffer> {
        if !needed {
            self.memory.free(buffer);
        }
        needed.then_some(buffer)
    }

    /// Allocates the output of the norm before a half of a layer, if there is one.
    pub(super) fn norm_before(&mut self, category: Category) -> Option<Buffer> {
        let has_norm = self.job.shape.switches.norm_placement != NormPlacement::After;
        has_norm.then(|| self.norm(category))
    }

    /// Allocates the output of a norm.
    pub(super) fn norm(&mut self, category: Category) -> Buffer {
        let bytes = self.bytes(self.job.shape.hidden_size);
        self.memory.allocate(category, bytes)
    }

    /// Simulates the backward pass of a norm.
    pub(super) fn norm_backward(&mut self) {
        if !self.heap {
            let bytes = self.bytes(self.job.shape.hidden_size);
            self.memory.allocate_scratch(Category::Workspace, bytes);
        }
    }

    /// Simulates the last projection of a half of a layer and its addition to the residual stream, behind a norm if the
    /// model has one there. Returns the sum, the input of that norm if it `is_saved`, and what [`Self::project`] returns.
    pub(super) fn project_onto(
        &mut self,
        group: &Group,
        residual: Residual,
        category: Category,
        is_saved: bool,
    ) -> (Buffer, Option<Buffer>, Vec<Buffer>) {
        let switches = &self.job.shape.switches;
        if switches.norm_placement == NormPlacement::Before {
            if switches.residual_multiplier.is_none() {
                let (sum, low_rank) = self.project(group, residual);
                return (sum, None, low_rank);
            }
            // The output times its factor is added like that of a norm, without being saved.
            let (out, low_rank) = self.project(group, Residual::None);
            let (sum, _) = self.add_normed(out, residual, category, false);
            return (sum, None, low_rank);
        }
        let (out, low_rank) = self.project(group, Residual::None);
        let (sum, out) = self.add_normed(out, residual, category, is_saved);
        (sum, out, low_rank)
    }

    /// Simulates the norm of `out` and its addition to the residual stream. Returns the sum, and `out` if it `is_saved`.
    fn add_normed(
        &mut self,
        out: Buffer,
        residual: Residual,
        category: Category,
        is_saved: bool,
    ) -> (Buffer, Option<Buffer>) {
        self.memory.recategorize(out, category);
        let normed = self.norm(Category::Workspace);
        let out = self.free_unless(is_saved, out);
        let sum = self.norm(category);
        self.memory.free(normed);
        if let Residual::Own(input) = residual {
            self.memory.free(input);
        }
        (sum, out)
    }

    /// Simulates the backward pass of a norm behind a half of a layer; returns the gradient of its input.
    pub(super) fn norm_behind_backward(&mut self, out: Buffer) -> Buffer {
        let bytes = self.bytes(self.job.shape.hidden_size);
        let grad = self.workspace(bytes);
        self.memory.free(out);
        grad
    }

    /// Simulates the rotation of queries and keys, which the CPU does in place, except for heads that are rotated in part.
    pub(super) fn rope(&mut self, qkv: Buffer) -> Buffer {
        if self.job.shape.switches.partial_rotary_factor.is_some() {
            let parts = self.workspace(2 * self.bytes(self.rotated_width()));
            self.memory.free(parts);
        } else if self.heap {
            return qkv;
        }
        let rotated = self.workspace(self.bytes(self.qkv_width()));
        self.memory.free(qkv);
        rotated
    }

    /// Returns the number of queries, keys and values per row.
    fn qkv_width(&self) -> usize {
        self.job.shape.attention().qkv_width()
    }

    /// Simulates projections side by side; returns their output, and what the backward pass needs: `x A^T` if there are
    /// branches, and the output before DoRA scales it.
    pub(super) fn project(&mut self, group: &Group, residual: Residual) -> (Buffer, Vec<Buffer>) {
        let residual = if group.bias { self.add_bias(group, residual) } else { residual };
        if !group.dora {
            let (out, low_rank) = self.project_unscaled(group, residual);
            return (out, low_rank.into_iter().collect());
        }
        let (unscaled, low_rank) = self.project_unscaled(group, Residual::None);
        let wide = self.f32_bytes(group.width());
        let unscaled = if self.has_narrow_weights() {
            // It is kept in the type of the factors.
            self.memory.free(unscaled);
            self.workspace(wide)
        } else {
            unscaled
        };
        self.memory.recategorize(unscaled, Category::Activations);
        let scaled = self.workspace(self.bytes(group.width()));
        match residual {
            Residual::None => {}
            Residual::Own(input) => self.memory.free(input),
            Residual::Shared if self.heap => {}
            Residual::Shared => {
                let bytes = self.bytes(group.width());
                self.memory.allocate_scratch(Category::Workspace, bytes);
            }
        }
        (scaled, low_rank.into_iter().chain([unscaled]).collect())
    }

    /// Simulates the residual with the biases, which join it.
    fn add_bias(&mut self, group: &Group, residual: Residual) -> Residual {
        if !self.heap && matches!(residual, Residual::None) {
            // A GPU's kernel reads the biases as a residual whose rows are the same in memory.
            return Residual::Shared;
        }
        let sum = self.workspace(self.bytes(group.width()));
        if let Residual::Own(input) = residual {
            self.memory.free(input);
        }
        Residual::Own(sum)
    }

    /// Simulates the norms of queries and keys. The CPU computes those of single heads in place unless the input
    /// `is_saved`. Returns the output, and the saved input.
    pub(super) fn head_norm(&mut self, qkv: Buffer, is_saved: bool) -> (Buffer, Option<Buffer>) {
        let in_place = self.norms_heads_in_place();
        if in_place && !is_saved {
            return (qkv, None);
        }
        let bytes = self.bytes(self.qkv_width());
        let parts =
            (!self.norms_each_head()).then(|| self.workspace(2 * self.bytes(self.rotated_width())));
        let output = self.workspace(bytes);
        self.memory.free_all(parts);
        (output, self.free_unless(is_saved, qkv))
    }

    /// Returns whether the norms of queries and keys overwrite their input.
    fn norms_heads_in_place(&self) -> bool {
        self.heap && self.norms_each_head()
    }

    /// Returns whether single heads are normalized, which every backend does in one operation.
    fn norms_each_head(&self) -> bool {
        self.job.shape.switches.qk_norm == Some(QkNorm::EachHead)
    }

    /// Simulates the backward pass of the norms of queries and keys.
    pub(super) fn head_norm_backward(&mut self, d_qkv: Buffer) -> Buffer {
        if self.norms_heads_in_place() {
            return d_qkv;
        }
        let parts =
            (!self.norms_each_head()).then(|| self.workspace(3 * self.bytes(self.rotated_width())));
        let output = self.workspace(self.bytes(self.qkv_width()));
        self.memory.free_all(parts.into_iter().chain([d_qkv]));
        output
    }

    /// Returns the number of values of queries and keys per row.
    fn rotated_width(&self) -> usize {
        let attention = self.job.shape.attention();
        (attention.heads + attention.kv_heads) * attention.head_dim
    }

    fn project_unscaled(&mut self, group: &Group, residual: Residual) -> (Buffer, Option<Buffer>) {
        if !self.heap {
            return self.project_on_gpu(group, residual);
        }
        let rank = group.rank();
        let in_place = match residual {
            Residual::Own(input) => Some(input),
            _ => None,
        };
        let out = in_place.unwrap_or_else(|| self.workspace(self.bytes(group.width())));
        let low_rank =
            (rank > 0).then(|| self.memory.allocate(Category::Activations, 4 * self.rows * rank));
        self.memory.allocate_scratch(Category::Workspace, 4 * rank * group.d_in);
        (out, low_rank)
    }

    /// Returns the number of rows per piece of a projection; `None` if it is not split.
    fn rows_per_piece(&self, d_out: usize, d_in: usize) -> Option<usize> {
        let piece_rows = self.job.piece_rows([d_out, d_in], true);
        (piece_rows < d_out).then_some(piece_rows)
    }

    /// Simulates the output of one piece of a projection before the outputs are concatenated.
    fn allocate_piece_scratch(&mut self, d_out: usize, d_in: usize) {
        if let Some(piece) = self.rows_per_piece(d_out, d_in) {
            let bytes = self.bytes(piece);
            self.memory.allocate_scratch(Category::Workspace, bytes);
        }
    }

    fn project_on_gpu(&mut self, group: &Group, residual: Residual) -> (Buffer, Option<Buffer>) {
        let (rank, branches) = (group.rank(), group.branches());
        let stacked = (branches > 1).then(|| self.workspace(4 * rank * group.d_in));
        let low_rank = (rank > 0).then(|| {
            let wide =
                self.has_narrow_weights().then(|| self.workspace(self.f32_bytes(group.d_in)));
            let bytes = self.f32_bytes(rank);
            let low_rank = self.memory.allocate(Category::Activations, bytes);
            self.memory.free_all(wide);
            low_rank
        });
        let alone = group.outs.len() == 1 && rank == 0 && matches!(residual, Residual::None);
        let bytes = self.bytes(group.width());
        let out = self.workspace(bytes);
        if alone {
            self.allocate_piece_scratch(group.width(), group.d_in);
        } else {
            for (width, rank) in group.outs.iter().zip(&group.ranks) {
                let (base, lora_bytes) = (self.bytes(*width), self.f32_bytes(*rank));
                let base = self.workspace(base);
                self.allocate_piece_scratch(*width, group.d_in);
                self.memory.allocate_scratch(Category::Workspace, lora_bytes);
                self.memory.free(base);
            }
        }
        self.memory.free_all(stacked);
        if let Residual::Own(input) = residual {
            self.memory.free(input);
        }
        (out, low_rank)
    }

    /// Simulates the backward pass of projections; returns the gradient of the input if it is
    /// needed and adds the gradients of branches and trained weights to `grads`.
    pub(super) fn project_backward(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Buffer>,
    ) -> Option<Buffer> {
        if self.job.trains_all() {
            self.weight_gradients(group, grads);
        } else if group.trained {
            // That of the whole group, from which those of the trained weights are cut.
            self.memory.allocate_scratch(Category::Workspace, 4 * group.width() * group.d_in);
        }
        // The gradient of the output before DoRA scales it, and its products with that output.
        let unscaled = group.dora.then(|| self.workspace(self.f32_bytes(group.width())));
        if group.dora {
            let products = self.f32_bytes(group.width());
            self.memory.allocate_scratch(Category::Workspace, products);
            for count in group.magnitudes() {
                grads.push(self.memory.allocate(Category::Gradients, 4 * count));
            }
        }
        let d_x = if self.heap {
            self.backward_on_cpu(group, needs_x, grads)
        } else {
            self.backward_on_gpu(group, needs_x, grads)
        };
        self.memory.free_all(unscaled);
        d_x
    }

    /// Simulates the weight gradients: one matrix for the whole group, then one per projection.
    fn weight_gradients(&mut self, group: &Group, grads: &mut Vec<Buffer>) {
        let all = self.workspace(4 * group.width() * group.d_in);
        for out in &group.outs {
            let bytes = 4 * out * group.d_in;
            grads.push(self.memory.allocate(Category::Gradients, bytes));
        }
        self.memory.free(all);
    }

    /// Allocates the gradients of LoRA branches.
    fn branch_gradients(&mut self, group: &Group, grads: &mut Vec<Buffer>) {
        for (out, rank) in group.outs.iter().zip(&group.ranks) {
            if *rank > 0 {
                let both = [4 * rank * group.d_in, 4 * out * rank];
                grads.extend(both.map(|bytes| self.memory.allocate(Category::Gradients, bytes)));
            }
        }
    }

    fn backward_on_cpu(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Buffer>,
    ) -> Option<Buffer> {
        let rank = group.rank();
        let d_low_rank = self.workspace(self.f32_bytes(rank));
        let d_x = needs_x.then(|| self.workspace(self.bytes(group.d_in)));
        let stacked = self.workspace(4 * rank * group.d_in);
        let all = self.workspace(4 * rank * group.d_in);
        self.branch_gradients(group, grads);
        self.memory.free_all([d_low_rank, stacked, all]);
        d_x
    }

    fn backward_on_gpu(
        &mut self,
        group: &Group,
        needs_x: bool,
        grads: &mut Vec<Buffer>,
    ) -> Option<Buffer> {
        let rank = group.rank();
        let widens = rank > 0 && self.has_narrow_weights();
        let wide = widens.then(|| self.workspace(self.f32_bytes(group.d_in)));
        let mut d_x: Option<Buffer> = None;
        for (width, rank) in group.outs.iter().zip(&group.ranks) {
            let dy = self.bytes(*width);
            let mut temporaries = Vec::new();
            if group.outs.len() > 1 {
                temporaries.push(self.workspace(dy));
            }
            let mut d_low_rank = None;
            if *rank > 0 {
                if self.has_narrow_weights() {
                    temporaries.push(self.workspace(self.f32_bytes(*width)));
                }
                d_low_rank = Some(self.workspace(self.f32_bytes(*rank)));
            }
            if needs_x {
                let bytes = self.bytes(group.d_in);
                let base = self.workspace(bytes);
                if let Some(piece) = self.rows_per_piece(*width, group.d_in) {
                    // The slice of the gradient that a piece reads, and its matmul.
                    let piece_bytes = self.bytes(piece) + bytes;
                    self.memory.allocate_scratch(Category::Workspace, piece_bytes);
                }
                d_x = match (d_x, d_low_rank) {
                    (None, None) => Some(base),
                    (before, _) => {
                        let sum = self.workspace(bytes);
                        self.memory.free_all(before.into_iter().chain([base]));
                        Some(sum)
                    }
                };
            }
            self.memory.free_all(temporaries.into_iter().chain(d_low_rank));
        }
        self.branch_gradients(group, grads);
        self.memory.free_all(wide);
        d_x
    }

    /// Simulates attention of `queries` rows; returns its output and log-sum-exp.
    pub(super) fn attention(&mut self, _qkv: Buffer, queries: usize) -> [Buffer; 2] {
        let config = self.job.shape.attention();
        let output = queries * config.heads * config.head_dim * self.job.size();
        let lse = 4 * queries * config.heads;
        let results = [output, lse].map(|bytes| self.memory.allocate(Category::Attention, bytes));
        if self.heap {
            let workspace = config.cpu_workspace(self.span.min(queries), self.span);
            self.attention_workspace(workspace);
        }
        results
    }

    /// Simulates the workspace of attention on the CPU. Every thread computes a span of its own
    /// or, if there is only one, a part of it.
    fn attention_workspace(&mut self, AttentionWorkspace { span, thread }: AttentionWorkspace) {
        let shared = if self.rows > self.span { span } else { span / self.threads };
        let one = shared + thread;
        let here = self.memory.allocate(Category::Attention, one);
        let there = (self.threads - 1) * one;
        let there = self.memory.allocate_on_helpers(Category::Attention, there);
        self.memory.free_all([here, there]);
    }

    /// Simulates the backward pass of attention; returns the gradient of queries, keys and values.
    pub(super) fn attention_backward(&mut self, queries: usize) -> Buffer {
        let config = self.job.shape.attention();
        let bytes = self.bytes(self.qkv_width());
        let d_qkv = self.memory.allocate(Category::Attention, bytes);
        if self.heap {
            let workspace = config.cpu_backward_workspace(self.span);
            self.attention_workspace(workspace);
        } else {
            self.memory.allocate_scratch(Category::Attention, 4 * queries * config.heads);
        }
        d_qkv
    }

    /// Allocates the output of SwiGLU.
    pub(super) fn swiglu(&mut self, category: Category) -> Buffer {
        let bytes = self.bytes(self.job.shape.intermediate_size);
        self.memory.allocate(category, bytes)
    }

    /// Simulates the backward pass of SwiGLU, which the CPU does in place.
    pub(super) fn swiglu_backward(&mut self, gate_up: Buffer) -> Buffer {
        if self.heap {
            return gate_up;
        }
        let d_gate_up = self.workspace(self.bytes(2 * self.job.shape.intermediate_size));
        self.memory.free(gate_up);
        d_gate_up
    }

    /// Simulates the log-probabilities of all rows, frees the normed states, and returns the
    /// gradient of the states if it is wanted.
    pub(super) fn head(&mut self, normed: Buffer, with_grads: bool) -> Option<Buffer> {
        let (width, vocabulary) = (self.job.shape.hidden_size, self.job.shape.vocab_size);
        let bytes = self.bytes(width);
        let states = self.memory.allocate(Category::Head, bytes);
        self.memory.free(normed);
        let columns = self.memory.allocate(Category::Head, 16 * self.rows);
        let state_grads = if self.heap {
            let state_grads = with_grads.then(|| self.memory.allocate(Category::Head, bytes));
            let logits = 4 * cpu_chunk_rows(vocabulary).min(self.rows) * vocabulary;
            self.memory.allocate_scratch(Category::Head, logits);
            state_grads
        } else {
            self.head_on_gpu(with_grads)
        };
        self.memory.free_all([states, columns]);
        state_grads
    }

    fn head_on_gpu(&mut self, with_grads: bool) -> Option<Buffer> {
        let (width, vocabulary) = (self.job.shape.hidden_size, self.job.shape.vocab_size);
        let chunk = gpu_chunk_rows(vocabulary);
        let size = self.job.size();
        // Widened in pieces if the matrix is split.
        let piece_rows = self.job.piece_rows([vocabulary, width], false);
        let widened: Vec<Buffer> = if self.job.bf16_storage {
            (0..vocabulary)
                .step_by(piece_rows.max(1))
                .map(|start| {
                    let rows = piece_rows.min(vocabulary - start);
                    self.memory.allocate(Category::Head, rows * width * size)
                })
                .collect()
        } else {
            Vec::new()
        };
        // Rows of the head that belong to the target tokens.
        let target_rows = with_grads.then(|| {
            let bytes = self.bytes(width);
            self.memory.allocate(Category::Head, bytes)
        });
        let mut parts = Vec::new();
        for start in (0..self.rows).step_by(chunk) {
            let rows = chunk.min(self.rows - start);
            let mut temporaries = vec![
                self.memory.allocate(Category::Head, rows * width * size),
                self.memory.allocate(Category::Head, 4 * rows * vocabulary),
            ];
            if with_grads {
                temporaries.push(self.memory.allocate(Category::Head, rows * width * size));
                temporaries.push(self.memory.allocate(Category::Head, rows * vocabulary * size));
                temporaries.push(self.memory.allocate(Category::Head, 4 * rows * width));
                parts.push(self.memory.allocate(Category::Head, rows * width * size));
            }
            if piece_rows < vocabulary {
                self.memory.allocate_scratch(Category::Head, 4 * rows * piece_rows);
            }
            self.memory.free_all(temporaries);
        }
        self.memory.free_all(widened.into_iter().chain(target_rows));
        if parts.len() < 2 {
            return parts.pop();
        }
        let bytes = self.bytes(width);
        let state_grads = self.memory.allocate(Category::Head, bytes);
        self.memory.free_all(parts);
        Some(state_grads)
    }
}
