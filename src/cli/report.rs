//! Implements `arithmo report`: plots and an HTML page of a run.

use std::path::PathBuf;

use crate::error::Result;
use crate::report::write_report;

/// Arguments of `arithmo report`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Read the training run in this folder (its `output_dir`) and write the report to its subfolder `report`.
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
}

/// Writes the report and prints the path of its page.
///
/// # Errors
/// Same as [`write_report`].
pub fn run(args: &ReportArgs) -> Result<()> {
    let paths = write_report(&args.run)?;
    super::print_line(&paths.index.display().to_string())
}
