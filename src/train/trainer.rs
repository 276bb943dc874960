//! The training loop, with its steps, logs, evaluations, checkpoints and interruptions.

mod best;
mod failure;
mod snapshot;

use std::path::{Path, PathBuf};
use std::time::Instant;

use arithmo_backends::TrainBackend;

use crate::adapter::LoraConfig;
use crate::config::{IntervalStrategy, RunConfig, SaveStrategy};
use crate::data::sample::Sample;
use crate::data::tokenizer::CarriedFiles;
use crate::error::{Error, Result, check_work};
use crate::interrupt;
use crate::model::identity::ModelIdentity;
use crate::objective::reference::Reference;
use crate::objective::{Objective, Usage};
use crate::progress::{Progress, ProgressMode};
use crate::train::checkpoint::TrainState;
use crate::train::data::RunData;
use crate::train::evaluation::evaluate;
use crate::train::folder::RunFolder;
use crate::train::logger::{MetricsLog, Record};
use crate::train::reference_cache::{ReferenceCache, ReferenceOrigin};
use crate::train::result::TrainedWeights;
use crate::train::sampler::Sampler;
use crate::train::schedule::{Plateau, PlateauState, Schedule};
use crate::train::selection::Selection;
use crate::train::status::status;
use crate::train::step::Learner;
use crate::train::timetable::Timetable;
use crate::train::unsaved::unsaved_warning;
use crate::train::watch::Watch;
use crate::train::window::{LastStep, Window};

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
    /// How evaluations lower the learning rate. `None` for schedules that depend on the step alone.
    plateau: Option<Plateau>,
    timetable: Timetable<'a>,
    /// How evaluations are compared. `None` if they are not.
    selection: Option<Selection>,
    total_steps: usize,
    state: TrainState,
    /// Metrics since the last logged line.
    window: Window,
    /// Looks for alarms in what was logged.
    watch: Watch,
    /// Number of steps done by this process.
    steps_timed: usize,
    device: B::Device,
}

impl<'a, B: TrainBackend, O: Objective<B>> Trainer<'a, B, O> {
    /// Creates the trainer of a run at its first step.
    ///
    /// # Errors
    /// The parameters of the learning-rate schedule are invalid, or the log cannot be read.
    pub fn new(
        config: &'a RunConfig,
        data: &'a RunData<O::Sample>,
        learner: Learner<B, O>,
        lora: Option<LoraConfig>,
        log: MetricsLog,
        device: &B::Device,
    ) -> Result<Self> {
        let train = &config.train;
        let total_steps = train.total_steps(data.train.len());
        let warmup = train.resolved_warmup_steps(total_steps);
        let (kind, rate) = (train.lr_scheduler_type, train.learning_rate);
        Ok(Self {
            config,
            data,
            learner,
            weights: TrainedWeights::new(config, lora),
            log,
            sampler: Sampler::of_run(config, data.train.len()),
            schedule: Schedule::new(kind, rate, warmup, total_steps, &train.lr_scheduler_kwargs)?,
            plateau: Plateau::of(kind, &train.lr_scheduler_kwargs),
            timetable: Timetable::new(train, data.train.len(), total_steps),
            selection: Selection::of(train),
            total_steps,
            state: TrainState { seed: config.seed, ..TrainState::default() },
            window: Window::default(),
            watch: Watch::read(&config.output_dir)?,
            steps_timed: 0,
            device: device.clone(),
        })
    }

