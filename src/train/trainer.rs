//! The loop of a run: steps, logs, evaluation, checkpoints, interruption.

use std::path::{Path, PathBuf};
use std::time::Instant;

use arithmo_backends::TrainBackend;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::data::sample::Sample;
use crate::dpo::metrics::MicroBatchMetrics;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::lora::LoraConfig;
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::{Checkpoint, NamedTensors, Snapshot, TrainState};
use crate::train::folder::RunFolder;
use crate::train::logger::{MetricsLog, Record};
use crate::train::method::{Method, StepOutput};
use crate::train::optimizer::{AdamW, AdamWConfig};
use crate::train::result::TrainedWeights;
use crate::train::sampler::Sampler;
use crate::train::schedule::Schedule;
use crate::train::setup::{self, RunData};

/// A run under way: the learner and everything around it.
#[derive(Debug)]
pub struct Trainer<'a, B: TrainBackend, M: Method<B>> {
    config: &'a RunConfig,
    data: &'a RunData<M::Sample>,
    learner: M,
    weights: TrainedWeights,
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Window {
    micro_batches: Vec<MicroBatchMetrics>,
    losses: Vec<f64>,
    tokens: u64,
    /// Training seconds when the window began.
    since: f64,
}

impl<'a, B: TrainBackend, M: Method<B>> Trainer<'a, B, M> {
    /// A run at its first step.
    ///
    /// # Errors
    /// The schedule's numbers do not fit together.
    pub fn new(
        config: &'a RunConfig,
        data: &'a RunData<M::Sample>,
        mut learner: M,
        lora: Option<LoraConfig>,
        log: MetricsLog,
        device: &B::Device,
    ) -> Result<Self> {
        let sampler = setup::sampler(config, data);
        let train = &config.train;
        let total_steps = train.total_steps(data.train.len());
        let warmup = train.resolved_warmup_steps(total_steps);
        let (kind, rate) = (train.lr_scheduler_type, train.learning_rate);
        learner.begin(config, total_steps > sampler.steps_per_epoch());
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
            device,
        })
    }

    /// Takes up the run where `checkpoint` left it.
    ///
    /// # Errors
    /// The checkpoint does not fit what is trained.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let moments = checkpoint.tensors("optimizer")?;
        let moments = AdamW::import(AdamWConfig::from(&self.config.train), moments, &self.device)?;
        let (policy, optimizer) = self.learner.trained();
        self.weights.restore(policy, checkpoint, &self.device)?;
        *optimizer = moments;
        self.learner.restore_files(checkpoint)?;
        self.state = checkpoint.state().clone();
        self.window = match self.state.metrics.take() {
            serde_json::Value::Null => Window::default(),
            window => serde_json::from_value(window).map_err(|error| {
                let problem =
                    format!("its sums since the last logged line cannot be read: {error}");
                let remedy = "remove this checkpoint folder: the one before it is used then";
                Error::file(checkpoint.path(), problem, remedy)
            })?,
        };
        Ok(())
    }

    /// What the method computes over all training samples before the first step.
    ///
    /// # Errors
    /// The user interrupts.
    pub fn precompute(&mut self, mode: ProgressMode) -> Result<()> {
        match self.state.step < self.total_steps {
            true => self.learner.precompute(&self.data.train, self.config, mode),
            false => Ok(()),
        }
    }

    /// Trains to the last step; gives the last line of metrics.
    ///
    /// # Errors
    /// A step fails its checks, something cannot be written, or the user interrupts: a checkpoint is saved first.
    pub fn run(&mut self, mode: ProgressMode) -> Result<Option<Record>> {
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
                self.save_checkpoint(self.config.train.save_total_limit)?;
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

    /// Optimizer steps done.
    pub fn steps(&self) -> usize {
        self.state.step
    }

    fn one_step(&mut self, progress: &Progress) -> Result<Option<Record>> {
        let started = Instant::now();
        let step = self.state.step;
        let plan = self.sampler.plan(step);
        let batches: Vec<Vec<&M::Sample>> = plan
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
            self.learner.check_first_step(&output, self.config)?;
        }
        let samples = batches.iter().flatten();
        let tokens: usize = samples.map(|sample| sample.attended_tokens()).sum();
        self.state.step += 1;
        self.state.num_tokens += tokens as u64;
        self.state.seconds += started.elapsed().as_secs_f64();
        self.window.tokens += tokens as u64;
        self.window.losses.push(output.loss);
        self.window.micro_batches.extend(output.micro_batches);
        let due = self.state.step.is_multiple_of(self.config.train.logging_steps.max(1));
        if !due && self.state.step != self.total_steps {
            return Ok(None);
        }
        let record = self.record(plan.epoch, rate, output.grad_norm);
        self.log.log(&record)?;
        progress.set_message(status(&record, M::WATCHED));
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
            .with("tokens_per_second", window.tokens as f64 / seconds.max(1e-9))
            .with("seconds", self.state.seconds);
        for (key, value) in M::KEYS.iter().zip(values) {
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
        let mut metrics = Vec::new();
        let size = self.config.train.per_device_eval_batch_size.max(1);
        for samples in self.data.eval.chunks(size) {
            let samples: Vec<&M::Sample> = samples.iter().collect();
            metrics.push(self.learner.evaluate(&samples));
        }
        let (_, values) = MicroBatchMetrics::mean(&metrics);
        let mut record = Record::new(self.state.step as u64)
            .with("eval_loss", MicroBatchMetrics::loss_by_pairs(&metrics))
            .with("eval_num_tokens", self.state.num_tokens as f64);
        for (key, value) in M::KEYS.iter().zip(values) {
            record = record.with(format!("eval_{key}"), value);
        }
        progress.println(&format!(
            "step {} eval: {}",
            self.state.step,
            status(&record, M::WATCHED)
        ));
        self.log.log(&record)
    }

    /// Keeps the last good state and says which samples broke the step.
    fn not_finite(&mut self, output: &StepOutput, batches: &[Vec<&M::Sample>]) -> Error {
        let saved = match self.state.step {
            0 => "nothing was trained yet".to_string(),
            // Nothing is pruned: the weights that broke this step may be no good, and an earlier checkpoint be wanted.
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
                M::Sample::NAME,
                ids.join(", ")
            ),
            match self.state.step {
                0 => {
                    "the model itself gives no finite number here: check its weights, or use model.dtype = \"f32\""
                }
                _ => "lower train.learning_rate, or use model.dtype = \"f32\" or \"bf16\"",
            },
        )
    }

    /// Saves the state; of the checkpoints, the newest `keep` stay (0: all).
    fn save_checkpoint(&mut self, keep: usize) -> Result<()> {
        let weights = self.weights.tensors(self.learner.policy());
        check_finite(self.state.step, &weights)?;
        self.log.sync()?;
        let done = self.state.step % self.sampler.steps_per_epoch();
        self.state.epoch = self.state.step / self.sampler.steps_per_epoch();
        self.state.position = done * self.sampler.batch_size * self.sampler.accumulation;
        let metrics = serde_json::to_value(&self.window).map_err(defect)?;
        let mut files = self.weights.files(self.learner.policy());
        files.extend(self.learner.files()?);
        let snapshot = Snapshot {
            state: TrainState { metrics, ..self.state.clone() },
            groups: vec![
                (self.weights.group().to_string(), weights),
                ("optimizer".to_string(), self.learner.optimizer().export()),
            ],
            files,
        };
        let folder = RunFolder::new(&self.config.output_dir).checkpoints();
        Checkpoint::save(&folder, &snapshot, keep)?;
        Ok(())
    }

    /// Writes what was trained: the adapter as a PEFT folder, or the whole model as a Hugging Face folder; tokenizer
    /// files come from `model_folder`. Returns the folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, model_folder: &Path) -> Result<PathBuf> {
        let folder = RunFolder::new(&self.config.output_dir);
        self.weights.save(self.learner.policy(), &folder, model_folder)
    }
}

fn defect(error: serde_json::Error) -> Error {
    Error::run(error, "this is a defect of the program: report it")
}

/// An update can leave weights that are not finite although loss and gradient were: no checkpoint keeps such.
fn check_finite(step: usize, weights: &NamedTensors) -> Result<()> {
    for (name, data) in weights {
        if data.iter::<f64>().any(|weight| !weight.is_finite()) {
            return Err(Error::run(
                format!(
                    "step {step} left weights that are not finite (in {name}): no checkpoint keeps them"
                ),
                "lower train.learning_rate",
            ));
        }
    }
    Ok(())
}

/// The figures people watch.
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
