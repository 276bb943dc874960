//! The reference model: the policy's base weights without an adapter, with a frozen copy of the starting adapter, or with a
//! moving average of the trained tensors.

use std::collections::BTreeMap;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use super::Usage;
use super::log_probs::{DeviceBatch, finite_sums, score};
use crate::adapter::parameters::{Parameter, set_trained_parameters, trained_parameters};
use crate::data::batch::PackedBatch;
use crate::error::Result;
use crate::model::decoder::Decoder;

/// How the reference follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656), as TRL's
/// `SyncRefModelCallback` does. Every trained tensor becomes `alpha * policy + (1 - alpha) * reference`; for an adapter, these
/// are its factors, not their product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceSync {
    /// Weight of the policy, in `[0, 1]`.
    pub alpha: f64,
    /// Number of optimizer steps between two updates of the reference, at least 1.
    pub steps: usize,
}

/// The reference model with a cache of log-probabilities.
#[derive(Debug)]
pub struct Reference<B: TrainBackend> {
    /// The model, which shares every base weight with the policy.
    model: Decoder<B>,
    /// Whether the model is a copy of the policy, with the starting adapter.
    copy: bool,
    /// Summed log-probabilities of each completion (chosen, rejected) of the training samples computed so far, by sample id.
    cached: BTreeMap<String, Vec<f32>>,
    /// Those of the held-out samples, which may have ids of training samples.
    held_out: BTreeMap<String, Vec<f32>>,
    /// How the reference follows the policy; `None` if it never changes.
    sync: Option<ReferenceSync>,
    /// The tensors of the reference that follow the policy's trained ones, with their names.
    moving: Vec<Parameter<B>>,
}

impl<B: TrainBackend> Reference<B> {
    /// Creates a reference that is `policy` without its adapter.
    pub fn base(policy: Decoder<B>) -> Self {
        Self::new(policy.without_adapter(), false)
    }

    /// Creates a reference that is `policy` as it is now, including its adapter. Later changes to the policy do not affect
    /// it.
    pub fn initial(policy: Decoder<B>) -> Self {
        Self::new(policy, true)
    }

    /// Creates a reference that is `policy` as it is now and follows it.
    pub fn following(policy: &Decoder<Autodiff<B>>, sync: ReferenceSync) -> Self {
        let moving = trained_parameters(policy);
        Self { sync: Some(sync), moving, ..Self::initial(policy.valid()) }
    }

    fn new(model: Decoder<B>, copy: bool) -> Self {
        let (cached, held_out) = Default::default();
        Self { model, copy, cached, held_out, sync: None, moving: Vec::new() }
    }

    /// Moves a reference that follows the policy if an update is due after optimizer step number `step` (from 1).
    pub fn after_update(&mut self, step: usize, policy: &Decoder<Autodiff<B>>) {
        let Some(ReferenceSync { alpha, steps }) = self.sync else { return };
        if !step.is_multiple_of(steps) {
            return;
        }
        let pairs = self.moving.iter().zip(trained_parameters(policy));
        let mixed = pairs.map(|(reference, policy)| {
            policy.value * alpha + reference.value.clone() * (1.0 - alpha)
        });
        self.set_moving(mixed.collect(), policy);
    }

    /// Returns the tensors of a reference that follows the policy, with their names; empty for others.
    pub fn moving(&self) -> &[Parameter<B>] {
        &self.moving
    }

    /// Returns the model of a reference that follows the policy; `None` for others.
    pub fn moving_model(&self) -> Option<&Decoder<B>> {
        self.sync.map(|_| &self.model)
    }

    /// Replaces the tensors of [`Self::moving`]. All other weights are those of `policy`.
    ///
    /// # Panics
    /// If the number or the sizes of `values` differ from the trained tensors of `policy`.
    pub fn set_moving(&mut self, values: Vec<Tensor<B, 2>>, policy: &Decoder<Autodiff<B>>) {
        let mut model = policy.clone();
        set_trained_parameters(&mut model, values.clone());
        self.model = model.valid();
        self.moving.iter_mut().zip(values).for_each(|(old, new)| old.value = new);
    }

    /// Returns whether this is a copy of the policy, created by [`Self::initial`].
    pub fn is_copy(&self) -> bool {
        self.copy
    }

    /// Computes the log-probabilities of a batch and keeps them, under `precompute_ref_log_probs`.
    ///
    /// # Errors
    /// A log-probability is not finite. The error names the weight or layer from which this comes.
    pub fn precompute(
        &mut self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Result<()> {
        let sums = finite_sums(&self.model, on_device, self.compute(on_device))?;
        for (sample, id) in batch.ids.iter().enumerate() {
            let sides = sums.iter().skip(sample).step_by(batch.samples());
            self.keep(id, sides.copied().collect(), usage);
        }
        Ok(())
    }

    /// Keeps the summed log-probabilities of each completion (chosen, rejected) of a training sample.
    pub fn remember(&mut self, id: &str, sums: Vec<f32>) {
        self.keep(id, sums, Usage::Training);
    }

    fn keep(&mut self, id: &str, sums: Vec<f32>, usage: Usage) {
        let kept = match usage {
            Usage::Training => &mut self.cached,
            Usage::Evaluation => &mut self.held_out,
        };
        kept.insert(id.to_string(), sums);
    }

    fn kept(&self, usage: Usage) -> &BTreeMap<String, Vec<f32>> {
        match usage {
            Usage::Training => &self.cached,
            Usage::Evaluation => &self.held_out,
        }
    }

    /// Returns the summed log-probabilities of training samples that are kept, by sample id.
    pub fn cached(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.cached
    }

    /// Returns the summed log-probabilities that are kept of the samples `ids`, one after the other; `None` if those of a
    /// sample are not kept.
    pub fn sums(&self, ids: &[&str], usage: Usage) -> Option<Vec<f32>> {
        let kept = self.kept(usage);
        let sums = ids.iter().map(|id| kept.get(*id).map(Vec::as_slice));
        sums.collect::<Option<Vec<_>>>().map(|sums| sums.concat())
    }

    /// Keeps what [`Self::sums`] returned. Returns whether there are equally many numbers for each sample.
    pub fn set_sums(&mut self, ids: &[&str], sums: &[f32], usage: Usage) -> bool {
        let sides = sums.len() / ids.len().max(1);
        let fits = sides > 0 && sums.len() == sides * ids.len();
        if fits {
            for (id, sums) in ids.iter().zip(sums.chunks_exact(sides)) {
                self.keep(id, sums.to_vec(), usage);
            }
        }
        fits
    }

    /// Returns the summed log-probabilities of all chosen, then all rejected completions of a batch, `[2N]` (or of the only
    /// completions, `[N]`). They are computed unless [`Self::precompute`] or [`Self::remember`] kept those of every sample.
    pub fn log_probs(
        &self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Tensor<B, 1> {
        let kept = self.kept(usage);
        let cached: Option<Vec<&Vec<f32>>> = batch.ids.iter().map(|id| kept.get(id)).collect();
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
    /// those that are kept.
    pub fn compute(&self, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        score(&self.model, on_device, LogProbStats::None).weighted_sums
    }
}
