//! Training objectives: the trait [`Objective`], preference optimization (Direct Preference Optimization, arXiv 2305.18290,
//! and its relatives) and supervised fine-tuning, with their losses, reference model and metrics.

pub mod dpo;
pub mod f_divergence;
pub mod log_probs;
pub mod losses;
pub mod metrics;
pub mod pass;
pub mod preference;
pub mod reference;
pub mod score;
pub mod sft;

use std::fmt::Debug;

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::Tensor;

use self::log_probs::{CompletionLogProbs, DeviceBatch};
use self::metrics::{MicroBatchMetrics, SampleOutput};
use self::pass::{Pass, PassLimits, mean_weights};
use crate::data::batch::PackedBatch;
use crate::data::sample::Sample;
use crate::error::Result;

/// An objective of training. The [step](crate::train::step) computes the log-probabilities of the samples' completions; the
/// objective computes the loss and the metrics from them.
pub trait Objective<B: TrainBackend>: Debug {
    /// The training samples.
    type Sample: Sample;

    /// Keys shown in the status line, with their short names.
    const STATUS_KEYS: &'static [(&'static str, &'static str)];

    /// Whether there is a reference, with one log-probability for each completion.
    const HAS_REFERENCE: bool;

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
    fn prepare(&self, _batch: &PackedBatch, _on_device: &mut DeviceBatch<B>) {}

    /// Returns the statistics that losses and metrics need.
    fn stats(&self) -> LogProbStats {
        LogProbStats::All
    }

    /// Returns the reference's log-probabilities of all completions, or a vector of length 0 without a reference. They are
    /// computed on the inner backend, without a graph.
    fn reference(
        &self,
        batch: &PackedBatch,
        on_device: &DeviceBatch<B>,
        usage: Usage,
    ) -> Tensor<B, 1>;

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
    fn metrics(&self, samples: &[SampleOutput], usage: Usage) -> MicroBatchMetrics;

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
    fn precompute_batch_size(&self) -> Option<usize> {
        None
    }

    /// Computes what later steps need of a batch of training samples.
    ///
    /// # Errors
    /// A computed value is not finite.
    fn precompute(&mut self, _batch: &PackedBatch, _on_device: &DeviceBatch<B>) -> Result<()> {
        Ok(())
    }

    /// Keeps what later steps need of a training sample of an applied step.
    fn remember(&mut self, _id: &str, _output: &SampleOutput) {}

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

/// Whether samples are used for training or for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A training step.
    Training,
    /// Held-out metrics. Losses whose mean is over tokens are left out of the losses of the samples; the metrics add them.
    Evaluation,
}
