//! `demo`: the whole way from voted answers to a measured adapter, on what is embedded in the program.
//!
//! Five steps, each of which is one command the user can run on the same files: prepare, score, train, score, report.

mod folder;
mod summary;

use std::path::PathBuf;

use arithmo_backends::TrainBackend;
use burn::tensor::DType;

pub use folder::DemoFolder;
pub use summary::DemoSummary;

use crate::config::RunConfig;
use crate::data::encode::{EncodedPair, encode_pairs};
use crate::data::pair::read_pairs;
use crate::data::prepare::{PrepareOptions, Rules, Source, prepare};
use crate::data::stack_exchange::Format;
use crate::data::tokenizer::Tokenizer;
use crate::dpo::score::{ScoreOptions, write_scores};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::lora::adapter;
use crate::model::load::load;
use crate::model::mistral::Mistral;
use crate::progress::ProgressMode;
use crate::report::write_report;
use crate::train::folder::Existing;
use crate::train::run::{RunOptions, run as run_training};
use crate::train::setup::encode_config;

/// Pairs scored together; does not change a number beyond rounding.
const SCORE_BATCH: usize = 4;

/// How the demo is run.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The folder everything is written to.
    pub output: PathBuf,
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
    let folder = DemoFolder::create(&options.output, options.overwrite)?;
    let config = RunConfig::load(&folder.run_config(), &[])?;
    let demo = Demo {
        folder,
        config,
        progress: options.progress,
    };
    demo.run::<B>(device).map_err(|error| match error {
        Error::Interrupted { note } => Error::Interrupted {
            note: format!("{note}. The demo begins anew with --overwrite"),
        },
        other => other,
    })
}

struct Demo {
    folder: DemoFolder,
    config: RunConfig,
    progress: ProgressMode,
}

impl Demo {
    fn run<B: TrainBackend>(&self, device: &B::Device) -> Result<DemoSummary> {
        let folder = &self.folder;
        self.say(
            "1/5  Pairs. Of each question's answers, the best voted against the worst; a fifth of the pairs is held out.",
            &folder.prepare_command(),
        );
        self.prepare()?;
        self.say(
            "2/5  Before. How likely the model, as it is, finds both answers of each held-out pair.",
            &folder.score_command(&self.config, false),
        );
        let pairs = self.held_out()?;
        let mut model: Mistral<B> = load(&folder.model(), DType::F32, device)?;
        self.score(&model, &pairs, "before", device)?;
        self.say(
            "3/5  Training. DPO moves a LoRA adapter; the model's own weights stay as they are.",
            &folder.train_command(),
        );
        let options = RunOptions {
            existing: Existing::Refuse,
            dry_run: false,
            progress: self.progress,
        };
        run_training::<B>(&self.config, &options, device).map_err(|error| match error {
            Error::Interrupted { note } => Error::Interrupted {
                note: format!("{note}: {} --resume", folder.train_command()),
            },
            other => other,
        })?;
        self.say(
            "4/5  After. The same held-out pairs, with the adapter on the model.",
            &folder.score_command(&self.config, true),
        );
        adapter::load(&mut model, &folder.adapter(), device)?;
        self.score(&model, &pairs, "after", device)?;
        self.say(
            "5/5  Report. All curves and numbers of the run on one page.",
            &folder.report_command(),
        );
        write_report(&folder.run())?;
        DemoSummary::read(folder, &self.config)
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

    /// The held-out pairs, encoded as in training.
    fn held_out(&self) -> Result<Vec<EncodedPair>> {
        let tokenizer = Tokenizer::from_folder(&self.folder.model())?;
        let pairs = read_pairs(&self.folder.held_out())?;
        let encoded = encode_pairs(&tokenizer, &pairs, &encode_config(&self.config)?)?;
        Ok(encoded.settle(true, false)?.pairs)
    }

    fn score<B: TrainBackend>(
        &self,
        model: &Mistral<B>,
        pairs: &[EncodedPair],
        when: &str,
        device: &B::Device,
    ) -> Result<()> {
        let options = ScoreOptions {
            batch_size: SCORE_BATCH,
            per_token: false,
            progress: self.progress,
        };
        write_scores(model, pairs, &self.folder.scores(when), &options, device)?;
        match interrupt::requested() {
            true => Err(Error::Interrupted {
                note: format!("stopped after the scores {when} training"),
            }),
            false => Ok(()),
        }
    }

    /// What happens next, and the command that does the same.
    fn say(&self, what: &str, command: &str) {
        if self.progress != ProgressMode::Quiet {
            eprintln!("\n{what}\n     $ {command}");
        }
    }
}
