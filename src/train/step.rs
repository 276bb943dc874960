//! One optimizer step of any [`Objective`]: passes, gradients, clipping, update; and the metrics of held-out samples.
//!
//! The order is that of transformers' `Trainer`: backward over the micro-batches, clipping, optimizer step. Results are
//! read from the device once per step, after the last backward.

mod beforehand;
mod fault;

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use crate::adapter::parameters::Parameter;
use crate::adapter::saved::saved_equals_base;
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::model::decoder::Decoder;
use crate::model::positions::PositionTable;
use crate::objective::dpo::{Dpo, ReferenceTiming};
use crate::objective::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::objective::losses::vector_like;
use crate::objective::metrics::{CompletionOutput, MicroBatchMetrics, SampleOutput};
use crate::objective::pass::{Pass, passes};
use crate::objective::preference::PreferenceLoss;
use crate::objective::reference::Reference;
use crate::objective::{MicroBatch, Objective, Usage};
use crate::train::activations::Activations;
use crate::train::gradient::{Loss, gradients};
use crate::train::optimizer::{NamedUpdate, Optimizer, clip_by_global_norm};
use crate::train::parameters::{set_trained_parameters, trained_parameters};

pub use fault::Fault;

/// Settings that are the same for every step and every objective.
#[derive(Clone, Copy, Debug)]
pub struct StepConfig {
    /// Maximum global L2 norm of the gradient. `None` disables clipping.
    pub max_grad_norm: Option<f64>,
    /// Which activations are kept for the backward pass and which are recomputed.
    pub activations: Activations,
    /// Maximum number of tokens computed together. See [`passes`].
    pub pass_tokens: usize,
    /// Seed of the adapter's dropout. `None` disables dropout.
    pub dropout_seed: Option<u64>,
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

/// The model that is trained, its optimizer and its objective.
#[derive(Debug)]
pub struct Learner<B: TrainBackend, O = Dpo<B>> {
    /// The model that is trained: its tensors that require a gradient, which are those of an adapter or all.
    pub policy: Decoder<Autodiff<B>>,
    /// The optimizer of the trained tensors.
    pub optimizer: Optimizer<B>,
    /// The objective.
    pub objective: O,
    /// Table of rotary angles.
    pub(super) table: PositionTable<B>,
    pub(super) config: StepConfig,
    pub(super) device: B::Device,
}

impl<B: TrainBackend> Learner<B> {
    /// Creates a learner that optimizes `loss` against `reference`. The adapter of `policy` is already attached.
    pub fn dpo(
        policy: Decoder<Autodiff<B>>,
        optimizer: Optimizer<B>,
        loss: PreferenceLoss,
        reference: Reference<B>,
        timing: ReferenceTiming,
        config: StepConfig,
        device: &B::Device,
    ) -> Self {
        let starts_as_reference =
            equals_reference(&policy, &reference, &config) && !loss.reference_free;
        let objective = Dpo { loss, reference, timing, starts_as_reference };
        Self::new(policy, optimizer, objective, config, device)
    }
}

impl<B: TrainBackend, O: Objective<B>> Learner<B, O> {
    /// Creates a learner for `policy`, which trains the tensors that require a gradient.
    pub fn new(
        policy: Decoder<Autodiff<B>>,
        optimizer: Optimizer<B>,
        objective: O,
        config: StepConfig,
        device: &B::Device,
    ) -> Self {
        let positions = policy.config.max_position_embeddings;
        let table = policy.valid().position_table(positions, device);
        Self { policy, optimizer, objective, table, config, device: device.clone() }
    }

