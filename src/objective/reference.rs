//! The reference model: the policy's base weights without an adapter, or with a frozen copy of the starting adapter.

use std::collections::BTreeMap;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::{Tensor, TensorData};

use super::log_probs::{DeviceBatch, finite_sums, score};
use crate::data::batch::PackedBatch;
use crate::error::Result;
use crate::model::mistral::Mistral;

/// The reference model with a cache of log-probabilities.
#[derive(Debug)]
pub struct Reference<B: TrainBackend> {
    /// The model, which shares every base weight with the policy.
    model: Mistral<B>,
    /// Whether the model is a copy of the policy, with the starting adapter.
    copy: bool,
    /// Summed log-probabilities of each completion (chosen, rejected) of the samples computed so far, by sample id.
    cached: BTreeMap<String, Vec<f32>>,
}

impl<B: TrainBackend> Reference<B> {
    /// Creates a reference that is `policy` without its adapter.
    pub fn base(policy: Mistral<B>) -> Self {
        Self { model: policy.without_adapter(), copy: false, cached: BTreeMap::new() }
    }

    /// Creates a reference that is `policy` as it is now, including its adapter. Later changes to the policy do not affect
    /// it.
    pub fn initial(policy: Mistral<B>) -> Self {
        Self { model: policy, copy: true, cached: BTreeMap::new() }
    }

    /// Returns whether this is a copy of the policy, created by [`Self::initial`].
    pub fn is_copy(&self) -> bool {
        self.copy
    }

    /// Computes the log-probabilities of a training batch and keeps them, under `precompute_ref_log_probs`.
    ///
    /// # Errors
    /// A log-probability is not finite. The error names the weight or layer from which this comes.
    pub fn precompute(&mut self, batch: &PackedBatch, on_device: &DeviceBatch<B>) -> Result<()> {
        let sums = finite_sums(&self.model, on_device, self.compute(on_device))?;
        for (sample, id) in batch.ids.iter().enumerate() {
            let sides = sums.iter().skip(sample).step_by(batch.samples());
            self.remember(id, sides.copied().collect());
        }
        Ok(())
    }

    /// Keeps the summed log-probabilities of each completion (chosen, rejected) of a training sample.
    pub fn remember(&mut self, id: &str, sums: Vec<f32>) {
        self.cached.insert(id.to_string(), sums);
    }

    /// Returns the summed log-probabilities that are kept, by sample id.
    pub fn cached(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.cached
    }

    /// Returns the summed log-probabilities of all chosen, then all rejected completions of a training batch, `[2N]` (or of
    /// the only completions, `[N]`). They are computed unless [`Self::precompute`] or [`Self::remember`] kept those of every
    /// sample.
    pub fn log_probs(&self, batch: &PackedBatch, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        let cached: Option<Vec<&Vec<f32>>> =
            batch.ids.iter().map(|id| self.cached.get(id)).collect();
        let Some(cached) = cached else {
            return self.compute(on_device);
        };
        let sides = cached.first().map_or(0, |sums| sums.len());
        let side = |side: usize| cached.iter().map(move |sums| sums[side]);
        let both: Vec<f32> = (0..sides).flat_map(side).collect();
        let shape = [both.len()];
        let device = on_device.input.token_ids.device();
        Tensor::from_data(TensorData::new(both, shape), &device)
    }

    /// Computes the summed log-probabilities of all chosen, then all rejected completions of a batch, `[2N]`, with the
    /// weights of [`Completions::weigh_tails`](super::log_probs::Completions::weigh_tails), without using
    /// those that are kept. This is for pairs outside the training set, which may have ids of training pairs.
    pub fn compute(&self, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        score(&self.model, on_device, LogProbStats::None).weighted_sums
    }
}
