//! Implements `arithmo plan`.

use std::path::{Path, PathBuf};

use arithmo_backends::{BackendKind, TrainBackend};
use clap::Args;

use crate::config::{Method, RunConfig};
use crate::data::answers::{CpoPair, OrpoPair};
use crate::data::encode::{EncodedExample, EncodedPair};
use crate::data::labeled::EncodedLabeled;
use crate::data::lengths::SampleLengths;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::hub::Hub;
use crate::plan::{Planned, Profile, Samples, Timing, parse_bytes};
use crate::progress::ProgressMode;
use crate::train::data::encode_config;

/// Estimate a run's memory and time on a device before loading anything: bytes by category, the largest batch. The
/// exit status is 1 if the run does not fit.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Read the run's configuration from this file (see configs/). Only the config.json of the model is needed; with
    /// its tokenizer and the data file, the real lengths are used.
    #[arg(long, value_name = "run.toml")]
    pub config: PathBuf,
    /// Override a key of the file: table.key=value; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Plan for a device with this much memory, such as 8GB, which need not be present; its backend is --backend, or
    /// that of a consumer GPU for auto [default: the device in use].
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
    /// Do not time a few layers on the device (which takes at most ten seconds).
    #[arg(long)]
    pub no_timing: bool,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Plans for a device that need not be present. Returns `None` without `--device-memory`: then [`run`] plans for a
/// real device.
pub fn run_assumed(args: &PlanArgs, backend: &str, mode: ProgressMode) -> Option<Result<()>> {
    let memory = args.device_memory.as_ref()?;
    let planned = || {
        let memory = parse_bytes(memory)?;
        let kind = match backend {
            "auto" => BackendKind::consumer(),
            name => name.parse().map_err(|problem| {
                Error::invalid("--backend", problem, "leave it out to plan for a consumer GPU")
            })?,
        };
        let (config, shape, samples) = inputs(args, mode)?;
        let profile = Profile::assumed(kind, memory);
        let planned = Planned::new(&shape, &config, &samples, profile)?;
        print(&planned, args.json, None)?;
        fits(&planned)
    };
    Some(planned())
}

/// Plans for `device` and prints the plan on stdout.
///
/// # Errors
/// The configuration, the model's config.json or the data cannot be read.
pub fn run<B: TrainBackend>(args: &PlanArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let (config, shape, samples) = inputs(args, mode)?;
    let profile = Profile::of::<B>(device, None);
    let planned = Planned::new(&shape, &config, &samples, profile)?;
    let timing = if args.no_timing { None } else { planned.timing::<B>(device)? };
    print(&planned, args.json, timing)?;
    fits(&planned)
}

/// Returns an error, and so exit status 1, if the run does not fit; the printed plan says what would make it fit.
fn fits(planned: &Planned) -> Result<()> {
    match planned.fits() {
        Some(false) => Err(Error::invalid(
            "plan",
            "the run does not fit",
            "change it as the plan above proposes, or start it with `arithmo train --ignore-plan`",
        )),
        _ => Ok(()),
    }
}

/// Prints a plan as a table or as JSON.
///
/// # Errors
/// stdout cannot be written.
pub fn print(planned: &Planned, json: bool, timing: Option<Timing>) -> Result<()> {
    let report = planned.report(timing);
    if json {
        super::print_line(&report.json().to_string())
    } else {
        super::print_line(&report.lines().join("\n"))
    }
}

/// Reads the configuration, the model's shape, and the lengths of the data if tokenizer and files are present.
fn inputs(args: &PlanArgs, mode: ProgressMode) -> Result<(RunConfig, DecoderConfig, Samples)> {
    let config = RunConfig::load(&args.config, &args.set)?;
    let folder =
        Hub::open(mode).config_folder(&config.model.model_name_or_path, &config.model.revision);
    let folder = folder.map_err(|error| error.at("--model", "model.model_name_or_path"))?;
    let shape = DecoderConfig::load(&folder)?;
    let samples = match config.method {
        Method::Dpo => lengths::<EncodedPair>(&config, &folder)?,
        Method::Sft => lengths::<EncodedExample>(&config, &folder)?,
        Method::Kto => lengths::<EncodedLabeled>(&config, &folder)?,
        Method::Orpo => lengths::<OrpoPair>(&config, &folder)?,
        Method::Cpo => lengths::<CpoPair>(&config, &folder)?,
    };
    Ok((config, shape, samples))
}

/// Reads the lengths of the run's samples; empty if the tokenizer or the training file is missing.
fn lengths<S: Sample>(config: &RunConfig, folder: &Path) -> Result<Samples> {
    let mut samples = Samples { train: Vec::new(), eval: Vec::new() };
    let has_tokenizer = folder.join("tokenizer.json").is_file();
    if !has_tokenizer || !config.data.train_file.is_file() {
        return Ok(samples);
    }
    let tokenizer = Tokenizer::from_folder(folder)?;
    let settings = encode_config(config)?;
    let read_lengths = |file: &Path| -> Result<Vec<SampleLengths>> {
        let encoded = S::load(file, &tokenizer, &settings)?;
        Ok(encoded.pairs.iter().map(SampleLengths::of).collect())
    };
    samples.train = read_lengths(&config.data.train_file)?;
    if let Some(file) = config.data.eval_file.as_ref().filter(|file| file.is_file()) {
        samples.eval = read_lengths(file)?;
    }
    Ok(samples)
}
