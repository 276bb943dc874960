//! The command line: one file per subcommand, which passes its arguments on and contains no other logic.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod demo;
pub mod devices;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod inspect;
pub mod iterate;
pub mod merge;
pub mod model;
pub mod plan;
pub mod prepare;
pub mod push;
pub mod report;
pub mod sample_pairs;
pub mod sandbox_exec;
pub mod score;
pub mod template;
pub mod train;

use std::io::Write;

use arithmo_backends::TrainBackend;
use clap::{Parser, Subcommand};

use crate::data::row_limit::DEFAULT_MAX_ROW_BYTES;
use crate::error::{Error, Result};
use crate::model::hub::Hub;
use crate::progress::ProgressMode;

/// From voted answers to an aligned, measured model: preference pairs, DPO and LoRA.
#[derive(Parser, Clone, Debug)]
#[command(name = "arithmo", version, arg_required_else_help = true)]
pub struct Cli {
    /// Choose the backend to run on; auto uses the best one in this build that starts.
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    pub backend: String,
    /// Choose one of the backend's devices by its number or a part of its name, as `arithmo devices` lists them
    /// [default: the backend's default device].
    #[arg(long, global = true, value_name = "INDEX|NAME")]
    pub device: Option<String>,
    /// Set the largest accepted row of a data file, in bytes: a line of JSON Lines, a post, or the texts of a table's
    /// row.
    #[arg(long, global = true, default_value_t = DEFAULT_MAX_ROW_BYTES, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_row_bytes: u64,
    /// Print no progress and no messages; errors are still printed.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once, never stored in numbers")]
pub enum Command {
    /// Try everything on embedded data: pairs, training, scores before and after, a report.
    Demo(demo::DemoArgs),
    /// Convert Stack Exchange rows to preference pairs.
    Prepare(prepare::PrepareArgs),
    /// Estimate a run's memory and time on a device before loading anything: bytes by category, the largest batch.
    Plan(plan::PlanArgs),
    /// Train a model as configured in a run.toml: DPO, KTO, ORPO, CPO or SFT, an adapter or all weights.
    Train(train::TrainArgs),
    /// Write the log-probabilities of both completions of every pair.
    Score(score::ScoreArgs),
    /// Make preference pairs from a model's own answers, checked against known ones.
    SamplePairs(sample_pairs::SamplePairsArgs),
    /// Sample, train and measure in rounds, as configured in an iterate.toml.
    Iterate(iterate::IterateArgs),
    /// Complete prompts.
    Generate(generate::GenerateArgs),
    /// Chat with a model; its answers appear as they are generated.
    Chat(chat::ChatArgs),
    /// Merge an adapter into its base model and write the result.
    Merge(merge::MergeArgs),
    /// Export a model, with or without an adapter, as a GGUF file for llama.cpp and programs built on it.
    Export(export::ExportArgs),
    /// Push an adapter, a model or a run's result to a repository of the Hugging Face hub.
    Push(push::PushArgs),
    /// List the devices of every backend in this build.
    Devices(devices::DevicesArgs),
    /// Find the devices, check every operation on the one in use, and measure its speed.
    Doctor(doctor::DoctorArgs),
    /// Measure the DPO step of a model with random weights: speed, fraction of the peak, memory.
    Bench(bench::BenchArgs),
    /// Draw a run's plots and write its page.
    Report(report::ReportArgs),
    /// Score a model's answers to GSM8K or MATH, or its preferences.
    Evaluate(evaluate::EvaluateArgs),
    /// Compare two evaluations of the same problems: McNemar's test, wins and losses, a page.
    Compare(evaluate::CompareArgs),
    /// Count what a file of pairs holds: lengths, truncation, duplicates, overlap with test sets.
    Inspect(inspect::InspectArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Write the manual pages.
    Man(completions::ManArgs),
    /// Run a program in the sandbox of `evaluate gsm8k-pot`.
    #[command(hide = true)]
    SandboxExec(sandbox_exec::SandboxExecArgs),
}

impl Cli {
    /// Replaces the folder of `--adapter` by that of the adapter which `--adapter-name` chooses in it.
    ///
    /// # Errors
    /// There is no adapter of that name.
    pub fn resolve_adapter(&mut self) -> Result<()> {
        let load = match &mut self.command {
            Command::Score(args) => &mut args.model.load,
            Command::SamplePairs(args) => &mut args.model.load,
            Command::Generate(args) => &mut args.model.load,
            Command::Chat(args) => &mut args.model.load,
            Command::Evaluate(args) => args.task.load_args(),
            Command::Merge(args) => return args.resolve_adapter(),
            Command::Export(args) => return args.resolve_adapter(),
            _ => return Ok(()),
        };
        load.resolve_adapter()
    }