    /// Computes what the objective needs of all samples, unless all steps are done or an earlier run with the same `model` on
    /// the same `device` kept it.
    ///
    /// # Errors
    /// Same as [`Learner::precompute`].
    pub fn precompute(
        &mut self,
        model: Option<&ModelIdentity>,
        device: &str,
        mode: ProgressMode,
    ) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let evaluates = self.config.train.eval_strategy != IntervalStrategy::No;
        let evaluates = evaluates || self.config.train.eval_on_start;
        let (config, dtype) = (self.config, self.learner.policy.dtype());
        let held_out = if evaluates { self.data.eval.as_slice() } else { &[] };
        for (samples, usage) in
            [(self.data.train.as_slice(), Usage::Training), (held_out, Usage::Evaluation)]
        {
            let Some(size) = self.learner.objective.precompute_batch_size(usage) else { continue };
            let cache = model.filter(|_| !samples.is_empty()).and_then(|model| {
                let origin = ReferenceOrigin { config, model, dtype, device, batch_size: size };
                ReferenceCache::open(origin, samples)
            });
            self.learner.precompute(samples, usage, cache.as_ref(), mode)?;
        }
        Ok(())
    }

    /// Trains to the last step, or until the run stops early, and returns the last record of metrics. With
    /// `load_best_model_at_end`, the weights are those of the best step then.
    ///
    /// # Errors
    /// A step fails its checks, a file cannot be written, or the user interrupts. A checkpoint is saved first.
    pub fn run(&mut self, mode: ProgressMode) -> Result<Option<Record>> {
        let progress = Progress::new("train", Some(self.total_steps as u64), "steps", mode);
        progress.set_position(self.state.step as u64);
        if self.config.train.eval_on_start && self.state.step == 0 {
            progress.pause(|| self.evaluate(&progress))?;
        }
        let mut last = None;
        while !self.is_done() {
            let started = Instant::now();
            let record = self.one_step(&progress)?;
            last = record.or(last);
            progress.inc(1);
            self.warn_if_unsaved(started.elapsed().as_secs_f64(), &progress);
            // The time of the evaluation does not count as time of the steps.
            let is_best = progress.pause(|| self.evaluate_if_due(&progress))?;
            let interrupted = interrupt::requested() && !self.is_done();
            if self.save_is_due(is_best) || interrupted {
                self.save_checkpoint(self.retention())?;
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
        self.end(&progress)?;
        progress.finish();
        Ok(last)
    }

    /// Returns whether all steps are done or the run has stopped early.
    fn is_done(&self) -> bool {
        self.state.step >= self.total_steps || self.stopped_early()
    }

    /// Returns whether the metric has not improved for `early_stopping_patience` evaluations.
    fn stopped_early(&self) -> bool {
        self.selection.as_ref().is_some_and(|selection| selection.stops(&self.state.selected))
    }

    /// Warns after the second step of this process, whose time shows how long the run takes, if the run is long and saves
    /// no checkpoint before its end.
    fn warn_if_unsaved(&mut self, seconds: f64, progress: &Progress) {
        self.steps_timed += 1;
        if self.steps_timed != 2 || self.config.train.save_strategy == SaveStrategy::Best {
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
        let learning_rate = match &self.state.plateau {
            Some(plateau) => plateau.learning_rate,
            None => self.schedule.rate(step),
        };
        let output = self.learner.step(step, learning_rate, &batches);
        check_work()?;
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
        let last = LastStep { epoch: plan.epoch, learning_rate, grad_norm: output.grad_norm };
        self.window.add(output, tokens);
        if !self.timetable.logs(self.state.step) {
            return Ok(None);
        }
        let means = self.config.train.eval_means;
        let record = self.window.record(&self.state, means, last);
        let record = match B::peak_memory_bytes(&self.device) {
            Some(bytes) => record.with("peak_memory_bytes", bytes as f64),
            None => record,
        };
        self.log(&record, progress)?;
        progress.set_message(status(&record, O::STATUS_KEYS));
        Ok(Some(record))
    }

    /// Logs a record and prints the alarms that it raises.
    fn log(&mut self, record: &Record, progress: &Progress) -> Result<()> {
        self.log.log(record)?;
        for alarm in self.watch.add(record) {
            progress.println(&format!("alarm: {alarm}"));
        }
        Ok(())
    }

    /// Evaluates the held-out samples and logs the result.
    fn evaluate(&mut self, progress: &Progress) -> Result<Record> {
        let record = evaluate(&self.learner, &self.data.eval, &self.config.train, &self.state);
        let line = status(&record, O::STATUS_KEYS);
        progress.println(&format!("step {} eval: {line}", self.state.step));
        self.log(&record, progress)?;
        Ok(record)
    }

    /// Evaluates if the run asks for it after the step that was done last. Returns whether this evaluation is the best so
    /// far.
    fn evaluate_if_due(&mut self, progress: &Progress) -> Result<bool> {
        if self.data.eval.is_empty() || !self.timetable.evaluates(self.state.step) {
            return Ok(false);
        }
        let record = self.evaluate(progress)?;
        let Some(selection) = &self.selection else {
            return Ok(false);
        };
        let metric = record.get(&selection.metric).unwrap_or(f64::NAN);
        if let Some(rule) = &self.plateau {
            let peak = self.config.train.learning_rate;
            rule.add(self.state.plateau.get_or_insert(PlateauState::new(peak)), metric);
        }
        Ok(selection.add(&mut self.state.selected, self.state.step, metric))
    }

    /// Returns whether a checkpoint is saved after the step that was done last: when it is due, when the run stops early, and
    /// when the step is the best so far and may become the result, or is saved for that.
    fn save_is_due(&self, is_best: bool) -> bool {
        let train = &self.config.train;
        let saves_best = train.load_best_model_at_end || train.save_strategy == SaveStrategy::Best;
        let stops = self.stopped_early() && train.save_strategy.saves_regularly();
        self.timetable.saves(self.state.step) || is_best && saves_best || stops
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
        let reference = self.learner.objective.reference_model();
        let reference = reference.and_then(Reference::moving_model);
        self.weights.save(&self.learner.policy, reference, &folder, carried)
    }
}
