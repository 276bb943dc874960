//! The [`Method`] trait: the interface of a training method (DPO or supervised fine-tuning) to the training loop.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::Tensor;

use crate::config::RunConfig;
use crate::data::sample::Sample;
use crate::error::Result;
use crate::model::mistral::Mistral;
use crate::objective::metrics::MicroBatchMetrics;
use crate::progress::ProgressMode;
use crate::train::checkpoint::Checkpoint;
use crate::train::optimizer::{AdamW, NamedUpdate};
use crate::train::parameters::{set_trained_parameters, trained_parameters};

/// Settings that are the same for every step and every method.
#[derive(Clone, Copy, Debug)]
pub struct StepConfig {
    /// Maximum global L2 norm of the gradient. `None` disables clipping.
    pub max_grad_norm: Option<f64>,
    /// Which activations are kept for the backward pass and which are recomputed.
    pub activations: Activations,
    /// Maximum number of tokens computed together. See [`passes`](crate::train::pass::passes).
    pub pass_tokens: usize,
    /// Seed of the adapter's dropout. `None` disables dropout.
    pub dropout_seed: Option<u64>,
}

/// Which decoder layers keep their activations for the backward pass. The others recompute them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// All layers keep their activations.
    Keep,
    /// No layer keeps its activations (gradient checkpointing, arXiv 1604.06174).
    Recompute,
    /// As many layers keep their activations as fit into memory.
    Fit {
        /// Available memory in bytes.
        available: u64,
        /// Bytes that a layer keeps per token.
        per_token: u64,
    },
}

impl Activations {
    /// Returns how many of the upper layers keep their activations in a pass of `tokens` tokens.
    pub fn keep(self, tokens: usize) -> usize {
        match self {
            Self::Keep => usize::MAX,
            Self::Recompute => 0,
            Self::Fit { available, per_token } => {
                (available / (per_token * tokens as u64).max(1)) as usize
            }
        }
    }
}

/// Result of a step.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// Loss of the step, as transformers' `Trainer` logs it.
    pub loss: f64,
    /// Metrics of each micro-batch.
    pub micro_batches: Vec<MicroBatchMetrics>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the update was applied. False if the loss or the gradient is not finite; nothing has changed then.
    pub applied: bool,
}

/// A training method with its model and optimizer.
pub trait Method<B: TrainBackend> {
    /// Type of the training samples.
    type Sample: Sample;

    /// Keys of [`MicroBatchMetrics::values`], under TRL's names.
    const KEYS: &'static [&'static str];

    /// Keys shown in the status line, with their short names.
    const STATUS_KEYS: &'static [(&'static str, &'static str)];

    /// Returns the model that is trained.
    fn policy(&self) -> &Mistral<Autodiff<B>>;

    /// Returns the model and the optimizer for modification.
    fn policy_and_optimizer(&mut self) -> (&mut Mistral<Autodiff<B>>, &mut AdamW<B>);

    /// Returns the optimizer.
    fn optimizer(&self) -> &AdamW<B>;

    /// Runs optimizer step number `step` (from 0) with `learning_rate` over `micro_batches`.
    fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&Self::Sample>],
    ) -> StepOutput;

    /// Computes the metrics of held-out samples without building a graph.
    fn evaluate(&self, samples: &[&Self::Sample]) -> MicroBatchMetrics;

    /// Prepares the learner for a run. Called once, before the first step.
    fn begin(&mut self, _config: &RunConfig) {}

    /// Computes what the method needs from all samples before the first step.
    ///
    /// # Errors
    /// A computed value is not finite, or the user interrupts.
    fn precompute(
        &mut self,
        _samples: &[Self::Sample],
        _config: &RunConfig,
        _mode: ProgressMode,
    ) -> Result<()> {
        Ok(())
    }

    /// Checks the output of the first step.
    ///
    /// # Errors
    /// The output cannot be right.
    fn check_first_step(&self, _output: &StepOutput, _config: &RunConfig) -> Result<()> {
        Ok(())
    }

    /// Returns the names and contents of the files that a checkpoint has in addition to weights and optimizer.
    ///
    /// # Errors
    /// A file cannot be serialized, which is a defect of the program.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }

    /// Restores the state of the files that [`Self::files`] returned.
    ///
    /// # Errors
    /// A file of the checkpoint cannot be read.
    fn restore_files(&mut self, _checkpoint: &Checkpoint) -> Result<()> {
        Ok(())
    }
}

/// Adds `grads` to `sum`, tensor by tensor. An empty `sum` is zero.
pub(super) fn add_all<B: TrainBackend>(
    sum: Vec<Tensor<B, 2>>,
    grads: Vec<Tensor<B, 2>>,
) -> Vec<Tensor<B, 2>> {
    if sum.is_empty() { grads } else { sum.into_iter().zip(grads).map(|(s, g)| s + g).collect() }
}

/// Updates the trained tensors of `policy` with a clipped gradient.
pub(super) fn apply<B: TrainBackend>(
    policy: &mut Mistral<Autodiff<B>>,
    optimizer: &mut AdamW<B>,
    learning_rate: f64,
    grads: Vec<Tensor<B, 2>>,
) {
    let updates = trained_parameters(policy).into_iter().zip(grads);
    let updates = updates.map(|((name, param), grad)| NamedUpdate { name, param, grad });
    let values = optimizer.step(learning_rate, updates.collect());
    set_trained_parameters(policy, values);
}

/// Returns a different dropout seed for every pass of every step. It is never `seed` itself, from which the adapter's
/// initial values and the order of the data are drawn.
pub(super) fn mix(seed: u64, step: usize, pass: usize) -> u64 {
    let salt = ((step as u64) << 20 | pass as u64) + 1;
    seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
