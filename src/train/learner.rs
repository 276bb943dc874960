//! The DPO learner: one optimizer step, and the evaluation of held-out pairs.
//!
//! Order as in transformers' `Trainer`: backward over the micro-batches, clip, optimizer step. The device is read once
//! a step, after the last backward.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Tensor;

use crate::data::batch::PreferenceBatch;
use crate::dpo::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::dpo::loss::{DpoLoss, PairLogProbs};
use crate::dpo::metrics::{MicroBatchMetrics, MicroBatchOutput};
use crate::dpo::reference::Reference;
use crate::lora::linear::{parameters, set_parameters};
use crate::model::mistral::Mistral;
use crate::model::rope::RotaryTable;
use crate::train::gradient::{Loss, gradients};
use crate::train::optimizer::{AdamW, NamedUpdate, clip_by_global_norm};

/// What does not change from step to step.
#[derive(Clone, Copy, Debug)]
pub struct LearnerConfig {
    /// The loss.
    pub loss: DpoLoss,
    /// Largest global L2 norm of the gradient; `None`: never clipped.
    pub max_grad_norm: Option<f64>,
    /// Compute activations again in backward instead of keeping them.
    pub gradient_checkpointing: bool,
    /// `Some`: the adapter's dropout acts, drawn from this seed.
    pub dropout_seed: Option<u64>,
}

/// Policy, reference and optimizer.
#[derive(Debug)]
pub struct Learner<B: TrainBackend> {
    /// The model being trained: frozen weights and an adapter.
    pub policy: Mistral<Autodiff<B>>,
    /// The model it is compared with.
    pub reference: Reference<B>,
    /// Moments of the adapter's tensors.
    pub optimizer: AdamW<B>,
    /// Rotary angles.
    table: RotaryTable<B>,
    config: LearnerConfig,
    starts_as_reference: bool,
    device: B::Device,
}

