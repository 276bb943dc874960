//! The DPO learner: one optimizer step, and the evaluation of held-out pairs.
//!
//! Order as in transformers' `Trainer`: backward over the micro-batches, clip, optimizer step. The device is read once
//! a step, after the last backward.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use crate::data::batch::PreferenceBatch;
use crate::data::encode::EncodedPair;
use crate::dpo::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::dpo::loss::{DpoLoss, PairLogProbs, chosen_shares};
use crate::dpo::metrics::{CompletionOutput, MicroBatchMetrics, PairOutput};
use crate::dpo::reference::Reference;
use crate::lora::linear::parameters;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;
use crate::train::gradient::{Loss, gradients};
use crate::train::method::{add_all, apply, mix};
use crate::train::optimizer::{AdamW, clip_by_global_norm};
use crate::train::pass::passes;

pub use crate::train::method::{Activations, StepConfig, StepOutput};

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
pub struct LearnerConfig {
    /// The loss.
    pub loss: DpoLoss,
    /// What every method has.
    pub step: StepConfig,
}

/// Policy, reference and optimizer.
#[derive(Debug)]
pub struct Learner<B: TrainBackend> {
    /// The model being trained, of which those tensors change that require a gradient: an adapter's, or all.
    pub policy: Mistral<Autodiff<B>>,
    /// The model it is compared with.
    pub reference: Reference<B>,
    /// Moments of the trained tensors.
    pub optimizer: AdamW<B>,
    /// Rotary angles.
    table: PositionTable<B>,
    config: LearnerConfig,
    starts_as_reference: bool,
    remember_reference: bool,
    device: B::Device,
}

