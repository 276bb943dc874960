//! `bench`: measures a DPO step of a model with random weights, and the time of each of its
//! operations.

mod gemms;
mod operations;
mod shape;
mod step;

use std::time::{Duration, Instant};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;
use serde_json::{Value, json};

use self::gemms::GemmSpeed;
use self::operations::{OperationTimes, time_operations};
pub use self::shape::{shape, shape_names};
use self::step::{Run, Setup};
use crate::config::{GradientCheckpointing, TargetModules};
use crate::doctor::{Out, device_name, gemm_provider_json};
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::quantize::Quantization;

/// The fraction of the available memory that weights may take; a step needs some too.
const MAX_WEIGHTS_FRACTION: f64 = 0.9;

/// Number of tokens in the first step of [`probe`].
const FIRST_PROBE_TOKENS: usize = 64;

/// FLOP per second of an H100 or H200 (SXM) in 16-bit floats without sparsity, according to
/// NVIDIA's data sheets.
const HOPPER_FLOPS: f64 = 989e12;

/// The settings of `bench`.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The user's name for the shape.
    pub name: String,
    /// The model's shape (see [`shape`]).
    pub shape: DecoderConfig,
    /// Numbers of packed tokens per step; each is measured.
    pub tokens: Vec<usize>,
    /// Number of layers, if it differs from the shape's.
    pub layers: Option<usize>,
    /// The projections that have a LoRA branch.
    pub targets: TargetModules,
    /// Rank of the branches.
    pub rank: usize,
    /// Type of the weights; `None` for the type that a run would use (see [`choose`]).
    pub dtype: Option<DType>,
    /// How the projections are quantized; `None` to store them in the type of the other weights.
    pub quantize: Option<Quantization>,
    /// Whether the reference's log-probabilities are known before the step.
    pub precomputed: bool,
    /// Number of timed steps, which follow one that is not timed.
    pub steps: usize,
    /// Whether activations are recomputed in the backward pass.
    pub checkpointing: GradientCheckpointing,
    /// The device's peak in TFLOP per second.
    pub peak_tflops: Option<f64>,
}

/// Measures steps, operations and GEMMs, and writes tables to `out`, then one line of JSON.
///
/// # Errors
/// An option is out of range, the weights do not fit, a step's loss or gradient is not finite, or
/// the user interrupts.
pub fn bench<B: TrainBackend>(
    options: &BenchOptions,
    device: &B::Device,
    out: &mut Out<'_>,
) -> Result<()> {
    options.check()?;
    let mut config = options.shape.clone();
    config.num_hidden_layers = options.layers.unwrap_or(config.num_hidden_layers);
    let dtype = choose::<B>(&config, options.dtype, Purpose::Compute, device)?;
    check_memory::<B>(&config, options.quantize, dtype, device)?;
    let name = device_name::<B>(device);
    let peak = options.peak_flops(B::device_name(device).as_deref(), dtype);
    out(&options.title(config.num_hidden_layers))?;
    out(&format!("on {name}"))?;
    let mut setup = Setup::<B>::new(options, config, dtype, device)?;
    for line in options.head(&setup) {
        out(&line)?;
    }

    let mut tokens = options.tokens.clone();
    // Ascending, because the peak memory never falls.
    tokens.sort_unstable();
    tokens.dedup();
    out(&Run::header())?;
    let mut runs = Vec::new();
    for tokens in tokens {
        let run = setup.measure(tokens, options, device)?;
        out(&run.line(peak))?;
        runs.push(run);
    }
    out("\nBy operation, each timed alone, as often as it occurs in a step: milliseconds")?;
    out(&OperationTimes::header())?;
    let mut parts = Vec::new();
    for run in &runs {
        let classes = time_operations(&setup, run, device)?;
        out(&classes.line(run))?;
        parts.push(classes);
    }
    let max_tokens = runs.last().map_or(0, |run| run.tokens);
    let (shape, gemm_tokens) = (&setup.config, max_tokens.min(B::pass_tokens()));
    let by = B::matmul_provider(device);
    let gemms = gemms::measure::<B>(&by, shape, gemm_tokens, dtype, device, out)?;
    let runs = runs.iter().zip(&parts).map(|(run, classes)| {
        let mut value = run.json(peak);
        value["seconds_by_operation"] = classes.json();
        value
    });
    let mut result = options.json(&setup, &name);
    result["peak_flop_per_second"] = json!(peak);
    result["runs"] = runs.collect();
    result["products_by"] = gemm_provider_json(&by);
    result["products"] = gemms.iter().map(GemmSpeed::json).collect();
    out(&result.to_string())
}

