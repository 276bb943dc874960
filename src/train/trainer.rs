//! The training loop, with its steps, logs, evaluations, checkpoints and interruptions.

use std::path::{Path, PathBuf};
use std::time::Instant;

use arithmo_backends::TrainBackend;
use burn::module::AutodiffModule;
use serde::{Deserialize, Serialize};

use crate::adapter::LoraConfig;
use crate::config::{EvalMeans, IntervalStrategy, RunConfig};
use crate::data::sample::Sample;
use crate::data::tokenizer::CarriedFiles;
use crate::error::{Error, Result, first_few};
use crate::interrupt;
use crate::model::not_finite;
use crate::objective::Objective;
use crate::objective::metrics::MicroBatchMetrics;
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::{Checkpoint, NamedTensors, Snapshot, TrainState};
use crate::train::data::RunData;
use crate::train::folder::RunFolder;
use crate::train::logger::{MetricsLog, Record};
use crate::train::optimizer::{Optimizer, Rule};
use crate::train::result::TrainedWeights;
use crate::train::sampler::Sampler;
use crate::train::schedule::Schedule;
use crate::train::step::{Learner, StepOutput};
use crate::train::unsaved::unsaved_warning;

/// Runs the training loop: the learner with its data, schedule, log and state.
#[derive(Debug)]
pub struct Trainer<'a, B: TrainBackend, O: Objective<B>> {
    config: &'a RunConfig,
    data: &'a RunData<O::Sample>,
    learner: Learner<B, O>,
    weights: TrainedWeights,
    log: MetricsLog,
    sampler: Sampler,
    schedule: Schedule,
    total_steps: usize,
    state: TrainState,
    /// Metrics since the last logged line.
    window: Window,
    /// Number of steps done by this process.
    steps_timed: usize,
    device: B::Device,
}

/// The metrics between two logged lines, which are averaged or summed. Saved in checkpoints.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Window {
    micro_batches: Vec<MicroBatchMetrics>,
    losses: Vec<f64>,
    tokens: u64,
    /// Training time in seconds when the window began.
    since: f64,
}

impl<'a, B: TrainBackend, O: Objective<B>> Trainer<'a, B, O> {
    /// Creates the trainer of a run at its first step.
    ///
    /// # Errors
    /// The parameters of the learning-rate schedule are invalid.
    pub fn new(
        config: &'a RunConfig,
        data: &'a RunData<O::Sample>,
        learner: Learner<B, O>,
        lora: Option<LoraConfig>,
        log: MetricsLog,
        device: &B::Device,
    ) -> Result<Self> {
        let sampler = Sampler::of_run(config, data.train.len());
        let train = &config.train;
        let total_steps = train.total_steps(data.train.len());
        let warmup = train.resolved_warmup_steps(total_steps);
        let (kind, rate) = (train.lr_scheduler_type, train.learning_rate);
        let schedule = Schedule::new(kind, rate, warmup, total_steps, &train.lr_scheduler_kwargs)?;
        let state = TrainState { seed: config.seed, ..TrainState::default() };
        let window = Window::default();
        let device = device.clone();
        Ok(Self {
            config,
            data,
            learner,
            weights: TrainedWeights::new(config, lora),
            log,
            sampler,
            schedule,
            total_steps,
            state,
            window,
            steps_timed: 0,
            device,
        })
    }

