//! `arithmo bench`.

use arithmo_backends::TrainBackend;
use clap::{Args, ValueEnum};

use crate::bench::{BenchOptions, bench, shape};
use crate::config::{GradientCheckpointing, TargetModules};
use crate::error::Result;

use super::model::{QuantizeArgs, WeightType};

/// Measure a DPO step of a model with random weights.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The model's shape: mistral-7b, or the path of a config.json.
    #[arg(long, value_name = "mistral-7b|FILE")]
    pub shape: String,
    /// Packed tokens of a step; several, separated by commas, are measured in turn.
    #[arg(
        long,
        value_name = "N[,N..]",
        value_delimiter = ',',
        default_value = "1024,2048,4096,8192"
    )]
    pub tokens: Vec<usize>,
    /// Layers, fewer than the shape has: to measure a part of a model that does not fit.
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Which projections have a branch.
    #[arg(long, value_enum, default_value = "qv")]
    pub targets: Targets,
    /// Rank of the branches.
    #[arg(long, default_value_t = 16, value_name = "R")]
    pub rank: usize,
    /// Type of the weights; auto: that of the shape, or what the backend computes in that is nearest.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: WeightType,
    #[command(flatten)]
    pub(super) quantize: QuantizeArgs,
    /// Take the reference's log-probabilities as known (precompute_ref_log_probs).
    #[arg(long)]
    pub precomputed: bool,
    /// Steps timed of each size, after one that is not.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub steps: usize,
    /// Compute activations again in backward; auto: where they would not fit.
    #[arg(long, value_enum, default_value = "auto")]
    pub gradient_checkpointing: Checkpointing,
    /// The device's peak in TFLOP/s, for the share of it that is reached; known of H100 and H200.
    #[arg(long, value_name = "X")]
    pub peak_tflops: Option<f64>,
}

/// Projections with a branch.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Targets {
    /// q_proj and v_proj, PEFT's default for Mistral.
    Qv,
    /// All seven.
    AllLinear,
}

/// As `gradient_checkpointing` in run.toml.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Checkpointing {
    /// Where activations would not fit.
    Auto,
    /// Always.
    True,
    /// Never.
    False,
}

/// Measures; prints on stdout.
///
/// # Errors
/// As [`bench()`].
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
