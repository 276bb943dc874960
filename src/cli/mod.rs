//! The command line: one file a subcommand, arguments to calls, no logic.

pub mod bench;
pub mod chat;
pub mod demo;
pub mod devices;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod iterate;
pub mod merge;
pub mod model;
pub mod plan;
pub mod prepare;
pub mod report;
pub mod sample_pairs;
pub mod sandbox_exec;
pub mod score;
pub mod train;

use std::io::Write;

use arithmo_backends::TrainBackend;
use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::model::hub::Hub;
use crate::progress::ProgressMode;

/// From voted answers to an aligned, measured model: preference pairs, DPO, LoRA.
#[derive(Parser, Clone, Debug)]
#[command(name = "arithmo", version, arg_required_else_help = true)]
pub struct Cli {
    /// What computes: auto takes the best of those in this program that starts.
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    pub backend: String,
    /// Which of the backend's devices computes: its number or a part of its name, as `arithmo devices` lists them.
    #[arg(long, global = true, value_name = "INDEX|NAME")]
    pub device: Option<String>,
    /// No progress and no messages; errors are still printed.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once, never stored in numbers")]
pub enum Command {
    /// Try everything: pairs, training, scores before and after, a report, on what is embedded in the program.
    Demo(demo::DemoArgs),
    /// Turn Stack Exchange rows into preference pairs.
    Prepare(prepare::PrepareArgs),
    /// Say what a run takes of a device, before anything is loaded: bytes by category, the largest batch, the time.
    Plan(plan::PlanArgs),
    /// Train a model, as a run.toml says: DPO or SFT, an adapter or all weights.
    Train(train::TrainArgs),
    /// Write the log-probabilities of both completions of every pair.
    Score(score::ScoreArgs),
    /// Make preference pairs from a model's own answers, checked against known ones.
    SamplePairs(sample_pairs::SamplePairsArgs),
    /// Sample, train and measure in rounds, as an iterate.toml says.
    Iterate(iterate::IterateArgs),
    /// Complete prompts.
    Generate(generate::GenerateArgs),
    /// Talk to a model; its answers appear as they are made.
    Chat(chat::ChatArgs),
    /// Write a base model and an adapter as one model.
    Merge(merge::MergeArgs),
    /// List the devices of every backend in this program.
    Devices(devices::DevicesArgs),
    /// Say what devices there are, whether every operation is right on the one in use, and how fast it is.
    Doctor(doctor::DoctorArgs),
    /// Measure a DPO step of a model with random weights: speed, share of the peak, memory.
    Bench(bench::BenchArgs),
    /// Draw a run's plots and write its page.
    Report(report::ReportArgs),
    /// Score a model's answers to GSM8K or MATH, or its preferences; compare two evaluations.
    Evaluate(evaluate::EvaluateArgs),
    /// Runs a program in the sandbox of `evaluate gsm8k-pot`.
    #[command(hide = true)]
    SandboxExec(sandbox_exec::SandboxExecArgs),
}

impl Cli {
    /// Runs a subcommand that computes nothing on a device; `None`: it needs one, see [`Self::run`].
    pub fn run_without_backend(&self) -> Option<Result<()>> {
        let mode = ProgressMode::detect(self.quiet);
        match &self.command {
            Command::Prepare(args) => {
                Some(prepare::run(args, mode, &|url: &str| Hub::open(mode).fetch_files(url)).map(
                    |summary| {
                        if !self.quiet {
                            eprintln!("{summary}");
                        }
                    },
                ))
            }
            Command::Report(args) => Some(report::run(args)),
            Command::Devices(args) => Some(devices::run(args)),
            Command::Plan(args) => plan::run_assumed(args, &self.backend, mode),
            Command::Evaluate(args) => evaluate::run_without_model(args, mode),
            Command::SandboxExec(args) => Some(sandbox_exec::run(args)),
            _ => None,
        }
    }

    /// Runs a subcommand on `device` of backend `B`.
    ///
    /// # Errors
    /// Whatever the subcommand meets.
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
            Command::Doctor(args) => doctor::run::<B>(args, device),
            Command::Bench(args) => bench::run::<B>(args, device),
            Command::Evaluate(args) => evaluate::run::<B>(args, mode, device),
            Command::Prepare(_)
            | Command::Report(_)
            | Command::Devices(_)
            | Command::SandboxExec(_) => self.run_without_backend().unwrap_or(Ok(())),
        }
    }
}

/// Prints a result on stdout, as a line. A reader that has gone away (`| head`) is no error.
///
/// # Errors
/// stdout cannot be written.
pub fn print_line(line: &str) -> Result<()> {
    print_text(&format!("{line}\n"))
}

/// As [`print_line`], without ending the line, and at once.
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
