//! `arithmo merge`: writes base and adapter as one model.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;

use crate::error::Result;
use crate::lora::merge::{MergeConfig, merge};
use crate::model::config::MistralConfig;
use crate::model::hub::Hub;
use crate::progress::{Progress, ProgressMode};

use super::model::WeightType;
use super::print_line;

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
    /// Replace the output folder if it holds a model
    #[arg(long)]
    pub overwrite: bool,
}

/// Merges, computing on `device`, and prints the folder written.
///
/// # Errors
/// As [`merge`], or the base cannot be fetched.
pub fn run<B: TrainBackend>(
    args: &MergeArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let config = MergeConfig {
        model: Hub::open(mode).resolve(&args.model, &args.revision)?,
        adapter: args.adapter.clone(),
        output: args.output.clone(),
        dtype: args.dtype.dtype(),
        overwrite: args.overwrite,
    };
    let tensors = MistralConfig::load(&config.model)?.tensors().len();
    let progress = Progress::new("merge", Some(tensors as u64), "weights", mode);
    let summary = merge::<B>(&config, device, |_| progress.inc(1))?;
    progress.println(&format!(
        "{} weights merged, {} written as they were",
        summary.merged, summary.copied
    ));
    progress.finish();
    print_line(&config.output.display().to_string())
}