    /// Runs a subcommand that computes nothing on a device. Returns `None` if the subcommand needs one, see
    /// [`Self::run`].
    pub fn run_without_backend(&self) -> Option<Result<()>> {
        let mode = ProgressMode::detect(self.quiet);
        match &self.command {
            Command::Prepare(args) => {
                Some(prepare::run(args, mode, &|url: &str| Hub::open(mode).fetch_files(url)).map(
                    |summary| {
                        if !self.quiet {
                            say!("{summary}");
                        }
                    },
                ))
            }
            Command::Push(args) => Some(push::run(args, mode)),
            Command::Report(args) => Some(report::run(args)),
            Command::Devices(args) => Some(devices::run(args)),
            Command::Plan(args) => plan::run_assumed(args, &self.backend, mode),
            Command::Evaluate(args) => evaluate::run_without_model(args, mode),
            Command::Compare(args) => Some(args.run()),
            Command::Inspect(args) => Some(inspect::run(args, mode)),
            Command::Completions(args) => Some(args.run()),
            Command::Man(args) => Some(args.run()),
            Command::SandboxExec(args) => Some(sandbox_exec::run(args)),
            _ => None,
        }
    }

    /// Runs a subcommand on `device` of backend `B`.
    ///
    /// # Errors
    /// Any error of the subcommand.
    pub fn run<B: TrainBackend>(&self, device: &B::Device) -> Result<()> {
        let mode = ProgressMode::detect(self.quiet);
        match &self.command {
            Command::Demo(args) => demo::run::<B>(args, mode, device),
            Command::Plan(args) => plan::run::<B>(args, mode, device),
            Command::Train(args) => train::run::<B>(args, mode, device),
            Command::Score(args) => score::run::<B>(args, mode, device),
            Command::Iterate(args) => iterate::run::<B>(args, mode, device),
            Command::SamplePairs(args) => sample_pairs::run::<B>(args, mode, device),
            Command::Generate(args) => generate::run::<B>(args, mode, device),
            Command::Chat(args) => chat::run::<B>(args, mode, device),
            Command::Merge(args) => merge::run::<B>(args, mode, device),
            Command::Export(args) => export::run::<B>(args, mode, device),
            Command::Doctor(args) => doctor::run::<B>(args, device),
            Command::Bench(args) => bench::run::<B>(args, device),
            Command::Evaluate(args) => evaluate::run::<B>(args, mode, device),
            Command::Prepare(_)
            | Command::Push(_)
            | Command::Report(_)
            | Command::Devices(_)
            | Command::Compare(_)
            | Command::Inspect(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::SandboxExec(_) => self.run_without_backend().unwrap_or(Ok(())),
        }
    }
}

/// Parses the value of a flag that must be at least 1.
///
/// # Errors
/// The value is not a whole number, or it is 0.
fn at_least_one(value: &str) -> std::result::Result<usize, String> {
    match value.parse() {
        Ok(0) => Err("must be at least 1".to_string()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("must be a whole number: {error}")),
    }
}

/// Prints a result on stdout as a line. A reader that has gone away (`| head`) is not an error.
///
/// # Errors
/// stdout cannot be written.
pub fn print_line(line: &str) -> Result<()> {
    print_text(&format!("{line}\n"))
}

/// Prints `text` on stdout like [`print_line`], without a line break and without buffering.
///
/// # Errors
/// stdout cannot be written.
pub fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", "write", error))
        }
        _ => Ok(()),
    }
}
