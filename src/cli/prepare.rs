//! Implements `arithmo prepare`.

use std::path::PathBuf;

use clap::Args;

use crate::data::prepare::{Form, PrepareOptions, PrepareSummary, Preset, Rules, Source, prepare};
use crate::data::stack_exchange::Format;
use crate::data::stack_exchange::input::{Fetch, resolve};
use crate::error::Result;
use crate::progress::ProgressMode;

/// Convert Stack Exchange rows to preference pairs.
///
/// A question's title, if the source has one, is part of the question: it precedes the body in the prompt, and the
/// filters see it. The preset original, and title = "drop" in the config, use the body alone.
#[derive(Args, Clone, Debug)]
pub struct PrepareArgs {
    /// Read a file, a folder, a glob pattern in quotes, or an hf://datasets/… address; may be repeated.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH|hf://…")]
    pub input: Vec<String>,
    /// Set the format of the inputs; auto detects it from their first bytes.
    #[arg(long, value_enum, default_value = "auto")]
    pub format: Format,
    /// Write the pairs to this file, whose name ends in .jsonl, .ndjson or .json; counts go to STEM.stats.json beside
    /// it.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Read the rules from this TOML file (see configs/prepare-default.toml).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Start from these rules instead of the config's preset.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Write the held-out pairs to this file [default: STEM.held-out.jsonl beside the output].
    #[arg(long, value_name = "FILE")]
    pub held_out: Option<PathBuf>,
    /// Exclude pairs on the questions of this file: JSON Lines with "question" (GSM8K) or "problem" (MATH); may be
    /// repeated.
    #[arg(long, value_name = "FILE")]
    pub exclude_questions: Vec<PathBuf>,
    /// Write a JSON array of {"question","chosen","rejected"} instead of JSON Lines.
    #[arg(long)]
    pub json_array: bool,
    /// Count and skip rows that cannot be read, instead of stopping at the first.
    #[arg(long)]
    pub skip_bad_rows: bool,
    /// Replace existing outputs.
    #[arg(long)]
    pub overwrite: bool,
}

/// Prepares the pairs and returns the summary, which the caller prints to stderr; `fetch` downloads `hf://…`
/// addresses.
///
/// # Errors
/// Same as [`prepare`]; or an input or the config cannot be found or read.
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
        config: args.config.clone(),
        form: if args.json_array { Form::Array } else { Form::Lines },
        skip_bad_rows: args.skip_bad_rows,
        overwrite: args.overwrite,
    };
    prepare(&options, mode)
}
