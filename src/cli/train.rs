//! `arithmo train`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::config::RunConfig;
use crate::error::Result;
use crate::progress::ProgressMode;
use crate::train::folder::Existing;
use crate::train::run::{RunOptions, run as run_training};

/// Train a model, as a run.toml says: DPO or SFT, an adapter or all weights.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// The run's configuration (see configs/).
    #[arg(long, value_name = "run.toml")]
    pub config: PathBuf,
    /// Set a key over the file's value: table.key=value; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Continue the run in output_dir from its newest whole checkpoint.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Remove the run in output_dir and start again.
    #[arg(long)]
    pub overwrite: bool,
    /// Check everything and list what would be cut, dropped or refused; train nothing, write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Trains; prints the folder of the adapter (or the model) on stdout.
///
/// # Errors
/// As [`run_training`].
pub fn run<B: TrainBackend>(
    args: &TrainArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let config = RunConfig::load(&args.config, &args.set)?;
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let options = RunOptions {
        existing,
        dry_run: args.dry_run,
        progress: mode,
    };
    let summary = run_training::<B>(&config, &options, device)?;
    if let Some(output) = summary.output {
        super::print_line(&output.display().to_string())?;
    }
    Ok(())
}