    /// Restores the state of the run from `checkpoint`.
    ///
    /// # Errors
    /// The checkpoint does not fit the trained model.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let tensors = checkpoint.tensors("optimizer")?;
        let restored = Optimizer::import(Rule::of(&self.config.train)?, tensors, &self.device)?;
        self.weights.restore(&mut self.learner.policy, checkpoint, &self.device)?;
        self.learner.optimizer = restored;
        self.restore_objective(checkpoint)?;
        self.state = checkpoint.state().clone();
        self.window = match self.state.metrics.take() {
            serde_json::Value::Null => Window::default(),
            window => serde_json::from_value(window).map_err(|error| {
                let problem =
                    format!("its sums since the last logged line cannot be read: {error}");
                let remedy = "remove this checkpoint folder, so that the one before it is used";
                Error::file(checkpoint.path(), problem, remedy)
            })?,
        };
        Ok(())
    }

    /// Restores the state of the objective.
    fn restore_objective(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(name) = O::STATE_FILE.filter(|name| checkpoint.has_file(name)) else {
            return Ok(());
        };
        let restored = self.learner.objective.restore(&checkpoint.file(name)?);
        restored.map_err(|error| {
            let problem = format!("{name} cannot be read: {error}");
            let remedy = "remove this checkpoint folder, so that the one before it is used";
            Error::file(checkpoint.path(), problem, remedy)
        })
    }

    /// Computes what the objective needs of all training samples, unless all steps are done.
    ///
    /// # Errors
    /// Same as [`Learner::precompute`].
    pub fn precompute(&mut self, mode: ProgressMode) -> Result<()> {
        if self.state.step >= self.total_steps {
            return Ok(());
        }
        self.learner.precompute(&self.data.train, mode)
    }

    /// Trains to the last step and returns the last record of metrics.
    ///
    /// # Errors
    /// A step fails its checks, a file cannot be written, or the user interrupts. A checkpoint is saved first.
    pub fn run(&mut self, mode: ProgressMode) -> Result<Option<Record>> {
        let progress = Progress::new("train", Some(self.total_steps as u64), "steps", mode);
        progress.set_position(self.state.step as u64);
        let mut last = None;
        while self.state.step < self.total_steps {
            let started = Instant::now();
            let record = self.one_step(&progress)?;
            last = record.or(last);
            progress.inc(1);
            self.warn_if_unsaved(started.elapsed().as_secs_f64(), &progress);
            // The time of the evaluation does not count as time of the steps.
            progress.pause(|| self.evaluate_if_due(&progress))?;
            let interrupted = interrupt::requested() && self.state.step < self.total_steps;
            if self.save_is_due() || interrupted {
                self.save_checkpoint(self.config.train.save_total_limit)?;
            }
            if interrupted {
                let note = format!(
                    "stopped after step {} of {}, saved; continue with --resume",
                    self.state.step, self.total_steps
                );
                return Err(Error::Interrupted { note });
            }
        }
        // If a run of an older version ended without evaluating its last step, the evaluation is done on resumption.
        if self.log.evaluated_at() != Some(self.state.step as u64) {
            self.evaluate_if_due(&progress)?;
        }
        progress.finish();
        Ok(last)
    }

    /// Warns after the second step of this process, whose time shows how long the run takes, if the run is long and saves
    /// no checkpoint before its end.
    fn warn_if_unsaved(&mut self, seconds: f64, progress: &Progress) {
        self.steps_timed += 1;
        if self.steps_timed != 2 {
            return;
        }
        let remaining = self.total_steps.saturating_sub(self.state.step);
        let every = self.config.train.save_interval(self.data.train.len());
        let warning = unsaved_warning(every, remaining, seconds);
        if let Some(warning) = warning {
            progress.println(&warning);
        }
    }

    /// Returns the number of optimizer steps done.
    pub fn steps(&self) -> usize {
        self.state.step
    }

    /// Runs one optimizer step. Returns the record of metrics if the step is logged.
    fn one_step(&mut self, progress: &Progress) -> Result<Option<Record>> {
        let started = Instant::now();
        let step = self.state.step;
        let plan = self.sampler.plan(step);
        let batches: Vec<Vec<&O::Sample>> = plan
            .micro_batches
            .iter()
            .map(|indices| indices.iter().map(|i| &self.data.train[*i]).collect())
            .collect();
        let rate = self.schedule.rate(step);
        let output = self.learner.step(step, rate, &batches);
        if !output.applied {
            return Err(self.not_finite(&output, &batches));
        }
        if step == 0 {
            self.learner.objective.check_first_step(&output.micro_batches)?;
        }
        let samples = batches.iter().flatten();
        let tokens: usize = samples.map(|sample| sample.attended_tokens()).sum();
        self.state.step += 1;
        self.state.num_tokens += tokens as u64;
        self.state.seconds += started.elapsed().as_secs_f64();
        self.window.tokens += tokens as u64;
        self.window.losses.push(output.loss);
        self.window.micro_batches.extend(output.micro_batches);
        let every = self.config.train.logging_interval(self.data.train.len());
        let due = self.state.step.is_multiple_of(every);
        if !due && self.state.step != self.total_steps {
            return Ok(None);
        }
        let record = self.record(plan.epoch, rate, output.grad_norm);
        self.log.log(&record)?;
        progress.set_message(status(&record, O::STATUS_KEYS));
        Ok(Some(record))
    }

    /// Returns the record of the current window of metrics and starts a new window.
    fn record(&mut self, epoch: f64, learning_rate: f64, grad_norm: f64) -> Record {
        let window = std::mem::take(&mut self.window);
        self.window.since = self.state.seconds;
        let (_, values) = match self.config.train.eval_means {
            EvalMeans::Pairs => MicroBatchMetrics::mean_by_pairs(&window.micro_batches),
            EvalMeans::Trl => MicroBatchMetrics::mean(&window.micro_batches),
        };
        let loss = window.losses.iter().sum::<f64>() / window.losses.len().max(1) as f64;
        let seconds = self.state.seconds - window.since;
        let mut record = Record::new(self.state.step as u64)
            .with("epoch", epoch)
            .with("loss", loss)
            .with("grad_norm", grad_norm)
            .with("learning_rate", learning_rate)
            .with("num_tokens", self.state.num_tokens as f64)
            .with("tokens_per_second", window.tokens as f64 / seconds.max(1e-9))
            .with("seconds", self.state.seconds);
        for (key, value) in values {
            record = record.with(key, value);
        }
        match B::peak_memory_bytes(&self.device) {
            Some(bytes) => record.with("peak_memory_bytes", bytes as f64),
            None => record,
        }
    }

    /// Returns whether `save_strategy` asks for a checkpoint after the step that was done last.
    fn save_is_due(&self) -> bool {
        let train = &self.config.train;
        let every = train.save_interval(self.data.train.len());
        let is_last = self.state.step == self.total_steps;
        train.save_strategy != IntervalStrategy::No
            && (is_last || self.state.step.is_multiple_of(every))
    }

    /// Evaluates if `eval_strategy` asks for it after the step that was done last.
    fn evaluate_if_due(&mut self, progress: &Progress) -> Result<()> {
        let train = &self.config.train;
        let every = train.eval_interval(self.data.train.len());
        let step = self.state.step;
        let due = step == self.total_steps || step.is_multiple_of(every);
        if self.data.eval.is_empty() || !due || train.eval_strategy == IntervalStrategy::No {
            return Ok(());
        }
        let size = self.config.train.per_device_eval_batch_size;
        let metrics = self.learner.evaluate_in_batches(&self.data.eval, size);
        let (loss, values) = match self.config.train.eval_means {
            EvalMeans::Pairs => {
                let pooled = MicroBatchMetrics::pooled(&metrics);
                (pooled.loss, pooled.values())
            }
            EvalMeans::Trl => {
                let (_, values) = MicroBatchMetrics::mean(&metrics);
                (MicroBatchMetrics::loss_by_pairs(&metrics), values)
            }
        };
        let mut record = Record::new(step as u64)
            .with("eval_loss", loss)
            .with("eval_num_tokens", self.state.num_tokens as f64);
        for (key, value) in values {
            record = record.with(format!("eval_{key}"), value);
        }
        progress.println(&format!("step {step} eval: {}", status(&record, O::STATUS_KEYS)));
        self.log.log(&record)
    }

    /// Saves the last good state and returns the error of a step that is not finite, with the samples of the step.
    fn not_finite(&mut self, output: &StepOutput, batches: &[Vec<&O::Sample>]) -> Error {
        if self.state.step == 0
            && let Some(error) = not_finite::explain_weights(&self.learner.policy.valid())
        {
            return error;
        }
        let saved = match self.state.step {
            0 => "nothing was trained yet".to_string(),
            // No checkpoint is pruned, because the weights before this step may already be bad and an earlier checkpoint
            // may be needed.
            step => match self.save_checkpoint(0) {
                Ok(()) => format!("the state before it is saved as checkpoint step-{step}"),
                Err(error) => format!("and the state before it could not be saved: {error}"),
            },
        };
        let ids: Vec<&str> = batches.iter().flatten().map(|sample| sample.id()).collect();
        let losses: Vec<f64> = output.micro_batches.iter().map(|micro| micro.loss).collect();
        Error::run(
            format!(
                "step {} is not finite: losses {losses:?}, gradient norm {}, {} {}; {saved}",
                self.state.step + 1,
                output.grad_norm,
                O::Sample::NAME,
                first_few(ids, ", ")
            ),
            match self.state.step {
                0 => {
                    "the weights are finite: use model.dtype = \"f32\", or a loss without an exponential (which \"discopop\" and \
                     dpo.f_divergence_type have) if policy and reference differ much"
                }
                _ => "lower train.learning_rate, or use model.dtype = \"f32\" or \"bf16\"",
            },
        )
    }

    /// Saves a checkpoint and prunes all but the newest `keep` checkpoints (0 keeps all).
    fn save_checkpoint(&mut self, keep: usize) -> Result<()> {
        let weights = self.weights.tensors(&self.learner.policy);
        check_finite(self.state.step, &weights)?;
        self.log.sync()?;
        let done = self.state.step % self.sampler.steps_per_epoch();
        self.state.epoch = self.state.step / self.sampler.steps_per_epoch();
        self.state.position = done * self.sampler.batch_size * self.sampler.accumulation;
        self.state.log_lines = Some(self.log.lines());
        let metrics = serde_json::to_value(&self.window).map_err(defect)?;
        let mut files = self.weights.files(&self.learner.policy);
        let state = self.learner.objective.state()?;
        files.extend(O::STATE_FILE.map(String::from).zip(state));
        let snapshot = Snapshot {
            state: TrainState { metrics, ..self.state.clone() },
            groups: vec![
                (self.weights.group().to_string(), weights),
                ("optimizer".to_string(), self.learner.optimizer.export()),
            ],
            files,
        };
        let folder = RunFolder::new(&self.config.output_dir).checkpoints();
        Checkpoint::save(&folder, &snapshot, keep)?;
        Ok(())
    }

    /// Reads the files of the base model that [`save`](Self::save) writes beside the result.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn carried_files(&self, model_folder: &Path) -> Result<CarriedFiles> {
        self.weights.carried_files(model_folder)
    }

    /// Writes the result: the adapter as a PEFT folder, or the whole model as a Hugging Face folder, with the `carried`
    /// files of the base model. Returns the folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, carried: &CarriedFiles) -> Result<PathBuf> {
        let folder = RunFolder::new(&self.config.output_dir);
        self.weights.save(&self.learner.policy, &folder, carried)
    }
}

fn defect(error: serde_json::Error) -> Error {
    Error::run(error, "this is a defect of the program: report it")
}

/// Checks that the weights are finite. An update can make them non-finite even if loss and gradient are finite.
///
/// # Errors
/// A weight is not finite.
fn check_finite(step: usize, weights: &NamedTensors) -> Result<()> {
    for (name, data) in weights {
        if data.iter::<f64>().any(|weight| !weight.is_finite()) {
            return Err(Error::run(
                format!(
                    "the weights after step {step} are not finite (in {name}), so no checkpoint was saved"
                ),
                "lower train.learning_rate",
            ));
        }
    }
    Ok(())
}

/// Formats the status line of a record: the values of the `watched` keys and the speed.
fn status(record: &Record, watched: &[(&str, &str)]) -> String {
    let mut parts = Vec::new();
    for (key, name) in watched {
        let value = record.values.iter().find(|(k, _)| k.trim_start_matches("eval_") == *key);
        if let Some((_, value)) = value {
            parts.push(format!("{name} {value:.4}"));
        }
    }
    if let Some((_, rate)) = record.values.iter().find(|(key, _)| key == "tokens_per_second") {
        parts.push(format!("{rate:.0} tok/s"));
    }
    parts.join("  ")
}
