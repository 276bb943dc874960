//! `bench`: what a DPO step of a model with random weights costs here, and where its time goes.

mod operations;
mod products;
mod shape;
mod step;

use std::time::{Duration, Instant};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;
use serde_json::{Value, json};

use self::operations::{Classes, time_classes};
use self::products::Product;
pub use self::shape::shape;
use self::step::{Run, Setup};
use crate::config::{GradientCheckpointing, TargetModules};
use crate::doctor::{Out, device_name, products_by};
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::quantize::{Quantization, is_projection};
use crate::train::setup::weights;

/// Of the memory there is, what weights may take: a step needs some too.
const WEIGHTS_SHARE: f64 = 0.9;

/// Tokens of the first step of [`probe`].
const FIRST_TOKENS: usize = 64;

/// FLOP a second of an H100 or H200 (SXM) in 16-bit floats without sparsity, as NVIDIA's data sheets give it.
const HOPPER_FLOPS: f64 = 989e12;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What the user called the shape.
    pub name: String,
    /// The model's shape: see [`shape`].
    pub shape: MistralConfig,
    /// Packed tokens of a step; each number is measured.
    pub tokens: Vec<usize>,
    /// Layers instead of the shape's own number.
    pub layers: Option<usize>,
    /// Which projections have a branch.
    pub targets: TargetModules,
    /// Rank of the branches.
    pub rank: usize,
    /// Type of the weights; `None`: what a run would hold them in, see [`choose`].
    pub dtype: Option<DType>,
    /// How the projections are packed; `None`: they are of this type too.
    pub quantize: Option<Quantization>,
    /// Whether the reference's log-probabilities are known beforehand.
    pub precomputed: bool,
    /// Steps timed, after one that is not.
    pub steps: usize,
    /// Whether activations are computed again in backward.
    pub checkpointing: GradientCheckpointing,
    /// The device's peak, FLOP a second / 10^12.
    pub peak_tflops: Option<f64>,
}

/// Measures, and writes a table to `out`, then one line of JSON.
///
/// # Errors
/// An option is out of range, the weights do not fit, a step's numbers are not finite, or the user interrupts.
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
    // Ascending, because the peak of memory never falls.
    tokens.sort_unstable();
    tokens.dedup();
    out(&Run::header())?;
    let mut runs = Vec::new();
    for tokens in tokens {
        let run = setup.measure(tokens, options, device)?;
        out(&run.line(peak))?;
        runs.push(run);
    }
    out("\nBy operation, each timed alone, as often as it comes in a step: milliseconds")?;
    out(&Classes::header())?;
    let mut parts = Vec::new();
    for run in &runs {
        let classes = time_classes(&setup, run, device)?;
        out(&classes.line(run))?;
        parts.push(classes);
    }
    let most = runs.last().map_or(0, |run| run.tokens);
    let (shape, most) = (&setup.config, most.min(B::pass_tokens()));
    let by = B::products_by(device);
    let products = products::measure::<B>(&by, shape, most, dtype, device, out)?;
    let runs = runs.iter().zip(&parts).map(|(run, classes)| {
        let mut value = run.json(peak);
        value["seconds_by_operation"] = classes.json();
        value
    });
    let mut result = options.json(&setup, &name);
    result["peak_flop_per_second"] = json!(peak);
    result["runs"] = runs.collect();
    result["products_by"] = products_by(&by);
    result["products"] = products.iter().map(Product::json).collect();
    out(&result.to_string())
}

/// What a step of a few layers took.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Packed tokens of the step.
    pub tokens: usize,
    /// Completion tokens scored.
    pub scored: usize,
    /// Its time.
    pub seconds: f64,
}

/// Times a step of few layers ([`BenchOptions::layers`]): of few tokens at first, then of four times as many, up to those
/// asked for or until the next would end after `limit`.
///
/// # Errors
/// As [`bench()`].
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
    let most = options.tokens.iter().copied().max().unwrap_or(0);
    let mut tokens = most.clamp(step::FEWEST, FIRST_TOKENS);
    loop {
        let run = setup.measure(tokens, options, device)?;
        let next = (4 * tokens).min(most);
        // One step that is not counted, and one that is.
        let ends =
            started.elapsed().as_secs_f64() + 2.2 * run.seconds * next as f64 / tokens as f64;
        if next <= tokens || ends > limit.as_secs_f64() {
            return Ok(run.probe());
        }
        tokens = next;
    }
}

