//! `arithmo report`: plots and an HTML page of a run.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::report::write_report;

/// Arguments of `arithmo report`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Folder of a training run (its `output_dir`); the report is written to its subfolder `report`
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
}

/// Writes the report and prints the path of its page.
///
/// # Errors
/// As [`write_report`].
pub fn run(args: &ReportArgs) -> Result<()> {
    let paths = write_report(&args.run)?;
    writeln!(io::stdout(), "{}", paths.index.display())
        .map_err(|e| Error::io("standard output", "write", e))
}
