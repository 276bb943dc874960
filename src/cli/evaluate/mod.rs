//! `arithmo evaluate`: a model's answers scored against known ones, and two evaluations compared.

mod answers;
mod compare;
mod pages;
mod preference;

use std::path::PathBuf;
use std::time::Duration;

use arithmo_backends::TrainBackend;
use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::eval::folder::Folder;
use crate::eval::sandbox::{Limits, Sandbox};
use crate::eval::task::Task;
use crate::progress::ProgressMode;

use super::model::{ModelArgs, WeightType};

/// Arguments of `arithmo evaluate`.
#[derive(Args, Clone, Debug)]
pub struct EvaluateArgs {
    /// What is evaluated.
    #[arg(value_enum, required_unless_present = "compare", value_name = "TASK")]
    pub task: Option<TaskName>,
    /// A folder in Hugging Face layout, or a hub id OWNER/NAME.
    #[arg(long, value_name = "FOLDER|ID", required_unless_present_any = ["predictions", "compare"])]
    pub model: Option<String>,
    /// Branch, tag or commit on the hub.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// A PEFT adapter folder to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Type of the weights in memory; auto: as stored, or f32 if the backend does not compute in it.
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: WeightType,
    /// The problems, or the pairs of preference: .jsonl or .json.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["predictions", "compare"])]
    pub data: Option<PathBuf>,
    /// Folder for predictions.json and results.json [default: evaluation/TASK].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Score these answers; no model runs, results.json goes beside them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "compare"])]
    pub predictions: Option<PathBuf>,
    /// Compare two evaluations: their folders, or predictions files.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "model")]
    pub compare: Option<Vec<PathBuf>>,
    /// Begin anew where an evaluation is already.
    #[arg(long)]
    pub overwrite: bool,
    /// Only the first N problems.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Put N solved problems before each question, in lm-eval's form.
    #[arg(long, value_name = "N", requires = "shots_from", default_value_t = 0)]
    pub shots: usize,
    /// Where they come from: the first N of this file.
    #[arg(long, value_name = "FILE", requires = "shots")]
    pub shots_from: Option<PathBuf>,
    /// At most this many tokens an answer.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_new_tokens: usize,
    /// Prompts, or pairs, computed together.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// gsm8k-pot: run the programs the model writes, in a sandbox.
    #[arg(long)]
    pub allow_code_execution: bool,
    /// gsm8k-pot: the interpreter.
    #[arg(long, value_name = "NAME|PATH", default_value = "python3")]
    pub python: String,
    /// gsm8k-pot: CPU seconds a program may use; twice that on the clock.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub program_seconds: u64,
    /// gsm8k-pot: memory a program may use, in MiB, Python included.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(32..=65536))]
    pub program_memory: u64,
    /// preference: DPO's beta.
    #[arg(long, value_name = "B", default_value_t = 0.1)]
    pub beta: f64,
    /// What a question, or a pair's prompt, is put into [default: the task's own].
    #[arg(long, value_name = "TEXT")]
    pub prompt_template: Option<String>,
    /// preference: longest prompt + completion, in tokens.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_length: usize,
    /// compare: show the changes by this scorer [default: the last of the task's].
    #[arg(long, value_name = "NAME")]
    pub scorer: Option<String>,
}

/// The tasks' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskName {
    /// Word problems, answered step by step.
    Gsm8k,
    /// Word problems, answered by Python programs.
    Gsm8kPot,
    /// Competition problems, answers in formulas.
    Math,
    /// Pairs: is the chosen answer preferred?
    Preference,
}

impl TaskName {
    fn task(self) -> Task {
        match self {
            Self::Gsm8k => Task::Gsm8k,
            Self::Gsm8kPot => Task::Gsm8kPot,
            Self::Math => Task::Math,
            Self::Preference => Task::Preference,
        }
    }
}

impl EvaluateArgs {
    fn model_args(&self) -> Result<ModelArgs> {
        Ok(ModelArgs {
            model: self.model.clone().ok_or_else(|| missing("--model"))?,
            revision: self.revision.clone(),
            adapter: self.adapter.clone(),
            dtype: self.dtype,
        })
    }

    fn folder(&self, task: Task) -> Folder {
        let default = || PathBuf::from("evaluation").join(task.name());
        Folder(self.output.clone().unwrap_or_else(default))
    }

    fn limits(&self) -> Limits {
        Limits {
            cpu_seconds: self.program_seconds,
            wall: Duration::from_secs(2 * self.program_seconds),
            memory_bytes: self.program_memory << 20,
            ..Limits::default()
        }
    }

    /// The sandbox, where the task needs one and the user allows it.
    fn sandbox(&self, task: Task) -> Result<Option<Sandbox>> {
        if task != Task::Gsm8kPot {
            return Ok(None);
        }
        if !self.allow_code_execution {
            let problem = "gsm8k-pot runs Python programs that the model writes";
            let remedy = "add --allow-code-execution: they run in a sandbox, without network, files or other processes";
            return Err(Error::invalid("--allow-code-execution", problem, remedy));
        }
        let launcher =
            std::env::current_exe().map_err(|e| Error::io("arithmo", "find itself", e))?;
        Sandbox::open(&launcher, &self.python, self.limits()).map(Some)
    }
}

fn missing(flag: &str) -> Error {
    Error::invalid(flag, "is missing", "see arithmo evaluate --help")
}

/// Scores a predictions file, or compares two evaluations; `None`: a model has to run.
pub fn run_without_model(args: &EvaluateArgs, mode: ProgressMode) -> Option<Result<()>> {
    match (&args.compare, &args.predictions) {
        (Some(sides), _) => Some(compare::run(args, sides)),
        (None, Some(file)) => Some(answers::score_file(args, file, mode)),
        (None, None) => None,
    }
}

/// Evaluates a model on `device`.
///
/// # Errors
/// An argument, the data, the model or the adapter are not right; the user interrupts (the same command goes on).
pub fn run<B: TrainBackend>(
    args: &EvaluateArgs,
    mode: ProgressMode,
    device: &B::Device,
) -> Result<()> {
    let task = args.task.ok_or_else(|| missing("TASK"))?.task();
    match task {
        Task::Preference => preference::run::<B>(args, mode, device),
        _ => answers::run::<B>(args, task, mode, device),
    }
}
