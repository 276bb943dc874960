//! Implements `arithmo generate`: completes prompts.

use std::io::Write;
use std::path::PathBuf;

use arithmo_backends::TrainBackend;

use crate::data::prompt::PLAIN;
use crate::data::template_text::unescape;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{Completion, GenerateConfig, complete, read_prompts, stop_ids};
use crate::output::{OutputFile, WholeFile};
use crate::progress::{Progress, ProgressMode, TokenWork};

use super::model::ModelArgs;
use super::print_line;
use super::template::{ChatTemplateArgs, TemplateArgs};

/// Arguments of `arithmo generate`.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("prompts given").required(true).args(["prompt", "prompts"]))]
pub struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Complete this prompt and print the completion as text.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Complete the prompts of this file, one {"prompt": "..."} per line, and print JSON lines.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Write JSON lines to this file instead of printing; `-` means standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long, requires = "output")]
    pub overwrite: bool,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    #[command(flatten)]
    pub(super) chat: ChatTemplateArgs,
    #[command(flatten)]
    pub(super) decoding: DecodingArgs,
    /// Decode this many prompts together.
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().batch_size)]
    pub batch_size: usize,
}

/// Flags for how tokens are chosen and when to stop, shared by the subcommands that generate.
#[derive(Clone, Debug, clap::Args)]
pub struct DecodingArgs {
    /// Generate at most this many tokens per completion.
    #[arg(long, value_name = "N", default_value_t = GenerateConfig::default().max_new_tokens)]
    pub max_new_tokens: usize,
    /// Set the sampling temperature: 0 always chooses the most likely token, higher values give more varied text.
    #[arg(long, value_name = "T", default_value_t = GenerateConfig::default().temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample among the K most likely tokens; 0 means all.
    #[arg(long, value_name = "K", default_value_t = GenerateConfig::default().top_k)]
    pub top_k: usize,
    /// Sample among the fewest tokens whose probabilities sum to P; 1 means all.
    #[arg(long, value_name = "P", default_value_t = GenerateConfig::default().top_p)]
    pub top_p: f64,
    /// Lower the logits of tokens already used by this factor; 1 means off.
    #[arg(long, value_name = "R", default_value_t = GenerateConfig::default().repetition_penalty)]
    pub repetition_penalty: f64,
    /// Set the seed of sampling [default: a new one each time for chat, 42 for other commands].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End a completion before this text, in which `\n` is a line break as in a template; may be repeated.
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    pub stop: Vec<String>,
    /// Do not guess tokens from the text so far; completions stay the same, but greedy decoding is slower.
    #[arg(long)]
    pub no_lookup: bool,
}

/// Parses the escapes in a stop text.
fn stop_text(typed: &str) -> std::result::Result<String, String> {
    unescape(typed, "--stop").map_err(|error| error.to_string())
}

impl DecodingArgs {
    /// Prints a note if `--max-new-tokens` exceeds the model's positions, where completions end.
    pub(super) fn note_positions(&self, positions: usize, mode: ProgressMode) {
        if self.max_new_tokens >= positions && mode != ProgressMode::Quiet {
            say!(
                "note: --max-new-tokens {}: completions end earlier, because the model has {positions} positions for prompt and \
                 completion together",
                self.max_new_tokens
            );
        }
    }

    /// Returns the settings that these flags describe, without end tokens.
    pub(super) fn config(&self, batch_size: usize) -> GenerateConfig {
        GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.unwrap_or(GenerateConfig::default().seed),
            places: None,
            eos_ids: Vec::new(),
            stop: self.stop.clone(),
            batch_size,
            lookup: !self.no_lookup,
        }
    }
}

/// Completes the prompts on `device` and prints or writes the completions in the prompts' order.
///
/// # Errors
/// An argument, the prompts, the model or the adapter is not valid; the output cannot be written; the user
/// interrupts.
pub fn run<B: TrainBackend>(
    args: &GenerateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    // Everything that can be checked before loading the weights is checked here.
    let mut config = args.decoding.config(args.batch_size);
    config.validate()?;
    let text = args.template.or(PLAIN)?;
    let prompts = match &args.prompts {
        Some(file) => read_prompts(file)?,
        None => args.prompt.iter().cloned().collect(),
    };
    let output = args.output.as_deref();
    if let Some(path) = output {
        let (overwrite, stream) = (args.overwrite, true);
        let output = OutputFile { path, overwrite, stream };
        let prompts = args.prompts.iter().map(PathBuf::as_path);
        output.check(prompts.chain(args.model.inputs()).chain(args.template.inputs()))?;
    }
    let file = output.map(WholeFile::create).transpose()?;

    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let format = args.chat.format(&args.template, &tokenizer, PLAIN, text)?;
    let model = args.model.load::<B>(&folder, mode, device)?;
    args.decoding.note_positions(model.config.max_position_embeddings, mode);
    config.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;

    let progress = Progress::new("generate", Some(prompts.len() as u64), "prompts", mode);
    let (mut tokens, mut work) = (0, TokenWork::new(prompts.len(), config.max_new_tokens));
    let completions = complete(&model, &tokenizer, &prompts, &format, &config, |step| {
        tokens += step.new_tokens;
        progress.set_message(format!("{tokens} tokens"));
        work.generated(step.new_tokens);
        progress.set_share(work.share());
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
        // The completion of a --prompt is printed as text.
        _ if args.prompts.is_none() => {
            completions.iter().try_for_each(|one| print_line(&one.completion))
        }
        _ => completions.iter().try_for_each(|one| print_line(&line(one)?)),
    }
}

/// Formats a completion as a line of JSON.
fn line(completion: &Completion) -> Result<String> {
    serde_json::to_string(completion)
        .map_err(|e| Error::run(format!("a completion is not JSON: {e}"), "please report this"))
}
