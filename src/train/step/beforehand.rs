//! Computes what a step needs before its passes: baselines from companions, and before the first step the log-probabilities of
//! the reference.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use super::Learner;
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::objective::log_probs::{DeviceBatch, score};
use crate::objective::pass::{mean_weights, passes};
use crate::objective::{Objective, Usage};
use crate::progress::{Progress, ProgressMode};
use crate::train::reference_cache::{ReferenceCache, agrees};

impl<B: TrainBackend, O: Objective<B>> Learner<B, O> {
    /// Returns the baseline of each training micro-batch.
    pub(super) fn training_baselines(&self, micro_batches: &[Vec<&O::Sample>]) -> Vec<f64> {
        let companions = micro_batches.iter().map(|micro| self.objective.companions(micro));
        self.baselines(&companions.collect::<Vec<_>>(), Usage::Training)
    }

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

    /// Computes what the objective needs of all `samples` before the first step, or reads it from `cache` and computes only
    /// the first batch, to compare.
    ///
    /// # Errors
    /// A computed value is not finite, or the user interrupts.
    pub fn precompute(
        &mut self,
        samples: &[O::Sample],
        usage: Usage,
        cache: Option<&ReferenceCache>,
        mode: ProgressMode,
    ) -> Result<()> {
        let Some(size) = self.objective.precompute_batch_size(usage) else {
            return Ok(());
        };
        let samples: Vec<&O::Sample> = samples.iter().collect();
        let companions = self.objective.companions(&samples);
        let ids = samples.iter().map(|sample| sample.id());
        let ids: Vec<&str> = ids.chain(companions.iter().map(Sample::id)).collect();
        let first = samples.chunks(size.max(1)).next().unwrap_or_default();
        if let Some(cache) = cache
            && self.use_cached(first, &ids, usage, cache, mode)?
        {
            return Ok(());
        }
        let progress = Progress::new("reference", Some(ids.len() as u64), O::Sample::NAME, mode);
        for samples in samples.chunks(size.max(1)) {
            self.precompute_batch(samples, usage)?;
            precomputed(&progress, samples.len())?;
        }
        for companions in companions.chunks(size.max(1)) {
            let batch = PackedBatch::new(&companions.iter().collect::<Vec<_>>());
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            self.objective.precompute(&batch, &on_device, usage)?;
            precomputed(&progress, companions.len())?;
        }
        progress.finish();
        let numbers = self.objective.precomputed(&ids, usage);
        if let (Some(cache), Some(numbers)) = (cache, numbers)
            && let Err(error) = cache.write(&numbers)
        {
            say!(
                "warning: the reference's log-probabilities are not kept for further runs: {error}"
            );
        }
        Ok(())
    }

    /// Takes what the objective needs of samples and companions, which have the given `ids`, from `cache`, unless the batch
    /// `first`, which begins them, differs from it when it is computed again. Returns whether it was taken.
    ///
    /// # Errors
    /// A computed value is not finite.
    fn use_cached(
        &mut self,
        first: &[&O::Sample],
        ids: &[&str],
        usage: Usage,
        cache: &ReferenceCache,
        mode: ProgressMode,
    ) -> Result<bool> {
        let Some(numbers) = cache.read() else { return Ok(false) };
        self.precompute_batch(first, usage)?;
        let computed = self.objective.precomputed(&ids[..first.len()], usage).unwrap_or_default();
        let cached = numbers.get(..computed.len()).unwrap_or_default();
        let taken =
            agrees(cached, &computed) && self.objective.set_precomputed(ids, &numbers, usage);
        let path = cache.path().display();
        if !taken {
            say!(
                "warning: {path}: does not agree with values computed again\n  the reference is computed anew"
            );
        } else if mode != ProgressMode::Quiet {
            say!("the reference's log-probabilities are those of an earlier run: {path}");
        }
        Ok(taken)
    }

    /// Computes what the objective needs of a batch of samples.
    ///
    /// # Errors
    /// A computed value is not finite.
    pub fn precompute_batch(&mut self, samples: &[&O::Sample], usage: Usage) -> Result<()> {
        let batch = PackedBatch::new(samples);
        let on_device = self.on_device(samples, &batch);
        self.objective.precompute(&batch, &on_device, usage)
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
