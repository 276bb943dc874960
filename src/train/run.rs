//! Runs a training run from its configuration to its result: checks, loads, resumes, trains and saves, in this order.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;

use crate::config::{Method, RunConfig, nearest_name};
use crate::data::encode::EncodeReport;
use crate::data::lengths::SampleLengths;
use crate::error::{Error, Result};
use crate::model::config::DecoderConfig;
use crate::model::hub::Hub;
use crate::objective::Objective;
use crate::objective::metrics::KEYS;
use crate::output::Lock;
use crate::progress::ProgressMode;
use crate::train::card::write_card;
use crate::train::checkpoint::Checkpoint;
use crate::train::data::{RunData, load_data};
use crate::train::folder::{Existing, RunFolder};
use crate::train::learner::{Loaded, Loader};
use crate::train::logger::{MetricsLog, Record};
use crate::train::manifest::RunManifest;
use crate::train::policy::check_adapter;
use crate::train::push::Push;
use crate::train::resume::{Resumption, nothing_to_resume};
use crate::train::trainer::Trainer;

/// Options for starting a run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// How to treat a run that already exists in `output_dir`.
    pub existing: Existing,
    /// Whether to stop after the data is read, encoded and reported. Nothing is written then.
    pub dry_run: bool,
    /// How progress is shown.
    pub progress: ProgressMode,
}

/// Summary of a finished run.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// Number of optimizer steps done. 0 after a dry run.
    pub steps: usize,
    /// Folder of the adapter, or of the model if all weights are trained. `None` after a dry run.
    pub output: Option<PathBuf>,
    /// The last logged record.
    pub last: Option<Record>,
}

/// Facts about a run that are known before its weights are loaded.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The model's config.
    pub shape: DecoderConfig,
    /// Lengths of the training samples.
    pub train: Vec<SampleLengths>,
    /// Lengths of the held-out samples.
    pub eval: Vec<SampleLengths>,
}

/// Settings from the caller that apply between reading the data and loading the weights.
pub struct Start<'a> {
    /// Device memory in bytes that the run may use. `None` means all of it.
    pub device_memory: Option<u64>,
    /// The file that the configuration was read from, which the run must not remove.
    pub config_file: Option<&'a Path>,
    /// Called once the data is read, in a dry run too; an error ends the run, of which nothing is written then.
    pub ready: &'a mut dyn FnMut(&Prepared) -> Result<()>,
}

/// Runs the training that `config` describes, without a memory limit or a callback before the weights are loaded.
///
/// # Errors
/// Same as [`run_from`].
pub fn run<B: TrainBackend>(
    config: &RunConfig,
    options: &RunOptions,
    device: &B::Device,
) -> Result<RunSummary> {
    let start = Start { device_memory: None, config_file: None, ready: &mut |_| Ok(()) };
    run_from::<B>(config, options, start, device)
}

/// Runs the training that `config` describes.
///
/// # Errors
/// - An input is invalid. Nothing is written then.
/// - The loss becomes non-finite or the check of the first step fails. A checkpoint of the last good state is kept.
/// - The user interrupts. Everything is saved.
/// - The result cannot be pushed to the hub. It is complete, and the error says how to push it later.
pub fn run_from<B: TrainBackend>(
    config: &RunConfig,
    options: &RunOptions,
    start: Start<'_>,
    device: &B::Device,
) -> Result<RunSummary> {
    let (mode, memory) = (options.progress, start.device_memory);
    let loader = Loader::<B> { config, mode, memory, device };
    match config.method {
        Method::Dpo => run_objective(config, options, start, device, |model, resumed| {
            loader.dpo(model, resumed)
        }),
        Method::Sft => run_objective(config, options, start, device, |model, resumed| {
            loader.sft(model, resumed)
        }),
        Method::Kto => run_objective(config, options, start, device, |model, resumed| {
            loader.kto(model, resumed)
        }),
        Method::Orpo => run_objective(config, options, start, device, |model, resumed| {
            loader.orpo(model, resumed)
        }),
        Method::Cpo => run_objective(config, options, start, device, |model, resumed| {
            loader.cpo(model, resumed)
        }),
    }
}

