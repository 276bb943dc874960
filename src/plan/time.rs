//! Estimates the time of a run from its FLOP count and the speed of a few layers with random
//! weights, which are timed on the device.

use std::time::Duration;

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use super::Plan;
use super::job::Job;
use super::profile::Profile;
use crate::bench::{BenchOptions, Probe, probe};
use crate::config::{GradientCheckpointing, TargetModules};
use crate::data::lengths::SampleLengths;
use crate::error::Result;
use crate::model::names::projection_names;

/// The measurement starts no further repetition after this.
const LIMIT: Duration = Duration::from_secs(8);

/// A layer with more weights than this is measured alone.
const LARGE_LAYER_WEIGHTS: f64 = 64e6;

/// Tokens per pass for which reading the weights takes about as long as computing with them.
const READING_TOKENS: f64 = 64.0;

/// The same for dequantizing weights.
const DEQUANTIZING_TOKENS: f64 = 200.0;

/// The estimated time of a run.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Seconds per step that also computes the reference.
    pub seconds_per_step: f64,
    /// Seconds per step whose reference log-probabilities are known from an earlier epoch.
    pub seconds_per_known_step: f64,
    /// Steps of the run.
    pub steps: usize,
    /// Seconds to the end of the run, without evaluation and checkpoints.
    pub seconds: f64,
    /// Measured FLOP per second.
    pub flop_per_second: f64,
    /// Number of layers in the measurement.
    pub measured_layers: usize,
    /// Number of tokens in the measurement.
    pub measured_tokens: usize,
}

/// Times a few layers on the device and extrapolates to the run; returns `None` if they would not
/// fit into memory.
///
/// # Errors
/// The device fails, or the user interrupts.
pub fn measure<B: TrainBackend>(
    job: &Job,
    plan: &Plan,
    profile: &Profile,
    device: &B::Device,
) -> Result<Option<Timing>> {
    let layers = if layer_weights(job) > LARGE_LAYER_WEIGHTS {
        1
    } else {
        job.shape.num_hidden_layers.min(4)
    };
    let model = job.shape.vocab_size as f64 * job.shape.hidden_size as f64 * 2.0;
    let bytes = (model + layers as f64 * layer_weights(job)) * job.dtype.size() as f64;
    if profile.capacity.is_some_and(|capacity| bytes * 1.5 > capacity as f64) {
        return Ok(None);
    }
    let options = BenchOptions {
        name: String::new(),
        shape: job.shape.clone(),
        tokens: vec![plan.pass.tokens.max(16)],
        layers: Some(layers),
        targets: measured_targets(&job.config.lora.target_modules),
        rank: job.config.lora.r,
        dtype: Some(job.dtype),
        quantize: job.quantization,
        precomputed: false,
        steps: 1,
        checkpointing: GradientCheckpointing::On,
        peak_tflops: None,
    };
    let Probe { tokens, scored, seconds } = probe::<B>(&options, LIMIT, device)?;
    let rate = flop(job, [tokens, scored], layers, 2.0, 1.0) / seconds;
    Ok(Some(Timing::new(job, plan, rate, (layers, tokens))))
}

/// Returns the projections that have a branch in the measured layers: all of them if `targets` chooses single layers,
/// which the measured ones need not be.
fn measured_targets(targets: &TargetModules) -> TargetModules {
    let in_every_layer = |name: &String| projection_names().any(|known| known == name);
    match targets {
        TargetModules::Names(names) if names.iter().all(in_every_layer) => targets.clone(),
        _ => TargetModules::AllLinear,
    }
}

