//! Implements `arithmo demo`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::demo::{DemoOptions, DemoSize, demo};
use crate::error::Result;
use crate::output::Lock;
use crate::progress::ProgressMode;

/// Run everything on a small example: pairs, training, answers before and after, a report.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Write everything to this folder.
    #[arg(long, default_value = "arithmo-demo", value_name = "DIR")]
    pub output: PathBuf,
    /// Replace an existing demo.
    #[arg(long)]
    pub overwrite: bool,
    /// Set the seed of problems, samples and training.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Sample answers to this many problems; a quarter as many are held out.
    #[arg(long, value_name = "N", default_value_t = 2000, hide = true)]
    pub problems: usize,
}

/// Runs the demo and prints its results on stdout.
///
/// # Errors
/// Same as [`demo`].
pub fn run<B: TrainBackend>(args: &DemoArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let options = DemoOptions {
        output: args.output.clone(),
        size: DemoSize { problems: args.problems, seed: args.seed },
        overwrite: args.overwrite,
        progress: mode,
    };
    let _lock = Lock::folder(&args.output)?;
    let summary = demo::<B>(&options, device)?;
    if mode != ProgressMode::Quiet {
        say!("");
    }
    super::print_line(&summary.to_string())
}