impl<B: TrainBackend> Learner<B> {
    /// A learner for `policy`, whose adapter is attached.
    pub fn new(
        policy: Mistral<Autodiff<B>>,
        reference: Reference<B>,
        optimizer: AdamW<B>,
        config: LearnerConfig,
        device: &B::Device,
    ) -> Self {
        let positions = policy.config.max_position_embeddings;
        let table = policy.valid().position_table(positions, device);
        // A copy has no dropout; a silent adapter is silent under dropout too.
        let same = reference.is_copy() && config.step.dropout_seed.is_none();
        let starts_as_reference = same || adapter_is_silent(&policy);
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

    /// Computes and keeps the reference's log-probabilities of training pairs.
    pub fn precompute_reference(&mut self, pairs: &[&EncodedPair]) {
        let batch = PreferenceBatch::new(pairs);
        let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
        self.reference.precompute(&batch, &on_device);
    }

    /// Whether policy and reference were the same function when the learner was made: every `lora_b` zero, or the
    /// reference a copy of the policy, which no dropout disturbs.
    pub fn starts_as_reference(&self) -> bool {
        self.starts_as_reference
    }

    /// From now on keeps the reference's log-probabilities of every pair, because pairs come again.
    pub fn remember_reference(&mut self) {
        self.remember_reference = true;
    }

    /// Whether [`Self::remember_reference`] was asked for.
    pub fn remembers_reference(&self) -> bool {
        self.remember_reference
    }

    /// One optimizer step, number `step` from 0, at `learning_rate`, over `micro_batches`, whose mean losses are
    /// averaged. They are computed in passes of at most [`StepConfig::pass_tokens`] tokens, whatever their size.
    ///
    /// # Panics
    /// If a sequence is longer than the model's `max_position_embeddings`; lengths are checked before training.
    pub fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&EncodedPair>],
    ) -> StepOutput {
        let passes = passes(micro_batches, self.config.step.pass_tokens);
        let shares: Vec<f64> = micro_batches.iter().flat_map(|pairs| shares(pairs)).collect();
        let mut shares = shares.as_slice();
        let (mut sum, mut packed, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for (index, pass) in passes.iter().enumerate() {
            let seed = self.config.step.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = PreferenceBatch::new(&pass.pairs);
            let (of_pass, rest) = shares.split_at(pass.pairs.len());
            shares = rest;
            let (output, grads) = self.one_pass(&batch, [&pass.weights, of_pass], seed);
            packed.push(output);
            batches.push(batch);
            sum = add_all(sum, grads);
        }
        let max_grad_norm = self.config.step.max_grad_norm.unwrap_or(0.0);
        let (clipped, norm) = clip_by_global_norm(sum, max_grad_norm);
        packed.push(norm);

        let numbers: Vec<f64> = Tensor::cat(packed, 0).into_data().iter::<f64>().collect();
        let pairs = unpack(&batches, &numbers);
        let mut rest = pairs.as_slice();
        let micro_batches: Vec<MicroBatchMetrics> = micro_batches
            .iter()
            .map(|micro| {
                let (pairs, left) = rest.split_at(micro.len());
                rest = left;
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

    /// Scores held-out pairs under policy and reference, without a graph.
    pub fn evaluate(&self, pairs: &[&EncodedPair]) -> MicroBatchMetrics {
        let mut outputs = Vec::new();
        let policy = self.policy.valid();
        let shares = shares(pairs);
        for pass in passes(&[pairs.to_vec()], self.config.step.pass_tokens) {
            let batch = PreferenceBatch::new(&pass.pairs);
            let on_device = DeviceBatch::new(&batch, &self.table, &self.device);
            let policy = score(&policy, &on_device, LogProbStats::All);
            let reference = self.reference.compute(&on_device);
            let of_policy = PairLogProbs::split(policy.sums.clone());
            let of_reference = PairLogProbs::split(reference.clone());
            let config = &self.config.loss;
            let loss = config.forward(&of_policy, &of_reference, &batch.counts);
            // One share for all: the pairs are one micro-batch.
            let loss = config.add_sft(loss, &of_policy, &shares[..pass.pairs.len()]);
            let packed = pack(loss, policy, reference);
            let numbers: Vec<f64> = packed.into_data().iter::<f64>().collect();
            outputs.extend(unpack(std::slice::from_ref(&batch), &numbers));
        }
        MicroBatchMetrics::new(&outputs, self.config.loss.beta)
    }

    /// Forward and backward of one pass: its numbers, packed, and the gradient of its weighted loss.
    fn one_pass(
        &self,
        batch: &PreferenceBatch,
        [weights, shares]: [&[f64]; 2],
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        let reference = self.reference.log_probs(batch, &on_device);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let head = self.policy.head();
        let of_reference = PairLogProbs::split(Tensor::from_inner(reference.clone()));
        let keep = self.config.step.activations.keep(batch.tokens.length);
        gradients(&self.policy, &on_device.input, keep, |hidden| {
            let policy = completions.score(hidden, head, LogProbStats::All);
            let of_policy = PairLogProbs::split(policy.sums.clone());
            let config = &self.config.loss;
            let losses = config.forward(&of_policy, &of_reference, &batch.counts);
            let losses = config.add_sft(losses, &of_policy, shares);
            let dtype = losses.dtype();
            let weights = TensorData::new(weights.to_vec(), [weights.len()]).convert_dtype(dtype);
            let weights = Tensor::from_data(weights, (&self.device, dtype));
            let scored =
                CompletionLogProbs { sums: policy.sums.inner(), tokens: policy.tokens.inner() };
            let output = pack(losses.clone().inner(), scored, reference);
            Loss { loss: (losses * weights).sum(), output }
        })
    }

    /// Keeps the reference's log-probabilities of the pairs of a step, if that was asked for.
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

/// The [`chosen_shares`] of a micro-batch.
fn shares(pairs: &[&EncodedPair]) -> Vec<f64> {
    let counts: Vec<usize> = pairs.iter().map(|pair| pair.chosen.scored_tokens()).collect();
    chosen_shares(&counts)
}

/// Whether every `lora_b` is zero, so that the adapter adds nothing.
fn adapter_is_silent<B: TrainBackend>(policy: &Mistral<Autodiff<B>>) -> bool {
    let silent =
        |tensor: Tensor<Autodiff<B>, 2>| tensor.into_data().iter::<f64>().all(|b| b == 0.0);
    let of_b = parameters(policy).into_iter().skip(1).step_by(2);
    of_b.map(|(_, tensor)| tensor).all(silent)
}

/// Everything a pass reports, in one vector: losses, policy sums, reference sums, token columns.
fn pack<B: TrainBackend>(
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

/// The inverse of [`pack`] for several passes, pair by pair.
fn unpack(batches: &[PreferenceBatch], numbers: &[f64]) -> Vec<PairOutput> {
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
