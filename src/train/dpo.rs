//! DPO as the loop of a run sees it: the reference computed beforehand, the self-check of the first step, what a
//! checkpoint keeps.

use std::collections::BTreeMap;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;

use crate::config::RunConfig;
use crate::data::encode::EncodedPair;
use crate::dpo::metrics::{KEYS, MicroBatchMetrics};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::mistral::Mistral;
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::Checkpoint;
use crate::train::learner::Learner;
use crate::train::method::{Method, StepOutput};
use crate::train::optimizer::AdamW;

/// The file of a checkpoint with the reference's log-probabilities of the pairs seen so far, by id.
const REFERENCE: &str = "reference_log_probs.json";

impl<B: TrainBackend> Method<B> for Learner<B> {
    type Sample = EncodedPair;

    const KEYS: &'static [&'static str] = &KEYS;

    const WATCHED: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "acc")];

    fn policy(&self) -> &Mistral<Autodiff<B>> {
        &self.policy
    }

    fn trained(&mut self) -> (&mut Mistral<Autodiff<B>>, &mut AdamW<B>) {
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

    fn begin(&mut self, config: &RunConfig, again: bool) {
        if again && !config.dpo.precompute_ref_log_probs {
            self.remember_reference();
        }
    }

    /// `precompute_ref_log_probs`: one pass of the reference over the training pairs.
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
            self.precompute_reference(&pairs);
            progress.inc(pairs.len() as u64);
            if interrupt::requested() {
                let note = "stopped while the reference was computed; go on with --resume";
                return Err(Error::Interrupted { note: note.into() });
            }
        }
        progress.finish();
        Ok(())
    }

    /// The cheapest self-check there is: where policy and reference are the same function, the loss is ln 2 and every
    /// reward 0. Exactly, unless the reference was computed beforehand: in batches of other widths sums round otherwise.
    fn check_first_step(&self, output: &StepOutput, config: &RunConfig) -> Result<()> {
        if !self.starts_as_reference() {
            return Ok(());
        }
        for micro in &output.micro_batches {
            let rewards = &micro.values[..2];
            let logps = micro.values[4].abs().max(micro.values[5].abs());
            let rounding = match config.dpo.precompute_ref_log_probs {
                true => 1e-2 * config.dpo.beta * logps,
                false => 0.0,
            };
            let plain = config.dpo.loss_type.len() == 1 && config.dpo.loss_weights.is_none();
            let off = (micro.loss - std::f64::consts::LN_2).abs();
            let ln_2 = !plain || off < 1e-6 + rounding;
            if !ln_2 || rewards.iter().any(|reward| reward.abs() > rounding) {
                return Err(Error::run(
                    format!(
                        "self-check failed: before the first update policy and reference are the same \
                         function, but the loss is {} (not ln 2) and the rewards {rewards:?} (not 0)",
                        micro.loss
                    ),
                    "this backend computes wrongly here: try --backend with another, and report it",
                ));
            }
        }
        Ok(())
    }

    /// The reference's log-probabilities: computed anew among other pairs they would round otherwise, and the run not
    /// end as if uninterrupted.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let known = self.reference.known();
        if !self.remembers_reference() || known.is_empty() {
            return Ok(Vec::new());
        }
        let known = serde_json::to_vec(known)
            .map_err(|e| Error::run(e, "this is a defect of the program: report it"))?;
        Ok(vec![(REFERENCE.to_string(), known)])
    }

    fn restore_files(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if !self.remembers_reference() || !checkpoint.holds(REFERENCE) {
            return Ok(());
        }
        let bytes = checkpoint.file(REFERENCE)?;
        let known: BTreeMap<String, [f32; 2]> =
            serde_json::from_slice(&bytes).map_err(|error| {
                let problem = format!("{REFERENCE} cannot be read: {error}");
                let remedy = "remove this checkpoint folder: the one before it is used then";
                Error::file(checkpoint.path(), problem, remedy)
            })?;
        for (id, sums) in known {
            self.reference.remember(&id, sums);
        }
        Ok(())
    }
}
