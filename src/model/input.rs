//! What a forward pass is given besides weights: token ids, positions, who may see whom.

use arithmo_backends::{AttentionMask, TrainBackend};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};

use super::rope::{Rotary, RotaryTable};
use crate::data::batch::TokenRows;

/// [`TokenRows`] on a device, with the rotary angles of its positions.
#[derive(Clone, Debug)]
pub struct ModelInput<B: TrainBackend> {
    /// `[B, S]`
    pub token_ids: Tensor<B, 2, Int>,
    /// What the layers need.
    pub context: SequenceContext<B>,
}

/// What every layer needs besides its own weights and the hidden states.
#[derive(Clone, Debug)]
pub struct SequenceContext<B: TrainBackend> {
    /// Angles of the tokens' positions.
    pub rotary: Rotary<B>,
    /// Who may see whom; keys may include cached ones.
    pub mask: AttentionMask<B>,
    /// `Some` only while training with dropout.
    pub dropout_seed: Option<u64>,
}

impl<B: TrainBackend> ModelInput<B> {
    /// Sends `rows` to the device.
    ///
    /// # Panics
    /// If a position lies outside the table: callers check lengths against `max_position_embeddings` first.
    pub fn new(rows: &TokenRows, table: &RotaryTable<B>, device: &B::Device) -> Self {
        Self::with_keys(rows, &rows.key_segments, &rows.positions, table, device)
    }

    /// As [`Self::new`], for queries that also see cached keys: `key_segments` and `key_positions`, each `[B * K]`,
    /// describe the cached keys and these tokens' own, row by row.
    pub fn with_keys(
        rows: &TokenRows,
        key_segments: &[i64],
        key_positions: &[i64],
        table: &RotaryTable<B>,
        device: &B::Device,
    ) -> Self {
        let last = rows.positions.iter().max().copied().unwrap_or(0);
        assert!(
            (last as usize) < table.positions(),
            "position {last} of {}",
            table.positions()
        );
        let int = |values: &[i64]| {
            let shape = [rows.rows, values.len() / rows.rows.max(1)];
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let positions: Tensor<B, 2, Int> = int(&rows.positions);
        Self {
            token_ids: int(&rows.ids),
            context: SequenceContext {
                rotary: table.at(positions.clone()),
                mask: AttentionMask {
                    query_segments: Tensor::zeros_like(&positions),
                    query_positions: positions,
                    key_segments: int(key_segments),
                    key_positions: int(key_positions),
                },
                dropout_seed: None,
            },
        }
    }
}

impl<B: TrainBackend> ModelInput<B> {
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
    /// The same context for an autodiff backend over `B` (handles only).
    pub fn to_autodiff<A>(&self) -> SequenceContext<A>
    where
        A: TrainBackend + AutodiffBackend<InnerBackend = B>,
    {
        SequenceContext {
            rotary: self.rotary.to_autodiff(),
            mask: self.mask.to_autodiff(),
            dropout_seed: self.dropout_seed,
        }
    }
}