/// Weights that do not fit would end the program without a word.
fn check_memory<B: TrainBackend>(
    config: &MistralConfig,
    packed: Option<Quantization>,
    dtype: DType,
    device: &B::Device,
) -> Result<()> {
    let bytes = config.tensors().into_iter().map(|(name, shape)| {
        let (count, packed) = (shape.iter().product(), packed.filter(|_| is_projection(&name)));
        packed.map_or(count * dtype.size(), |packed| packed.bytes(count))
    });
    let needed = bytes.sum::<usize>() as f64;
    match B::available_memory_bytes(device) {
        Some(available) if needed > available as f64 * WEIGHTS_SHARE => Err(Error::invalid(
            "--shape",
            format!(
                "weights of {:.1} GB do not fit into the {:.1} GB there are",
                needed / 1e9,
                available as f64 / 1e9
            ),
            "use fewer layers: --layers 2, a smaller --dtype, or --quantization nf4",
        )),
        _ => Ok(()),
    }
}

impl BenchOptions {
    fn check(&self) -> Result<()> {
        let refuse = |flag: &str, problem: String, remedy: &str| {
            Err::<(), _>(Error::invalid(flag, problem, remedy))
        };
        let (layers, most) = (self.layers, self.shape.num_hidden_layers);
        if let Some(few) = self.tokens.iter().find(|tokens| **tokens < step::FEWEST) {
            let problem = format!("{few} tokens hold no pair");
            return refuse("--tokens", problem, "give at least 16");
        }
        if let Some(layers) = layers.filter(|layers| !(1..=most).contains(layers)) {
            let problem = format!("{layers} of a shape with {most} layers");
            return refuse("--layers", problem, "give a number from 1 to the shape's own");
        }
        if self.steps == 0 || self.rank == 0 || self.tokens.is_empty() {
            let problem = "there is nothing to measure with 0 of something".to_string();
            return refuse("--steps, --rank, --tokens", problem, "give at least 1");
        }
        match self.peak_tflops {
            Some(peak) if peak.is_nan() || peak <= 0.0 => {
                let problem = format!("must be above 0, is {peak}");
                refuse("--peak-tflops", problem, "leave it out if it is not known")
            }
            _ => Ok(()),
        }
    }

    /// FLOP a second at best, as given, or as known of the device.
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

    fn title(&self, layers: usize) -> String {
        let all = self.shape.num_hidden_layers;
        let of_layers = match layers == all {
            true => format!("{layers} layers"),
            false => {
                format!("{layers} of {all} layers: all numbers are those of this smaller model")
            }
        };
        format!("{}, {of_layers}", self.name)
    }

    fn head<B: TrainBackend>(&self, setup: &Setup<B>) -> Vec<String> {
        let reference = match self.precomputed {
            true => "reference known beforehand",
            false => "reference computed",
        };
        let weights = format!(
            "{:.2} M random weights in {}{}; rank {} on {}: {:.2} M trainable; {reference}",
            weights(&setup.config) as f64 / 1e6,
            setup.dtype.name(),
            self.packed_as(),
            self.rank,
            targets(&self.targets),
            setup.trainable as f64 / 1e6,
        );
        let pair = format!(
            "a pair: at most {} tokens, 30 % prompt (in the row once), 35 % each completion; a step: one update, the \
             median of {}",
            setup.pair_tokens, self.steps
        );
        let columns = "attended: both sides of a pair in full, as TRL computes them; FLOP: 2 a weight and token in each \
                       pass, attention and adapters not counted; peak: the most so far";
        vec![weights, pair, columns.to_string(), String::new()]
    }

    fn packed_as(&self) -> String {
        let double = |packed: Quantization| {
            if packed.double_quant { ", scales in 8 bits" } else { "" }
        };
        let packed = self
            .quantize
            .map(|packed| format!(", projections packed as {}{}", packed.name(), double(packed)));
        packed.unwrap_or_default()
    }

    fn json<B: TrainBackend>(&self, setup: &Setup<B>, device: &str) -> Value {
        json!({
            "command": "bench",
            "shape": self.name,
            "layers": setup.config.num_hidden_layers,
            "layers_of_shape": self.shape.num_hidden_layers,
            "weights": weights(&setup.config),
            "dtype": setup.dtype.name(),
            "quantization": self.quantize.map(|packed| packed.description()),
            "device": device,
            "targets": targets(&self.targets),
            "rank": self.rank,
            "trainable": setup.trainable,
            "precomputed": self.precomputed,
            "steps": self.steps,
        })
    }
}

fn targets(targets: &TargetModules) -> String {
    match targets {
        TargetModules::AllLinear => "all projections".to_string(),
        TargetModules::Names(names) => names.join(", "),
    }
}
