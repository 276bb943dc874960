//! Preference optimization against a reference model.

use std::collections::BTreeMap;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::Tensor;

use super::log_probs::{CompletionLogProbs, DeviceBatch};
use super::losses::PairLogProbs;
use super::metrics::{MicroBatchMetrics, SampleOutput};
use super::pass::{Pass, PassLimits};
use super::preference::{PassLogProbs, PreferenceLoss};
use super::reference::Reference;
use super::{MicroBatch, Objective, Usage};
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedPair;
use crate::error::{Error, Result};

/// The objective of preference optimization: the loss and the reference.
#[derive(Debug)]
pub struct Dpo<B: TrainBackend> {
    /// The loss.
    pub loss: PreferenceLoss,
    /// The reference model.
    pub reference: Reference<B>,
    /// When the reference's log-probabilities of training pairs are computed.
    pub timing: ReferenceTiming,
    /// Whether policy and reference are the same function before the first step.
    pub starts_as_reference: bool,
}

/// When the reference's log-probabilities are computed. Those of held-out pairs are computed in every evaluation, unless all
/// are computed before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceTiming {
    /// In every step.
    EveryStep,
    /// In the first step that has the pair. They are kept for later epochs.
    Once,
    /// Before the first step.
    Before(PrecomputeSizes),
}

/// The numbers of pairs in the batches for which the reference is computed before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecomputeSizes {
    /// Training pairs in a batch.
    pub training: usize,
    /// Held-out pairs in a batch.
    pub evaluation: usize,
}

impl PrecomputeSizes {
    /// Returns the larger of the two numbers.
    pub fn largest(self) -> usize {
        self.training.max(self.evaluation)
    }
}

impl ReferenceTiming {
    /// Returns the number of samples in a batch that is computed before the first step; `None` if none is.
    pub fn batch_size(self, usage: Usage) -> Option<usize> {
        match self {
            Self::Before(sizes) => Some(match usage {
                Usage::Training => sizes.training,
                Usage::Evaluation => sizes.evaluation,
            }),
            Self::EveryStep | Self::Once => None,
        }
    }
}

/// Checks a micro-batch of the first step of a run whose policy equals its reference: the loss is `expected` (if that is known)
/// and every reward is 0. Both are exact unless the reference was precomputed, because sums round differently in batches of
/// other sizes.
///
/// # Errors
/// The loss or a reward has another value.
pub(super) fn check_start(
    micro: &MicroBatchMetrics,
    expected: Option<f64>,
    beta: f64,
    timing: ReferenceTiming,
) -> Result<()> {
    let values =
        |what: &str| ["chosen", "rejected"].map(|side| micro.value(&format!("{what}/{side}")));
    let rewards = values("rewards").map(Option::unwrap_or_default);
    let [chosen, rejected] = values("logps").map(Option::unwrap_or_default);
    let logps = chosen.abs().max(rejected.abs());
    let tolerance = match timing {
        ReferenceTiming::Before(_) => 1e-2 * beta * logps,
        ReferenceTiming::EveryStep | ReferenceTiming::Once => 0.0,
    };
    // A loss that is not linear in the rewards may change faster than they do.
    let expected = expected.filter(|_| tolerance == 0.0);
    let is_expected =
        expected.is_none_or(|loss| (micro.loss - loss).abs() < 1e-6 * loss.abs().max(1.0));
    if is_expected && rewards.iter().all(|reward| reward.abs() <= tolerance) {
        return Ok(());
    }
    let expected = expected.map(|loss| format!(" (not {loss})")).unwrap_or_default();
    Err(Error::run(
        format!(
            "self-check failed: before the first update policy and reference are the same function, but the loss is \
             {}{expected} and the rewards {rewards:?} (not 0)",
            micro.loss
        ),
        "this backend computes wrong results: try another --backend, and report this",
    ))
}

