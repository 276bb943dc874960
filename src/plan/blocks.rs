//! Simulates a block of the model: the forward pass with and without autodiff graph, and the
//! backward pass.

use super::job::Job;
use super::layers::{Group, Layer};
use super::memory::{Buffer, Category};
use super::operations::Residual;
use super::passes::PassShape;
use super::walk::Walk;
use crate::model::switches::NormPlacement;

/// The buffers of a block that the forward pass keeps for the backward pass.
pub(super) enum Block {
    /// Only its input.
    Input(Buffer),
    /// All its activations.
    Activations(Box<SavedActivations>),
}

/// The activations of a block that the backward pass reads.
pub(super) struct SavedActivations {
    x: Buffer,
    normed: Option<Buffer>,
    /// Queries, keys and values before the norms of their heads.
    unnormed_qkv: Option<Buffer>,
    qkv: Buffer,
    attended: [Buffer; 2],
    /// The output of attention before the norm behind it.
    unnormed_attended: Option<Buffer>,
    x_attended: Buffer,
    normed_attended: Option<Buffer>,
    gate_up: Buffer,
    gated: Option<Buffer>,
    /// The output of the feed-forward block before the norm behind it.
    unnormed_fed: Option<Buffer>,
    /// `x A^T` of the four groups of projections, and their outputs before DoRA scales them.
    low_ranks: [Vec<Buffer>; 4],
}

/// Returns how many values per token a block in the middle of the model keeps for the backward pass
/// (see [`SavedActivations`]).
pub(super) fn saved_values_per_token(job: &Job) -> usize {
    let shape = &job.shape;
    let Some(layer) = job.layers.get(job.layers.len() / 2) else {
        return 0;
    };
    let saved_inputs =
        |group: &Group| if job.trains_all() || group.keeps_input() { group.d_in } else { 0 };
    let queries = shape.num_attention_heads * shape.head_dim();
    let inputs =
        saved_inputs(&layer.qkv) + saved_inputs(&layer.gate_up) + saved_inputs(&layer.down);
    let heads = if shape.switches.qk_norm.is_some() { layer.qkv.width() } else { 0 };
    let halves = match shape.switches.norm_placement {
        NormPlacement::Before => 0,
        NormPlacement::BeforeAndAfter => 2 * shape.hidden_size,
        // The inputs of the halves are the residual stream itself.
        NormPlacement::After => 0,
    };
    let scaled = layer.groups().into_iter().filter(|group| group.dora).map(Group::width);
    let inputs = inputs + heads + halves + scaled.sum::<usize>();
    2 * shape.hidden_size + layer.qkv.width() + queries + layer.gate_up.width() + inputs
}

