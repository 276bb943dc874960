//! The DPO learner, which runs optimizer steps and evaluates held-out pairs.
//!
//! The order is that of transformers' `Trainer`: backward over the micro-batches, clipping, optimizer step. Results are
//! read from the device once per step, after the last backward.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use crate::data::batch::PreferenceBatch;
use crate::data::encode::EncodedPair;
use crate::error::Result;
use crate::lora::linear::adapter_parameters;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;
use crate::objective::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::objective::losses::{PairLogProbs, vector_like};
use crate::objective::metrics::{CompletionOutput, MicroBatchMetrics, PairOutput};
use crate::objective::preference::{PassLogProbs, PreferenceLoss, chosen_token_weights};
use crate::objective::reference::Reference;
use crate::train::gradient::{Loss, gradients};
use crate::train::method::{add_all, apply, mix};
use crate::train::optimizer::{AdamW, clip_by_global_norm};
use crate::train::pass::{Pass, PassLimits, passes};

pub use crate::train::method::{Activations, StepConfig, StepOutput};

/// Settings of a [`Learner`].
#[derive(Clone, Debug)]
pub struct LearnerConfig {
    /// The preference loss.
    pub loss: PreferenceLoss,
    /// Settings common to all methods.
    pub step: StepConfig,
}

/// The DPO learner: policy, reference and optimizer.
#[derive(Debug)]
pub struct Learner<B: TrainBackend> {
    /// The model that is trained: its tensors that require a gradient, which are those of an adapter or all.
    pub policy: Mistral<Autodiff<B>>,
    /// The reference model.
    pub reference: Reference<B>,
    /// The optimizer of the trained tensors.
    pub optimizer: AdamW<B>,
    /// Table of rotary angles.
    table: PositionTable<B>,
    config: LearnerConfig,
    starts_as_reference: bool,
    remember_reference: bool,
    device: B::Device,
}

impl<B: TrainBackend> Learner<B> {
    /// Creates a learner for `policy`, whose adapter is already attached.
    pub fn new(
        policy: Mistral<Autodiff<B>>,
        reference: Reference<B>,
        optimizer: AdamW<B>,
        config: LearnerConfig,
        device: &B::Device,
    ) -> Self {
        let positions = policy.config.max_position_embeddings;
        let table = policy.valid().position_table(positions, device);
        // The copy has no dropout, so it equals the policy only if that has none either. A zero adapter is zero under
        // dropout too.
        let is_same = reference.is_copy() && config.step.dropout_seed.is_none();
        let is_same = is_same || adapter_is_zero(&policy);
        let starts_as_reference = is_same && !config.loss.reference_free;
        Self {
            policy,
            reference,
            optimizer,
            table,
            config,
            starts_as_reference,
            remember_reference: false,
            device: device.clone(),
        }
    }

    /// Computes the reference's log-probabilities of training pairs and keeps them.
    ///
    /// # Errors
    /// A log-probability is not finite.
    pub fn precompute_reference(&mut self, pairs: &[&EncodedPair]) -> Result<()> {
        let batch = PreferenceBatch::new(pairs);
        let on_device = self.on_device(&batch);
        self.reference.precompute(&batch, &on_device)
    }

    /// Copies a batch to the device, with the weights of the loss's `ld_alpha`.
    fn on_device(&self, batch: &PreferenceBatch) -> DeviceBatch<B> {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        if let Some(alpha) = self.config.loss.ld_alpha {
            on_device.completions.weigh_tails(batch, alpha);
        }
        on_device
    }

    /// Returns the statistics that the loss and the metrics need.
    fn stats(&self) -> LogProbStats {
        if self.config.loss.use_weighting { LogProbStats::Squares } else { LogProbStats::All }
    }

    /// Returns what a pass may hold.
    fn pass_limits(&self) -> PassLimits {
        PassLimits {
            tokens: self.config.step.pass_tokens,
            whole_micro_batches: self.config.loss.needs_whole_micro_batches(),
        }
    }

    /// Returns the reference's log-probabilities of the completions of a training batch, `[2N]`; zeros if the loss needs
    /// none.
    fn reference_logps(&self, batch: &PreferenceBatch, on_device: &DeviceBatch<B>) -> Tensor<B, 1> {
        if self.config.loss.reference_free {
            return Tensor::zeros([batch.counts.len()], &self.device);
        }
        self.reference.log_probs(batch, on_device)
    }

    /// Returns whether policy and reference were the same function when the learner was created. They are if every `lora_b`
    /// is zero, or if the reference is a copy of the policy and there is no dropout.
    pub fn starts_as_reference(&self) -> bool {
        self.starts_as_reference
    }

