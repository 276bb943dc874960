//! `arithmo score`.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use crate::data::encode::{Compat, EncodeConfig, TruncationMode, encode_pairs};
use crate::data::pair::read_pairs;
use crate::data::prompt::{PLAIN, PromptTemplate};
use crate::data::tokenizer::Tokenizer;
use crate::dpo::score::{ScoreOptions, write_scores};
use crate::error::Result;
use crate::progress::ProgressMode;

use super::model::ModelArgs;

/// Write the log-probabilities of both completions of every pair.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Pairs: .jsonl, .json or .parquet.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Where the scores go, a JSON line a pair.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Also write every completion token's id and log-probability.
    #[arg(long)]
    pub per_token: bool,
    /// What a prompt is put into.
    #[arg(long, default_value = PLAIN, value_name = "TEXT")]
    pub prompt_template: String,
    /// Longest prompt + completion, in tokens.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_length: usize,
    /// Pairs computed together.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub batch_size: usize,
}

/// Scores the file.
///
/// # Errors
/// Any input cannot be read or does not fit together; the output then does not appear.
pub fn run<B: TrainBackend>(
    args: &ScoreArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let config = EncodeConfig {
        compat: Compat::Trl1,
        max_length: Some(args.max_length),
        max_prompt_length: None,
        truncation_mode: TruncationMode::KeepStart,
        prompt_template: PromptTemplate::new(&args.prompt_template)?,
    };
    let encoded = encode_pairs(&tokenizer, &read_pairs(&args.data)?, &config)?;
    // Nothing is trained here: pairs that would train on nothing still have scores.
    let encoded = encoded.settle(true, false)?;
    if mode != ProgressMode::Quiet {
        for line in encoded.report.summary() {
            eprintln!("{}: {line}", args.data.display());
        }
    }
    let model = args.model.load::<B>(&folder, mode, device)?;
    encoded.check_fits(model.config.vocab_size, model.config.max_position_embeddings)?;
    let options =
        ScoreOptions { batch_size: args.batch_size, per_token: args.per_token, progress: mode };
    write_scores(&model, &encoded.pairs, &args.output, &options, device)
}
