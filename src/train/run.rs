//! A training run from its configuration to its adapter: the loop, its logs, checkpoints, interruption, resumption.

use std::path::{Path, PathBuf};
use std::time::Instant;

use arithmo_backends::TrainBackend;

use crate::config::RunConfig;
use crate::data::batch::PreferenceBatch;
use crate::data::encode::{EncodeReport, EncodedPair};
use crate::dpo::metrics::{KEYS, MicroBatchMetrics};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::lora::{LoraConfig, adapter};
use crate::model::hub::Hub;
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::{Checkpoint, Snapshot, TrainState};
use crate::train::folder::{Existing, RunFolder};
use crate::train::learner::{Learner, StepOutput};
use crate::train::logger::{MetricsLog, Record};
use crate::train::optimizer::{AdamW, AdamWConfig};
use crate::train::sampler::Sampler;
use crate::train::schedule::Schedule;
use crate::train::setup::{self, RunData};

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
    /// The adapter folder; `None` after a dry run.
    pub adapter: Option<PathBuf>,
    /// The last logged values.
    pub last: Option<Record>,
}

/// Runs what `config` describes.
///
/// # Errors
/// Any input is not what it must be (nothing is written then); the loss becomes non-finite or the first step's
/// self-check fails (a checkpoint of the last good state is kept); or the user interrupts (everything is saved).
pub fn run<B: TrainBackend>(
    config: &RunConfig,
    options: &RunOptions,
    device: &B::Device,
) -> Result<RunSummary> {
    let folder = RunFolder::new(&config.output_dir);
    folder.check(options.existing)?;
    let model = &config.model;
    let model_folder =
        Hub::open(options.progress).resolve(&model.model_name_or_path, &model.revision)?;
    let data = setup::load_data(config, &model_folder, &mut |file, report| {
        print_report(file, report, options);
    })?;
    if options.progress != ProgressMode::Quiet {
        config
            .warnings()
            .iter()
            .for_each(|warning| eprintln!("warning: {warning}"));
    }
    if options.dry_run {
        return Ok(RunSummary {
            steps: 0,
            adapter: None,
            last: None,
        });
    }
    let manifest = setup::manifest::<B>(config, &data, &model_folder, device)?;
    let resumed = folder.resume_point(options.existing, &manifest)?;
    let (learner, lora) = setup::learner::<B>(config, &model_folder, device)?;
    folder.prepare(options.existing, &manifest, resumed.is_some())?;

    let step = resumed
        .as_ref()
        .map(|checkpoint| checkpoint.state().step as u64);
    let log = MetricsLog::create(&config.output_dir, step)?;
    let mut run = Run::new(config, &data, learner, lora, log, device)?;
    if let Some(checkpoint) = &resumed {
        run.restore(checkpoint)?;
    }
    run.precompute_reference(options.progress)?;
    let last = run.to_the_end(options.progress)?;
    let adapter = folder.adapter();
    run.save_adapter(&adapter)?;
    crate::data::tokenizer::copy_tokenizer_files(&model_folder, &adapter)?;
    Ok(RunSummary {
        steps: run.state.step,
        adapter: Some(adapter),
        last,
    })
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

/// A run under way.
struct Run<'a, B: TrainBackend> {
    config: &'a RunConfig,
    data: &'a RunData,
    learner: Learner<B>,
    lora: LoraConfig,
    log: MetricsLog,
    sampler: Sampler,
    schedule: Schedule,
    total_steps: usize,
    state: TrainState,
    /// Since the last logged line: every micro-batch, the loss of every step, tokens.
    window: Window,
    device: B::Device,
}

/// What is averaged or summed between two logged lines. Saved in checkpoints.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Window {
    micro_batches: Vec<MicroBatchMetrics>,
    losses: Vec<f64>,
    tokens: u64,
    /// Training seconds when the window began.
    since: f64,
}

