//! One optimizer step of any [`Objective`]: passes, gradients, clipping, update; and the metrics of held-out samples.
//!
//! The order is that of transformers' `Trainer`: backward over the micro-batches, clipping, optimizer step. Results are
//! read from the device once per step, after the last backward.

use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, TensorData};

use crate::adapter::parameters::Parameter;
use crate::adapter::saved::saved_equals_base;
use crate::data::batch::PreferenceBatch;
use crate::data::sample::Sample;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::mistral::Mistral;
use crate::model::positions::PositionTable;
use crate::objective::dpo::{Dpo, ReferenceTiming};
use crate::objective::log_probs::{CompletionLogProbs, DeviceBatch, score};
use crate::objective::losses::vector_like;
use crate::objective::metrics::{CompletionOutput, MicroBatchMetrics, SampleOutput};
use crate::objective::pass::{Pass, passes};
use crate::objective::preference::PreferenceLoss;
use crate::objective::reference::Reference;
use crate::objective::{Objective, Usage};
use crate::progress::{Progress, ProgressMode};
use crate::train::activations::Activations;
use crate::train::gradient::{Loss, gradients};
use crate::train::optimizer::{NamedUpdate, Optimizer, clip_by_global_norm};
use crate::train::parameters::{set_trained_parameters, trained_parameters};
use crate::train::reference_cache::{ReferenceCache, agrees};

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
    pub policy: Mistral<Autodiff<B>>,
    /// The optimizer of the trained tensors.
    pub optimizer: Optimizer<B>,
    /// The objective.
    pub objective: O,
    /// Table of rotary angles.
    table: PositionTable<B>,
    config: StepConfig,
    device: B::Device,
}

impl<B: TrainBackend> Learner<B> {
    /// Creates a learner that optimizes `loss` against `reference`. The adapter of `policy` is already attached.
    pub fn dpo(
        policy: Mistral<Autodiff<B>>,
        optimizer: Optimizer<B>,
        loss: PreferenceLoss,
        reference: Reference<B>,
        timing: ReferenceTiming,
        config: StepConfig,
        device: &B::Device,
    ) -> Self {
        // The copy has no dropout, so it equals the policy only if that has none either. A zero adapter is zero under
        // dropout too.
        let dropout = config.dropout_seed.is_some();
        let is_same = reference.is_copy() && !dropout;
        let is_zero = adapter_is_zero(&policy, dropout);
        let starts_as_reference = (is_same || is_zero) && !loss.reference_free;
        let objective = Dpo { loss, reference, timing, starts_as_reference };
        Self::new(policy, optimizer, objective, config, device)
    }
}

