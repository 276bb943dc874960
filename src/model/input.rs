//! The inputs of a forward pass besides weights: token ids, positions and the attention mask.

use arithmo_backends::{AttentionMask, RotaryAngles, TrainBackend};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::positions::PositionTable;
use crate::data::batch::{AttentionRange, TokenRows};

/// [`TokenRows`] on a device: all rows concatenated, with the rotary angles of their positions.
#[derive(Clone, Debug)]
pub struct ModelInput<B: TrainBackend> {
    /// `[T]`, `T = B * S`
    pub token_ids: Tensor<B, 1, Int>,
    /// Inputs that all layers share.
    pub context: SequenceContext<B>,
}

/// The inputs of every layer besides its own weights and the hidden states.
#[derive(Clone, Debug)]
pub struct SequenceContext<B: TrainBackend> {
    /// Rotary angles of the tokens' positions, for each of [`DecoderConfig::ropes`](super::config::DecoderConfig::ropes).
    pub angles: Vec<RotaryAngles<B>>,
    /// Factors on the queries after their rotation, as angles; `None` if all are 1.
    pub query_factors: Option<RotaryAngles<B>>,
    /// Which keys each token attends to, for each of [`DecoderConfig::windows`](super::config::DecoderConfig::windows); the
    /// keys may be slots of a cache.
    pub masks: Vec<AttentionMask<B>>,
    /// Masks of the last layer if it computes only some tokens' hidden states; `None` means all tokens.
    pub last_masks: Option<Vec<AttentionMask<B>>>,
    /// Cache slots in which the tokens' keys and values are stored, `[T]`; `None` without a cache.
    pub slots: Option<Tensor<B, 1, Int>>,
    /// Seed of the dropout masks; `Some` only while training with dropout.
    pub dropout_seed: Option<u64>,
}

impl<B: TrainBackend> ModelInput<B> {
    /// Copies `rows` to the device.
    ///
    /// # Panics
    /// Panics if a position lies outside the table: callers check lengths against `max_position_embeddings` first.
    pub fn new(rows: &TokenRows, table: &PositionTable<B>, device: &B::Device) -> Self {
        let last = rows.positions.iter().max().copied().unwrap_or(0);
        assert!((last as usize) < table.positions(), "position {last} of {}", table.positions());
        let hidden = rows.hidden.iter().any(|hidden| *hidden).then(|| {
            let flags = rows.hidden.iter().map(|hidden| i64::from(*hidden));
            ints(flags.collect(), device)
        });
        let mask = |window: &Option<usize>| {
            let tokens = rows.attention.iter().zip(&rows.positions);
            let near = tokens.map(|(range, position)| range.within(*window, *position));
            AttentionMask { ranges: ranges(near, device), hidden: hidden.clone(), queries: None }
        };
        Self {
            token_ids: ints(rows.ids.clone(), device),
            context: SequenceContext {
                angles: table.angles(&rows.positions, device),
                query_factors: table.query_factors(&rows.positions, device),
                masks: table.windows.iter().map(mask).collect(),
                last_masks: None,
                slots: None,
                dropout_seed: None,
            },
        }
    }

    /// Stores the tokens' keys and values at `slots` `[T]` of a cache; the ranges of the mask then count slots.
    pub fn in_cache(mut self, slots: Vec<i64>, device: &B::Device) -> Self {
        self.context.slots = Some(ints(slots, device));
        self
    }

    /// Restricts the last layer to the hidden states of the tokens `queries` (ascending, at least one); it skips the
    /// others.
    pub fn only(mut self, queries: &[i64], device: &B::Device) -> Self {
        let queries = ints(queries.to_vec(), device);
        let restricted = |mask: &AttentionMask<B>| AttentionMask {
            ranges: mask.ranges.clone().select(0, queries.clone()),
            hidden: mask.hidden.clone(),
            queries: Some(queries.clone()),
        };
        self.context.last_masks = Some(self.context.masks.iter().map(restricted).collect());
        self
    }

    /// Converts the input to an autodiff backend over `B` without copying any data.
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
    /// Returns the mask of a layer with the window number `window`, which `is_last` says to be the last layer or not.
    pub fn mask(&self, window: usize, is_last: bool) -> &AttentionMask<B> {
        match &self.last_masks {
            Some(last) if is_last => &last[window],
            _ => &self.masks[window],
        }
    }

    /// Converts the context to an autodiff backend over `B` without copying any data.
    pub fn to_autodiff<A>(&self) -> SequenceContext<A>
    where
        A: TrainBackend + AutodiffBackend<InnerBackend = B>,
    {
        let angles = |angles: &RotaryAngles<B>| RotaryAngles {
            cos: Tensor::from_inner(angles.cos.clone()),
            sin: Tensor::from_inner(angles.sin.clone()),
        };
        let masks =
            |masks: &Vec<AttentionMask<B>>| masks.iter().map(AttentionMask::to_autodiff).collect();
        SequenceContext {
            angles: self.angles.iter().map(angles).collect(),
            query_factors: self.query_factors.as_ref().map(angles),
            masks: masks(&self.masks),
            last_masks: self.last_masks.as_ref().map(masks),
            slots: self.slots.clone().map(Tensor::from_inner),
            dropout_seed: self.dropout_seed,
        }
    }
}

/// Copies integers to a tensor on the device.
fn ints<B: TrainBackend>(values: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Builds the tensor of visible key ranges, `[Q, 4]`: start and end of the shared range, then of the token's own
/// range.
fn ranges<B: TrainBackend>(
    attention: impl Iterator<Item = AttentionRange>,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let values: Vec<i64> = attention
        .flat_map(|range| {
            let ([a, b], [c, d]) = (range.shared, range.own);
            [a, b, c, d]
        })
        .collect();
    let shape = [values.len() / 4, 4];
    Tensor::from_data(TensorData::new(values, shape), device)
}