    /// Makes the learner keep the reference's log-probabilities of every pair for later epochs.
    pub fn remember_reference(&mut self) {
        self.remember_reference = true;
    }

    /// Returns whether [`Self::remember_reference`] was called.
    pub fn remembers_reference(&self) -> bool {
        self.remember_reference
    }

    /// Runs optimizer step number `step` (from 0) with `learning_rate`. The loss is the mean over `micro_batches` of their
    /// mean losses. They are computed in passes of at most [`StepConfig::pass_tokens`] tokens, independent of their size.
    ///
    /// # Panics
    /// If a sequence is longer than the model's `max_position_embeddings`. Lengths are checked before training.
    pub fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&EncodedPair>],
    ) -> StepOutput {
        let passes = passes(micro_batches, self.pass_limits());
        let weights: Vec<f64> =
            micro_batches.iter().flat_map(|pairs| micro_batch_token_weights(pairs)).collect();
        let mut token_weights = weights.as_slice();
        let (mut sum, mut outputs, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for (index, pass) in passes.iter().enumerate() {
            let seed = self.config.step.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = PreferenceBatch::new(&pass.pairs);
            let (pass_weights, rest) = token_weights.split_at(pass.pairs.len());
            token_weights = rest;
            let (output, grads) = self.one_pass(&batch, pass, pass_weights, seed);
            outputs.push(output);
            batches.push(batch);
            sum = add_all(sum, grads);
        }
        let max_grad_norm = self.config.step.max_grad_norm.unwrap_or(0.0);
        let (clipped, norm) = clip_by_global_norm(sum, max_grad_norm);
        outputs.push(norm);

        let numbers: Vec<f64> = Tensor::cat(outputs, 0).into_data().iter::<f64>().collect();
        let pairs = split_outputs(&batches, &numbers, self.stats());
        let mut rest = pairs.as_slice();
        let micro_batches: Vec<MicroBatchMetrics> = micro_batches
            .iter()
            .map(|micro| {
                let (pairs, remaining) = rest.split_at(micro.len());
                rest = remaining;
                MicroBatchMetrics::new(pairs, self.config.loss.settings.beta)
            })
            .collect();
        let grad_norm = numbers.last().copied().unwrap_or(0.0);
        let applied = grad_norm.is_finite() && micro_batches.iter().all(|m| m.loss.is_finite());
        if applied {
            self.remember(&batches, &pairs);
            apply(&mut self.policy, &mut self.optimizer, learning_rate, clipped);
        }
        StepOutput {
            loss: MicroBatchMetrics::mean(&micro_batches).0,
            micro_batches,
            grad_norm,
            applied,
        }
    }

    /// Computes the metrics of held-out pairs without building a graph.
    pub fn evaluate(&self, pairs: &[&EncodedPair]) -> MicroBatchMetrics {
        let mut outputs = Vec::new();
        let policy = self.policy.valid();
        let (loss, sft_weight) = self.config.loss.without_sft();
        let token_weights = micro_batch_token_weights(pairs);
        for pass in passes(&[pairs.to_vec()], self.pass_limits()) {
            let batch = PreferenceBatch::new(&pass.pairs);
            let on_device = self.on_device(&batch);
            let policy = score(&policy, &on_device, self.stats());
            let reference = if loss.reference_free {
                Tensor::zeros([batch.counts.len()], &self.device)
            } else {
                self.reference.compute(&on_device)
            };
            let token_weights = &token_weights[..pass.pairs.len()];
            let log_probs =
                pass_log_probs(&policy, reference.clone(), &batch, &pass, token_weights);
            let output = concat_outputs(loss.losses(&log_probs), policy, reference);
            let numbers: Vec<f64> = output.into_data().iter::<f64>().collect();
            outputs.extend(split_outputs(std::slice::from_ref(&batch), &numbers, self.stats()));
        }
        MicroBatchMetrics::with_sft(&outputs, loss.settings.beta, sft_weight)
    }

    /// Runs forward and backward of one pass. Returns its outputs in one vector (see [`concat_outputs`]) and the gradient
    /// of the sum of its losses times the weights of its pairs.
    fn one_pass(
        &self,
        batch: &PreferenceBatch,
        pass: &Pass<'_>,
        token_weights: &[f64],
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let mut on_device = self.on_device(batch);
        let reference = self.reference_logps(batch, &on_device);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let head = self.policy.head();
        let keep = self.config.step.activations.keep(batch.tokens.length);
        gradients(&self.policy, &on_device.input, keep, |hidden| {
            let policy = completions.score(hidden, head, self.stats());
            let reference_logps = Tensor::from_inner(reference.clone());
            let log_probs = pass_log_probs(&policy, reference_logps, batch, pass, token_weights);
            let losses = self.config.loss.losses(&log_probs);
            let weights = vector_like(&losses, pass.weights.clone());
            let output = concat_outputs(losses.clone().inner(), policy.inner(), reference);
            Loss { loss: (losses * weights).sum(), output }
        })
    }

    /// Keeps the reference's log-probabilities of the pairs of a step if [`Self::remember_reference`] was called.
    fn remember(&mut self, batches: &[PreferenceBatch], pairs: &[PairOutput]) {
        if !self.remember_reference {
            return;
        }
        let ids = batches.iter().flat_map(|batch| &batch.ids);
        for (id, pair) in ids.zip(pairs) {
            let sums = pair.reference.map(|sum| sum as f32);
            self.reference.remember(id, sums);
        }
    }
}

