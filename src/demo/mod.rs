//! Implements `demo`: from voted and checked answers to a measurably better model, on data embedded in the program.
//!
//! It has six steps, each of which is one or two commands that the user can run on the same files: prepare, evaluate,
//! sample-pairs, train, evaluate and compare, report.

pub mod arithmetic;
mod commands;
mod folder;
mod summary;

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

pub use folder::{DemoFolder, DemoSize, Training};
pub use summary::DemoSummary;

use crate::adapter::peft;
use crate::config::RunConfig;
use crate::data::prepare::{PrepareOptions, Rules, Source, prepare};
use crate::data::stack_exchange::Format;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::{EvaluatedModel, answers_key};
use crate::eval::judged::Judged;
use crate::eval::problems::read_problems;
use crate::eval::settings::Settings;
use crate::eval::task::Task;
use crate::generate::{GenerateConfig, stop_ids};
use crate::interrupt;
use crate::iterate::measure::{Measured, measure};
use crate::iterate::sample::{SampleOptions, sample_pairs};
use crate::model::decoder::Decoder;
use crate::model::load::load;
use crate::progress::ProgressMode;
use crate::report::write_report;
use crate::train::folder::Existing;
use crate::train::run::{RunOptions, run as run_training};

/// Number of answers sampled per problem.
const SAMPLES: usize = 8;
/// Maximum number of tokens per answer; the longest right one has about 45.
const MAX_NEW_TOKENS: usize = 80;
/// Number of answers decoded together.
const BATCH: usize = 64;

/// Settings of the demo.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Folder to which everything is written.
    pub output: PathBuf,
    /// Amount of work.
    pub size: DemoSize,
    /// Whether to replace an existing demo.
    pub overwrite: bool,
    /// How progress and explanations are shown.
    pub progress: ProgressMode,
}

/// Runs the demo on `device` and explains each step, with its command, on stderr.
///
/// # Errors
/// The folder is already in use or cannot be written, or the user interrupts.
pub fn demo<B: TrainBackend>(options: &DemoOptions, device: &B::Device) -> Result<DemoSummary> {
    let folder = DemoFolder::create(&options.output, options.size, options.overwrite)?;
    let tokenizer = Tokenizer::from_folder(&folder.model())?;
    let demo = Demo { folder, tokenizer, seed: options.size.seed, progress: options.progress };
    demo.run::<B>(device).map_err(|error| match error {
        Error::Interrupted { note } => {
            Error::Interrupted { note: format!("{note}. Restart the demo with --overwrite") }
        }
        other => other,
    })
}

struct Demo {
    folder: DemoFolder,
    tokenizer: Tokenizer,
    seed: u64,
    progress: ProgressMode,
}

impl Demo {
    /// Runs the six steps.
    fn run<B: TrainBackend>(&self, device: &B::Device) -> Result<DemoSummary> {
        let folder = &self.folder;
        self.say(
            "1/6  Pairs from votes. For each question, the best-voted answer is paired with the worst; a fifth of the pairs is held out.",
            &[folder.prepare_command()],
        )?;
        self.prepare()?;
        self.say(
            "2/6  Before. The model answers problems of a kind, and with numbers, that it was never trained on.",
            &[folder.evaluate_command("before")],
        )?;
        let mut model: Decoder<B> = load(&folder.model(), DType::F32, device)?;
        let before = self.measure(&model, "before")?;
        self.say(
            "3/6  Pairs from its own answers. It answers other problems eight times each; the known results tell right from wrong.",
            &[folder.sample_command(self.seed)],
        )?;
        self.sample(&model)?;
        self.say(
            "4/6  Training, twice. DPO moves a LoRA adapter towards the best-voted answers, then on towards the right ones of its own;\n\
             \x20    the model's own weights stay unchanged.",
            &[folder.train_command(Training::Voted)],
        )?;
        self.train::<B>(Training::Voted, device)?;
        self.say(
            "     The second run starts from the adapter of the first.",
            &[folder.train_command(Training::Own)],
        )?;
        self.train::<B>(Training::Own, device)?;
        self.say(
            "5/6  After. The same problems, answered with the adapter.",
            &[folder.evaluate_command("after"), folder.compare_command()],
        )?;
        peft::load(&mut model, &folder.adapter(Training::Own), device)?;
        let after = self.measure(&model, "after")?;
        self.say(
            "6/6  Reports. All curves and numbers of each run on a page.",
            &Training::ALL.map(|training| folder.report_command(training)),
        )?;
        for training in Training::ALL {
            write_report(&folder.run(training))?;
        }
        DemoSummary::read(folder, [&before, &after])
    }

