//! The memory of a simulated run: bytes by category at the peak.

use std::collections::BTreeMap;

use arithmo_backends::Allocation;

use super::allocator::{Allocator, Placement};

/// The purpose of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// The process before it loads a model: the program, the tokenizer, the data. Only on the CPU.
    Program,
    /// The base model.
    Weights,
    /// A copy of the trained weights from which the reference is computed.
    Reference,
    /// The trained adapter, if there is one.
    Adapter,
    /// Gradients of the trained weights.
    Gradients,
    /// The state of the optimizer: AdamW has two moments.
    Optimizer,
    /// Activations that blocks keep for the backward pass: their inputs alone, or all.
    Activations,
    /// Outputs of attention, its log-sum-exp, and its workspace.
    Attention,
    /// Logits of a chunk of rows, hidden states, and the gradients of log-probabilities.
    Head,
    /// Temporary buffers of operations.
    Workspace,
    /// Rotary angles, token ids, and attention ranges.
    Tables,
    /// Copies of the trained weights while a checkpoint is written. Only on the CPU.
    Checkpoint,
    /// Memory that the allocator has reserved and no tensor uses.
    Unused,
}

impl Category {
    /// All categories in the order of the table.
    pub const ALL: [Self; 13] = [
        Self::Program,
        Self::Weights,
        Self::Reference,
        Self::Adapter,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations,
        Self::Attention,
        Self::Head,
        Self::Workspace,
        Self::Tables,
        Self::Checkpoint,
        Self::Unused,
    ];

    /// Returns the name that is printed in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Weights => "weights",
            Self::Reference => "reference",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Activations => "activations",
            Self::Attention => "attention",
            Self::Head => "head chunk",
            Self::Workspace => "workspace",
            Self::Tables => "tables",
            Self::Checkpoint => "checkpoint",
            Self::Unused => "unused",
        }
    }
}

/// Bytes by category.
pub type Table = BTreeMap<Category, u64>;

/// A buffer that can be freed. Buffers that live to the end of the run
/// need not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Buffer(usize);

/// The memory of a device during a simulated run.
#[derive(Debug)]
pub(super) struct Memory {
    allocator: Allocator,
    buffers: Vec<Option<(Category, u64, Placement)>>,
    live: Table,
    /// Total, bytes by category, and phase at the peak.
    peak: (u64, Table, &'static str),
    phase: &'static str,
}

impl Memory {
    pub(super) fn new(allocation: Allocation) -> Self {
        Self {
            allocator: Allocator::new(allocation),
            buffers: Vec::new(),
            live: Table::new(),
            peak: (0, Table::new(), ""),
            phase: "",
        }
    }

    /// Labels subsequent allocations with the phase of the run.
    pub(super) fn set_phase(&mut self, phase: &'static str) {
        self.phase = phase;
    }

    /// Allocates `bytes`.
    pub(super) fn allocate(&mut self, category: Category, bytes: usize) -> Buffer {
        let placement = self.allocator.allocate(bytes as u64, false);
        self.record(category, bytes as u64, placement)
    }

    /// Allocates `bytes` on a helper thread, whose heap is separate.
    pub(super) fn allocate_on_helpers(&mut self, category: Category, bytes: usize) -> Buffer {
        let placement = self.allocator.allocate_on_helpers(bytes as u64);
        self.record(category, bytes as u64, placement)
    }

    /// Allocates `bytes` until the end of the run.
    pub(super) fn allocate_for_run(&mut self, category: Category, bytes: usize) {
        let _ = self.allocate(category, bytes);
    }

    /// Allocates weights until the end of the run; pools keep them in buffers of their own.
    pub(super) fn allocate_persistent(&mut self, category: Category, bytes: usize) {
        let placement = self.allocator.allocate(bytes as u64, true);
        let _ = self.record(category, bytes as u64, placement);
    }

    /// Frees a buffer.
    pub(super) fn free(&mut self, buffer: Buffer) {
        if let Some((category, bytes, placement)) = self.buffers[buffer.0].take() {
            self.allocator.free(placement);
            *self.live.entry(category).or_default() -= bytes;
        }
    }

    /// Frees several buffers.
    pub(super) fn free_all(&mut self, buffers: impl IntoIterator<Item = Buffer>) {
        buffers.into_iter().for_each(|buffer| self.free(buffer));
    }

    /// Allocates a scratch buffer and frees it at once.
    pub(super) fn allocate_scratch(&mut self, category: Category, bytes: usize) {
        let buffer = self.allocate(category, bytes);
        self.free(buffer);
    }

    /// Moves a buffer to another category.
    pub(super) fn recategorize(&mut self, buffer: Buffer, category: Category) {
        if let Some((old, bytes, _)) = &mut self.buffers[buffer.0] {
            *self.live.entry(*old).or_default() -= *bytes;
            *self.live.entry(category).or_default() += *bytes;
            *old = category;
        }
    }

    /// Returns the bytes by category at the peak, with the memory that the allocator reserves
    /// beyond them, and the phase.
    pub(super) fn peak(&self) -> (Table, &'static str) {
        let (bytes, table, phase) = &self.peak;
        let mut table = table.clone();
        let unused = self.allocator.reserved().saturating_sub(*bytes);
        table.insert(Category::Unused, unused);
        table.retain(|_, bytes| *bytes > 0);
        (table, phase)
    }

    /// Records an allocation and updates the peak.
    fn record(&mut self, category: Category, bytes: u64, placement: Placement) -> Buffer {
        self.buffers.push(Some((category, bytes, placement)));
        *self.live.entry(category).or_default() += bytes;
        let all = self.live.values().sum();
        if all > self.peak.0 {
            self.peak = (all, self.live.clone(), self.phase);
        }
        Buffer(self.buffers.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_peak_is_recorded_with_its_categories_and_phase() {
        let mut memory = Memory::new(Allocation::Heap);
        memory.allocate_persistent(Category::Weights, 10 * MIB);
        memory.set_phase("forward");
        let x = memory.allocate(Category::Activations, 4 * MIB);
        memory.set_phase("backward");
        let y = memory.allocate(Category::Workspace, 3 * MIB);
        memory.free_all([x, y]);
        memory.allocate_scratch(Category::Head, MIB);
        let (table, phase) = memory.peak();
        assert_eq!(phase, "backward");
        assert_eq!(table[&Category::Activations], 4 << 20);
        assert_eq!(table[&Category::Workspace], 3 << 20);
        assert_eq!(table[&Category::Unused], 3 * 16);
        assert!(!table.contains_key(&Category::Head));
    }
}
