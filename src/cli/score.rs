//! Implements `arithmo score`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::data::encode::{Compat, EncodeConfig, TruncationMode, encode_pairs};
use crate::data::pair::read_pairs;
use crate::data::prompt::PLAIN;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::objective::score::{ScoreOptions, Truncated, write_marked_scores};
use crate::output::OutputFile;
use crate::progress::ProgressMode;

use super::at_least_one;
use super::model::ModelArgs;
use super::template::TemplateArgs;

/// Write the log-probabilities of both completions of every pair.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Read pairs from this .jsonl, .json or .parquet file.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Write the scores to this file, one line of JSON per pair; `-` means standard output.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Also write every completion token's id and log-probability.
    #[arg(long)]
    pub per_token: bool,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    /// Truncate prompt + completion to this many tokens.
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = at_least_one)]
    pub max_length: usize,
    /// Compute this many pairs together.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_one)]
    pub batch_size: usize,
}

/// Scores the pairs and writes the output.
///
/// # Errors
/// An input cannot be read or the inputs do not fit together; the output then does not appear.
pub fn run<B: TrainBackend>(
    args: &ScoreArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let output = OutputFile { path: &args.output, overwrite: args.overwrite, stream: true };
    let inputs = std::iter::once(args.data.as_path()).chain(args.model.inputs());
    output.check(inputs.chain(args.template.inputs()))?;
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let config = EncodeConfig {
        compat: Compat::Trl1,
        max_length: Some(args.max_length),
        max_prompt_length: None,
        truncation_mode: TruncationMode::KeepStart,
        prompt_template: args.template.or(PLAIN)?,
        assistant_only_loss: false,
    };
    let encoded =
        encode_pairs(&tokenizer, &read_pairs(&args.data, tokenizer.chat_template())?, &config)?;
    // Nothing is trained here: pairs without anything to train on still have scores.
    let encoded = encoded.settle(true, false)?;
    if mode != ProgressMode::Quiet {
        for line in encoded.report.summary() {
            say!("{}: {line}", args.data.display());
        }
    }
    let model = args.model.load::<B>(&folder, mode, device)?;
    encoded.check_fits(model.config.vocab_size, model.config.max_position_embeddings)?;
    let options =
        ScoreOptions { batch_size: args.batch_size, per_token: args.per_token, progress: mode };
    let (pairs, report) = (&encoded.pairs, &encoded.report);
    let truncated = Truncated::of(report);
    write_marked_scores(&model, pairs, &truncated, &args.output, &options, device)?;
    if pairs.len() < report.pairs_read {
        // The warning is printed with --quiet too, because the file does not show what it lacks.
        say!(
            "warning: {}: holds {} of the {} pairs of {}; the prompts of the others fill --max-length = {}",
            args.output.display(),
            pairs.len(),
            report.pairs_read,
            args.data.display(),
            args.max_length
        );
    }
    Ok(())
}