    fn train<B: TrainBackend>(&self, training: Training, device: &B::Device) -> Result<()> {
        let folder = &self.folder;
        let config = RunConfig::load(&folder.run_config(training), &[])?;
        let options =
            RunOptions { existing: Existing::Refuse, dry_run: false, progress: self.progress };
        run_training::<B>(&config, &options, device).map_err(|error| match error {
            Error::Interrupted { note } => {
                let command = folder.train_command(training);
                Error::Interrupted { note: format!("{note}: {command} --resume") }
            }
            other => other,
        })?;
        Ok(())
    }

    fn prepare(&self) -> Result<()> {
        let folder = &self.folder;
        let options = PrepareOptions {
            sources: vec![Source::File(folder.rows(), Format::Auto)],
            output: folder.pairs(),
            rules: Rules::load(&folder.prepare_config(), None)?,
            ..PrepareOptions::default()
        };
        let summary = prepare(&options, self.progress)?;
        if self.progress != ProgressMode::Quiet {
            say!("{summary}");
        }
        Ok(())
    }

    /// Returns the settings of greedy generation.
    fn generate<B: TrainBackend>(&self, model: &Decoder<B>) -> Result<GenerateConfig> {
        let eos = self.tokenizer.eos_id();
        Ok(GenerateConfig {
            max_new_tokens: MAX_NEW_TOKENS,
            batch_size: BATCH,
            eos_ids: stop_ids(&self.folder.model(), &model.config, eos)?,
            ..GenerateConfig::default()
        })
    }

    /// Evaluates the model on the held-out problems, `before` or `after` training.
    fn measure<B: TrainBackend>(&self, model: &Decoder<B>, when: &str) -> Result<Vec<Judged>> {
        let folder = &self.folder;
        let (path, adapter) = (folder.model(), folder.adapter(Training::Own));
        let adapter = (when == "after").then_some(adapter.as_path());
        let measured = Measured {
            model: self.model_settings(&path, adapter)?,
            data: &folder.held_out_problems(),
            format: &Task::Gsm8k.template()?.into(),
            generate: &self.generate(model)?,
            remedy: "restart the demo with --overwrite",
            progress: self.progress,
        };
        let measured = measure(model, &self.tokenizer, &measured, &folder.evaluation(when));
        measured.map(|measured| measured.judged).map_err(|error| match error {
            Error::Interrupted { note } => {
                Error::Interrupted { note: format!("{note}: {}", folder.evaluate_command(when)) }
            }
            other => other,
        })
    }

    /// Returns the settings that identify the demo's model, the same as the printed commands have.
    fn model_settings(&self, folder: &Path, adapter: Option<&Path>) -> Result<Settings> {
        let model = EvaluatedModel {
            name: &folder.display().to_string(),
            folder,
            adapter,
            packed: None,
            dtype: Some(DType::F32),
        };
        model.settings()
    }

    fn sample<B: TrainBackend>(&self, model: &Decoder<B>) -> Result<()> {
        let options = SampleOptions {
            samples: SAMPLES,
            pairs_per_problem: 1,
            keep_cut_off: false,
            generate: GenerateConfig { temperature: 1.0, seed: self.seed, ..self.generate(model)? },
            prompt_format: Task::Gsm8k.template()?.into(),
            progress: self.progress,
        };
        let problems = read_problems(&self.folder.problems())?;
        let output = self.folder.own_pairs();
        let data = self.folder.problems();
        let settings = self.model_settings(&self.folder.model(), None)?;
        let key = answers_key(settings, &data, &problems, options.generate.max_new_tokens);
        let stats = sample_pairs(model, &self.tokenizer, &problems, &options, key, &output)?;
        if self.progress != ProgressMode::Quiet {
            say!("{}", stats.summary());
        }
        Ok(())
    }

    /// Prints the explanation of the next step and its commands, or returns an error if the user has asked to stop.
    fn say(&self, explanation: &str, commands: &[String]) -> Result<()> {
        if interrupt::requested() {
            let note = "stopped between two steps".to_string();
            return Err(Error::Interrupted { note });
        }
        if self.progress != ProgressMode::Quiet {
            say!("\n{explanation}");
            for command in commands {
                say!("     $ {command}");
            }
        }
        Ok(())
    }
}
