//! Implements `arithmo evaluate`, which scores a model's answers or preferences, and `arithmo compare`, which compares two
//! evaluations.

mod answers;
mod compare;
mod pages;
mod preference;

use std::path::{Path, PathBuf};
use std::time::Duration;

use arithmo_backends::TrainBackend;
use clap::{Args, Subcommand};

use crate::error::{Error, Result};
use crate::eval::folder::{EvaluatedModel, Folder};
use crate::eval::sandbox::{Limits, Sandbox};
use crate::eval::task::Task;
use crate::progress::ProgressMode;

use super::at_least_one;
use super::model::{LoadArgs, ModelArgs};
use super::template::{ChatTemplateArgs, TemplateArgs};
pub use compare::CompareArgs;
pub(super) use pages::{interval, percent, results_page};

/// Arguments of `arithmo evaluate`.
#[derive(Args, Clone, Debug)]
pub struct EvaluateArgs {
    /// What is evaluated.
    #[command(subcommand)]
    pub task: TaskArgs,
}

/// The tasks.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once, never stored in numbers")]
pub enum TaskArgs {
    /// Solve word problems step by step, and compare the last number with the known answer.
    Gsm8k(InWordsArgs),
    /// Solve word problems by Python programs, and compare what they print with the known answer.
    Gsm8kPot(ProgramArgs),
    /// Solve competition problems, and compare the formula in the last box with the known one.
    Math(InWordsArgs),
    /// Score pairs, and count those whose chosen completion is preferred.
    Preference(PreferenceArgs),
}

impl TaskArgs {
    /// Returns the flags that select the form of the model.
    pub(super) fn load_args(&mut self) -> &mut LoadArgs {
        match self {
            Self::Gsm8k(args) | Self::Math(args) => &mut args.answers.load,
            Self::Gsm8kPot(args) => &mut args.answers.load,
            Self::Preference(args) => &mut args.model.load,
        }
    }
}

/// Arguments of the tasks that generate answers.
#[derive(Args, Clone, Debug)]
pub struct AnswersArgs {
    /// Load this model: a folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "FOLDER|ID", required_unless_present = "predictions")]
    pub model: Option<String>,
    #[command(flatten)]
    pub(super) load: LoadArgs,
    /// Read the problems from this .jsonl or .json file.
    #[arg(long, value_name = "FILE", required_unless_present = "predictions")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Score the answers in this file instead of running a model; results.json goes beside it.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["model", "adapter", "quantization", "max_new_tokens", "system", "no_chat_template"]
    )]
    pub predictions: Option<PathBuf>,
    /// Generate at most this many tokens per answer [default: 1024].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    #[command(flatten)]
    pub(super) chat: ChatTemplateArgs,
}

/// Arguments that every task has.
#[derive(Args, Clone, Debug)]
pub struct OutputArgs {
    /// Write predictions.json and results.json to this folder [default: evaluation/TASK].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace the evaluation that is in the output folder.
    #[arg(long)]
    pub overwrite: bool,
    /// Evaluate the first N rows only. A larger N goes on with the results of a smaller one.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    /// Compute N prompts, or pairs, together.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub batch_size: usize,
}

/// Arguments of gsm8k and math.
#[derive(Args, Clone, Debug)]
pub struct InWordsArgs {
    #[command(flatten)]
    pub(super) answers: AnswersArgs,
    /// Put N solved problems before each question, in lm-eval's form; the model's chat template is then not used.
    #[arg(
        long,
        value_name = "N",
        requires = "shots_from",
        conflicts_with_all = ["prompt_template", "prompt_template_file", "system", "predictions"]
    )]
    pub shots: Option<usize>,
    /// Take the solved problems from the start of this file.
    #[arg(long, value_name = "FILE", requires = "shots", conflicts_with = "predictions")]
    pub shots_from: Option<PathBuf>,
}

/// Arguments of gsm8k-pot.
#[derive(Args, Clone, Debug)]
pub struct ProgramArgs {
    #[command(flatten)]
    pub(super) answers: AnswersArgs,
    /// Run the programs the model writes, in a sandbox.
    #[arg(long)]
    pub allow_code_execution: bool,
    /// Run the programs with this interpreter.
    #[arg(long, value_name = "NAME|PATH", default_value = "python3")]
    pub python: String,
    /// Stop a program after N seconds of CPU time, or twice as many on the clock [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub program_seconds: Option<u64>,
    /// Let a program use at most N MiB of memory, Python included [default: 512].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(32..=65536))]
    pub program_memory: Option<u64>,
}

/// Arguments of preference.
#[derive(Args, Clone, Debug)]
pub struct PreferenceArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Read the pairs from this .jsonl, .json or .parquet file.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Scale the rewards by this beta of DPO.
    #[arg(long, value_name = "B", default_value_t = 0.1)]
    pub beta: f64,
    /// Truncate prompt + completion to N tokens, as training does.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    pub max_length: usize,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
}

