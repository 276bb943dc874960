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

use super::model::{ModelArgs, QuantizeArgs, WeightType};

/// Arguments that say how answers are made.
const GENERATING: [&str; 9] = [
    "model",
    "adapter",
    "quantization",
    "overwrite",
    "shots",
    "shots_from",
    "max_new_tokens",
    "max_length",
    "prompt_template",
];
/// Arguments that say how answers are scored.
const SCORING: [&str; 8] = [
    "predictions",
    "data",
    "limit",
    "beta",
    "allow_code_execution",
    "python",
    "program_seconds",
    "program_memory",
];

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
    #[command(flatten)]
    pub(super) quantize: QuantizeArgs,
    /// The problems, or the pairs of preference: .jsonl or .json.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["predictions", "compare"])]
    pub data: Option<PathBuf>,
    /// Folder for predictions.json and results.json [default: evaluation/TASK].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Score these answers; no model runs, results.json goes beside them.
    #[arg(long, value_name = "FILE", conflicts_with_all = GENERATING)]
    pub predictions: Option<PathBuf>,
    /// Compare two evaluations: their folders, or predictions files.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = GENERATING, conflicts_with_all = SCORING)]
    pub compare: Option<Vec<PathBuf>>,
    /// Begin anew where an evaluation is already.
    #[arg(long)]
    pub overwrite: bool,
    /// Only the first N problems.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Put N solved problems before each question, in lm-eval's form.
    #[arg(long, value_name = "N", requires = "shots_from", conflicts_with = "prompt_template")]
    pub shots: Option<usize>,
    /// Where they come from: the first N of this file.
    #[arg(long, value_name = "FILE", requires = "shots")]
    pub shots_from: Option<PathBuf>,
    /// At most this many tokens an answer [default: 1024].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Prompts, or pairs, computed together.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// gsm8k-pot: run the programs the model writes, in a sandbox.
    #[arg(long)]
    pub allow_code_execution: bool,
    /// gsm8k-pot: the interpreter [default: python3].
    #[arg(long, value_name = "NAME|PATH")]
    pub python: Option<String>,
    /// gsm8k-pot: CPU seconds a program may use, twice that on the clock [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub program_seconds: Option<u64>,
    /// gsm8k-pot: memory a program may use, in MiB, Python included [default: 512].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(32..=65536))]
    pub program_memory: Option<u64>,
    /// preference: DPO's beta [default: 0.1].
    #[arg(long, value_name = "B")]
    pub beta: Option<f64>,
    /// preference: longest prompt + completion, in tokens [default: 1024].
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// What a question, or a pair's prompt, is put into [default: the task's own].
    #[arg(long, value_name = "TEXT")]
    pub prompt_template: Option<String>,
    /// compare: show the changes by this scorer [default: numeric, equivalent or reward].
    #[arg(long, value_name = "NAME", requires = "compare", conflicts_with_all = ["model", "predictions"])]
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
            quantize: self.quantize,
        })
    }

    fn folder(&self, task: Task) -> Folder {
        let default = || PathBuf::from("evaluation").join(task.name());
        Folder(self.output.clone().unwrap_or_else(default))
    }

    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let cpu_seconds = self.program_seconds.unwrap_or(usual.cpu_seconds);
        Limits {
            cpu_seconds,
            wall: Duration::from_secs(2 * cpu_seconds),
            memory_bytes: self.program_memory.map_or(usual.memory_bytes, |mib| mib << 20),
            ..usual
        }
    }

    /// Refuses options that mean nothing to `task`.
    fn check(&self, task: Task) -> Result<()> {
        let words: &[Task] = &[Task::Gsm8k, Task::Math];
        let programs: &[Task] = &[Task::Gsm8kPot];
        let pairs: &[Task] = &[Task::Preference];
        let answers: &[Task] = &[Task::Gsm8k, Task::Gsm8kPot, Task::Math];
        let given = [
            ("--shots", self.shots.is_some(), words),
            ("--max-new-tokens", self.max_new_tokens.is_some(), answers),
            ("--allow-code-execution", self.allow_code_execution, programs),
            ("--python", self.python.is_some(), programs),
            ("--program-seconds", self.program_seconds.is_some(), programs),
            ("--program-memory", self.program_memory.is_some(), programs),
            ("--beta", self.beta.is_some(), pairs),
            ("--max-length", self.max_length.is_some(), pairs),
        ];
        for (flag, given, tasks) in given {
            if given && !tasks.contains(&task) {
                let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
                let problem = format!("means nothing to {}", task.name());
                return Err(Error::invalid(
                    flag,
                    problem,
                    format!("leave it out; it is for {}", names.join(", ")),
                ));
            }
        }
        Ok(())
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
        let python = self.python.as_deref().unwrap_or("python3");
        Sandbox::open(&launcher, python, self.limits()).map(Some)
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
    args.check(task)?;
    match task {
        Task::Preference => preference::run::<B>(args, mode, device),
        _ => answers::run::<B>(args, task, mode, device),
    }
}