/// What a step did, or would have done if a number was not finite.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// One entry a micro-batch.
    pub micro_batches: Vec<MicroBatchMetrics>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// False: loss or gradient was not finite, and nothing was changed.
    pub applied: bool,
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
        let table = policy.valid().rotary_table(device);
        // A copy has no dropout; a silent adapter is silent under dropout too.
        let same = reference.is_copy() && config.dropout_seed.is_none();
        let starts_as_reference = same || adapter_is_silent(&policy);
        Self {
            policy,
            reference,
            optimizer,
            table,
            config,
            starts_as_reference,
            device: device.clone(),
        }
    }

    /// Computes and keeps the reference's log-probabilities of a training batch.
    pub fn precompute_reference(&mut self, batch: &PreferenceBatch) {
        let on_device = DeviceBatch::new(batch, &self.table, &self.device);
        self.reference.precompute(batch, &on_device);
    }

    /// Whether policy and reference were the same function when the learner was made: every `lora_b` zero, or the
    /// reference a copy of the policy, which no dropout disturbs.
    pub fn starts_as_reference(&self) -> bool {
        self.starts_as_reference
    }

    /// One optimizer step, number `step` from 0, at `learning_rate`, over `batches`, whose gradients are averaged.
    ///
    /// # Panics
    /// If a sequence is longer than the model's `max_position_embeddings`; lengths are checked before training.
    pub fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        batches: &[PreferenceBatch],
    ) -> StepOutput {
        let mut sum: Vec<Tensor<B, 2>> = Vec::new();
        let mut packed = Vec::with_capacity(batches.len() + 1);
        for (index, batch) in batches.iter().enumerate() {
            let seed = self.config.dropout_seed.map(|seed| mix(seed, step, index));
            let (output, grads) = self.micro_step(batch, 1.0 / batches.len() as f64, seed);
            packed.push(output);
            sum = match sum.is_empty() {
                true => grads,
                false => sum
                    .into_iter()
                    .zip(grads)
                    .map(|(sum, grad)| sum + grad)
                    .collect(),
            };
        }
        let max_grad_norm = self.config.max_grad_norm.unwrap_or(0.0);
        let (clipped, norm) = clip_by_global_norm(sum, max_grad_norm);
        packed.push(norm);

        let numbers: Vec<f64> = Tensor::cat(packed, 0).into_data().iter::<f64>().collect();
        let micro_batches = self.unpack(batches, &numbers);
        let grad_norm = numbers.last().copied().unwrap_or(0.0);
        let applied = grad_norm.is_finite() && micro_batches.iter().all(|m| m.loss.is_finite());
        if applied {
            self.apply(learning_rate, clipped);
        }
        StepOutput {
            micro_batches,
            grad_norm,
            applied,
        }
    }

    /// Scores held-out pairs under policy and reference, without a graph.
    pub fn evaluate(&self, batch: &PreferenceBatch) -> MicroBatchMetrics {
        let on_device = DeviceBatch::new(batch, &self.table, &self.device);
        let policy = score(&self.policy.valid(), &on_device, LogProbStats::All);
        let reference = self.reference.compute(&on_device);
        let loss = self.config.loss.forward(
            &PairLogProbs::split(policy.sums.clone()),
            &PairLogProbs::split(reference.clone()),
            &batch.counts,
        );
        let packed = pack(loss.mean(), policy, reference);
        let numbers: Vec<f64> = packed.into_data().iter::<f64>().collect();
        let batches = std::slice::from_ref(batch);
        let mut metrics = self.unpack(batches, &numbers);
        metrics.remove(0)
    }

    /// Forward and backward of one micro-batch: its numbers, packed, and the gradient of `weight * loss`.
    fn micro_step(
        &self,
        batch: &PreferenceBatch,
        weight: f64,
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        let reference = self.reference.log_probs(batch, &on_device);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let head = self.policy.head();
        let of_reference = PairLogProbs::split(Tensor::from_inner(reference.clone()));
        let recompute = self.config.gradient_checkpointing;
        gradients(&self.policy, &on_device.input, recompute, |hidden| {
            let policy = completions.score(hidden, head, LogProbStats::All);
            let of_policy = PairLogProbs::split(policy.sums.clone());
            let loss = self
                .config
                .loss
                .forward(&of_policy, &of_reference, &batch.counts)
                .mean();
            let scored = CompletionLogProbs {
                sums: policy.sums.inner(),
                tokens: policy.tokens.inner(),
            };
            let output = pack(loss.clone().inner(), scored, reference);
            Loss {
                loss: loss * weight,
                output,
            }
        })
    }

    /// Applies the clipped gradient.
    fn apply(&mut self, learning_rate: f64, grads: Vec<Tensor<B, 2>>) {
        let updates = parameters(&self.policy).into_iter().zip(grads);
        let updates = updates.map(|((name, param), grad)| {
            let param = param.inner();
            NamedUpdate { name, param, grad }
        });
        let values = self.optimizer.step(learning_rate, updates.collect());
        set_parameters(&mut self.policy, values);
    }

    fn unpack(&self, batches: &[PreferenceBatch], numbers: &[f64]) -> Vec<MicroBatchMetrics> {
        let mut rest = numbers;
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head.to_vec()
        };
        let unpack_one = |batch: &PreferenceBatch| {
            let output = MicroBatchOutput {
                loss: take(1)[0],
                policy: take(2 * batch.pairs()),
                reference: take(2 * batch.pairs()),
                tokens: take(LogProbStats::All.columns() * batch.targets.len()),
            };
            MicroBatchMetrics::new(batch, &output, self.config.loss.beta)
        };
        batches.iter().map(unpack_one).collect()
    }
}

/// Whether every `lora_b` is zero, so that the adapter adds nothing.
fn adapter_is_silent<B: TrainBackend>(policy: &Mistral<Autodiff<B>>) -> bool {
    let silent =
        |tensor: Tensor<Autodiff<B>, 2>| tensor.into_data().iter::<f64>().all(|b| b == 0.0);
    let of_b = parameters(policy).into_iter().skip(1).step_by(2);
    of_b.map(|(_, tensor)| tensor).all(silent)
}

/// Everything a micro-batch reports, in one vector: loss, policy sums, reference sums, token columns.
fn pack<B: TrainBackend>(
    loss: Tensor<B, 1>,
    policy: CompletionLogProbs<B>,
    reference: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let tokens = policy.tokens.clone().reshape([-1]);
    match policy.tokens.dims()[0] {
        0 => Tensor::cat(vec![loss, policy.sums, reference], 0),
        _ => Tensor::cat(vec![loss, policy.sums, reference, tokens], 0),
    }
}

/// A dropout seed of its own for every micro-batch of every step; never `seed` itself, from which the adapter's start
/// and the data's order are drawn.
fn mix(seed: u64, step: usize, micro_batch: usize) -> u64 {
    let salt = ((step as u64) << 20 | micro_batch as u64) + 1;
    seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
