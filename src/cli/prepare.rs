//! `arithmo prepare`: arguments to a call of [`crate::data::prepare`].

use std::path::PathBuf;

use clap::Args;

use crate::data::prepare::{Form, PrepareOptions, PrepareSummary, Preset, Rules, Source, prepare};
use crate::data::stack_exchange::Format;
use crate::data::stack_exchange::input::{Fetch, resolve};
use crate::error::Result;
use crate::progress::ProgressMode;

/// Turn Stack Exchange rows into preference pairs.
#[derive(Args, Clone, Debug)]
pub struct PrepareArgs {
    /// A file, a folder, a glob pattern in quotes, or an hf://datasets/… address; may be repeated.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH|hf://…")]
    pub input: Vec<String>,
    /// What the inputs are; auto looks at their first bytes.
    #[arg(long, value_enum, default_value = "auto")]
    pub format: Format,
    /// Where the pairs go; counts go beside it, to STEM.stats.json.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Rules, in TOML (see configs/prepare-default.toml).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Rules to start from, in place of the config's preset.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Where the held-out pairs go [default: STEM.held-out.jsonl beside the output].
    #[arg(long, value_name = "FILE")]
    pub held_out: Option<PathBuf>,
    /// Questions no pair may repeat: JSON Lines with "question" (GSM8K) or "problem" (MATH); may be repeated.
    #[arg(long, value_name = "FILE")]
    pub exclude_questions: Vec<PathBuf>,
    /// Write a JSON array of {"question","chosen","rejected"} instead of JSON Lines.
    #[arg(long)]
    pub json_array: bool,
    /// Count and skip rows that cannot be read, rather than stop at the first.
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Replace existing outputs.
    #[arg(long)]
    pub overwrite: bool,
}

/// Does what the arguments say; `fetch` brings `hf://…` addresses to the disk. The caller prints the summary, to
/// stderr.
///
/// # Errors
/// As [`prepare`]; or an input or the config cannot be found or read.
pub fn run(args: &PrepareArgs, mode: ProgressMode, fetch: Fetch<'_>) -> Result<PrepareSummary> {
    let rules = match &args.config {
        Some(path) => Rules::load(path, args.preset)?,
        None => Rules::preset(args.preset.unwrap_or_default()),
    };
    let files = resolve(&args.input, fetch)?;
    let options = PrepareOptions {
        sources: files.into_iter().map(|path| Source::File(path, args.format)).collect(),
        output: args.output.clone(),
        held_out: args.held_out.clone(),
        rules,
        exclude_questions: args.exclude_questions.clone(),
        form: if args.json_array { Form::Array } else { Form::Lines },
        skip_bad_rows: args.skip_bad_rows,
        overwrite: args.overwrite,
    };
    prepare(&options, mode)
}
