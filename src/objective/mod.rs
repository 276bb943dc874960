//! Training objectives: the trait [`Objective`], preference optimization (Direct Preference Optimization, arXiv 2305.18290,
//! and its relatives; KTO; ORPO; CPO) and supervised fine-tuning, with their losses, reference model and metrics.

pub mod cpo;
pub mod dpo;
pub mod f_divergence;
pub mod kto;
pub mod log_probs;
pub mod losses;
pub mod metrics;
pub mod moments;
pub mod orpo;
pub mod pass;
pub mod preference;
pub mod reference;
pub mod score;
pub mod sft;

use std::fmt::Debug;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::tensor::Tensor;

use self::log_probs::{CompletionLogProbs, DeviceBatch};
use self::losses::vector_like;
use self::metrics::{MicroBatchMetrics, SampleOutput, Sum};
use self::pass::{Pass, PassLimits, mean_weights};
use self::reference::Reference;
use crate::adapter::parameters::Parameter;
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::data::sample::Sample;
use crate::error::Result;
use crate::model::decoder::Decoder;

/// An objective of training. The [step](crate::train::step) computes the log-probabilities of the samples' completions; the
/// objective computes the loss and the metrics from them.
pub trait Objective<B: TrainBackend>: Debug {
    /// The training samples.
    type Sample: Sample;

    /// Keys shown in the status line, with their short names.
    const STATUS_KEYS: &'static [(&'static str, &'static str)];

    /// Name of the checkpoint file with [`Self::state`]; `None` if there is no state.
    const STATE_FILE: Option<&'static str> = None;

    /// Returns the limits of a pass, given its largest number of tokens.
    fn pass_limits(&self, tokens: usize) -> PassLimits {
        tokens.into()
    }

    /// Returns the weight of each sample's loss in the loss of a step.
    fn weights(&self, micro_batches: &[Vec<&Self::Sample>]) -> Vec<f64> {
        mean_weights(micro_batches)
    }

    /// Adjusts a batch on the device before it is scored, such as the weights of its tokens.
    fn prepare(
        &self,
        _samples: &[&Self::Sample],
        _batch: &PackedBatch,
        _on_device: &mut DeviceBatch<B>,
    ) {
    }

    /// Returns the statistics that losses and metrics need.
    fn stats(&self) -> LogProbStats {
        LogProbStats::All
    }

    /// Returns sequences that are scored without a gradient before the losses of these consecutive samples, one for each sample;
    /// none if the objective does not need them. [`Self::baseline`] gets their log-probabilities.
    fn companions(&self, _samples: &[&Self::Sample]) -> Vec<EncodedExample> {
        Vec::new()
    }

    /// Returns a number for the losses of a micro-batch from the log-probabilities of its companions, those of the policy minus
    /// those of the reference.
    fn baseline(&self, _ratios: &[f64]) -> f64 {
        0.0
    }

    /// Returns the reference model; `None` if the objective has none.
    fn reference_model(&self) -> Option<&Reference<B>> {
        None
    }

    /// Returns the reference model like [`Self::reference_model`], to change it.
    fn reference_model_mut(&mut self) -> Option<&mut Reference<B>> {
        None
    }

    /// Returns the reference's log-probabilities of all completions, or a vector of length 0 without a reference. They are
    /// computed on the inner backend, without a graph. The batch may also be of companions.
    fn reference(
        &self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Tensor<B, 1> {
        match self.reference_model() {
            Some(reference) => reference.log_probs(batch, on_device, usage),
            None => Tensor::zeros([0], &on_device.input.token_ids.device()),
        }
    }

    /// Computes the loss of each sample of a pass, `[N]`, on the backend with or without autodiff.
    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        reference: Tensor<A, 1>,
        batch: &PackedBatch,
        pass: &Pass<'_, Self::Sample>,
        usage: Usage,
    ) -> Tensor<A, 1>;

    /// Computes the metrics of a micro-batch.
    fn metrics(
        &self,
        micro_batch: &MicroBatch<'_, Self::Sample>,
        usage: Usage,
    ) -> MicroBatchMetrics;

    /// Returns the loss of a step, as transformers' `Trainer` logs it.
    fn step_loss(&self, micro_batches: &[MicroBatchMetrics]) -> f64 {
        MicroBatchMetrics::mean(micro_batches).0
    }

