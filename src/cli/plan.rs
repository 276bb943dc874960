//! `arithmo plan`.

use std::path::{Path, PathBuf};

use arithmo_backends::{BackendKind, TrainBackend};
use clap::Args;

use crate::config::{Method, RunConfig};
use crate::data::encode::{EncodedExample, EncodedPair};
use crate::data::lengths::SampleLengths;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::config::MistralConfig;
use crate::model::hub::Hub;
use crate::plan::{Planned, Profile, Samples, Timing, parse_bytes};
use crate::progress::ProgressMode;
use crate::train::setup::encode_config;

/// Say what a run takes of a device, before anything is loaded: bytes by category, the largest batch, the time.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// The run's configuration (see configs/). Of the model only config.json is needed; with its tokenizer and the data
    /// file, the real lengths are taken.
    #[arg(long, value_name = "run.toml")]
    pub config: PathBuf,
    /// Set a key over the file's value: table.key=value; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Plan for a device with so much memory, which need not be here: of --backend, or a consumer card for auto.
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
    /// Do not time a few layers on the device (ten seconds at most).
    #[arg(long)]
    pub no_timing: bool,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Plans for a device that need not be here; `None`: for the one that is started, see [`run`].
pub fn run_assumed(args: &PlanArgs, backend: &str, mode: ProgressMode) -> Option<Result<()>> {
    let memory = args.device_memory.as_ref()?;
    let planned = || {
        let memory = parse_bytes(memory)?;
        let kind = match backend {
            "auto" => BackendKind::consumer(),
            name => name.parse().map_err(|problem| {
                Error::invalid("--backend", problem, "leave it out for a consumer card")
            })?,
        };
        let (config, shape, samples) = inputs(args, mode)?;
        let profile = Profile::assumed(kind, memory);
        let planned = Planned::new(&shape, &config, &samples, profile)?;
        print(&planned, args.json, None)
    };
    Some(planned())
}

/// Plans for `device`; prints on stdout.
///
/// # Errors
/// The configuration, the model's config.json or the data cannot be read.
pub fn run<B: TrainBackend>(args: &PlanArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let (config, shape, samples) = inputs(args, mode)?;
    let profile = Profile::of::<B>(device, None);
    let planned = Planned::new(&shape, &config, &samples, profile)?;
    let timing = match args.no_timing {
        true => None,
        false => planned.timing::<B>(device)?,
    };
    print(&planned, args.json, timing)
}

/// Prints a plan as a table or as JSON.
///
/// # Errors
/// stdout cannot be written.
pub fn print(planned: &Planned, json: bool, timing: Option<Timing>) -> Result<()> {
    let report = planned.report(timing);
    match json {
        true => super::print_line(&report.json().to_string()),
        false => super::print_line(&report.lines().join("\n")),
    }
}

/// The configuration, the model's shape, and the lengths of the data where tokenizer and files are there.
fn inputs(args: &PlanArgs, mode: ProgressMode) -> Result<(RunConfig, MistralConfig, Samples)> {
    let config = RunConfig::load(&args.config, &args.set)?;
    let folder =
        Hub::open(mode).config_folder(&config.model.model_name_or_path, &config.model.revision)?;
    let shape = MistralConfig::load(&folder)?;
    let samples = match config.method {
        Method::Dpo => lengths::<EncodedPair>(&config, &folder)?,
        Method::Sft => lengths::<EncodedExample>(&config, &folder)?,
    };
    Ok((config, shape, samples))
}

fn lengths<S: Sample>(config: &RunConfig, folder: &Path) -> Result<Samples> {
    let mut samples = Samples { train: Vec::new(), eval: Vec::new() };
    let has_tokenizer = folder.join("tokenizer.json").is_file();
    if !has_tokenizer || !config.data.train_file.is_file() {
        return Ok(samples);
    }
    let tokenizer = Tokenizer::from_folder(folder)?;
    let settings = encode_config(config)?;
    let of = |file: &Path| -> Result<Vec<SampleLengths>> {
        let encoded = S::load(file, &tokenizer, &settings)?;
        Ok(encoded.pairs.iter().map(SampleLengths::of).collect())
    };
    samples.train = of(&config.data.train_file)?;
    if let Some(file) = config.data.eval_file.as_ref().filter(|file| file.is_file()) {
        samples.eval = of(file)?;
    }
    Ok(samples)
}