/// Runs the training with one objective. `learner` loads the model in a folder, to continue from a checkpoint if there is
/// one, and returns its learner, with the adapter's settings if an adapter is trained.
fn run_objective<B: TrainBackend, O: Objective<B>>(
    config: &RunConfig,
    options: &RunOptions,
    start: Start<'_>,
    device: &B::Device,
    learner: impl Fn(&Path, Option<&Checkpoint>) -> Result<Loaded<B, O>>,
) -> Result<RunSummary> {
    let folder = RunFolder::new(&config.output_dir);
    check_metric(config, &KEYS)?;
    let mut push = Push::from_config(config, options.progress)?;
    if !options.dry_run {
        folder.check(options.existing)?;
    }
    let model = &config.model;
    let model_folder =
        Hub::open(options.progress).resolve(&model.model_name_or_path, &model.revision);
    let model_folder =
        model_folder.map_err(|error| error.at("--model", "model.model_name_or_path"))?;
    if !options.dry_run {
        let file = start.config_file.map(|file| ("--config", file));
        folder.check_inputs(inputs(config, &model_folder).into_iter().chain(file))?;
        if !model.use_peft {
            folder.check_model(options.existing, &model_folder)?;
        }
    }
    let shape = DecoderConfig::load(&model_folder)?;
    check_adapter(config, &shape)?;
    let data = load_data::<O::Sample>(config, &model_folder, &mut |file, report| {
        print_report(file, report, options);
    })?;
    if options.progress != ProgressMode::Quiet {
        data.shown_sample.iter().for_each(|line| say!("{line}"));
        print_warnings(config, data.train.len());
    }
    let lengths = |samples: &[O::Sample]| samples.iter().map(SampleLengths::of).collect();
    (start.ready)(&Prepared { shape, train: lengths(&data.train), eval: lengths(&data.eval) })?;
    if options.dry_run {
        return Ok(RunSummary { steps: 0, output: None, last: None });
    }
    if let Some(push) = &mut push {
        push.prepare()?;
    }
    let summary = begin(config, options, &data, &model_folder, device, learner)?;
    if let Some(push) = &mut push {
        push.result(&result_folder(config))?;
    }
    Ok(summary)
}

/// Checks that evaluations have the metric by which they are compared: `eval_loss` or one of `keys`.
fn check_metric(config: &RunConfig, keys: &[&str]) -> Result<()> {
    let Some(metric) = config.train.best_metric() else {
        return Ok(());
    };
    let name = metric.strip_prefix("eval_").unwrap_or(&metric);
    let names = || ["loss"].into_iter().chain(keys.iter().copied());
    if names().any(|known| known == name) {
        return Ok(());
    }
    let remedy = match nearest_name(name, names()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("choose from {}", names().collect::<Vec<_>>().join(", ")),
    };
    let problem = format!("evaluations have no metric \"{name}\"");
    Err(Error::invalid("train.metric_for_best_model", problem, remedy))
}

