//! How long a run takes: from a few layers with random weights, timed on the device, by the FLOP of the whole.

use std::time::Duration;

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

use super::Plan;
use super::job::Job;
use super::profile::Profile;
use crate::bench::{BenchOptions, Probe, probe};
use crate::config::{GradientCheckpointing, Method};
use crate::data::lengths::SampleLengths;
use crate::error::Result;

/// The measurement begins nothing new after this.
const LIMIT: Duration = Duration::from_secs(8);

/// A layer of more weights than this is measured alone.
const LARGE_LAYER: f64 = 64e6;

/// Tokens a pass at which reading the weights takes as long as computing with them, about.
const READING: f64 = 64.0;

/// As [`READING`], for unpacking quantised weights.
const UNPACKING: f64 = 200.0;

/// Where a run's time goes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A step that computes the reference too.
    pub seconds_per_step: f64,
    /// A step in which the reference's log-probabilities are known from an earlier epoch.
    pub seconds_per_known_step: f64,
    /// Steps of the run.
    pub steps: usize,
    /// To the end, without evaluation and checkpoints.
    pub seconds: f64,
    /// FLOP a second that were measured.
    pub flop_per_second: f64,
    /// Layers and tokens of the measurement.
    pub measured: (usize, usize),
}

/// Times a few layers on the device and carries that over to the run; `None` if they would not fit, or there is nothing to
/// train.
///
/// # Errors
/// The device fails, or the user interrupts.
pub fn measure<B: TrainBackend>(
    job: &Job,
    plan: &Plan,
    profile: &Profile,
    device: &B::Device,
) -> Result<Option<Timing>> {
    let layers = match layer_weights(job) > LARGE_LAYER {
        true => 1,
        false => job.shape.num_hidden_layers.min(4),
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
        targets: job.config.lora.target_modules.clone(),
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

impl Timing {
    /// The timing at so many FLOP a second.
    pub(super) fn new(job: &Job, plan: &Plan, rate: f64, measured: (usize, usize)) -> Self {
        let (samples, train) = (job.train_samples(), &job.config.train);
        let per_step =
            (train.per_device_train_batch_size * train.gradient_accumulation_steps) as f64;
        let tokens: usize = samples.iter().map(SampleLengths::packed).sum();
        let scored: usize = samples.iter().map(SampleLengths::scored).sum();
        let of_step = match job.knows_samples() {
            true => per_step.min(samples.len() as f64),
            false => per_step,
        } / samples.len().max(1) as f64;
        let again = recomputed(plan);
        let with = |reference: f64| of_step * work(job, [tokens, scored], reference, again) / rate;
        let steps = train.total_steps(samples.len());
        let first_epoch = match job.knows_samples() {
            true => steps.min(train.steps_per_epoch(samples.len())),
            false => steps,
        };
        let (computed, known) = (with(reference(job)), with(0.0));
        let beforehand = match job.config.dpo.precompute_ref_log_probs {
            true => flop(job, [tokens, scored], job.shape.num_hidden_layers, -2.0, 0.0) / rate,
            false => 0.0,
        };
        Self {
            seconds_per_step: computed,
            seconds_per_known_step: known,
            steps,
            seconds: beforehand
                + computed * first_epoch as f64
                + known * (steps - first_epoch) as f64,
            flop_per_second: rate,
            measured,
        }
    }
}

/// Time of a step of one plan in that of another, by FLOP and what is read.
pub(super) fn relative(now: (&Job, &Plan), then: (&Job, &Plan)) -> f64 {
    cost(then) / cost(now).max(f64::MIN_POSITIVE)
}

fn cost((job, plan): (&Job, &Plan)) -> f64 {
    let samples = job.train_samples();
    let tokens = samples.iter().map(SampleLengths::packed).sum();
    let scored = samples.iter().map(SampleLengths::scored).sum();
    let flop = work(job, [tokens, scored], reference(job), recomputed(plan));
    let per_pass = plan.pass.tokens.max(1) as f64;
    let unpacking = if job.is_quantized() { UNPACKING } else { 0.0 };
    // 16-bit products run at twice the rate and more.
    let narrow = if job.dtype.size() < DType::F32.size() { 0.5 } else { 1.0 };
    flop * narrow * (1.0 + (READING + unpacking) / per_pass)
}

/// Passes of the reference in a step, in FLOP a weight and token.
fn reference(job: &Job) -> f64 {
    let known = job.config.dpo.precompute_ref_log_probs;
    if job.config.method == Method::Dpo && !known { 2.0 } else { 0.0 }
}

/// Share of the blocks that is computed again.
fn recomputed(plan: &Plan) -> f64 {
    1.0 - plan.kept_blocks as f64 / plan.blocks.max(1) as f64
}

fn work(job: &Job, counts: [usize; 2], reference: f64, again: f64) -> f64 {
    flop(job, counts, job.shape.num_hidden_layers, reference, again)
}

/// FLOP of `tokens` tokens, of which `scored` are scored: 2 a weight for the policy's forward pass, 2 for its backward pass,
/// 2 more where all weights are trained, and those of the reference and of what is computed again.
fn flop(job: &Job, [tokens, scored]: [usize; 2], layers: usize, reference: f64, again: f64) -> f64 {
    let head = (job.shape.vocab_size * job.shape.hidden_size) as f64;
    let trained = if job.trains_all() { 2.0 } else { 0.0 };
    let pass = 4.0 + trained + reference;
    let in_layers = layers as f64 * layer_weights(job);
    (pass + 2.0 * again) * in_layers * tokens as f64 + pass * head * scored as f64
}

fn layer_weights(job: &Job) -> f64 {
    let groups = job.layers.first().map(|layer| layer.groups());
    let groups = groups.into_iter().flatten();
    groups.map(|group| (group.d_in * group.width()) as f64).sum()
}
