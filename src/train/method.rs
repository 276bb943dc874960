//! What the loop of a run asks of a method of training.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::Tensor;

use crate::config::RunConfig;
use crate::data::sample::Sample;
use crate::dpo::metrics::MicroBatchMetrics;
use crate::error::Result;
use crate::model::mistral::Mistral;
use crate::progress::ProgressMode;
use crate::train::checkpoint::Checkpoint;
use crate::train::optimizer::{AdamW, NamedUpdate};
use crate::train::parameters::{parameters, set_parameters};

/// What does not change from step to step, whatever the method.
#[derive(Clone, Copy, Debug)]
pub struct StepConfig {
    /// Largest global L2 norm of the gradient; `None`: never clipped.
    pub max_grad_norm: Option<f64>,
    /// Which activations are kept for backward, and which are computed again.
    pub activations: Activations,
    /// Most tokens computed together: see [`passes`](crate::train::pass::passes).
    pub pass_tokens: usize,
    /// `Some`: the adapter's dropout acts, drawn from this seed.
    pub dropout_seed: Option<u64>,
}

/// Which blocks (decoder layers) keep their activations for backward; the others compute them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// All blocks keep them.
    Keep,
    /// No block does (gradient checkpointing, arXiv 1604.06174).
    Recompute,
    /// As many blocks as fit.
    Fit {
        /// Bytes there are.
        available: u64,
        /// Bytes a block keeps of each token.
        per_token: u64,
    },
}

impl Activations {
    /// How many of the upper blocks keep their activations in a pass of `tokens` tokens.
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

/// What a step did, or would have done if a number was not finite.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The step's loss, as transformers' `Trainer` logs it.
    pub loss: f64,
    /// One entry a micro-batch.
    pub micro_batches: Vec<MicroBatchMetrics>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// False: loss or gradient was not finite, and nothing was changed.
    pub applied: bool,
}

/// A method of training: the model being trained, its optimizer, one step, and what of it is measured and kept.
pub trait Method<B: TrainBackend> {
    /// What it is trained on.
    type Sample: Sample;

    /// Keys of [`MicroBatchMetrics::values`], as TRL writes them.
    const KEYS: &'static [&'static str];

    /// The keys people watch, with their short names.
    const WATCHED: &'static [(&'static str, &'static str)];

    /// The model being trained.
    fn policy(&self) -> &Mistral<Autodiff<B>>;

    /// As [`Self::policy`], with the optimizer, to change them.
    fn trained(&mut self) -> (&mut Mistral<Autodiff<B>>, &mut AdamW<B>);

    /// The moments of the trained tensors.
    fn optimizer(&self) -> &AdamW<B>;

    /// One optimizer step, number `step` from 0, at `learning_rate`, over `micro_batches`.
    fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&Self::Sample>],
    ) -> StepOutput;

    /// Measures held-out samples, without a graph.
    fn evaluate(&self, samples: &[&Self::Sample]) -> MicroBatchMetrics;

    /// Before the first step: `again` says whether samples come more than once.
    fn begin(&mut self, _config: &RunConfig, _again: bool) {}

    /// What is computed over all samples before the first step.
    ///
    /// # Errors
    /// The user interrupts.
    fn precompute(
        &mut self,
        _samples: &[Self::Sample],
        _config: &RunConfig,
        _mode: ProgressMode,
    ) -> Result<()> {
        Ok(())
    }

    /// The self-check of the first step.
    ///
    /// # Errors
    /// Its numbers cannot be right.
    fn check_first_step(&self, _output: &StepOutput, _config: &RunConfig) -> Result<()> {
        Ok(())
    }

    /// Files a checkpoint keeps beside weights and optimizer.
    ///
    /// # Errors
    /// A defect of the program.
    fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }

    /// Takes up what [`Self::files`] kept.
    ///
    /// # Errors
    /// A file of the checkpoint cannot be read.
    fn restore_files(&mut self, _checkpoint: &Checkpoint) -> Result<()> {
        Ok(())
    }
}

/// `sum + grads`, tensor by tensor; an empty sum is zero.
pub(super) fn add_all<B: TrainBackend>(
    sum: Vec<Tensor<B, 2>>,
    grads: Vec<Tensor<B, 2>>,
) -> Vec<Tensor<B, 2>> {
    match sum.is_empty() {
        true => grads,
        false => sum.into_iter().zip(grads).map(|(s, g)| s + g).collect(),
    }
}

/// Applies a clipped gradient to what is trained of `policy`.
pub(super) fn apply<B: TrainBackend>(
    policy: &mut Mistral<Autodiff<B>>,
    optimizer: &mut AdamW<B>,
    learning_rate: f64,
    grads: Vec<Tensor<B, 2>>,
) {
    let updates = parameters(policy).into_iter().zip(grads);
    let updates = updates.map(|((name, param), grad)| NamedUpdate { name, param, grad });
    let values = optimizer.step(learning_rate, updates.collect());
    set_parameters(policy, values);
}

/// A dropout seed of its own for every pass of every step; never `seed` itself, from which the adapter's start
/// and the data's order are drawn.
pub(super) fn mix(seed: u64, step: usize, pass: usize) -> u64 {
    let salt = ((step as u64) << 20 | pass as u64) + 1;
    seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
