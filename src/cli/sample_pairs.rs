//! `arithmo sample-pairs`: preference pairs from a model's own answers.

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use clap::Args;

use super::model::ModelArgs;
use crate::data::prompt::{PromptTemplate, QUESTION};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::model_settings;
use crate::eval::problems::read_problems;
use crate::generate::{GenerateConfig, stop_ids};
use crate::iterate::rounds::SampleSection;
use crate::iterate::sample::{SampleOptions, partial_path, sample_pairs};
use crate::output::remove;
use crate::progress::ProgressMode;

/// Sample answers to problems, check them, and pair right with wrong.
#[derive(Args, Clone, Debug)]
pub struct SamplePairsArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Problems, one {"question": "...", "answer": "..."} a line; the answer may be a whole solution, as GSM8K's.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// The pairs; counts go to a file beside it (pairs.stats.json).
    #[arg(long, value_name = "FILE", default_value = "pairs.jsonl")]
    pub output: PathBuf,
    /// Replace the output if it is there, and what an interrupted run has kept.
    #[arg(long)]
    pub overwrite: bool,
    /// Answers a problem.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().samples)]
    pub samples: usize,
    /// Most pairs of one problem.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().pairs_per_problem)]
    pub pairs_per_problem: usize,
    /// Text put around each problem, with {prompt} where it goes.
    #[arg(long, value_name = "TEMPLATE", default_value = QUESTION)]
    pub prompt_template: String,
    /// At most this many tokens an answer.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().max_new_tokens)]
    pub max_new_tokens: usize,
    /// The higher, the freer.
    #[arg(long, value_name = "T", default_value_t = SampleSection::default().temperature)]
    pub temperature: f64,
    /// Sample among the K most likely tokens; 0: all.
    #[arg(long, value_name = "K", default_value_t = SampleSection::default().top_k)]
    pub top_k: usize,
    /// Sample among the fewest tokens that hold this probability; 1: all.
    #[arg(long, value_name = "P", default_value_t = SampleSection::default().top_p)]
    pub top_p: f64,
    /// Seed of sampling.
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().seed)]
    pub seed: u64,
    /// Answers decoded together.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().batch_size)]
    pub batch_size: usize,
}

/// Samples and pairs; says on stderr what came of it.
///
/// # Errors
/// An argument, the problems or the model are not right; no pair comes about; or the user interrupts.
pub fn run<B: TrainBackend>(
    args: &SamplePairsArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let mut options = SampleOptions {
        samples: args.samples,
        pairs_per_problem: args.pairs_per_problem,
        generate: GenerateConfig {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
            batch_size: args.batch_size,
            ..GenerateConfig::default()
        },
        prompt_template: PromptTemplate::new(&args.prompt_template)?,
        progress: mode,
    };
    options.validate()?;
    if args.output.exists() && !args.overwrite {
        let remedy = "replace it with --overwrite, or give another --output";
        return Err(Error::file(&args.output, "exists already", remedy));
    }
    let problems = read_problems(&args.data)?;
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let model = args.model.load::<B>(&folder, mode, device)?;
    options.generate.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;
    if args.overwrite {
        remove(&partial_path(&args.output))?;
    }
    let asked = model_settings(
        &args.model.model,
        &folder,
        model.config.quantization,
        args.model.adapter.as_deref(),
    )?
    .asking(&args.data, problems.len(), args.max_new_tokens)?;
    let stats = sample_pairs(&model, &tokenizer, &problems, &options, asked, &args.output)?;
    if mode != ProgressMode::Quiet {
        eprintln!("{}", stats.summary());
    }
    Ok(())
}
