//! The projections of a model's layers: their sizes, and which of them have a LoRA branch.

use crate::adapter::LoraConfig;
use crate::error::Result;
use crate::model::config::DecoderConfig;
use crate::model::names::{LayerProjection, ProjectionGroup, layer_module, projections};

/// Projections that share one input, computed side by side.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) d_in: usize,
    pub(super) outs: Vec<usize>,
    /// Rank of each projection's LoRA branch; 0 without one.
    pub(super) ranks: Vec<usize>,
    /// Whether the branches have magnitudes (DoRA).
    pub(super) dora: bool,
    /// Whether the projections or their branches have biases.
    pub(super) bias: bool,
    /// Whether the weight of a projection is trained in full beside an adapter.
    pub(super) trained: bool,
}

impl Group {
    /// Returns the number of output features of all projections.
    pub(super) fn width(&self) -> usize {
        self.outs.iter().sum()
    }

    /// Returns the sum of the ranks.
    pub(super) fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    /// Returns the number of magnitudes of each branch, in order.
    pub(super) fn magnitudes(&self) -> impl Iterator<Item = usize> {
        let with_branch = self.outs.iter().zip(&self.ranks).filter(|(_, rank)| **rank > 0);
        with_branch.filter(|_| self.dora).map(|(out, _)| *out)
    }

    /// Returns the number of LoRA branches.
    pub(super) fn branches(&self) -> usize {
        self.ranks.iter().filter(|rank| **rank > 0).count()
    }

    /// Returns whether the backward pass of an adapter needs the input of the projections.
    pub(super) fn keeps_input(&self) -> bool {
        self.trained || self.branches() > 0
    }

    /// Returns the group without its branches, as the reference model has it.
    pub(super) fn bare(&self) -> Self {
        Self { ranks: vec![0; self.outs.len()], dora: false, ..self.clone() }
    }
}

/// One layer: queries, keys and values; the output projection of attention; gate and up; down.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) qkv: Group,
    pub(super) o: Group,
    pub(super) gate_up: Group,
    pub(super) down: Group,
}

impl Layer {
    /// Returns the projections of layer `index` of a model of this shape. `saved` are the names of the modules that are
    /// trained in full beside the adapter.
    ///
    /// # Errors
    /// Same as [`LoraConfig::at`].
    pub(super) fn of(
        shape: &DecoderConfig,
        lora: Option<&LoraConfig>,
        saved: &[(String, usize)],
        index: usize,
    ) -> Result<Self> {
        let mut layer = Self::default();
        for LayerProjection { path, dims: [d_out, d_in], has_bias, group } in projections(shape) {
            let name = format!("{}.{path}", layer_module(index));
            let branch = lora.map(|lora| lora.at(&name)).transpose()?.flatten();
            let with_branch =
                |key: fn(&LoraConfig) -> bool| branch.is_some() && lora.is_some_and(key);
            let group = match group {
                ProjectionGroup::Qkv => &mut layer.qkv,
                ProjectionGroup::Output => &mut layer.o,
                ProjectionGroup::GateUp => &mut layer.gate_up,
                ProjectionGroup::Down => &mut layer.down,
            };
            group.d_in = d_in;
            group.outs.push(d_out);
            group.ranks.push(branch.map_or(0, |branch| branch.r));
            group.dora |= with_branch(|lora| lora.use_dora);
            group.bias |= has_bias || with_branch(|lora| lora.lora_bias);
            group.trained |= saved.iter().any(|(module, _)| *module == name);
        }
        Ok(layer)
    }

    /// Returns the four groups in the order of the forward pass.
    pub(super) fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}