/// The task and the arguments of an evaluation of generated answers.
#[derive(Clone, Copy, Debug)]
struct AnswersTask<'a> {
    task: Task,
    args: &'a AnswersArgs,
    /// Number of solved examples in the prompt, and their file.
    shots: Option<(usize, &'a Path)>,
    programs: Option<&'a ProgramArgs>,
}

impl TaskArgs {
    /// Returns the evaluation if its task generates answers, or else the arguments of `preference`, which scores
    /// log-probabilities.
    fn answers(&self) -> std::result::Result<AnswersTask<'_>, &PreferenceArgs> {
        match self {
            Self::Gsm8k(args) => Ok(args.task(Task::Gsm8k)),
            Self::Math(args) => Ok(args.task(Task::Math)),
            Self::Gsm8kPot(args) => Ok(AnswersTask {
                task: Task::Gsm8kPot,
                args: &args.answers,
                shots: None,
                programs: Some(args),
            }),
            Self::Preference(args) => Err(args),
        }
    }
}

impl InWordsArgs {
    fn task(&self, task: Task) -> AnswersTask<'_> {
        AnswersTask {
            task,
            args: &self.answers,
            shots: self.shots.zip(self.shots_from.as_deref()),
            programs: None,
        }
    }
}

impl AnswersArgs {
    fn model_args(&self) -> Result<ModelArgs> {
        Ok(ModelArgs {
            model: self.model.clone().ok_or_else(|| missing("--model"))?,
            load: self.load.clone(),
        })
    }
}

impl ModelArgs {
    /// Returns the description of the model in `folder` that identifies its results.
    fn evaluated_model<'a>(&'a self, folder: &'a Path) -> Result<EvaluatedModel<'a>> {
        Ok(EvaluatedModel {
            name: &self.model,
            folder,
            adapter: self.load.adapter.as_deref(),
            packed: self.load.quantize.quantization()?,
            dtype: self.load.dtype.dtype(),
        })
    }
}

impl OutputArgs {
    fn folder(&self, task: Task) -> Folder {
        let default = || PathBuf::from("evaluation").join(task.name());
        Folder(self.output.clone().unwrap_or_else(default))
    }
}

impl AnswersTask<'_> {
    /// Returns the files and folders that the evaluation reads, which no output may change.
    fn inputs(&self) -> Vec<&Path> {
        let args = self.args;
        let model = args.model.as_deref().map(Path::new);
        let files = [&args.data, &args.predictions, &args.load.adapter];
        let files = files.into_iter().filter_map(|path| path.as_deref());
        let shots = self.shots.map(|(_, file)| file);
        model.into_iter().chain(files).chain(shots).chain(args.template.inputs()).collect()
    }

    /// Opens the sandbox; `None` if the task runs no programs.
    ///
    /// # Errors
    /// The task runs programs and `--allow-code-execution` is not set, or this system cannot enforce the sandbox.
    fn sandbox(&self) -> Result<Option<Sandbox>> {
        let Some(args) = self.programs else {
            return Ok(None);
        };
        if !args.allow_code_execution {
            let problem = "gsm8k-pot runs Python programs that the model writes";
            let remedy = "add --allow-code-execution: they run in a sandbox, without network, files or other processes";
            return Err(Error::invalid("--allow-code-execution", problem, remedy));
        }
        let launcher =
            std::env::current_exe().map_err(|e| Error::io("arithmo", "find itself", e))?;
        Sandbox::open(&launcher, &args.python, args.limits()).map(Some)
    }
}

impl ProgramArgs {
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let cpu_seconds = self.program_seconds.unwrap_or(usual.cpu_seconds);
        Limits {
            cpu_seconds,
            wall: Duration::from_secs(cpu_seconds.saturating_mul(2)),
            memory_bytes: self
                .program_memory
                .map_or(usual.memory_bytes, |mib| mib.saturating_mul(1 << 20)),
            ..usual
        }
    }
}

/// Returns the error for a missing flag.
fn missing(flag: &str) -> Error {
    Error::invalid(flag, "is missing", "see arithmo evaluate --help")
}

/// Scores the file of `--predictions`. Returns `None` without that flag: then a model has to run.
pub fn run_without_model(args: &EvaluateArgs, mode: ProgressMode) -> Option<Result<()>> {
    let task = args.task.answers().ok()?;
    let file = task.args.predictions.as_deref()?;
    Some(answers::score_file(&task, file, mode))
}

/// Evaluates a model on `device`.
///
/// # Errors
/// An argument, the data, the model or the adapter is not valid; or the user interrupts (the same command continues).
pub fn run<B: TrainBackend>(
    args: &EvaluateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    match args.task.answers() {
        Ok(task) => answers::run::<B>(&task, mode, device),
        Err(args) => preference::run::<B>(args, mode, device),
    }
}