/// Collects what the loss of a pass is computed from.
fn pass_log_probs<'a, B: TrainBackend>(
    policy: &CompletionLogProbs<B>,
    reference: Tensor<B, 1>,
    batch: &'a PreferenceBatch,
    pass: &'a Pass<'_>,
    token_weights: &'a [f64],
) -> PassLogProbs<'a, B> {
    PassLogProbs {
        policy: PairLogProbs::split(policy.weighted_sums.clone()),
        reference: PairLogProbs::split(reference),
        chosen_sums: PairLogProbs::split(policy.sums.clone()).chosen,
        weights: policy.weights.clone(),
        counts: &batch.counts,
        token_weights,
        micro_batches: &pass.micro_batches,
    }
}

/// Returns the [`chosen_token_weights`] of a micro-batch.
fn micro_batch_token_weights(pairs: &[&EncodedPair]) -> Vec<f64> {
    let counts: Vec<usize> = pairs.iter().map(|pair| pair.chosen.scored_tokens()).collect();
    chosen_token_weights(&counts)
}

/// Returns whether every `lora_b` is zero, so that the adapter has no effect.
fn adapter_is_zero<B: TrainBackend>(policy: &Mistral<Autodiff<B>>) -> bool {
    let is_zero =
        |tensor: Tensor<Autodiff<B>, 2>| tensor.into_data().iter::<f64>().all(|b| b == 0.0);
    // The parameters are `lora_a` and `lora_b` of each projection in turn.
    let lora_b = adapter_parameters(policy).into_iter().skip(1).step_by(2);
    lora_b.map(|(_, tensor)| tensor).all(is_zero)
}

/// Concatenates all outputs of a pass into one vector: losses, sums of the policy, sums of the reference, and token
/// statistics. One vector needs one transfer from the device.
fn concat_outputs<B: TrainBackend>(
    losses: Tensor<B, 1>,
    policy: CompletionLogProbs<B>,
    reference: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let tokens = policy.tokens.clone().reshape([-1]);
    match policy.tokens.dims()[0] {
        0 => Tensor::cat(vec![losses, policy.weighted_sums, reference], 0),
        _ => Tensor::cat(vec![losses, policy.weighted_sums, reference, tokens], 0),
    }
}

/// Splits the concatenated outputs of several passes (see [`concat_outputs`]) into one output per pair.
fn split_outputs(
    batches: &[PreferenceBatch],
    numbers: &[f64],
    stats: LogProbStats,
) -> Vec<PairOutput> {
    let (mut rest, mut outputs) = (numbers, Vec::new());
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        head
    };
    for batch in batches {
        let pairs = batch.pairs();
        let (losses, sums) = (take(pairs), take(2 * pairs));
        let reference = take(2 * pairs);
        let mut completions = batch.counts.iter().zip(sums).map(|(count, logps)| {
            let tokens = take(stats.columns() * count).chunks_exact(stats.columns());
            let tokens = tokens.map(|token| std::array::from_fn(|column| token[column]));
            CompletionOutput { logps: *logps, tokens: tokens.collect() }
        });
        let chosen: Vec<_> = completions.by_ref().take(pairs).collect();
        let both = chosen.into_iter().zip(completions).enumerate();
        outputs.extend(both.map(|(pair, (chosen, rejected))| PairOutput {
            loss: losses[pair],
            policy: [chosen, rejected],
            reference: [reference[pair], reference[pairs + pair]],
        }));
    }
    outputs
}
