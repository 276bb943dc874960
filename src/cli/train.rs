//! `arithmo train`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::config::RunConfig;
use crate::error::Result;
use crate::plan::{Planned, parse_bytes};
use crate::progress::ProgressMode;
use crate::train::folder::Existing;
use crate::train::run::{Prepared, RunOptions, Start, run_from};

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
    /// Also what it takes of the device, and how long.
    #[arg(long)]
    pub dry_run: bool,
    /// Have the run do with so much of the device's memory, as 8GB, and refuse it if that is too little.
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
    /// Start though the plan says it will not fit.
    #[arg(long)]
    pub ignore_plan: bool,
    /// In a dry run, do not time a few layers on the device (ten seconds at most).
    #[arg(long, requires = "dry_run")]
    pub no_timing: bool,
}

/// Trains; prints the folder of the adapter (or the model) on stdout.
///
/// # Errors
/// As [`run_from`]; or the run does not fit the device.
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
    let options = RunOptions { existing, dry_run: args.dry_run, progress: mode };
    let memory = args.device_memory.as_deref().map(parse_bytes).transpose()?;
    let mut ready = |prepared: &Prepared| {
        let planned = Planned::of::<B>(prepared, &config, memory, device)?;
        if args.dry_run {
            let timing = match args.no_timing {
                true => None,
                false => planned.timing::<B>(device)?,
            };
            return super::plan::print(&planned, false, timing);
        }
        if mode != ProgressMode::Quiet {
            eprintln!("{}", planned.summary());
        }
        match args.ignore_plan {
            true => Ok(()),
            false => planned.check(),
        }
    };
    let start = Start { device_memory: memory, ready: &mut ready };
    let summary = run_from::<B>(&config, &options, start, device)?;
    if let Some(output) = summary.output {
        super::print_line(&output.display().to_string())?;
    }
    Ok(())
}
