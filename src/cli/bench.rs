//! Implements `arithmo bench`.

use arithmo_backends::TrainBackend;
use clap::{Args, ValueEnum};

use crate::bench::{BenchOptions, bench, shape};
use crate::config::{GradientCheckpointing, ModelDtype, TargetModules};
use crate::error::Result;

use super::at_least_one;
use super::model::QuantizeArgs;

/// Measure the DPO step of a model with random weights.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Set the model's shape: mistral-7b, mistral-nemo, ministral-3b, llama-3.1-8b, qwen2.5-7b, qwen3-4b, or the path of
    /// a config.json.
    #[arg(long, value_name = "NAME|FILE")]
    pub shape: String,
    /// Set the tokens per step; several values, separated by commas, are measured one after another.
    #[arg(
        long,
        value_name = "N[,N..]",
        value_delimiter = ',',
        default_value = "1024,2048,4096,8192"
    )]
    pub tokens: Vec<usize>,
    /// Use only this many layers, to measure a part of a model that does not fit [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub layers: Option<usize>,
    /// Choose the projections that get a low-rank branch.
    #[arg(long, value_enum, default_value = "qv")]
    pub targets: Targets,
    /// Set the rank of the branches.
    #[arg(long, default_value_t = 16, value_name = "R", value_parser = at_least_one)]
    pub rank: usize,
    /// Set the dtype of the weights; auto uses that of the shape, or the nearest one in which the backend computes.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: ModelDtype,
    #[command(flatten)]
    pub(super) quantize: QuantizeArgs,
    /// Treat the reference's log-probabilities as known (precompute_ref_log_probs), which leaves out its forward
    /// pass.
    #[arg(long)]
    pub precomputed: bool,
    /// Time this many steps per size, after one untimed step.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub steps: usize,
    /// Recompute activations in the backward pass; auto does so if they would not fit.
    #[arg(long, value_enum, default_value = "auto")]
    pub gradient_checkpointing: Checkpointing,
    /// Set the device's peak in TFLOP/s, to report the fraction reached; known for H100 and H200.
    #[arg(long, value_name = "X")]
    pub peak_tflops: Option<f64>,
}

/// The projections that get a low-rank branch.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Targets {
    /// q_proj and v_proj, PEFT's default for most families.
    Qv,
    /// All seven projections of each layer.
    AllLinear,
}

/// Whether activations are recomputed, as `gradient_checkpointing` in run.toml.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Checkpointing {
    /// If activations would not fit.
    Auto,
    /// Always.
    True,
    /// Never.
    False,
}

/// Runs the benchmark and prints the results on stdout.
///
/// # Errors
/// Same as [`bench()`].
pub fn run<B: TrainBackend>(args: &BenchArgs, device: &B::Device) -> Result<()> {
    let options = BenchOptions {
        name: args.shape.clone(),
        shape: shape(&args.shape)?,
        tokens: args.tokens.clone(),
        layers: args.layers,
        targets: match args.targets {
            Targets::Qv => TargetModules::Names(["q_proj", "v_proj"].map(String::from).to_vec()),
            Targets::AllLinear => TargetModules::AllLinear,
        },
        rank: args.rank,
        dtype: args.dtype.dtype(),
        quantize: args.quantize.quantization()?,
        precomputed: args.precomputed,
        steps: args.steps,
        checkpointing: match args.gradient_checkpointing {
            Checkpointing::Auto => GradientCheckpointing::Auto,
            Checkpointing::True => GradientCheckpointing::On,
            Checkpointing::False => GradientCheckpointing::Off,
        },
        peak_tflops: args.peak_tflops,
    };
    bench::<B>(&options, device, &mut super::print_line)
}