impl Timing {
    /// Returns the time of a run at `rate` FLOP per second, as measured with some layers and tokens.
    pub(super) fn new(
        job: &Job,
        plan: &Plan,
        rate: f64,
        (measured_layers, measured_tokens): (usize, usize),
    ) -> Self {
        let (samples, train) = (job.train_samples(), &job.config.train);
        let per_step =
            (train.per_device_train_batch_size * train.gradient_accumulation_steps) as f64;
        let tokens: usize = samples.iter().map(SampleLengths::packed).sum();
        let scored: usize = samples.iter().map(SampleLengths::scored).sum();
        let step_fraction =
            if job.knows_samples() { per_step.min(samples.len() as f64) } else { per_step }
                / samples.len().max(1) as f64;
        let recompute = recomputed_fraction(plan);
        let step_seconds = |reference: f64| {
            step_fraction * model_flop(job, [tokens, scored], reference, recompute) / rate
        };
        let steps = train.total_steps(samples.len());
        let first_epoch = if job.knows_samples() {
            steps.min(train.steps_per_epoch(samples.len()))
        } else {
            steps
        };
        let known_flop =
            if job.keeps_reference() { job.forward_passes()[1] * 2.0 } else { reference_flop(job) };
        let (computed, known) = (step_seconds(reference_flop(job)), step_seconds(known_flop));
        let beforehand = if job.config.precompute_sizes().is_some() {
            let [all, known] = job.forward_passes();
            (all - known) * flop(job, [tokens, scored], job.shape.num_hidden_layers, -2.0, 0.0)
                / rate
        } else {
            0.0
        };
        Self {
            seconds_per_step: computed,
            seconds_per_known_step: known,
            steps,
            seconds: beforehand
                + computed * first_epoch as f64
                + known * (steps - first_epoch) as f64,
            flop_per_second: rate,
            measured_layers,
            measured_tokens,
        }
    }
}

/// Returns the time of a step of `then`, relative to one of `now`, from FLOP and the bytes that are
/// read.
pub(super) fn relative(now: (&Job, &Plan), then: (&Job, &Plan)) -> f64 {
    cost(then) / cost(now).max(f64::MIN_POSITIVE)
}

/// Estimates the time of a pass over all training samples in arbitrary units, from its FLOP and from
/// how often the weights are read and dequantized.
fn cost((job, plan): (&Job, &Plan)) -> f64 {
    let samples = job.train_samples();
    let tokens = samples.iter().map(SampleLengths::packed).sum();
    let scored = samples.iter().map(SampleLengths::scored).sum();
    let flop = model_flop(job, [tokens, scored], reference_flop(job), recomputed_fraction(plan));
    let per_pass = plan.pass.tokens.max(1) as f64;
    let dequantizing = if job.is_quantized() { DEQUANTIZING_TOKENS } else { 0.0 };
    // GEMM in 16 bits runs at least twice as fast.
    let narrow = if job.dtype.size() < DType::F32.size() { 0.5 } else { 1.0 };
    flop * narrow * (1.0 + (READING_TOKENS + dequantizing) / per_pass)
}

/// Returns the FLOP per weight and token that forward passes without a gradient add to a step of the first epoch.
fn reference_flop(job: &Job) -> f64 {
    let known = job.config.precompute_sizes().is_some();
    2.0 * job.forward_passes()[usize::from(known)]
}

/// Returns the fraction of blocks that are recomputed.
fn recomputed_fraction(plan: &Plan) -> f64 {
    1.0 - plan.kept_blocks as f64 / plan.blocks.max(1) as f64
}

/// Returns the FLOP of the whole model.
fn model_flop(job: &Job, counts: [usize; 2], reference: f64, recompute: f64) -> f64 {
    flop(job, counts, job.shape.num_hidden_layers, reference, recompute)
}

/// Returns the FLOP of `tokens` tokens, of which `scored` are scored: per weight and token 2 for
/// the policy's forward pass, 2 for its backward pass, 2 more if all weights are trained,
/// `reference`, and 2 for the fraction `recompute` of the blocks.
fn flop(
    job: &Job,
    [tokens, scored]: [usize; 2],
    layers: usize,
    reference: f64,
    recompute: f64,
) -> f64 {
    let head = (job.shape.vocab_size * job.shape.hidden_size) as f64;
    let trained = if job.trains_all() { 2.0 } else { 0.0 };
    let pass = 4.0 + trained + reference;
    let in_layers = layers as f64 * layer_weights(job);
    (pass + 2.0 * recompute) * in_layers * tokens as f64 + pass * head * scored as f64
}

/// Returns the number of weights in the projections of a layer.
fn layer_weights(job: &Job) -> f64 {
    let groups = job.layers.first().map(|layer| layer.groups());
    let groups = groups.into_iter().flatten();
    groups.map(|group| (group.d_in * group.width()) as f64).sum()
}
