//! `demo`: the whole way from voted answers and checked ones to a better model, measured, on what is embedded in the program.
//!
//! Six steps, each of which is one or two commands the user can run on the same files: prepare, evaluate, sample-pairs,
//! train, evaluate and compare, report.

mod commands;
mod folder;
mod summary;

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

pub use folder::{DemoFolder, DemoSize};
pub use summary::DemoSummary;

use crate::config::RunConfig;
use crate::data::prepare::{PrepareOptions, Rules, Source, prepare};
use crate::data::stack_exchange::Format;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::model_settings;
use crate::eval::judged::Judged;
use crate::eval::problems::read_problems;
use crate::eval::task::Task;
use crate::generate::{GenerateConfig, stop_ids};
use crate::interrupt;
use crate::iterate::measure::{Measured, measure};
use crate::iterate::sample::{SampleOptions, sample_pairs};
use crate::lora::adapter;
use crate::model::load::load;
use crate::model::mistral::Mistral;
use crate::output::write_whole;
use crate::progress::ProgressMode;
use crate::report::write_report;
use crate::train::folder::Existing;
use crate::train::run::{RunOptions, run as run_training};

/// Answers sampled of each problem.
const SAMPLES: usize = 8;
/// Tokens of an answer; the longest right one has about 45.
const MAX_NEW_TOKENS: usize = 80;
/// Answers decoded together.
const BATCH: usize = 64;

/// How the demo is run.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The folder everything is written to.
    pub output: PathBuf,
    /// How much is done.
    pub size: DemoSize,
    /// Replace a demo that is already there.
    pub overwrite: bool,
    /// Where progress and explanations go.
    pub progress: ProgressMode,
}

/// Runs the demo on `device`; explains each step, with its command, on stderr.
///
/// # Errors
/// The folder holds something already, or cannot be written; or the user interrupts.
pub fn demo<B: TrainBackend>(options: &DemoOptions, device: &B::Device) -> Result<DemoSummary> {
    let folder = DemoFolder::create(&options.output, options.size, options.overwrite)?;
    let config = RunConfig::load(&folder.run_config(), &[])?;
    let tokenizer = Tokenizer::from_folder(&folder.model())?;
    let demo =
        Demo { folder, config, tokenizer, seed: options.size.seed, progress: options.progress };
    demo.run::<B>(device).map_err(|error| match error {
        Error::Interrupted { note } => {
            Error::Interrupted { note: format!("{note}. The demo begins anew with --overwrite") }
        }
        other => other,
    })
}

struct Demo {
    folder: DemoFolder,
    config: RunConfig,
    tokenizer: Tokenizer,
    seed: u64,
    progress: ProgressMode,
}

impl Demo {
    fn run<B: TrainBackend>(&self, device: &B::Device) -> Result<DemoSummary> {
        let folder = &self.folder;
        self.say(
            "1/6  Pairs from votes. Of each question's answers, the best voted against the worst; a fifth of the pairs is held out.",
            &[folder.prepare_command()],
        )?;
        self.prepare()?;
        self.say(
            "2/6  Before. The model answers problems of a kind and with sums it was never trained on.",
            &[folder.evaluate_command("before")],
        )?;
        let mut model: Mistral<B> = load(&folder.model(), DType::F32, device)?;
        let before = self.measure(&model, "before")?;
        self.say(
            "3/6  Pairs from its own answers. It answers other problems eight times each; the known results tell right from wrong.",
            &[folder.sample_command(self.seed)],
        )?;
        self.sample(&model)?;
        self.say(
            "4/6  Training. DPO moves a LoRA adapter towards the right and the voted answers; the model's own weights stay as they are.",
            &[folder.join_command(), folder.train_command()],
        )?;
        self.join()?;
        let options =
            RunOptions { existing: Existing::Refuse, dry_run: false, progress: self.progress };
        run_training::<B>(&self.config, &options, device).map_err(|error| match error {
            Error::Interrupted { note } => {
                Error::Interrupted { note: format!("{note}: {} --resume", folder.train_command()) }
            }
            other => other,
        })?;
        self.say(
            "5/6  After. The same problems, with the adapter on the model.",
            &[folder.evaluate_command("after"), folder.compare_command()],
        )?;
        adapter::load(&mut model, &folder.adapter(), device)?;
        let after = self.measure(&model, "after")?;
        self.say(
            "6/6  Report. All curves and numbers of the training on one page.",
            &[folder.report_command()],
        )?;
        write_report(&folder.run())?;
        DemoSummary::read(folder, &self.config, [&before, &after])
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
            eprintln!("{summary}");
        }
        Ok(())
    }

    fn generate<B: TrainBackend>(&self, model: &Mistral<B>) -> Result<GenerateConfig> {
        let eos = self.tokenizer.eos_id();
        Ok(GenerateConfig {
            max_new_tokens: MAX_NEW_TOKENS,
            batch_size: BATCH,
            eos_ids: stop_ids(&self.folder.model(), &model.config, eos)?,
            ..GenerateConfig::default()
        })
    }

    fn measure<B: TrainBackend>(&self, model: &Mistral<B>, when: &str) -> Result<Vec<Judged>> {
        let folder = &self.folder;
        let (path, adapter) = (folder.model(), folder.adapter());
        let name = path.display().to_string();
        let measured = Measured {
            model: (&path, &name),
            adapter: (when == "after").then_some(adapter.as_path()),
            data: &folder.held_out_problems(),
            generate: &self.generate(model)?,
            progress: self.progress,
        };
        let measured = measure(model, &self.tokenizer, &measured, &folder.evaluation(when));
        measured.map_err(|error| match error {
            Error::Interrupted { note } => {
                Error::Interrupted { note: format!("{note}: {}", folder.evaluate_command(when)) }
            }
            other => other,
        })
    }

    fn sample<B: TrainBackend>(&self, model: &Mistral<B>) -> Result<()> {
        let options = SampleOptions {
            samples: SAMPLES,
            pairs_per_problem: 1,
            generate: GenerateConfig { temperature: 1.0, seed: self.seed, ..self.generate(model)? },
            prompt_template: Task::Gsm8k.template()?,
            progress: self.progress,
        };
        let problems = read_problems(&self.folder.problems())?;
        let output = self.folder.own_pairs();
        let name = self.folder.model().display().to_string();
        let max_new_tokens = options.generate.max_new_tokens;
        let asked = model_settings(&name, &self.folder.model(), None, None)?.asking(
            &self.folder.problems(),
            problems.len(),
            max_new_tokens,
        )?;
        let stats = sample_pairs(model, &self.tokenizer, &problems, &options, asked, &output)?;
        if self.progress != ProgressMode::Quiet {
            eprintln!("{}", stats.summary());
        }
        Ok(())
    }

    /// The pairs of both kinds as one file, in the order they are trained on: the voted ones, whose texts are far from what the
    /// model writes, would drown its own if they came between them.
    fn join(&self) -> Result<()> {
        let folder = &self.folder;
        let mut both = Vec::new();
        for path in [folder.pairs(), folder.own_pairs()] {
            let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
            both.extend(bytes);
        }
        write_whole(&folder.train_pairs(), &both)
    }

    /// What happens next, and the commands that do the same; unless the user has asked to stop.
    fn say(&self, what: &str, commands: &[String]) -> Result<()> {
        if interrupt::requested() {
            let note = "stopped between two steps".to_string();
            return Err(Error::Interrupted { note });
        }
        if self.progress != ProgressMode::Quiet {
            eprintln!("\n{what}");
            for command in commands {
                eprintln!("     $ {command}");
            }
        }
        Ok(())
    }
}
