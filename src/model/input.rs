//! What a forward pass is given besides weights: token ids, positions, who may see whom.

use arithmo_backends::{AttentionMask, RotaryAngles, TrainBackend};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::positions::PositionTable;
use crate::data::batch::{Sight, TokenRows};

/// [`TokenRows`] on a device, row after row, with the rotary angles of its positions.
#[derive(Clone, Debug)]
pub struct ModelInput<B: TrainBackend> {
    /// `[T]`, `T = B * S`
    pub token_ids: Tensor<B, 1, Int>,
    /// What the layers need.
    pub context: SequenceContext<B>,
}

/// What every layer needs besides its own weights and the hidden states.
#[derive(Clone, Debug)]
pub struct SequenceContext<B: TrainBackend> {
    /// Angles of the tokens' positions.
    pub angles: RotaryAngles<B>,
    /// Who may see whom; keys may be those of a cache.
    pub mask: AttentionMask<B>,
    /// The mask of the last layer, where only some tokens' hidden states are wanted; `None`: all are.
    pub last_mask: Option<AttentionMask<B>>,
    /// The slots of a cache that the tokens' keys and values go to, `[T]`; `None` without a cache.
    pub slots: Option<Tensor<B, 1, Int>>,
    /// `Some` only while training with dropout.
    pub dropout_seed: Option<u64>,
}

impl<B: TrainBackend> ModelInput<B> {
    /// Sends `rows` to the device.
    ///
    /// # Panics
    /// If a position lies outside the table: callers check lengths against `max_position_embeddings` first.
    pub fn new(rows: &TokenRows, table: &PositionTable<B>, device: &B::Device) -> Self {
        let last = rows.positions.iter().max().copied().unwrap_or(0);
        assert!((last as usize) < table.positions(), "position {last} of {}", table.positions());
        let positions = ints(rows.positions.clone(), device);
        let hidden = rows.hidden.iter().any(|hidden| *hidden).then(|| {
            let flags = rows.hidden.iter().map(|hidden| i64::from(*hidden));
            ints(flags.collect(), device)
        });
        let near = rows
            .sight
            .iter()
            .zip(&rows.positions)
            .map(|(sight, position)| sight.within(table.window, *position));
        let mask = AttentionMask { ranges: ranges(near, device), hidden, queries: None };
        Self {
            token_ids: ints(rows.ids.clone(), device),
            context: SequenceContext {
                angles: table.angles(&positions),
                mask,
                last_mask: None,
                slots: None,
                dropout_seed: None,
            },
        }
    }

    /// The same tokens with their keys and values in a cache, at `slots` `[T]`; what each sees is then counted in slots.
    pub fn in_cache(mut self, slots: Vec<i64>, device: &B::Device) -> Self {
        self.context.slots = Some(ints(slots, device));
        self
    }

    /// Only the hidden states of the tokens `queries` (ascending, at least one) are wanted: what the last layer does for
    /// the others is left out.
    pub fn only(mut self, queries: &[i64], device: &B::Device) -> Self {
        let mask = &self.context.mask;
        let queries = ints(queries.to_vec(), device);
        self.context.last_mask = Some(AttentionMask {
            ranges: mask.ranges.clone().select(0, queries.clone()),
            hidden: mask.hidden.clone(),
            queries: Some(queries),
        });
        self
    }

    /// The same input for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> ModelInput<A>
    where
        A: TrainBackend + AutodiffBackend<InnerBackend = B>,
    {
        ModelInput {
            token_ids: Tensor::from_inner(self.token_ids.clone()),
            context: self.context.to_autodiff(),
        }
    }
}

impl<B: TrainBackend> SequenceContext<B> {
    /// The mask of layer `index` of `layers`.
    pub fn mask_of(&self, index: usize, layers: usize) -> &AttentionMask<B> {
        match &self.last_mask {
            Some(last) if index + 1 == layers => last,
            _ => &self.mask,
        }
    }

    /// The same context for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> SequenceContext<A>
    where
        A: TrainBackend + AutodiffBackend<InnerBackend = B>,
    {
        SequenceContext {
            angles: RotaryAngles {
                cos: Tensor::from_inner(self.angles.cos.clone()),
                sin: Tensor::from_inner(self.angles.sin.clone()),
            },
            mask: self.mask.to_autodiff(),
            last_mask: self.last_mask.as_ref().map(AttentionMask::to_autodiff),
            slots: self.slots.clone().map(Tensor::from_inner),
            dropout_seed: self.dropout_seed,
        }
    }
}

fn ints<B: TrainBackend>(values: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// `[Q, 4]`
fn ranges<B: TrainBackend>(
    sight: impl Iterator<Item = Sight>,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let values: Vec<i64> = sight
        .flat_map(|sight| {
            let ([a, b], [c, d]) = (sight.shared, sight.own);
            [a, b, c, d]
        })
        .collect();
    let shape = [values.len() / 4, 4];
    Tensor::from_data(TensorData::new(values, shape), device)
}