impl<'a, B: TrainBackend> Run<'a, B> {
    fn new(
        config: &'a RunConfig,
        data: &'a RunData,
        learner: Learner<B>,
        lora: LoraConfig,
        log: MetricsLog,
        device: &B::Device,
    ) -> Result<Self> {
        let sampler = setup::sampler(config, data);
        let train = &config.train;
        let total_steps = train.total_steps(data.train.len());
        let warmup = train.resolved_warmup_steps(total_steps);
        let (kind, rate) = (train.lr_scheduler_type, train.learning_rate);
        let schedule = Schedule::new(kind, rate, warmup, total_steps, &train.lr_scheduler_kwargs)?;
        let state = TrainState {
            seed: config.seed,
            ..TrainState::default()
        };
        let window = Window::default();
        let device = device.clone();
        Ok(Self {
            config,
            data,
            learner,
            lora,
            log,
            sampler,
            schedule,
            total_steps,
            state,
            window,
            device,
        })
    }

    /// Takes up the run where `checkpoint` left it.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let weights = checkpoint.tensors(adapter::CHECKPOINT_GROUP)?;
        adapter::restore(
            &mut self.learner.policy,
            weights,
            checkpoint.path(),
            &self.device,
        )?;
        let moments = checkpoint.tensors("optimizer")?;
        let optimizer_config = AdamWConfig::from(&self.config.train);
        self.learner.optimizer = AdamW::import(optimizer_config, moments, &self.device)?;
        self.state = checkpoint.state().clone();
        self.window = serde_json::from_value(self.state.metrics.take()).unwrap_or_default();
        Ok(())
    }

    /// `precompute_ref_log_probs`: one pass of the reference over the training pairs.
    fn precompute_reference(&mut self, mode: ProgressMode) -> Result<()> {
        if !self.config.dpo.precompute_ref_log_probs || self.state.step >= self.total_steps {
            return Ok(());
        }
        let (train, pad_id) = (&self.data.train, self.data.pad_id);
        let progress = Progress::new("reference", Some(train.len() as u64), "pairs", mode);
        let size = self.config.dpo.precompute_ref_batch_size;
        let size = size
            .unwrap_or(self.config.train.per_device_train_batch_size)
            .max(1);
        for pairs in train.chunks(size) {
            let pairs: Vec<&EncodedPair> = pairs.iter().collect();
            self.learner
                .precompute_reference(&PreferenceBatch::new(&pairs, pad_id));
            progress.inc(pairs.len() as u64);
            if interrupt::requested() {
                let note = "no step was done yet; start again with --resume".to_string();
                return Err(Error::Interrupted { note });
            }
        }
        progress.finish();
        Ok(())
    }

    /// The loop.
    fn to_the_end(&mut self, mode: ProgressMode) -> Result<Option<Record>> {
        let progress = Progress::new("train", Some(self.total_steps as u64), "steps", mode);
        progress.set_position(self.state.step as u64);
        let mut last = None;
        while self.state.step < self.total_steps {
            let record = self.one_step(&progress)?;
            last = record.or(last);
            self.evaluate_if_due(&progress)?;
            progress.inc(1);
            let interrupted = interrupt::requested() && self.state.step < self.total_steps;
            let every = self.config.train.save_steps;
            let due = every > 0 && self.state.step.is_multiple_of(every);
            if due || interrupted || self.state.step == self.total_steps {
                self.save_checkpoint()?;
            }
            if interrupted {
                let note = format!(
                    "stopped after step {} of {}, saved; go on with --resume",
                    self.state.step, self.total_steps
                );
                return Err(Error::Interrupted { note });
            }
        }
        progress.finish();
        Ok(last)
    }

    fn one_step(&mut self, progress: &Progress) -> Result<Option<Record>> {
        let started = Instant::now();
        let step = self.state.step;
        let plan = self.sampler.plan(step);
        let batches: Vec<PreferenceBatch> = plan
            .micro_batches
            .iter()
            .map(|indices| self.batch(indices))
            .collect();
        let rate = self.schedule.rate(step);
        let output = self.learner.step(step, rate, &batches);
        if step == 0 {
            self.check_first_step(&output)?;
        }
        if !output.applied {
            return Err(self.not_finite(&output, &batches));
        }
        let tokens: usize = batches.iter().map(|batch| batch.attended).sum();
        self.state.step += 1;
        self.state.num_tokens += tokens as u64;
        self.state.seconds += started.elapsed().as_secs_f64();
        self.window.tokens += tokens as u64;
        self.window
            .losses
            .push(MicroBatchMetrics::mean(&output.micro_batches).0);
        self.window.micro_batches.extend(output.micro_batches);
        let due = self
            .state
            .step
            .is_multiple_of(self.config.train.logging_steps.max(1));
        if !due && self.state.step != self.total_steps {
            return Ok(None);
        }
        let record = self.record(plan.epoch, rate, output.grad_norm);
        self.log.log(&record)?;
        progress.set_message(status(&record));
        Ok(Some(record))
    }

    /// The line of metrics of the window that ends here, and the start of the next.
    fn record(&mut self, epoch: f64, learning_rate: f64, grad_norm: f64) -> Record {
        let window = std::mem::take(&mut self.window);
        self.window.since = self.state.seconds;
        let (_, values) = MicroBatchMetrics::mean(&window.micro_batches);
        let loss = window.losses.iter().sum::<f64>() / window.losses.len().max(1) as f64;
        let seconds = self.state.seconds - window.since;
        let mut record = Record::new(self.state.step as u64)
            .with("epoch", epoch)
            .with("loss", loss)
            .with("grad_norm", grad_norm)
            .with("learning_rate", learning_rate)
            .with("num_tokens", self.state.num_tokens as f64)
            .with(
                "tokens_per_second",
                window.tokens as f64 / seconds.max(1e-9),
            )
            .with("seconds", self.state.seconds);
        for (key, value) in KEYS.iter().zip(values) {
            record = record.with(*key, value);
        }
        match B::peak_memory_bytes(&self.device) {
            Some(bytes) => record.with("peak_memory_bytes", bytes as f64),
            None => record,
        }
    }

    fn evaluate_if_due(&mut self, progress: &Progress) -> Result<()> {
        let every = self.config.train.eval_steps;
        let due = match every {
            0 => self.state.step == self.total_steps,
            every => self.state.step.is_multiple_of(every),
        };
        if self.data.eval.is_empty() || !due {
            return Ok(());
        }
        let pad_id = self.data.pad_id;
        let mut metrics = Vec::new();
        let size = self.config.train.per_device_eval_batch_size.max(1);
        for pairs in self.data.eval.chunks(size) {
            let pairs: Vec<&EncodedPair> = pairs.iter().collect();
            metrics.push(self.learner.evaluate(&PreferenceBatch::new(&pairs, pad_id)));
        }
        let (_, values) = MicroBatchMetrics::mean(&metrics);
        let mut record = Record::new(self.state.step as u64)
            .with("eval_loss", MicroBatchMetrics::loss_by_pairs(&metrics))
            .with("eval_num_tokens", self.state.num_tokens as f64);
        for (key, value) in KEYS.iter().zip(values) {
            record = record.with(format!("eval_{key}"), value);
        }
        progress.println(&format!(
            "step {} eval: {}",
            self.state.step,
            status(&record)
        ));
        self.log.log(&record)
    }

    /// The cheapest self-check there is: where policy and reference are the same function, the loss is ln 2 and every
    /// reward 0.
    fn check_first_step(&self, output: &StepOutput) -> Result<()> {
        if !self.learner.starts_as_reference() {
            return Ok(());
        }
        for micro in &output.micro_batches {
            let rewards = &micro.values[..2];
            let ln_2 = (micro.loss - std::f64::consts::LN_2).abs() < 1e-6;
            if !ln_2 || rewards.iter().any(|reward| *reward != 0.0) {
                return Err(Error::run(
                    format!(
                        "self-check failed: before the first update policy and reference are the same \
                         function, but the loss is {} (not ln 2) and the rewards {rewards:?} (not 0)",
                        micro.loss
                    ),
                    "this backend computes wrongly here: try --backend with another, and report it",
                ));
            }
        }
        Ok(())
    }

    /// Keeps the last good state and says which pairs broke the step.
    fn not_finite(&mut self, output: &StepOutput, batches: &[PreferenceBatch]) -> Error {
        let saved = match self.state.step {
            0 => "nothing was trained yet".to_string(),
            step => match self.save_checkpoint() {
                Ok(()) => format!("the state before it is saved as checkpoint step-{step}"),
                Err(error) => format!("and the state before it could not be saved: {error}"),
            },
        };
        let ids: Vec<&str> = batches
            .iter()
            .flat_map(|b| b.ids.iter().map(String::as_str))
            .collect();
        let losses: Vec<f64> = output
            .micro_batches
            .iter()
            .map(|micro| micro.loss)
            .collect();
        Error::run(
            format!(
                "step {} is not finite: losses {losses:?}, gradient norm {}, pairs {}; {saved}",
                self.state.step + 1,
                output.grad_norm,
                ids.join(", ")
            ),
            "lower train.learning_rate, or use model.dtype = \"f32\" or \"bf16\"",
        )
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        self.log.sync()?;
        let done = self.state.step % self.sampler.steps_per_epoch();
        self.state.epoch = self.state.step / self.sampler.steps_per_epoch();
        self.state.position = done * self.sampler.batch_size * self.sampler.accumulation;
        let metrics = serde_json::to_value(&self.window)
            .map_err(|error| Error::run(error, "this is a defect of the program: report it"))?;
        let config = self.adapter_config();
        let snapshot = Snapshot {
            state: TrainState {
                metrics,
                ..self.state.clone()
            },
            groups: vec![
                (
                    adapter::CHECKPOINT_GROUP.to_string(),
                    adapter::tensors(&self.learner.policy),
                ),
                ("optimizer".to_string(), self.learner.optimizer.export()),
            ],
            files: vec![(adapter::CONFIG.to_string(), config.into_bytes())],
        };
        let folder = RunFolder::new(&self.config.output_dir).checkpoints();
        Checkpoint::save(&folder, &snapshot, self.config.train.save_total_limit)?;
        Ok(())
    }

    fn save_adapter(&self, folder: &Path) -> Result<()> {
        adapter::save(&self.learner.policy, &self.adapter_config(), folder)
    }

    fn adapter_config(&self) -> String {
        let model = &self.config.model;
        let name = &model.model_name_or_path;
        adapter::config_json(
            &self.learner.policy,
            &self.lora,
            name,
            Some(&model.revision),
        )
    }

    fn batch(&self, indices: &[usize]) -> PreferenceBatch {
        let pairs: Vec<&EncodedPair> = indices.iter().map(|i| &self.data.train[*i]).collect();
        PreferenceBatch::new(&pairs, self.data.pad_id)
    }
}

/// The figures people watch.
fn status(record: &Record) -> String {
    let shown = [
        ("loss", "loss"),
        ("rewards/margins", "margin"),
        ("rewards/accuracies", "acc"),
    ];
    let mut parts = Vec::new();
    for (key, name) in shown {
        let value = record
            .values
            .iter()
            .find(|(k, _)| k.trim_start_matches("eval_") == key);
        if let Some((_, value)) = value {
            parts.push(format!("{name} {value:.4}"));
        }
    }
    if let Some((_, rate)) = record
        .values
        .iter()
        .find(|(key, _)| key == "tokens_per_second")
    {
        parts.push(format!("{rate:.0} tok/s"));
    }
    parts.join("  ")
}
