//! What an [`Objective`] needs before the passes of a step: baselines of its micro-batches, and before the first step the
//! reference's log-probabilities.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::objective::log_probs::{DeviceBatch, score};
use crate::objective::pass::{mean_weights, passes};
use crate::objective::{Objective, Usage};
use crate::progress::{Progress, ProgressMode};
use crate::train::step::Learner;

impl<B: TrainBackend, O: Objective<B>> Learner<B, O> {
    /// Scores the companions of each micro-batch under policy and reference, without a graph and without dropout. Returns the
    /// baseline of each micro-batch; they are read from the device, because the losses need them.
    pub(super) fn baselines(&self, companions: &[Vec<EncodedExample>], usage: Usage) -> Vec<f64> {
        if companions.iter().all(Vec::is_empty) {
            return vec![0.0; companions.len()];
        }
        let policy = self.policy.valid();
        let micro_batches: Vec<Vec<&EncodedExample>> =
            companions.iter().map(|micro| micro.iter().collect()).collect();
        let weights = mean_weights(&micro_batches);
        let passes = passes(&micro_batches, &weights, self.config.pass_tokens);
        let ratios = passes.iter().map(|pass| {
            let batch = PackedBatch::new(&pass.pairs);
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            let scored = score(&policy, &on_device, LogProbStats::None);
            scored.sums - self.objective.reference(&batch, &on_device, usage)
        });
        let ratios = Tensor::cat(ratios.collect(), 0).into_data();
        let mut ratios = ratios.iter::<f64>();
        let micro_batches = companions.iter();
        let ratios = micro_batches.map(|micro| ratios.by_ref().take(micro.len()).collect());
        ratios.map(|ratios: Vec<f64>| self.objective.baseline(&ratios)).collect()
    }

    /// Computes what the objective needs of all training samples before the first step.
    ///
    /// # Errors
    /// A computed value is not finite, or the user interrupts.
    pub fn precompute(&mut self, samples: &[O::Sample], mode: ProgressMode) -> Result<()> {
        let Some(size) = self.objective.precompute_batch_size() else {
            return Ok(());
        };
        let samples: Vec<&O::Sample> = samples.iter().collect();
        let companions = self.objective.companions(&samples);
        let total = samples.len() + companions.len();
        let progress = Progress::new("reference", Some(total as u64), O::Sample::NAME, mode);
        for samples in samples.chunks(size.max(1)) {
            self.precompute_batch(samples)?;
            precomputed(&progress, samples.len())?;
        }
        for companions in companions.chunks(size.max(1)) {
            let batch = PackedBatch::new(&companions.iter().collect::<Vec<_>>());
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            self.objective.precompute(&batch, &on_device)?;
            precomputed(&progress, companions.len())?;
        }
        progress.finish();
        Ok(())
    }

    /// Computes what the objective needs of a batch of training samples.
    ///
    /// # Errors
    /// A computed value is not finite.
    pub fn precompute_batch(&mut self, samples: &[&O::Sample]) -> Result<()> {
        let batch = PackedBatch::new(samples);
        let on_device = self.on_device(samples, &batch);
        self.objective.precompute(&batch, &on_device)
    }
}

/// Advances the progress of computing the reference by `count` samples.
///
/// # Errors
/// The user interrupts.
fn precomputed(progress: &Progress, count: usize) -> Result<()> {
    progress.inc(count as u64);
    if interrupt::requested() {
        let note = "stopped while the reference was computed; continue with --resume";
        return Err(Error::Interrupted { note: note.into() });
    }
    Ok(())
}
