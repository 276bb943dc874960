//! `arithmo demo`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::demo::{DemoOptions, DemoSize, demo};
use crate::error::Result;
use crate::progress::ProgressMode;

/// The whole way on a small example: pairs, training, answers before and after, a report.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Folder for everything the demo writes.
    #[arg(long, default_value = "arithmo-demo", value_name = "DIR")]
    pub output: PathBuf,
    /// Replace a demo that is already there.
    #[arg(long)]
    pub overwrite: bool,
    /// Seed of problems, samples and training.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Problems to sample answers to; a quarter as many are held out.
    #[arg(long, value_name = "N", default_value_t = 2000, hide = true)]
    pub problems: usize,
}

/// Runs the demo; prints its results on stdout.
///
/// # Errors
/// As [`demo`].
pub fn run<B: TrainBackend>(args: &DemoArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let options = DemoOptions {
        output: args.output.clone(),
        size: DemoSize { problems: args.problems, seed: args.seed },
        overwrite: args.overwrite,
        progress: mode,
    };
    let summary = demo::<B>(&options, device)?;
    if mode != ProgressMode::Quiet {
        eprintln!();
    }
    super::print_line(&summary.to_string())
}