    /// Runs optimizer step number `step` (from 0) with `learning_rate`. The micro-batches are computed in passes of at most
    /// [`StepConfig::pass_tokens`] tokens, independent of their size.
    ///
    /// # Panics
    /// If a sequence is longer than the model's `max_position_embeddings`. Lengths are checked before training.
    pub fn step(
        &mut self,
        step: usize,
        learning_rate: f64,
        micro_batches: &[Vec<&O::Sample>],
    ) -> StepOutput {
        let baselines = self.training_baselines(micro_batches);
        let (mut sum, mut outputs, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for (index, pass) in self.passes(micro_batches, &baselines).iter().enumerate() {
            let seed = self.config.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = PackedBatch::new(&pass.pairs);
            let (output, grads) = self.one_pass(&batch, pass, seed);
            outputs.push(output);
            batches.push(batch);
            sum = add_all(sum, grads);
        }
        let max_grad_norm = self.config.max_grad_norm.unwrap_or(0.0);
        let (clipped, norm) = clip_by_global_norm(sum, max_grad_norm);
        outputs.push(norm);

        let numbers: Vec<f64> = Tensor::cat(outputs, 0).into_data().iter::<f64>().collect();
        let samples = self.split_outputs(&batches, &numbers);
        let micro_batches = self.metrics(micro_batches, &samples, &baselines);
        let loss = self.objective.step_loss(&micro_batches);
        let grad_norm = numbers.last().copied().unwrap_or(0.0);
        let finite = loss.is_finite() && micro_batches.iter().all(|micro| micro.loss.is_finite());
        let applied = grad_norm.is_finite() && finite;
        if applied {
            let ids = batches.iter().flat_map(|batch| &batch.ids);
            for (id, sample) in ids.zip(&samples) {
                self.objective.remember(id, sample);
            }
            self.update(learning_rate, clipped);
            self.objective.after_update(step + 1, &self.policy);
        }
        StepOutput { loss, micro_batches, grad_norm, applied }
    }

    /// Computes the metrics of held-out samples in batches of `size`, without building a graph.
    pub fn evaluate_in_batches(
        &self,
        samples: &[O::Sample],
        size: usize,
    ) -> Vec<MicroBatchMetrics> {
        let samples: Vec<&O::Sample> = samples.iter().collect();
        let mut companions = self.objective.companions(&samples).into_iter();
        let batches = samples.chunks(size.max(1));
        batches
            .map(|batch| self.evaluate_with(batch, companions.by_ref().take(batch.len()).collect()))
            .collect()
    }

    /// Computes the metrics of a batch of held-out samples without building a graph.
    pub fn evaluate(&self, samples: &[&O::Sample]) -> MicroBatchMetrics {
        self.evaluate_with(samples, self.objective.companions(samples))
    }

    /// Computes the metrics of a batch of held-out samples and their companions.
    fn evaluate_with(
        &self,
        samples: &[&O::Sample],
        companions: Vec<EncodedExample>,
    ) -> MicroBatchMetrics {
        let (policy, usage) = (self.policy.valid(), Usage::Evaluation);
        let baselines = self.baselines(&[companions], usage);
        let mut outputs = Vec::new();
        for pass in self.passes(&[samples.to_vec()], &baselines) {
            let batch = PackedBatch::new(&pass.pairs);
            let on_device = self.on_device(&pass.pairs, &batch);
            let policy = score(&policy, &on_device, self.objective.stats());
            let reference = self.objective.reference(&batch, &on_device, usage);
            let losses = self.objective.losses(&policy, reference.clone(), &batch, &pass, usage);
            let output = concat_outputs(losses, policy, reference);
            let numbers: Vec<f64> = output.into_data().iter::<f64>().collect();
            outputs.extend(self.split_outputs(std::slice::from_ref(&batch), &numbers));
        }
        let baseline = baselines.first().copied().unwrap_or_default();
        self.objective.metrics(&MicroBatch { samples, outputs: &outputs, baseline }, usage)
    }

    /// Groups the samples of micro-batches with these baselines into passes.
    fn passes<'a>(
        &self,
        micro_batches: &[Vec<&'a O::Sample>],
        baselines: &[f64],
    ) -> Vec<Pass<'a, O::Sample>> {
        let limits = self.objective.pass_limits(self.config.pass_tokens);
        let weights = self.objective.weights(micro_batches);
        let mut passes = passes(micro_batches, &weights, limits);
        let per_sample = micro_batches.iter().zip(baselines);
        let mut per_sample =
            per_sample.flat_map(|(micro, baseline)| std::iter::repeat_n(*baseline, micro.len()));
        for pass in &mut passes {
            pass.baselines = per_sample.by_ref().take(pass.pairs.len()).collect();
        }
        passes
    }

    /// Copies the batch of `samples` to the device.
    pub(super) fn on_device(&self, samples: &[&O::Sample], batch: &PackedBatch) -> DeviceBatch<B> {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        self.objective.prepare(samples, batch, &mut on_device);
        on_device
    }

    /// Runs forward and backward of one pass. Returns its outputs in one vector (see [`concat_outputs`]) and the gradient
    /// of the sum of its losses times the weights of its samples.
    fn one_pass(
        &self,
        batch: &PackedBatch,
        pass: &Pass<'_, O::Sample>,
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let (objective, usage) = (&self.objective, Usage::Training);
        let mut on_device = self.on_device(&pass.pairs, batch);
        let reference = objective.reference(batch, &on_device, usage);
        on_device.input.context.dropout_seed = dropout_seed;
        let completions = on_device.completions.to_autodiff::<Autodiff<B>>();
        let keep = self.config.activations.keep(batch.tokens.length);
        gradients(&self.policy, &on_device.input, keep, |hidden| {
            // Within the graph, because the head may be a trained copy that is cast.
            let policy = completions.score(hidden, self.policy.head(), objective.stats());
            let inner_reference = Tensor::from_inner(reference.clone());
            let losses = objective.losses(&policy, inner_reference, batch, pass, usage);
            let weights = vector_like(&losses, pass.weights.clone());
            let output = concat_outputs(losses.clone().inner(), policy.inner(), reference);
            Loss { loss: (losses * weights).sum(), output }
        })
    }