    /// Checks the metrics of the micro-batches of a run's first step.
    ///
    /// # Errors
    /// The loss or a reward differs from the value that it must have before the first update.
    fn check_first_step(&self, _micro_batches: &[MicroBatchMetrics]) -> Result<()> {
        Ok(())
    }

    /// Returns the number of samples per batch to call [`Self::precompute`] with before the first step; `None` if there is
    /// nothing to compute then.
    fn precompute_batch_size(&self, _usage: Usage) -> Option<usize> {
        None
    }

    /// Computes the reference's log-probabilities of a batch of samples, or of their companions, and keeps them.
    ///
    /// # Errors
    /// A computed value is not finite.
    fn precompute(
        &mut self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Result<()> {
        let reference = self.reference_model_mut();
        reference.map_or(Ok(()), |reference| reference.precompute(batch, on_device, usage))
    }

    /// Returns what [`Self::precompute`] kept of the samples with these ids, as numbers; `None` if it is not complete.
    fn precomputed(&self, ids: &[&str], usage: Usage) -> Option<Vec<f32>> {
        self.reference_model()?.sums(ids, usage)
    }

    /// Keeps `numbers` as [`Self::precompute`] does with those that it computes. Returns whether their count fits.
    fn set_precomputed(&mut self, ids: &[&str], numbers: &[f32], usage: Usage) -> bool {
        let reference = self.reference_model_mut();
        reference.is_some_and(|reference| reference.set_sums(ids, numbers, usage))
    }

    /// Keeps what later steps need of a training sample of an applied step.
    fn remember(&mut self, _id: &str, _output: &SampleOutput) {}

    /// Adjusts the objective to the policy after optimizer step number `step` (from 1).
    fn after_update(&mut self, step: usize, policy: &Decoder<Autodiff<B>>) {
        if let Some(reference) = self.reference_model_mut() {
            reference.after_update(step, policy);
        }
    }

    /// Returns the tensors that a resumed run needs, with their names.
    fn tensors(&self) -> &[Parameter<B>] {
        self.reference_model().map_or(&[], Reference::moving)
    }

    /// Replaces [`Self::tensors`].
    fn set_tensors(&mut self, values: Vec<Tensor<B, 2>>, policy: &Decoder<Autodiff<B>>) {
        if let Some(reference) = self.reference_model_mut() {
            reference.set_moving(values, policy);
        }
    }

    /// Returns the content of [`Self::STATE_FILE`]; `None` if there is nothing to keep.
    ///
    /// # Errors
    /// It cannot be serialized, which is a defect of the program.
    fn state(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Restores what [`Self::state`] returned.
    ///
    /// # Errors
    /// Returns the problem if the content cannot be read.
    fn restore(&mut self, _state: &[u8]) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// A micro-batch with its outputs.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a, S> {
    /// The samples.
    pub samples: &'a [&'a S],
    /// The outputs of each sample.
    pub outputs: &'a [SampleOutput],
    /// What [`Objective::baseline`] returned for the micro-batch.
    pub baseline: f64,
}

/// Whether samples are used for training or for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A training step.
    Training,
    /// Held-out metrics. Losses whose mean is over tokens are left out of the losses of the samples; the metrics add them.
    Evaluation,
}

impl Usage {
    /// Returns sums whose means add up to the loss of a micro-batch. `cross_entropy` is that of its tokens, which has the weight
    /// `weight` in the loss; the losses of held-out samples lack it.
    fn loss_sums(self, samples: &[SampleOutput], weight: f64, cross_entropy: Sum) -> Vec<Sum> {
        let losses = Sum::of(samples.iter().map(|sample| sample.loss));
        if self == Self::Training || weight == 0.0 {
            return vec![losses];
        }
        vec![losses, Sum { total: weight * cross_entropy.total, ..cross_entropy }]
    }
}

/// Divides the summed log-probabilities of all first, then all second completions of `samples`, `[2N]`, by their numbers of
/// completion tokens.
fn per_token<B: TrainBackend, S: Sample>(sums: Tensor<B, 1>, samples: &[&S]) -> Tensor<B, 1> {
    let tokens = |side: usize| {
        samples.iter().map(move |sample| sample.sides()[side].scored_tokens().max(1) as f64)
    };
    let counts = (0..S::SIDES.len()).flat_map(tokens).collect();
    sums.clone() / vector_like(&sums, counts)
}
