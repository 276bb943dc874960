//! Implements `arithmo sample-pairs`: preference pairs from a model's own answers.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use clap::Args;

use super::at_least_one;
use super::model::ModelArgs;
use super::template::{ChatTemplateArgs, TemplateArgs};
use crate::data::prompt::{PLAIN, QUESTION};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::{EvaluatedModel, answers_key};
use crate::eval::problems::read_problems;
use crate::eval::store::remove_kept;
use crate::generate::{GenerateConfig, stop_ids};
use crate::input_file;
use crate::iterate::SampleStats;
use crate::iterate::rounds::SampleSection;
use crate::iterate::sample::{SampleOptions, partial_path, sample_pairs, samples_path, stats_path};
use crate::output::{Lock, OutputFile, is_taken};
use crate::progress::ProgressMode;

/// Sample answers to problems, check them, and pair right answers with wrong ones.
#[derive(Args, Clone, Debug)]
pub struct SamplePairsArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Read problems from this file, one {"question": "...", "answer": "..."} per line; the answer may be a whole
    /// solution, as in GSM8K.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Write the pairs to this file, and beside it counts (pairs.stats.json) and every sample with its verdict
    /// (pairs.samples.jsonl).
    #[arg(long, value_name = "FILE", default_value = "pairs.jsonl")]
    pub output: PathBuf,
    /// Replace an existing output and the kept answers of an interrupted run.
    #[arg(long)]
    pub overwrite: bool,
    /// Sample this many answers per problem.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().samples, value_parser = at_least_one)]
    pub samples: usize,
    /// Make at most this many pairs per problem.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().pairs_per_problem, value_parser = at_least_one)]
    pub pairs_per_problem: usize,
    /// Let wrong answers that reached --max-new-tokens be rejected sides too. Training would end them with an end
    /// token that the model did not write.
    #[arg(long)]
    pub keep_cut_off: bool,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    #[command(flatten)]
    pub(super) chat: ChatTemplateArgs,
    /// Generate at most this many tokens per answer.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().max_new_tokens)]
    pub max_new_tokens: usize,
    /// Set the sampling temperature; higher values give more varied answers.
    #[arg(long, value_name = "T", default_value_t = SampleSection::default().temperature)]
    pub temperature: f64,
    /// Sample among the K most likely tokens; 0 means all.
    #[arg(long, value_name = "K", default_value_t = SampleSection::default().top_k)]
    pub top_k: usize,
    /// Sample among the fewest tokens whose probabilities sum to P; 1 means all.
    #[arg(long, value_name = "P", default_value_t = SampleSection::default().top_p)]
    pub top_p: f64,
    /// Set the seed of sampling.
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().seed)]
    pub seed: u64,
    /// Decode this many answers together.
    #[arg(long, value_name = "N", default_value_t = SampleSection::default().batch_size, value_parser = at_least_one)]
    pub batch_size: usize,
}

/// Samples and pairs answers, and prints a summary on stderr.
///
/// # Errors
/// An argument, the problems or the model is not valid; no pair results; or the user interrupts.
pub fn run<B: TrainBackend>(
    args: &SamplePairsArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let mut options = SampleOptions {
        samples: args.samples,
        pairs_per_problem: args.pairs_per_problem,
        keep_cut_off: args.keep_cut_off,
        generate: GenerateConfig {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
            batch_size: args.batch_size,
            ..GenerateConfig::default()
        },
        prompt_format: args.template.or(QUESTION)?.into(),
        progress: mode,
    };
    options.validate()?;
    args.check_outputs()?;
    let _lock = Lock::beside(&args.output)?;
    let problems = read_problems(&args.data)?;
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let text = args.template.or(QUESTION)?;
    options.prompt_format = args.chat.format(&args.template, &tokenizer, PLAIN, text)?;
    let model = args.model.load::<B>(&folder, mode, device)?;
    options.generate.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;
    if args.overwrite {
        remove_kept(&partial_path(&args.output))?;
    }
    let evaluated = EvaluatedModel {
        name: &args.model.model,
        folder: &folder,
        adapter: args.model.load.adapter.as_deref(),
        packed: model.config.quantization,
        dtype: args.model.load.dtype.dtype(),
    };
    let key = answers_key(evaluated.settings()?, &args.data, &problems, args.max_new_tokens);
    let stats = sample_pairs(&model, &tokenizer, &problems, &options, key, &args.output)?;
    if stats.pairs == 0 {
        let samples = samples_path(&args.output);
        let mut problem = format!("no pair resulted: {}", stats.summary());
        if is_taken(&args.output) {
            problem =
                format!("{problem}; {} still holds what it held before", args.output.display());
        }
        let remedy = format!(
            "look at the samples in {}; then raise --samples, --temperature or --max-new-tokens, or choose problems the model \
             sometimes solves",
            samples.display()
        );
        return Err(Error::run(problem, remedy));
    }
    if mode != ProgressMode::Quiet {
        say!("{}", stats.summary());
    }
    Ok(())
}

impl SamplePairsArgs {
    /// Checks that no input is overwritten, and nothing else without --overwrite except the files of a run that was
    /// interrupted or gave no pair.
    fn check_outputs(&self) -> Result<()> {
        let (stats, partial) = (stats_path(&self.output), partial_path(&self.output));
        let samples = samples_path(&self.output);
        let may_replace = self.overwrite || partial.is_file() || self.left_no_pairs(&stats);
        for (path, overwrite) in [
            (&self.output, self.overwrite),
            (&stats, may_replace),
            (&samples, may_replace),
            (&partial, true),
        ] {
            let output = OutputFile { path, overwrite, stream: false };
            let inputs = std::iter::once(self.data.as_path()).chain(self.model.inputs());
            output.check(inputs.chain(self.template.inputs()))?;
        }
        Ok(())
    }

    /// Returns whether an earlier run ended without a pair, and left only its counts and samples.
    fn left_no_pairs(&self, stats: &Path) -> bool {
        let text = input_file::read_to_string(stats).unwrap_or_default();
        let stats: SampleStats = serde_json::from_str(&text).unwrap_or_default();
        !self.output.exists() && stats.samples > 0 && stats.pairs == 0
    }
}
