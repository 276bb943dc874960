//! The DPO learner, which runs optimizer steps and evaluates held-out pairs.
//!
//! The order is that of transformers' `Trainer`: backward over the micro-batches, clipping, optimizer step. Results are
//! read from the device once per step, after the last backward.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use crate::data::batch::PreferenceBatch;
use crate::data::encode::EncodedPair;
use crate::dpo::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::dpo::loss::{DpoLoss, PairLogProbs, chosen_token_weights};
use crate::dpo::metrics::{CompletionOutput, MicroBatchMetrics, PairOutput};
use crate::dpo::reference::Reference;
use crate::error::Result;
use crate::lora::linear::adapter_parameters;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;
use crate::train::gradient::{Loss, gradients};
use crate::train::method::{add_all, apply, mix};
use crate::train::optimizer::{AdamW, clip_by_global_norm};
use crate::train::pass::passes;

pub use crate::train::method::{Activations, StepConfig, StepOutput};

/// Settings of a [`Learner`].
#[derive(Clone, Copy, Debug)]
pub struct LearnerConfig {
    /// DPO loss.
    pub loss: DpoLoss,
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
        let starts_as_reference = is_same || adapter_is_zero(&policy);
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
        let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
        self.reference.precompute(&batch, &on_device)
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
        let passes = passes(micro_batches, self.config.step.pass_tokens);
        let weights: Vec<f64> =
            micro_batches.iter().flat_map(|pairs| micro_batch_token_weights(pairs)).collect();
        let mut token_weights = weights.as_slice();
        let (mut sum, mut outputs, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for (index, pass) in passes.iter().enumerate() {
            let seed = self.config.step.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = PreferenceBatch::new(&pass.pairs);
            let (pass_weights, rest) = token_weights.split_at(pass.pairs.len());
            token_weights = rest;
            let (output, grads) = self.one_pass(&batch, &pass.weights, pass_weights, seed);
            outputs.push(output);
            batches.push(batch);
            sum = add_all(sum, grads);
        }
        let max_grad_norm = self.config.step.max_grad_norm.unwrap_or(0.0);
        let (clipped, norm) = clip_by_global_norm(sum, max_grad_norm);
        outputs.push(norm);

        let numbers: Vec<f64> = Tensor::cat(outputs, 0).into_data().iter::<f64>().collect();
        let pairs = split_outputs(&batches, &numbers);
        let mut rest = pairs.as_slice();
        let micro_batches: Vec<MicroBatchMetrics> = micro_batches
            .iter()
            .map(|micro| {
                let (pairs, remaining) = rest.split_at(micro.len());
                rest = remaining;
                MicroBatchMetrics::new(pairs, self.config.loss.beta)
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
        let config = &self.config.loss;
        for pass in passes(&[pairs.to_vec()], self.config.step.pass_tokens) {
            let batch = PreferenceBatch::new(&pass.pairs);
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            let policy = score(&policy, &on_device, LogProbStats::All);
            let reference = self.reference.compute(&on_device);
            let policy_logps = PairLogProbs::split(policy.sums.clone());
            let reference_logps = PairLogProbs::split(reference.clone());
            let loss = config.forward(&policy_logps, &reference_logps, &batch.counts);
            let output = concat_outputs(loss, policy, reference);
            let numbers: Vec<f64> = output.into_data().iter::<f64>().collect();
            outputs.extend(split_outputs(std::slice::from_ref(&batch), &numbers));
        }
        MicroBatchMetrics::with_sft(&outputs, config.beta, config.sft_weight)
    }

    /// Runs forward and backward of one pass. Returns its outputs in one vector (see [`concat_outputs`]) and the gradient
    /// of the sum of its losses times `weights`.
    fn one_pass(
        &self,
        batch: &PreferenceBatch,
        weights: &[f64],
        token_weights: &[f64],
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        let reference = self.reference.log_probs(batch, &on_device);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let head = self.policy.head();
        let reference_logps = PairLogProbs::split(Tensor::from_inner(reference.clone()));
        let keep = self.config.step.activations.keep(batch.tokens.length);
        gradients(&self.policy, &on_device.input, keep, |hidden| {
            let policy = completions.score(hidden, head, LogProbStats::All);
            let policy_logps = PairLogProbs::split(policy.sums.clone());
            let config = &self.config.loss;
            let losses = config.forward(&policy_logps, &reference_logps, &batch.counts);
            let losses = config.add_sft(losses, &policy_logps, token_weights);
            let dtype = losses.dtype();
            let weights = TensorData::new(weights.to_vec(), [weights.len()]).convert_dtype(dtype);
            let weights = Tensor::from_data(weights, (&self.device, dtype));
            let scored =
                CompletionLogProbs { sums: policy.sums.inner(), tokens: policy.tokens.inner() };
            let output = concat_outputs(losses.clone().inner(), scored, reference);
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
        0 => Tensor::cat(vec![losses, policy.sums, reference], 0),
        _ => Tensor::cat(vec![losses, policy.sums, reference, tokens], 0),
    }
}

/// Splits the concatenated outputs of several passes (see [`concat_outputs`]) into one output per pair.
fn split_outputs(batches: &[PreferenceBatch], numbers: &[f64]) -> Vec<PairOutput> {
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
            let (tokens, _) = take(LogProbStats::All.columns() * count).as_chunks::<4>();
            CompletionOutput { logps: *logps, tokens: tokens.to_vec() }
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