/// The measured time of a step of a few layers.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Packed tokens of the step.
    pub tokens: usize,
    /// Completion tokens that are scored.
    pub scored: usize,
    /// Seconds of the step.
    pub seconds: f64,
}

/// Times a step of a few layers ([`BenchOptions::layers`]). It starts with few tokens and continues
/// with four times as many, up to the requested number or until the next step would end after
/// `limit`.
///
/// # Errors
/// As for [`bench()`].
pub fn probe<B: TrainBackend>(
    options: &BenchOptions,
    limit: Duration,
    device: &B::Device,
) -> Result<Probe> {
    let started = Instant::now();
    let mut config = options.shape.clone();
    config.num_hidden_layers = options.layers.unwrap_or(config.num_hidden_layers);
    let dtype = choose::<B>(&config, options.dtype, Purpose::Compute, device)?;
    let mut setup = Setup::<B>::new(options, config, dtype, device)?;
    let max_tokens = options.tokens.iter().copied().max().unwrap_or(0);
    let mut tokens = max_tokens.clamp(step::MIN_TOKENS, FIRST_PROBE_TOKENS);
    loop {
        let run = setup.measure(tokens, options, device)?;
        let next = (4 * tokens).min(max_tokens);
        // One step that is not timed, and one that is.
        let ends =
            started.elapsed().as_secs_f64() + 2.2 * run.seconds * next as f64 / tokens as f64;
        if next <= tokens || ends > limit.as_secs_f64() {
            return Ok(run.probe());
        }
        tokens = next;
    }
}

/// Refuses weights that do not fit: the system would end the program without a message.
fn check_memory<B: TrainBackend>(
    config: &DecoderConfig,
    quantization: Option<Quantization>,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let bytes = config.tensors().into_iter().map(|tensor| {
        let quantization = quantization.filter(|_| tensor.is_projection());
        let plain = tensor.count() * dtype.size();
        quantization.map_or(plain, |quantization| quantization.bytes(tensor.count()))
    });
    let needed = bytes.sum::<usize>() as f64;
    match B::available_memory_bytes(device) {
        Some(available) if needed > available as f64 * MAX_WEIGHTS_FRACTION => Err(Error::invalid(
            "--shape",
            format!(
                "weights of {:.1} GB do not fit into the {:.1} GB that are available",
                needed / 1e9,
                available as f64 / 1e9
            ),
            "use fewer layers: --layers 2, a smaller --dtype, or --quantization nf4",
        )),
        _ => Ok(()),
    }
}

impl BenchOptions {
    /// Refuses options that are out of range.
    fn check(&self) -> Result<()> {
        let refuse = |flag: &str, problem: String, remedy: &str| {
            Err::<(), _>(Error::invalid(flag, problem, remedy))
        };
        let (layers, max_layers) = (self.layers, self.shape.num_hidden_layers);
        if let Some(few) = self.tokens.iter().find(|tokens| **tokens < step::MIN_TOKENS) {
            let problem = format!("{few} tokens are too few for a pair");
            return refuse("--tokens", problem, "give at least 16");
        }
        if let Some(layers) = layers.filter(|layers| !(1..=max_layers).contains(layers)) {
            let problem = format!("{layers} of a shape with {max_layers} layers");
            return refuse("--layers", problem, "give a number from 1 to the shape's own");
        }
        if self.steps == 0 || self.rank == 0 || self.tokens.is_empty() {
            let problem = "must be at least 1".to_string();
            return refuse("--steps, --rank, --tokens", problem, "set each to at least 1");
        }
        match self.peak_tflops {
            Some(peak) if peak.is_nan() || peak <= 0.0 => {
                let problem = format!("must be above 0, is {peak}");
                refuse("--peak-tflops", problem, "leave it out if it is not known")
            }
            _ => Ok(()),
        }
    }

