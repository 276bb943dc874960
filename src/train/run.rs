//! A training run from its configuration to its adapter: what is checked, loaded, resumed, trained and saved, in order.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;

use crate::config::{Method as MethodName, RunConfig};
use crate::data::encode::EncodeReport;
use crate::data::lengths::SampleLengths;
use crate::error::Result;
use crate::lora::LoraConfig;
use crate::model::config::MistralConfig;
use crate::model::hub::Hub;
use crate::progress::ProgressMode;
use crate::train::folder::{Existing, RunFolder};
use crate::train::learner::Learner;
use crate::train::logger::{MetricsLog, Record};
use crate::train::method::Method;
use crate::train::setup;
use crate::train::sft::SftLearner;
use crate::train::trainer::Trainer;

/// How a run is started.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// What to do about a run that is already in `output_dir`.
    pub existing: Existing,
    /// Stop after the data is read, encoded and reported; nothing is written.
    pub dry_run: bool,
    /// Where progress goes.
    pub progress: ProgressMode,
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Optimizer steps done; 0 after a dry run.
    pub steps: usize,
    /// The folder of the adapter, or of the model where all weights are trained; `None` after a dry run.
    pub output: Option<PathBuf>,
    /// The last logged values.
    pub last: Option<Record>,
}

/// What is known of a run before its weights are loaded.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The model's shape.
    pub shape: MistralConfig,
    /// Lengths of the training samples.
    pub train: Vec<SampleLengths>,
    /// Lengths of the held-out ones.
    pub eval: Vec<SampleLengths>,
}

/// What happens between the data and the weights.
pub struct Start<'a> {
    /// Bytes of the device that the run is to do with; `None`: all there are.
    pub device_memory: Option<u64>,
    /// Called once the data is read, in a dry run too; an error ends the run, of which nothing is written then.
    pub ready: &'a mut dyn FnMut(&Prepared) -> Result<()>,
}

/// As [`run_from`], without a word between data and weights.
///
/// # Errors
/// As [`run_from`].
pub fn run<B: TrainBackend>(
    config: &RunConfig,
    options: &RunOptions,
    device: &B::Device,
) -> Result<RunSummary> {
    let start = Start { device_memory: None, ready: &mut |_| Ok(()) };
    run_from::<B>(config, options, start, device)
}

/// Runs what `config` describes.
///
/// # Errors
/// Any input is not what it must be (nothing is written then); the loss becomes non-finite or the first step's
/// self-check fails (a checkpoint of the last good state is kept); or the user interrupts (everything is saved).
pub fn run_from<B: TrainBackend>(
    config: &RunConfig,
    options: &RunOptions,
    start: Start<'_>,
    device: &B::Device,
) -> Result<RunSummary> {
    let memory = start.device_memory;
    match config.method {
        MethodName::Dpo => {
            let learner =
                |folder: &Path| setup::learner(config, folder, options.progress, memory, device);
            run_method::<B, Learner<B>>(config, options, start, device, learner)
        }
        MethodName::Sft => {
            let learner = |folder: &Path| {
                setup::sft_learner(config, folder, options.progress, memory, device)
            };
            run_method::<B, SftLearner<B>>(config, options, start, device, learner)
        }
    }
}

/// `learner` makes the method's learner, with the settings of the adapter if it trains one.
fn run_method<B: TrainBackend, M: Method<B>>(
    config: &RunConfig,
    options: &RunOptions,
    start: Start<'_>,
    device: &B::Device,
    learner: impl Fn(&Path) -> Result<(M, Option<LoraConfig>)>,
) -> Result<RunSummary> {
    let folder = RunFolder::new(&config.output_dir);
    if !options.dry_run {
        folder.check(options.existing)?;
    }
    let model = &config.model;
    let model_folder =
        Hub::open(options.progress).resolve(&model.model_name_or_path, &model.revision)?;
    let data = setup::load_data::<M::Sample>(config, &model_folder, &mut |file, report| {
        print_report(file, report, options);
    })?;
    if options.progress != ProgressMode::Quiet {
        config.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    let lengths = |samples: &[M::Sample]| samples.iter().map(SampleLengths::of).collect();
    (start.ready)(&Prepared {
        shape: MistralConfig::load(&model_folder)?,
        train: lengths(&data.train),
        eval: lengths(&data.eval),
    })?;
    if options.dry_run {
        return Ok(RunSummary { steps: 0, output: None, last: None });
    }
    let manifest = setup::manifest::<B, _>(config, &data, &model_folder, device)?;
    let resumed = folder.resume_point(options.existing, &manifest)?;
    let (learner, lora) = learner(&model_folder)?;
    folder.prepare(options.existing, &manifest, resumed.is_some())?;

    let step = resumed.as_ref().map(|checkpoint| checkpoint.state().step as u64);
    let log = MetricsLog::create(&config.output_dir, step)?;
    let mut trainer = Trainer::new(config, &data, learner, lora, log, device)?;
    if let Some(checkpoint) = &resumed {
        trainer.restore(checkpoint)?;
    }
    trainer.precompute(options.progress)?;
    let last = trainer.run(options.progress)?;
    Ok(RunSummary { steps: trainer.steps(), output: Some(trainer.save(&model_folder)?), last })
}

/// Says on stderr what was read, kept, cut and left out; in a dry run with every id.
fn print_report(file: &Path, report: &EncodeReport, options: &RunOptions) {
    if options.progress != ProgressMode::Quiet || options.dry_run {
        for line in report.summary() {
            eprintln!("{}: {line}", file.display());
        }
    }
    if options.dry_run
        && let Ok(json) = serde_json::to_string_pretty(report)
    {
        eprintln!("{json}");
    }
}
