//! Implements the training loop's [`Method`] for DPO: precomputing the reference, checking the first step, and saving the
//! reference's log-probabilities in checkpoints.

use std::collections::BTreeMap;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;

use crate::config::RunConfig;
use crate::data::encode::EncodedPair;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::mistral::Mistral;
use crate::objective::metrics::{KEYS, MicroBatchMetrics};
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::Checkpoint;
use crate::train::learner::Learner;
use crate::train::method::{Method, StepOutput};
use crate::train::optimizer::AdamW;

/// Checkpoint file with the reference's log-probabilities of the pairs seen so far, by pair id.
const REFERENCE: &str = "reference_log_probs.json";

impl<B: TrainBackend> Method<B> for Learner<B> {
    type Sample = EncodedPair;

    const KEYS: &'static [&'static str] = &KEYS;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "acc")];

    fn policy(&self) -> &Mistral<Autodiff<B>> {
        &self.policy
    }

    fn policy_and_optimizer(&mut self) -> (&mut Mistral<Autodiff<B>>, &mut AdamW<B>) {
        (&mut self.policy, &mut self.optimizer)
    }

    fn optimizer(&self) -> &AdamW<B> {
        &self.optimizer
    }

    fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&EncodedPair>],
    ) -> StepOutput {
        Self::step(self, step, learning_rate, micro_batches)
    }

    fn evaluate(&self, pairs: &[&EncodedPair]) -> MicroBatchMetrics {
        Self::evaluate(self, pairs)
    }

    /// Makes the learner keep the reference's log-probabilities of every pair. A second epoch needs them again, and since
    /// every run can be extended to a second epoch, they are kept in the first. An extended run then has the same result as
    /// one that had this length from the start.
    fn begin(&mut self, config: &RunConfig) {
        if !config.dpo.precompute_ref_log_probs {
            self.remember_reference();
        }
    }

    /// Computes the reference's log-probabilities of all training pairs, under `precompute_ref_log_probs`.
    fn precompute(
        &mut self,
        pairs: &[EncodedPair],
        config: &RunConfig,
        mode: ProgressMode,
    ) -> Result<()> {
        if !config.dpo.precompute_ref_log_probs {
            return Ok(());
        }
        let progress = Progress::new("reference", Some(pairs.len() as u64), "pairs", mode);
        let size = config.dpo.precompute_ref_batch_size;
        let size = size.unwrap_or(config.train.per_device_train_batch_size);
        for pairs in pairs.chunks(size.max(1)) {
            let pairs: Vec<&EncodedPair> = pairs.iter().collect();
            self.precompute_reference(&pairs)?;
            progress.inc(pairs.len() as u64);
            if interrupt::requested() {
                let note = "stopped while the reference was computed; continue with --resume";
                return Err(Error::Interrupted { note: note.into() });
            }
        }
        progress.finish();
        Ok(())
    }

    /// Checks that the loss is ln 2 and every reward is 0 if policy and reference are the same function. Both are exact
    /// unless the reference was precomputed, because sums round differently in batches of other sizes.
    fn check_first_step(&self, output: &StepOutput, config: &RunConfig) -> Result<()> {
        if !self.starts_as_reference() {
            return Ok(());
        }
        for micro in &output.micro_batches {
            let rewards = &micro.values[..2];
            let logps = micro.values[4].abs().max(micro.values[5].abs());
            let tolerance = if config.dpo.precompute_ref_log_probs {
                1e-2 * config.dpo.beta * logps
            } else {
                0.0
            };
            // A loss that is not linear in the rewards may change faster than they do.
            let expected = config.dpo.loss().at_zero().filter(|_| tolerance == 0.0);
            let is_expected =
                expected.is_none_or(|loss| (micro.loss - loss).abs() < 1e-6 * loss.abs().max(1.0));
            if !is_expected || rewards.iter().any(|reward| reward.abs() > tolerance) {
                let expected = expected.map(|loss| format!(" (not {loss})")).unwrap_or_default();
                return Err(Error::run(
                    format!(
                        "self-check failed: before the first update policy and reference are the same \
                         function, but the loss is {}{expected} and the rewards {rewards:?} (not 0)",
                        micro.loss
                    ),
                    "this backend computes wrong results: try another --backend, and report this",
                ));
            }
        }
        Ok(())
    }

    /// Returns the file of the reference's log-probabilities. If a resumed run computed them again in batches of other
    /// pairs, they would round differently, and its result would differ from that of an uninterrupted run.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let cached = self.reference.cached();
        if !self.remembers_reference() || cached.is_empty() {
            return Ok(Vec::new());
        }
        let json = serde_json::to_vec(cached)
            .map_err(|e| Error::run(e, "this is a defect of the program: report it"))?;
        Ok(vec![(REFERENCE.to_string(), json)])
    }

    fn restore_files(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if !self.remembers_reference() || !checkpoint.has_file(REFERENCE) {
            return Ok(());
        }
        let bytes = checkpoint.file(REFERENCE)?;
        let cached: BTreeMap<String, [f32; 2]> =
            serde_json::from_slice(&bytes).map_err(|error| {
                let problem = format!("{REFERENCE} cannot be read: {error}");
                let remedy = "remove this checkpoint folder, so that the one before it is used";
                Error::file(checkpoint.path(), problem, remedy)
            })?;
        for (id, sums) in cached {
            self.reference.remember(&id, sums);
        }
        Ok(())
    }
}