impl<B: TrainBackend> Objective<B> for Dpo<B> {
    type Sample = EncodedPair;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "acc")];

    /// The reference's log-probabilities of the pairs seen so far, by pair id. If a resumed run computed them again in
    /// batches of other pairs, they would round differently, and its result would differ from that of an uninterrupted run.
    const STATE_FILE: Option<&'static str> = Some("reference_log_probs.json");

    fn pass_limits(&self, tokens: usize) -> PassLimits {
        PassLimits { tokens, whole_micro_batches: self.loss.needs_whole_micro_batches() }
    }

    fn prepare(
        &self,
        _samples: &[&EncodedPair],
        batch: &PackedBatch,
        on_device: &mut DeviceBatch<B>,
    ) {
        if let Some(alpha) = self.loss.ld_alpha {
            on_device.completions.weigh_tails(batch, alpha);
        }
    }

    fn stats(&self) -> LogProbStats {
        if self.loss.use_weighting { LogProbStats::Squares } else { LogProbStats::All }
    }

    fn reference_model(&self) -> Option<&Reference<B>> {
        Some(&self.reference)
    }

    fn reference_model_mut(&mut self) -> Option<&mut Reference<B>> {
        Some(&mut self.reference)
    }

    fn reference(
        &self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Tensor<B, 1> {
        if self.loss.reference_free {
            return Tensor::zeros([batch.counts.len()], &on_device.input.token_ids.device());
        }
        self.reference.log_probs(batch, on_device, usage)
    }

    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        reference: Tensor<A, 1>,
        batch: &PackedBatch,
        pass: &Pass<'_>,
        usage: Usage,
    ) -> Tensor<A, 1> {
        let log_probs = PassLogProbs {
            policy: PairLogProbs::split(policy.weighted_sums.clone()),
            reference: PairLogProbs::split(reference),
            chosen_sums: PairLogProbs::split(policy.sums.clone()).chosen,
            weights: policy.weights.clone(),
            counts: &batch.counts,
            token_weights: &pass.token_weights,
            micro_batches: &pass.micro_batches,
        };
        match usage {
            Usage::Training => self.loss.losses(&log_probs),
            Usage::Evaluation => self.loss.without_sft().0.losses(&log_probs),
        }
    }

    fn metrics(
        &self,
        micro_batch: &MicroBatch<'_, EncodedPair>,
        usage: Usage,
    ) -> MicroBatchMetrics {
        let samples = micro_batch.outputs;
        let beta = self.loss.settings.beta;
        match usage {
            Usage::Training => MicroBatchMetrics::new(samples, beta),
            Usage::Evaluation => {
                MicroBatchMetrics::with_sft(samples, beta, self.loss.without_sft().1)
            }
        }
    }

    fn check_first_step(&self, micro_batches: &[MicroBatchMetrics]) -> Result<()> {
        if !self.starts_as_reference {
            return Ok(());
        }
        let (loss, beta) = (self.loss.at_zero(), self.loss.settings.beta);
        micro_batches.iter().try_for_each(|micro| check_start(micro, loss, beta, self.timing))
    }

    fn precompute_batch_size(&self, usage: Usage) -> Option<usize> {
        self.timing.batch_size(usage)
    }

    fn remember(&mut self, id: &str, output: &SampleOutput) {
        if self.timing == ReferenceTiming::Once {
            let sums = output.reference.iter().map(|sum| *sum as f32).collect();
            self.reference.remember(id, sums);
        }
    }

    fn state(&self) -> Result<Option<Vec<u8>>> {
        let cached = self.reference.cached();
        if self.timing != ReferenceTiming::Once || cached.is_empty() {
            return Ok(None);
        }
        let json = serde_json::to_vec(cached);
        json.map(Some).map_err(|e| Error::run(e, "this is a defect of the program: report it"))
    }

    fn restore(&mut self, state: &[u8]) -> std::result::Result<(), String> {
        if self.timing != ReferenceTiming::Once {
            return Ok(());
        }
        let cached: BTreeMap<String, Vec<f32>> =
            serde_json::from_slice(state).map_err(|error| error.to_string())?;
        for (id, sums) in cached {
            self.reference.remember(&id, sums);
        }
        Ok(())
    }
}
