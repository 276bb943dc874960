//! Memory as a run takes it: who holds how much at the worst moment.

use std::collections::BTreeMap;

use arithmo_backends::Allocation;

use super::allocator::{Allocator, Place};

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// What the process holds before it loads a model: the program, the tokenizer, the data. On the CPU alone.
    Program,
    /// The base model.
    Weights,
    /// A second copy of what is trained, to compare with.
    Reference,
    /// The adapter, where one is trained.
    Adapter,
    /// Gradients of what is trained.
    Gradients,
    /// Both moments of what is trained.
    Optimizer,
    /// What blocks keep for backward: their inputs, or everything.
    Activations,
    /// What attention made, its log-sum-exp, and what it computes in.
    Attention,
    /// Logits of some rows at a time, hidden states, and the slopes of log-probabilities.
    Head,
    /// What operations compute in and forget.
    Workspace,
    /// Rotary angles, token ids, who sees whom.
    Tables,
    /// Copies of what is trained on their way to a checkpoint. On the CPU alone.
    Checkpoint,
    /// What the allocator holds and nobody uses.
    Unused,
}

impl Category {
    /// All of them, in the order of the table.
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

    /// The word for it.
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

/// Something that is held, to be given back. What is never given back is simply not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Held(usize);

/// The memory of a device while a run takes and gives back.
#[derive(Debug)]
pub(super) struct Memory {
    allocator: Allocator,
    held: Vec<Option<(Category, u64, Place)>>,
    live: Table,
    /// Of what is held, at the worst moment.
    worst: (u64, Table, &'static str),
    moment: &'static str,
}

impl Memory {
    pub(super) fn new(allocation: Allocation) -> Self {
        Self {
            allocator: Allocator::new(allocation),
            held: Vec::new(),
            live: Table::new(),
            worst: (0, Table::new(), ""),
            moment: "",
        }
    }

    /// From now on this happens.
    pub(super) fn moment(&mut self, moment: &'static str) {
        self.moment = moment;
    }

    pub(super) fn take(&mut self, category: Category, bytes: usize) -> Held {
        let place = self.allocator.take(bytes as u64, false);
        self.note(category, bytes as u64, place)
    }

    /// As [`Self::take`], by a thread that helps: those have a heap of their own.
    pub(super) fn take_elsewhere(&mut self, category: Category, bytes: usize) -> Held {
        let place = self.allocator.take_elsewhere(bytes as u64);
        self.note(category, bytes as u64, place)
    }

    /// As [`Self::take`], to the end of the run.
    pub(super) fn hold(&mut self, category: Category, bytes: usize) {
        let _ = self.take(category, bytes);
    }

    /// As [`Self::hold`], of weights, which pools keep apart.
    pub(super) fn keep(&mut self, category: Category, bytes: usize) {
        let place = self.allocator.take(bytes as u64, true);
        let _ = self.note(category, bytes as u64, place);
    }

    pub(super) fn give(&mut self, held: Held) {
        if let Some((category, bytes, place)) = self.held[held.0].take() {
            self.allocator.give(place);
            *self.live.entry(category).or_default() -= bytes;
        }
    }

    pub(super) fn give_all(&mut self, held: impl IntoIterator<Item = Held>) {
        held.into_iter().for_each(|held| self.give(held));
    }

    /// Takes and gives back at once.
    pub(super) fn pass_by(&mut self, category: Category, bytes: usize) {
        let held = self.take(category, bytes);
        self.give(held);
    }

    /// Has what is held count for something else.
    pub(super) fn recount(&mut self, held: Held, category: Category) {
        if let Some((old, bytes, _)) = &mut self.held[held.0] {
            *self.live.entry(*old).or_default() -= *bytes;
            *self.live.entry(category).or_default() += *bytes;
            *old = category;
        }
    }

    /// Bytes by category at the worst moment, with what the allocator holds beyond them, and the moment.
    pub(super) fn worst(&self) -> (Table, &'static str) {
        let (bytes, table, moment) = &self.worst;
        let mut table = table.clone();
        let unused = self.allocator.reserved().saturating_sub(*bytes);
        table.insert(Category::Unused, unused);
        table.retain(|_, bytes| *bytes > 0);
        (table, moment)
    }

    fn note(&mut self, category: Category, bytes: u64, place: Place) -> Held {
        self.held.push(Some((category, bytes, place)));
        *self.live.entry(category).or_default() += bytes;
        let all = self.live.values().sum();
        if all > self.worst.0 {
            self.worst = (all, self.live.clone(), self.moment);
        }
        Held(self.held.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_worst_moment_is_kept_with_who_holds_what() {
        let mut memory = Memory::new(Allocation::Heap);
        memory.keep(Category::Weights, 10 * MIB);
        memory.moment("forward");
        let x = memory.take(Category::Activations, 4 * MIB);
        memory.moment("backward");
        let y = memory.take(Category::Workspace, 3 * MIB);
        memory.give_all([x, y]);
        memory.pass_by(Category::Head, MIB);
        let (table, moment) = memory.worst();
        assert_eq!(moment, "backward");
        assert_eq!(table[&Category::Activations], 4 << 20);
        assert_eq!(table[&Category::Workspace], 3 << 20);
        assert_eq!(table[&Category::Unused], 3 * 16);
        assert!(!table.contains_key(&Category::Head));
    }
}