/// Trains on `data` and writes the result, while holding the lock of the run's folder.
fn begin<B: TrainBackend, O: Objective<B>>(
    config: &RunConfig,
    options: &RunOptions,
    data: &RunData<O::Sample>,
    model_folder: &Path,
    device: &B::Device,
    learner: impl Fn(&Path, Option<&Checkpoint>) -> Result<Loaded<B, O>>,
) -> Result<RunSummary> {
    let folder = RunFolder::new(&config.output_dir);
    let manifest = RunManifest::of_run::<B, _>(config, data, model_folder, device)?;
    // The message must be composed before the lock creates the folder.
    let nothing = nothing_to_resume(&config.output_dir);
    let _lock = Lock::folder(&config.output_dir)?;
    // Another process may have started a run there while this one read its data.
    folder.check(options.existing)?;
    folder.check_writable()?;
    let resumed = folder.resume_point(options.existing, &manifest)?;
    if options.existing == Existing::Resume && resumed.is_none() {
        // This is also printed with --quiet, because the earlier steps may be in another folder.
        say!("{nothing}");
    }
    let resumption = resumption(config, options, &manifest, resumed.as_ref())?;
    let (learner, lora) = learner(model_folder, resumed.as_ref())?;
    folder.prepare(options.existing, &manifest, resumed.is_some())?;
    let longer = resumption.and_then(|resumption| resumption.extended_manifest());
    if let Some(longer) = &longer {
        longer.write(&config.output_dir)?;
    }

    let step = resumed.as_ref().map(|checkpoint| checkpoint.state().step as u64);
    let log = MetricsLog::create(&config.output_dir, step)?;
    let (model, device_name) = (manifest.model.content.clone(), manifest.device.clone());
    let log = log.with_manifest(longer.unwrap_or(manifest));
    if let Some(checkpoint) = &resumed {
        log.warn_about_gaps(checkpoint.state(), config.train.logging_interval(data.train.len()));
    }
    let mut trainer = Trainer::new(config, data, learner, lora, log, device)?;
    let carried = trainer.carried_files(model_folder)?;
    if let Some(checkpoint) = &resumed {
        trainer.restore(checkpoint)?;
    }
    trainer.precompute(model.as_ref(), &device_name, options.progress)?;
    let last = trainer.run(options.progress)?;
    let output = trainer.save(&carried)?;
    write_card(&config.output_dir, &result_folder(config), trainer.restored())?;
    Ok(RunSummary { steps: trainer.steps(), output: Some(output), last })
}

/// Returns the folder of the result with its card; an adapter with a name is in a subfolder of it.
fn result_folder(config: &RunConfig) -> PathBuf {
    let folder = RunFolder::new(&config.output_dir);
    if config.model.use_peft { folder.adapter() } else { folder.model() }
}

/// Prints warnings about settings that are probably mistakes, now that the number of samples is known.
fn print_warnings(config: &RunConfig, samples: usize) {
    let by_epochs = config.train.max_steps < 1;
    let total_steps = config.train.total_steps(samples);
    let warmup = by_epochs.then(|| config.warmup_warning(total_steps));
    let warnings = config.warnings().into_iter().chain(warmup.flatten());
    warnings.for_each(|warning| say!("warning: {warning}"));
}

/// Checks a resumed run and prints its notes. Returns `None` if the run starts at its first step.
fn resumption<'a>(
    config: &RunConfig,
    options: &RunOptions,
    now: &'a RunManifest,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<Resumption<'a>>> {
    let Some(checkpoint) = checkpoint else {
        return Ok(None);
    };
    let Some(before) = RunManifest::read(&config.output_dir)? else {
        return Ok(None);
    };
    let resumption = Resumption { before, now, step: checkpoint.state().step };
    resumption.check_length()?;
    for note in resumption.notes() {
        if options.progress != ProgressMode::Quiet || note.starts_with("warning") {
            say!("{note}");
        }
    }
    Ok(Some(resumption))
}

/// Returns the inputs of a run with their configuration keys.
fn inputs<'a>(config: &'a RunConfig, model: &'a Path) -> Vec<(&'static str, &'a Path)> {
    let data = &config.data;
    let mut inputs =
        vec![("model.model_name_or_path", model), ("data.train_file", data.train_file.as_path())];
    let more = [("data.eval_file", &data.eval_file), ("lora.adapter", &config.lora.adapter)];
    inputs.extend(more.iter().filter_map(|(key, path)| Some((*key, path.as_deref()?))));
    inputs
}

/// Prints which samples were changed or left out, and in a dry run the whole report with every id.
fn print_report(file: &Path, report: &EncodeReport, options: &RunOptions) {
    if options.progress != ProgressMode::Quiet || options.dry_run {
        for line in report.summary() {
            say!("{}: {line}", file.display());
        }
    }
    if options.dry_run
        && let Ok(json) = serde_json::to_string_pretty(report)
    {
        say!("{json}");
    }
}