impl Walk<'_> {
    /// Simulates the forward pass of a block without a graph and returns its output. The input is
    /// freed unless it is `shared`.
    pub(super) fn block_without_graph(
        &mut self,
        layer: &Layer,
        x: Buffer,
        pass: PassShape,
        index: usize,
        shared: bool,
    ) -> Buffer {
        let (shape, last) = (&self.job.shape, self.rows_after(index, pass) != pass.tokens);
        let (width, rows) = (shape.hidden_size, self.rows_after(index, pass));
        let has_head_norms = self.job.shape.switches.qk_norm.is_some();
        let normed = self.rows(pass.tokens, pass.span).norm_before(Category::Workspace);
        // Without a norm, the projections read `x` itself.
        let mut input = normed;
        let residual = if last {
            let bytes = self.bytes(rows, width);
            let selected = self.memory.allocate(Category::Activations, bytes);
            match input {
                _ if shared => {}
                Some(_) => self.memory.free(x),
                None => input = Some(x),
            }
            Residual::Own(selected)
        } else if shared {
            Residual::Shared
        } else {
            Residual::Own(x)
        };
        let mut all = self.rows(pass.tokens, pass.span);
        let (qkv, low_rank) = all.project(&layer.qkv, Residual::None);
        all.memory.free_all(low_rank.into_iter().chain(input));
        let (qkv, _) = if has_head_norms { all.head_norm(qkv, false) } else { (qkv, None) };
        let qkv = all.rope(qkv);
        let attended = all.attention(qkv, rows);
        let mut selected = self.rows(rows, pass.span);
        selected.memory.free(qkv);
        let (x, _, low_rank) =
            selected.project_onto(&layer.o, residual, Category::Workspace, false);
        selected.memory.free_all(low_rank.into_iter().chain(attended));
        let normed = selected.norm_before(Category::Workspace);
        let (gate_up, low_rank) = selected.project(&layer.gate_up, Residual::None);
        selected.memory.free_all(low_rank.into_iter().chain(normed));
        let gated = selected.swiglu(Category::Workspace);
        selected.memory.free(gate_up);
        let (y, _, low_rank) =
            selected.project_onto(&layer.down, Residual::Own(x), Category::Workspace, false);
        selected.memory.free_all(low_rank.into_iter().chain([gated]));
        y
    }

    /// Simulates the forward pass of a block with its graph; returns the saved activations and the
    /// output.
    pub(super) fn block_with_graph(
        &mut self,
        x: Buffer,
        pass: PassShape,
        index: usize,
    ) -> (SavedActivations, Buffer) {
        let layer = &self.job.layers[index];
        let (rows, trains_all) = (self.rows_after(index, pass), self.job.trains_all());
        let width = self.job.shape.hidden_size;
        let is_saved = |group: &Group| trains_all || group.keeps_input();
        let has_head_norms = self.job.shape.switches.qk_norm.is_some();
        let normed = self.rows(pass.tokens, pass.span).norm_before(Category::Activations);
        let residual = if rows != pass.tokens {
            let bytes = self.bytes(rows, width);
            Residual::Own(self.memory.allocate(Category::Activations, bytes))
        } else {
            Residual::Shared
        };
        let mut all = self.rows(pass.tokens, pass.span);
        let (qkv, low_rank_qkv) = all.project(&layer.qkv, Residual::None);
        let normed = normed.and_then(|normed| all.free_unless(is_saved(&layer.qkv), normed));
        let (qkv, unnormed_qkv) =
            if has_head_norms { all.head_norm(qkv, true) } else { (qkv, None) };
        let qkv = all.rope(qkv);
        all.memory.recategorize(qkv, Category::Activations);
        let attended = all.attention(qkv, rows);
        let mut selected = self.rows(rows, pass.span);
        let (x_attended, unnormed_attended, low_rank_o) =
            selected.project_onto(&layer.o, residual, Category::Activations, true);
        let normed_attended = selected.norm_before(Category::Activations);
        let (gate_up, low_rank_gate_up) = selected.project(&layer.gate_up, Residual::None);
        let normed_attended =
            normed_attended.and_then(|b| selected.free_unless(is_saved(&layer.gate_up), b));
        selected.memory.recategorize(gate_up, Category::Activations);
        let gated = selected.swiglu(Category::Activations);
        let (y, unnormed_fed, low_rank_down) =
            selected.project_onto(&layer.down, Residual::Shared, Category::Activations, true);
        let gated = selected.free_unless(is_saved(&layer.down), gated);
        let saved = SavedActivations {
            x,
            normed,
            unnormed_qkv,
            qkv,
            attended,
            unnormed_attended,
            x_attended,
            normed_attended,
            gate_up,
            gated,
            unnormed_fed,
            low_ranks: [low_rank_qkv, low_rank_o, low_rank_gate_up, low_rank_down],
        };
        (saved, y)
    }

    /// Simulates the backward pass of a block and returns the gradient of its input: the saved
    /// activations are freed, the gradients of its weights stay in `grads`.
    pub(super) fn backward(
        &mut self,
        saved: SavedActivations,
        d_y: Buffer,
        pass: PassShape,
        index: usize,
        grads: &mut Vec<Buffer>,
    ) -> Buffer {
        let layer = &self.job.layers[index];
        let rows = self.rows_after(index, pass);
        let job = self.job;
        let trains = |part: &str| job.trains(&format!("model.layers.{index}.{part}"));
        let norm_bytes = 4 * job.shape.hidden_size;
        let [low_rank_qkv, low_rank_o, low_rank_gate_up, low_rank_down] = saved.low_ranks;
        let mut selected = self.rows(rows, pass.span);
        let d_fed = saved.unnormed_fed.map(|out| selected.norm_behind_backward(out));
        let d_gated = selected.project_backward(&layer.down, true, grads);
        selected.memory.free_all(d_fed);
        selected.memory.free_all(saved.gated.into_iter().chain(low_rank_down));
        let d_gate_up = selected.swiglu_backward(saved.gate_up);
        selected.memory.free_all(d_gated);
        let d_normed = selected.project_backward(&layer.gate_up, true, grads);
        let finished = saved.normed_attended.into_iter().chain(low_rank_gate_up);
        selected.memory.free_all(finished.chain([d_gate_up]));
        // The gradient is added in place to that of the residual stream.
        selected.norm_backward();
        selected.memory.free_all(d_normed.into_iter().chain([saved.x_attended]));
        if trains("post_attention_layernorm") {
            grads.push(self.memory.allocate(Category::Gradients, norm_bytes));
        }
        let mut selected = self.rows(rows, pass.span);
        let d_out = saved.unnormed_attended.map(|out| selected.norm_behind_backward(out));
        let d_attended = selected.project_backward(&layer.o, true, grads);
        selected.memory.free_all(d_out);
        selected.memory.free_all(low_rank_o);
        let mut all = self.rows(pass.tokens, pass.span);
        let d_qkv = all.attention_backward(rows);
        all.memory.free_all(d_attended);
        all.memory.free_all([saved.qkv].into_iter().chain(saved.attended));
        let d_qkv = all.rope(d_qkv);
        let d_qkv = match saved.unnormed_qkv {
            Some(unnormed) => {
                let d_qkv = all.head_norm_backward(d_qkv);
                all.memory.free(unnormed);
                d_qkv
            }
            None => d_qkv,
        };
        let needs_x = index > 0 || job.trains("model.embed_tokens");
        let d_normed = all.project_backward(&layer.qkv, needs_x, grads);
        let finished = saved.normed.into_iter().chain(low_rank_qkv);
        all.memory.free_all(finished.chain([d_qkv]));
        let mut d_y = d_y;
        if rows != pass.tokens {
            // The gradient of the selected rows, scattered to all rows.
            let bytes = self.bytes(pass.tokens, self.job.shape.hidden_size);
            let spread = self.memory.allocate(Category::Workspace, bytes);
            self.memory.free(d_y);
            d_y = spread;
        }
        self.rows(pass.tokens, pass.span).norm_backward();
        self.memory.free_all(d_normed.into_iter().chain([saved.x]));
        if trains("input_layernorm") {
            grads.push(self.memory.allocate(Category::Gradients, norm_bytes));
        }
        for count in job.saved_projections(index) {
            grads.push(self.memory.allocate(Category::Gradients, 4 * count));
        }
        d_y
    }
}
