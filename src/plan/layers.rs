//! The projections of a model's layers, as far as a plan needs them: their sizes, and which have a branch.

use crate::error::Result;
use crate::lora::LoraConfig;
use crate::model::config::MistralConfig;
use crate::model::mistral::PROJECTIONS;

/// The projections of one input, side by side.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) d_in: usize,
    pub(super) outs: Vec<usize>,
    /// Rank of each one's branch; 0: none.
    pub(super) ranks: Vec<usize>,
}

impl Group {
    pub(super) fn width(&self) -> usize {
        self.outs.iter().sum()
    }

    pub(super) fn rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    pub(super) fn branches(&self) -> usize {
        self.ranks.iter().filter(|rank| **rank > 0).count()
    }

    /// The same without branches: the reference model's.
    pub(super) fn bare(&self) -> Self {
        Self { ranks: vec![0; self.outs.len()], ..self.clone() }
    }
}

/// One layer: queries, keys and values; what attention made; gate and up; down.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) qkv: Group,
    pub(super) o: Group,
    pub(super) gate_up: Group,
    pub(super) down: Group,
}

impl Layer {
    /// Layer `index` of a model of this shape.
    ///
    /// # Errors
    /// The pattern of targeted modules is none.
    pub(super) fn of(
        shape: &MistralConfig,
        lora: Option<&LoraConfig>,
        index: usize,
    ) -> Result<Self> {
        let (d, inner) = (shape.hidden_size, shape.intermediate_size);
        let queries = shape.num_attention_heads * shape.head_dim();
        let keys = shape.num_key_value_heads * shape.head_dim();
        let outs = [queries, keys, keys, d, inner, inner, d];
        let mut ranks = [0; 7];
        if let Some(lora) = lora {
            for (rank, path) in ranks.iter_mut().zip(PROJECTIONS) {
                if lora.target_modules.matches(&format!("model.layers.{index}.{path}"))? {
                    *rank = lora.r;
                }
            }
        }
        let group = |d_in: usize, range: std::ops::Range<usize>| Group {
            d_in,
            outs: outs[range.clone()].to_vec(),
            ranks: ranks[range].to_vec(),
        };
        Ok(Self {
            qkv: group(d, 0..3),
            o: group(queries, 3..4),
            gate_up: group(d, 4..6),
            down: group(inner, 6..7),
        })
    }

    pub(super) fn groups(&self) -> [&Group; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}
