//! `arithmo generate`: completes prompts.

use std::io::Write;
use std::path::PathBuf;

use arithmo_backends::TrainBackend;

use crate::data::prompt::{PLAIN, PromptTemplate};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{Completion, GenerateConfig, complete, read_prompts, stop_ids};
use crate::output::WholeFile;
use crate::progress::{Progress, ProgressMode};

use super::model::ModelArgs;
use super::print_line;

/// Arguments of `arithmo generate`.
#[derive(Clone, Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The prompt; its completion is printed as text
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    pub prompt: Option<String>,
    /// Prompts, one {"prompt": "..."} a line; completions are JSON lines
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// Write JSON lines to this file instead of printing
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Text put around each prompt, with {prompt} where it goes
    #[arg(long, value_name = "TEMPLATE", default_value = PLAIN)]
    pub prompt_template: String,
    #[command(flatten)]
    pub(super) decoding: DecodingArgs,
    /// Prompts decoded together
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().batch_size)]
    pub batch_size: usize,
}

/// How tokens are chosen and when to stop, for the subcommands that generate.
#[derive(Clone, Debug, clap::Args)]
pub struct DecodingArgs {
    /// At most this many tokens a completion
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().max_new_tokens)]
    pub max_new_tokens: usize,
    /// 0: always the most likely token; above: sample, the higher the freer
    #[arg(long, value_name = "T", default_value_t = GenerateConfig::default().temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample among the K most likely tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = GenerateConfig::default().top_k)]
    pub top_k: usize,
    /// Sample among the fewest tokens that hold this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = GenerateConfig::default().top_p)]
    pub top_p: f64,
    /// Divide the logits of tokens already used; 1: off
    #[arg(long, value_name = "R", default_value_t = GenerateConfig::default().repetition_penalty)]
    pub repetition_penalty: f64,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().seed)]
    pub seed: u64,
    /// End a completion before this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Do not guess tokens from the text so far: completions are the same, greedy ones come later
    #[arg(long)]
    pub no_lookup: bool,
}

impl DecodingArgs {
    /// The settings these arguments say, without end tokens.
    pub(super) fn config(&self, batch_size: usize) -> GenerateConfig {
        GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            places: None,
            eos_ids: Vec::new(),
            stop: self.stop.clone(),
            batch_size,
            lookup: !self.no_lookup,
        }
    }
}

/// Completes the prompts on `device` and prints or writes the completions, in the prompts' order.
///
/// # Errors
/// An argument, the prompts, the model or the adapter are not right; the output cannot be written; the user interrupts.
pub fn run<B: TrainBackend>(
    args: &GenerateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    // What can be checked before any weight is loaded is.
    let mut config = args.decoding.config(args.batch_size);
    config.validate()?;
    let template = PromptTemplate::new(&args.prompt_template)?;
    let prompts = match &args.prompts {
        Some(file) => read_prompts(file)?,
        None => args.prompt.iter().cloned().collect(),
    };
    let output = args.output.as_deref();
    let file = output.map(WholeFile::create).transpose()?;

    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let model = args.model.load::<B>(&folder, mode, device)?;
    config.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;

    let progress = Progress::new("generate", Some(prompts.len() as u64), "prompts", mode);
    let mut tokens = 0;
    let completions = complete(&model, &tokenizer, &prompts, &template, &config, |step| {
        tokens += step.new_tokens;
        progress.set_message(format!("{tokens} tokens"));
        progress.inc(step.finished as u64);
    })?;
    progress.finish();
    match (file, output) {
        (Some(mut file), Some(path)) => {
            for completion in &completions {
                writeln!(file, "{}", line(completion)?).map_err(|e| Error::io(path, "write", e))?;
            }
            file.commit()
        }
        // The completion of a prompt given as text is text.
        _ if args.prompts.is_none() => {
            completions.iter().try_for_each(|one| print_line(&one.completion))
        }
        _ => completions.iter().try_for_each(|one| print_line(&line(one)?)),
    }
}

/// A completion as a line of JSON.
fn line(completion: &Completion) -> Result<String> {
    serde_json::to_string(completion)
        .map_err(|e| Error::run(format!("a completion is not JSON: {e}"), "please report this"))
}