    /// Returns the device's peak in FLOP per second: the option, or the known value of the device.
    fn peak_flops(&self, model: Option<&str>, dtype: DType) -> Option<f64> {
        let known = model.filter(|model| {
            // The PCIe and NVL cards are slower.
            (model.contains("H100") && model.contains("HBM3") || model.contains("H200"))
                && !model.contains("NVL")
        });
        let in_16_bits = dtype.size() == 2;
        let known = known.filter(|_| in_16_bits).map(|_| HOPPER_FLOPS);
        self.peak_tflops.map(|peak| peak * 1e12).or(known)
    }

    /// Returns the title of the tables.
    fn title(&self, layers: usize) -> String {
        let all = self.shape.num_hidden_layers;
        let layers_text = if layers == all {
            format!("{layers} layers")
        } else {
            format!("{layers} of {all} layers: all results are those of this smaller model")
        };
        format!("{}, {layers_text}", self.name)
    }

    /// Returns the lines above the first table.
    fn head<B: TrainBackend>(&self, setup: &Setup<B>) -> Vec<String> {
        let reference =
            if self.precomputed { "reference known beforehand" } else { "reference computed" };
        let weights = format!(
            "{:.2} M random weights in {}{}; rank {} on {}: {:.2} M trainable; {reference}",
            setup.config.weights() as f64 / 1e6,
            setup.dtype.name(),
            self.quantization_text(),
            self.rank,
            targets(&self.targets),
            setup.trainable as f64 / 1e6,
        );
        let pair = format!(
            "a pair: at most {} tokens, 30 % prompt (once in the packed row), 35 % per completion; a step: one update, the \
                         median of {}",
            setup.pair_tokens, self.steps
        );
        let columns = "attended: both sides of a pair in full, as TRL computes them; FLOP: 2 per weight and token in each \
                               pass, without attention and adapters; peak: the highest so far";
        vec![weights, pair, columns.to_string(), String::new()]
    }

    /// Returns how projections are quantized, or nothing.
    fn quantization_text(&self) -> String {
        let double = |quantization: Quantization| {
            if quantization.double_quant { ", scales in 8 bits" } else { "" }
        };
        let text = self.quantize.map(|quantization| {
            format!(", projections quantized to {}{}", quantization.name(), double(quantization))
        });
        text.unwrap_or_default()
    }

    /// Returns the settings as a JSON object.
    fn json<B: TrainBackend>(&self, setup: &Setup<B>, device: &str) -> Value {
        json!({
            "command": "bench",
            "shape": self.name,
            "layers": setup.config.num_hidden_layers,
            "layers_of_shape": self.shape.num_hidden_layers,
            "weights": setup.config.weights(),
            "dtype": setup.dtype.name(),
            "quantization": self.quantize.map(|quantization| quantization.description()),
            "device": device,
            "targets": targets(&self.targets),
            "rank": self.rank,
            "trainable": setup.trainable,
            "precomputed": self.precomputed,
            "steps": self.steps,
        })
    }
}

/// Returns the names of the projections that have a LoRA branch.
fn targets(targets: &TargetModules) -> String {
    match targets {
        TargetModules::AllLinear => "all projections".to_string(),
        TargetModules::Names(names) => names.join(", "),
        TargetModules::Pattern(pattern) => pattern.clone(),
    }
}
