//! The reference model: the policy's own weights without its adapter, or with a frozen copy of the starting adapter.

use std::collections::BTreeMap;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::{Tensor, TensorData};

use super::log_probs::{DeviceBatch, score};
use crate::data::batch::PreferenceBatch;
use crate::model::mistral::Mistral;

/// Where reference log-probabilities come from.
#[derive(Debug)]
pub struct Reference<B: TrainBackend> {
    /// Shares every base weight with the policy.
    model: Mistral<B>,
    /// Whether the model keeps a copy of the starting adapter.
    copy: bool,
    /// Summed log-probabilities (chosen, rejected) by pair id, of the pairs that were computed before.
    known: BTreeMap<String, (f32, f32)>,
}

impl<B: TrainBackend> Reference<B> {
    /// `policy` without its adapter.
    pub fn base(policy: Mistral<B>) -> Self {
        Self { model: policy.without_adapter(), copy: false, known: BTreeMap::new() }
    }

    /// `policy` as it is now, adapter included; later changes to the policy's adapter do not reach it.
    pub fn initial(policy: Mistral<B>) -> Self {
        Self { model: policy, copy: true, known: BTreeMap::new() }
    }

    /// Whether this is a copy of the policy, made by [`Self::initial`].
    pub fn is_copy(&self) -> bool {
        self.copy
    }

    /// Computes and keeps the log-probabilities of a training batch (`precompute_ref_log_probs`).
    pub fn precompute(&mut self, batch: &PreferenceBatch, on_device: &DeviceBatch<B>) {
        let sums: Vec<f32> = self.compute(on_device).into_data().iter::<f32>().collect();
        let (chosen, rejected) = sums.split_at(batch.pairs());
        for (id, sums) in batch.ids.iter().zip(chosen.iter().zip(rejected)) {
            self.remember(id, [*sums.0, *sums.1]);
        }
    }

    /// Keeps the summed log-probabilities (chosen, rejected) of a training pair.
    pub fn remember(&mut self, id: &str, [chosen, rejected]: [f32; 2]) {
        self.known.insert(id.to_string(), (chosen, rejected));
    }

    /// What is kept, by pair id.
    pub fn known(&self) -> &BTreeMap<String, (f32, f32)> {
        &self.known
    }

    /// Summed log-probabilities of all chosen, then all rejected completions of a training batch, `[2N]`: those kept
    /// by [`Self::precompute`] or [`Self::remember`], else computed now.
    pub fn log_probs(&self, batch: &PreferenceBatch, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        let known: Option<Vec<(f32, f32)>> =
            batch.ids.iter().map(|id| self.known.get(id).copied()).collect();
        let Some(known) = known else {
            return self.compute(on_device);
        };
        let (chosen, rejected): (Vec<f32>, Vec<f32>) = known.into_iter().unzip();
        let both = [chosen, rejected].concat();
        let shape = [both.len()];
        let device = on_device.input.token_ids.device();
        Tensor::from_data(TensorData::new(both, shape), &device)
    }

    /// As [`Self::log_probs`], always computed: for pairs outside the training set, whose ids may be the same.
    pub fn compute(&self, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        score(&self.model, on_device, LogProbStats::None).sums
    }
}