    /// Splits the concatenated outputs of several passes (see [`concat_outputs`]) into one output per sample.
    fn split_outputs(&self, batches: &[PackedBatch], numbers: &[f64]) -> Vec<SampleOutput> {
        let width = self.objective.stats().columns();
        let (mut rest, mut outputs) = (numbers, Vec::new());
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head
        };
        for batch in batches {
            let (samples, sequences) = (batch.samples(), batch.counts.len());
            let (losses, sums) = (take(samples), take(sequences));
            let reference =
                take(if self.objective.reference_model().is_some() { sequences } else { 0 });
            let mut completions = batch.counts.iter().zip(sums).map(|(count, logps)| {
                let tokens = take(width * count).chunks_exact(width);
                let statistic = |token: &[f64], column| token.get(column).copied().unwrap_or(0.0);
                let tokens = tokens.map(|t| std::array::from_fn(|column| statistic(t, column)));
                CompletionOutput { logps: *logps, tokens: tokens.collect() }
            });
            let first = outputs.len();
            outputs.extend(losses.iter().map(|loss| SampleOutput {
                loss: *loss,
                policy: Vec::new(),
                reference: Vec::new(),
            }));
            // All first sides, then all second ones.
            for sequence in 0..sequences {
                let output = &mut outputs[first + sequence % samples];
                output.policy.extend(completions.next());
                output.reference.extend(reference.get(sequence));
            }
        }
        outputs
    }

    /// Returns the metrics of micro-batches with the outputs of all their samples and their baselines.
    fn metrics(
        &self,
        micro_batches: &[Vec<&O::Sample>],
        outputs: &[SampleOutput],
        baselines: &[f64],
    ) -> Vec<MicroBatchMetrics> {
        let mut rest = outputs;
        let micro_batches = micro_batches.iter().zip(baselines);
        let metrics = micro_batches.map(|(samples, baseline)| {
            let (outputs, remaining) = rest.split_at(samples.len());
            rest = remaining;
            let micro_batch = MicroBatch { samples, outputs, baseline: *baseline };
            self.objective.metrics(&micro_batch, Usage::Training)
        });
        metrics.collect()
    }

    /// Updates the trained tensors with a clipped gradient.
    fn update(&mut self, learning_rate: f64, grads: Vec<Tensor<B, 2>>) {
        let updates = trained_parameters(&self.policy).into_iter().zip(grads);
        let updates = updates.map(|(Parameter { name, value: param, .. }, grad)| NamedUpdate {
            name,
            param,
            grad,
        });
        let values = self.optimizer.step(learning_rate, updates.collect());
        set_trained_parameters(&mut self.policy, values);
    }
}

/// Returns whether `policy` is the same function as `reference` before the first step.
pub(super) fn equals_reference<B: TrainBackend>(
    policy: &Decoder<Autodiff<B>>,
    reference: &Reference<B>,
    config: &StepConfig,
) -> bool {
    // A copy has no dropout, so it equals the policy only if that has none either. A zero adapter is zero under dropout
    // too.
    let dropout = config.dropout_seed.is_some();
    (reference.is_copy() && !dropout) || adapter_is_zero(policy, dropout)
}

/// Returns whether the adapter has no effect: every `lora_b` and its bias is zero, every magnitude of DoRA is the norm of
/// its row, and the modules that are trained in full have their original weights. With `dropout`, DoRA projects two parts of
/// its input, whose sum is rounded differently.
fn adapter_is_zero<B: TrainBackend>(policy: &Decoder<Autodiff<B>>, dropout: bool) -> bool {
    let is_zero = |data: TensorData| data.iter::<f64>().all(|value| value == 0.0);
    let branches = policy.projections().filter_map(|(_, linear)| linear.lora.as_ref());
    let mut branches = branches.map(|lora| {
        let unscaled = lora.dora.as_ref().is_none_or(|dora| {
            !dropout && dora.magnitude.val().into_data() == dora.norms.val().into_data()
        });
        let bias = lora.lora_b_bias.as_ref().is_none_or(|bias| is_zero(bias.val().into_data()));
        unscaled && bias && is_zero(lora.lora_b.val().into_data())
    });
    branches.all(|is_zero| is_zero) && saved_equals_base(policy)
}

/// Concatenates all outputs of a pass into one vector: losses, sums of the policy, the reference, and token statistics.
/// One vector needs one transfer from the device.
fn concat_outputs<B: TrainBackend>(
    losses: Tensor<B, 1>,
    policy: CompletionLogProbs<B>,
    reference: Tensor<B, 1>,
) -> Tensor<B, 1> {
    let tokens = policy.tokens.reshape([-1]);
    let parts = [losses, policy.weighted_sums, reference, tokens];
    Tensor::cat(parts.into_iter().filter(|part| part.dims()[0] > 0).collect(), 0)
}

/// Adds `grads` to `sum`, tensor by tensor. An empty `sum` is zero.
fn add_all<B: TrainBackend>(sum: Vec<Tensor<B, 2>>, grads: Vec<Tensor<B, 2>>) -> Vec<Tensor<B, 2>> {
    if sum.is_empty() { grads } else { sum.into_iter().zip(grads).map(|(s, g)| s + g).collect() }
}

/// Returns a different dropout seed for every pass of every step. It is never `seed` itself, from which the adapter's
/// initial values and the order of the data are drawn.
fn mix(seed: u64, step: usize, pass: usize) -> u64 {
    let salt = ((step as u64) << 20 | pass as u64) + 1;
    seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