impl<B: TrainBackend, O: Objective<B>> Learner<B, O> {
    /// Creates a learner for `policy`, which trains the tensors that require a gradient.
    pub fn new(
        policy: Mistral<Autodiff<B>>,
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
        let limits = self.objective.pass_limits(self.config.pass_tokens);
        let weights = self.objective.weights(micro_batches);
        let (mut sum, mut outputs, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for (index, pass) in passes(micro_batches, &weights, limits).iter().enumerate() {
            let seed = self.config.dropout_seed.map(|seed| mix(seed, step, index));
            let batch = O::batch(&pass.pairs);
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
        let sizes = micro_batches.iter().map(Vec::len);
        let micro_batches = self.metrics(&samples, sizes);
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

    /// Computes the metrics of held-out samples without building a graph.
    pub fn evaluate(&self, samples: &[&O::Sample]) -> MicroBatchMetrics {
        let (policy, usage) = (self.policy.valid(), Usage::Evaluation);
        let micro_batch = [samples.to_vec()];
        let limits = self.objective.pass_limits(self.config.pass_tokens);
        let weights = self.objective.weights(&micro_batch);
        let mut outputs = Vec::new();
        for pass in passes(&micro_batch, &weights, limits) {
            let batch = O::batch(&pass.pairs);
            let on_device = self.on_device(&batch);
            let policy = score(&policy, &on_device, self.objective.stats());
            let reference = self.objective.reference(&batch, &on_device, usage);
            let losses = self.objective.losses(&policy, reference.clone(), &batch, &pass, usage);
            let output = concat_outputs(losses, policy, reference);
            let numbers: Vec<f64> = output.into_data().iter::<f64>().collect();
            outputs.extend(self.split_outputs(std::slice::from_ref(&batch), &numbers));
        }
        self.objective.metrics(&outputs, usage)
    }

    /// Computes what the objective needs of all training samples before the first step, or reads it from `cache` and
    /// computes only the first batch, to compare.
    ///
    /// # Errors
    /// A computed value is not finite, or the user interrupts.
    pub fn precompute(
        &mut self,
        samples: &[O::Sample],
        cache: Option<&ReferenceCache>,
        mode: ProgressMode,
    ) -> Result<()> {
        let Some(size) = self.objective.precompute_batch_size() else {
            return Ok(());
        };
        let ids: Vec<&str> = samples.iter().map(Sample::id).collect();
        if let Some(cache) = cache {
            if self.use_cached(samples, &ids, cache, mode)? {
                return Ok(());
            }
        }
        let progress =
            Progress::new("reference", Some(samples.len() as u64), O::Sample::NAME, mode);
        for samples in samples.chunks(size.max(1)) {
            self.precompute_batch(&samples.iter().collect::<Vec<_>>())?;
            progress.inc(samples.len() as u64);
            if interrupt::requested() {
                let note = "stopped while the reference was computed; continue with --resume";
                return Err(Error::Interrupted { note: note.into() });
            }
        }
        progress.finish();
        let numbers = self.objective.precomputed(&ids);
        if let (Some(cache), Some(numbers)) = (cache, numbers)
            && let Err(error) = cache.write(&numbers)
        {
            say!(
                "warning: the reference's log-probabilities are not kept for further runs: {error}"
            );
        }
        Ok(())
    }

    /// Takes what the objective needs from `cache`, unless the first batch, computed again, differs from it. Returns whether
    /// it was taken.
    ///
    /// # Errors
    /// A computed value is not finite.
    fn use_cached(
        &mut self,
        samples: &[O::Sample],
        ids: &[&str],
        cache: &ReferenceCache,
        mode: ProgressMode,
    ) -> Result<bool> {
        let (Some(size), Some(numbers)) = (self.objective.precompute_batch_size(), cache.read())
        else {
            return Ok(false);
        };
        let count = size.clamp(1, samples.len());
        self.precompute_batch(&samples[..count].iter().collect::<Vec<_>>())?;
        let computed = self.objective.precomputed(&ids[..count]).unwrap_or_default();
        let cached = numbers.get(..computed.len()).unwrap_or_default();
        let taken = agrees(cached, &computed) && self.objective.set_precomputed(ids, &numbers);
        let path = cache.path().display();
        if !taken {
            say!(
                "warning: {path}: does not agree with values computed again\n  the reference is computed anew"
            );
        } else if mode != ProgressMode::Quiet {
            say!("the reference's log-probabilities are those of an earlier run: {path}");
        }
        Ok(taken)
    }

    /// Computes what the objective needs of a batch of training samples.
    ///
    /// # Errors
    /// A computed value is not finite.
    pub fn precompute_batch(&mut self, samples: &[&O::Sample]) -> Result<()> {
        let batch = O::batch(samples);
        let on_device = self.on_device(&batch);
        self.objective.precompute(&batch, &on_device)
    }

    /// Copies a batch to the device.
    fn on_device(&self, batch: &PreferenceBatch) -> DeviceBatch<B> {
        let mut on_device = DeviceBatch::new(batch, &self.table, &self.device);
        self.objective.prepare(batch, &mut on_device);
        on_device
    }

    /// Runs forward and backward of one pass. Returns its outputs in one vector (see [`concat_outputs`]) and the gradient
    /// of the sum of its losses times the weights of its samples.
    fn one_pass(
        &self,
        batch: &PreferenceBatch,
        pass: &Pass<'_, O::Sample>,
        dropout_seed: Option<u64>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 2>>) {
        let (objective, usage) = (&self.objective, Usage::Training);
        let mut on_device = self.on_device(batch);
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
    fn split_outputs(&self, batches: &[PreferenceBatch], numbers: &[f64]) -> Vec<SampleOutput> {
        let width = self.objective.stats().columns();
        let (mut rest, mut outputs) = (numbers, Vec::new());
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at(count);
            rest = tail;
            head
        };
        for batch in batches {
            let (samples, sequences) = (batch.pairs(), batch.counts.len());
            let (losses, sums) = (take(samples), take(sequences));
            let reference = take(if O::HAS_REFERENCE { sequences } else { 0 });
            let mut completions = batch.counts.iter().zip(sums).map(|(count, logps)| {
                let tokens = take(width * count).chunks_exact(width);
                let tokens = tokens.map(|token| std::array::from_fn(|column| token[column]));
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

    /// Returns the metrics of micro-batches of the given sizes.
    fn metrics(
        &self,
        samples: &[SampleOutput],
        sizes: impl Iterator<Item = usize>,
    ) -> Vec<MicroBatchMetrics> {
        let mut rest = samples;
        sizes
            .map(|size| {
                let (samples, remaining) = rest.split_at(size);
                rest = remaining;
                self.objective.metrics(samples, Usage::Training)
            })
            .collect()
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

/// Returns whether the adapter has no effect: every `lora_b` and its bias is zero, every magnitude of DoRA is the norm of
/// its row, and the modules that are trained in full have their original weights. With `dropout`, DoRA projects two parts of
/// its input, whose sum is rounded differently.
fn adapter_is_zero<B: TrainBackend>(policy: &Mistral<Autodiff<B>>, dropout: bool) -> bool {
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
