//! `arithmo merge`: writes base and adapter as one model.

mod measure;

use std::path::PathBuf;

use arithmo_backends::TrainBackend;

use self::measure::measure;
use super::model::{WeightType, packed_as};
use super::print_line;
use crate::config::Quantization;
use crate::error::{Error, Result};
use crate::lora::adapter;
use crate::lora::merge::{MergeConfig, MergeTarget, merge};
use crate::model::config::MistralConfig;
use crate::model::hub::Hub;
use crate::model::quantize;
use crate::progress::{Progress, ProgressMode};

/// Arguments of `arithmo merge`.
#[derive(Clone, Debug, clap::Args)]
pub struct MergeArgs {
    /// Base model: a folder in Hugging Face layout, or a hub id (owner/name)
    #[arg(long, value_name = "M")]
    pub model: String,
    /// Branch, tag or commit, if the model is a hub id
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Model folder to write
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Type of the weights written; auto: as the base stores them
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: WeightType,
    /// What the base was packed as while the adapter was trained [default: what its folder notes]
    #[arg(long, value_enum, value_name = "none|nf4|fp4|int8", hide_possible_values = true)]
    pub quantization: Option<Quantization>,
    /// With scales in 8 bits
    #[arg(long, requires = "quantization")]
    pub double_quant: bool,
    /// Of an adapter trained on a packed base, what it is added to: the floats the packed weights stand for, which is what was
    /// trained; the original weights; or those floats, and the sums are packed again [default: dequantized]
    #[arg(
        long,
        value_enum,
        value_name = "dequantized|original|requantized",
        hide_possible_values = true
    )]
    pub target: Option<MergeTarget>,
    /// Pairs to measure on what each target changes [default: the run's own, or a few texts of this program]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Do not measure what each target changes
    #[arg(long, conflicts_with = "data")]
    pub no_measure: bool,
    /// Replace the output folder if it holds a model
    #[arg(long)]
    pub overwrite: bool,
}

/// Merges, computing on `device`, and prints the folder written; where the base was packed, says first what each target
/// changes.
///
/// # Errors
/// As [`merge`], or the base cannot be fetched.
pub fn run<B: TrainBackend>(
    args: &MergeArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let model = Hub::open(mode).resolve(&args.model, &args.revision)?;
    let shape = MistralConfig::load(&model)?;
    let packed = args.packed(shape.quantization)?;
    let config = MergeConfig {
        model,
        adapter: args.adapter.clone(),
        output: args.output.clone(),
        dtype: args.dtype.dtype(),
        packed,
        target: args.target.unwrap_or_default(),
        overwrite: args.overwrite,
    };
    config.check_output()?;
    if let Some(to) = packed
        && !args.no_measure
        && mode != ProgressMode::Quiet
    {
        measure::<B>(args, &config, to, mode, device)?;
    }
    let tensors = shape.tensors().len();
    let progress = Progress::new("merge", Some(tensors as u64), "weights", mode);
    let summary = merge::<B>(&config, device, |_| progress.inc(1))?;
    progress.println(&format!(
        "{} weights merged, {} written without a branch",
        summary.merged, summary.copied
    ));
    progress.finish();
    print_line(&config.output.display().to_string())
}

impl MergeArgs {
    /// What the base was packed as: as asked, as it is stored, or as the adapter's folder notes.
    fn packed(
        &self,
        stored: Option<quantize::Quantization>,
    ) -> Result<Option<quantize::Quantization>> {
        let packed = match (self.quantization, stored) {
            (Some(asked), stored) => {
                let asked = packed_as(asked, self.double_quant)?;
                if stored.is_some() && asked != stored {
                    return Err(Error::invalid(
                        "--quantization",
                        "is not what the base is packed as",
                        "leave it out: the folder says what it is",
                    ));
                }
                asked
            }
            (None, Some(stored)) => Some(stored),
            (None, None) => adapter::trained_on(&self.adapter)?,
        };
        let flag = match (self.target, &self.data) {
            (Some(_), _) => "--target",
            (_, Some(_)) => "--data",
            _ => return Ok(packed),
        };
        match packed {
            Some(packed) => Ok(Some(packed)),
            None => Err(Error::invalid(
                flag,
                "has no effect: nothing says that the adapter was trained on a packed base",
                "leave it out, or say with --quantization what the base was packed as",
            )),
        }
    }
}
