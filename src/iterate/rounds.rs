//! `iterate`: rounds of sampling, training and measuring (iterative DPO, arXiv 2404.19733).
//!
//! Each round goes on with the adapter of the round before, and its reference is a frozen copy of it (`lora.adapter` with
//! `dpo.reference = "auto"`). So there is one base model and one small adapter a round; merging instead would write the
//! whole model each time, and a quantized base could not take it.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use serde::{Deserialize, Serialize};

use super::measure::{Measured, accuracy, measure};
use super::sample::{SampleOptions, sample_pairs};
use crate::config::RunConfig;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::{Folder, model_settings};
use crate::eval::judged::read_judged;
use crate::eval::problems::{Problem, read_problems};
use crate::eval::statistics::Rate;
use crate::generate::{GenerateConfig, stop_ids};
use crate::lora::adapter;
use crate::model::config::MistralConfig;
use crate::model::dtype::{Purpose, choose};
use crate::model::hub::Hub;
use crate::model::load::load_as;
use crate::model::mistral::Mistral;
use crate::model::quantize::Quantization;
use crate::model::quantize::cache::Cache;
use crate::output::write_whole;
use crate::progress::ProgressMode;
use crate::train::folder::Existing;
use crate::train::run::{RunOptions, run as run_training};

/// `iterate.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IterateConfig {
    /// Folder of the rounds.
    pub output_dir: PathBuf,
    /// Seeds samples and training, each round its own.
    #[serde(default = "seed")]
    pub seed: u64,
    /// How many rounds.
    pub rounds: usize,
    /// The run.toml of each round's training; `output_dir`, `seed`, `data.train_file` and `lora.adapter` are set by the
    /// round.
    pub run: PathBuf,
    /// How pairs are made.
    pub sample: SampleSection,
    /// What is measured after each round; absent: nothing.
    pub evaluate: Option<EvaluateSection>,
}

fn seed() -> u64 {
    42
}

/// `[sample]`, the options of `sample-pairs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSection {
    /// Problems with known answers.
    pub data: PathBuf,
    /// Problems a round, the next ones each time; 0: all.
    pub problems: usize,
    /// Answers a problem.
    pub samples: usize,
    /// Most pairs of one problem.
    pub pairs_per_problem: usize,
    /// The higher, the freer.
    pub temperature: f64,
    /// Sample among the most likely tokens; 0: all.
    pub top_k: usize,
    /// Sample among the fewest tokens that hold this probability; 1: all.
    pub top_p: f64,
    /// At most this many tokens an answer.
    pub max_new_tokens: usize,
    /// Answers decoded together.
    pub batch_size: usize,
}

impl Default for SampleSection {
    fn default() -> Self {
        Self {
            data: "problems.jsonl".into(),
            problems: 0,
            samples: 8,
            pairs_per_problem: 1,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            max_new_tokens: 512,
            batch_size: 64,
        }
    }
}

/// `[evaluate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSection {
    /// Held-out problems with known answers.
    pub data: PathBuf,
}

impl IterateConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// It cannot be read, is not TOML, has an unknown key, or asks for no round.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let config: Self = toml::from_str(&text)
            .map_err(|e| Error::file(path, e, "correct it; configs/iterate.toml has every key"))?;
        let wrong = |key, problem, remedy| {
            let place = format!("{}: {key}", path.display());
            Err(Error::invalid(place, problem, remedy))
        };
        match config.rounds {
            0 => wrong("rounds", "is 0", "ask for at least 1"),
            _ => Ok(config),
        }
    }
}

/// Where a round stands.
#[derive(Clone, Debug)]
pub struct RoundSummary {
    /// Number, from 1; 0: before the first.
    pub round: usize,
    /// Pairs trained on.
    pub pairs: Option<usize>,
    /// Accuracy on the held-out problems.
    pub accuracy: Option<Rate>,
}

/// Runs the rounds, or goes on with them: what a round has finished is kept. `done` hears of each.
///
/// # Errors
/// The rounds there were made by another configuration; a step fails; or the user interrupts (the same command goes on).
pub fn iterate<B: TrainBackend>(
    config: &IterateConfig,
    mode: ProgressMode,
    device: &B::Device,
    mut done: impl FnMut(&RoundSummary) -> Result<()>,
) -> Result<()> {
    check_same(config)?;
    let rounds = Rounds::new(config, mode)?;
    let mut model = rounds.load::<B>(device)?;
    let accuracy = rounds.measure(&model, 0)?;
    done(&RoundSummary { round: 0, pairs: None, accuracy })?;
    for round in 1..=config.rounds {
        if round > 1 {
            adapter::load(&mut model, &rounds.adapter(round - 1), device)?;
        }
        let pairs = rounds.sample(&model, round)?;
        rounds.train::<B>(round, device)?;
        adapter::load(&mut model, &rounds.adapter(round), device)?;
        let accuracy = rounds.measure(&model, round)?;
        done(&RoundSummary { round, pairs: Some(pairs), accuracy })?;
    }
    Ok(())
}

/// Keeps the configuration beside the rounds; refuses to go on with those of another one. More rounds may be asked for.
fn check_same(config: &IterateConfig) -> Result<()> {
    let path = config.output_dir.join("iterate.toml");
    let all = IterateConfig { rounds: 0, output_dir: PathBuf::new(), ..config.clone() };
    let text = toml::to_string(&all)
        .map_err(|e| Error::invalid("iterate.toml", e, "choose a seed below 2^63"))?;
    match std::fs::read_to_string(&path) {
        Ok(before) if before == text => Ok(()),
        Ok(_) => Err(Error::file(
            &path,
            "the rounds there were made by another configuration",
            "undo the change, or choose another output_dir",
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write_whole(&path, text.as_bytes()),
        Err(e) => Err(Error::io(&path, "read", e)),
    }
}

struct Rounds<'a> {
    config: &'a IterateConfig,
    /// The base model.
    folder: PathBuf,
    name: String,
    dtype: Option<burn::tensor::DType>,
    quantize: Option<Quantization>,
    tokenizer: Tokenizer,
    problems: Vec<Problem>,
    prompt_template: PromptTemplate,
    generate: GenerateConfig,
    mode: ProgressMode,
}

impl<'a> Rounds<'a> {
    fn new(config: &'a IterateConfig, mode: ProgressMode) -> Result<Self> {
        let run = RunConfig::load(&config.run, &[])?;
        let (name, revision) = (&run.model.model_name_or_path, &run.model.revision);
        let folder = Hub::open(mode).resolve(name, revision)?;
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let sample = &config.sample;
        let generate = GenerateConfig {
            max_new_tokens: sample.max_new_tokens,
            batch_size: sample.batch_size,
            eos_ids: stop_ids(&folder, &MistralConfig::load(&folder)?, tokenizer.eos_id())?,
            ..GenerateConfig::default()
        };
        Ok(Self {
            config,
            name: name.clone(),
            dtype: run.model.dtype.dtype(),
            quantize: run.model.quantize(),
            tokenizer,
            problems: read_problems(&sample.data)?,
            prompt_template: PromptTemplate::new(&run.data.prompt_template)?,
            generate,
            folder,
            mode,
        })
    }

    fn load<B: TrainBackend>(&self, device: &B::Device) -> Result<Mistral<B>> {
        let dtype =
            choose::<B>(&MistralConfig::load(&self.folder)?, self.dtype, Purpose::Hold, device)?;
        let cache = Cache::of_user(self.mode);
        load_as(&self.folder, dtype, self.quantize, &cache, device)
    }

    fn path(&self, round: usize, name: &str) -> PathBuf {
        let folder = self.config.output_dir.join(format!("round-{round}"));
        folder.join(name)
    }

    fn adapter(&self, round: usize) -> PathBuf {
        self.path(round, "run/adapter")
    }

    /// The problems of a round: the next ones each time, from the front again after the last.
    fn problems(&self, round: usize) -> Vec<Problem> {
        let all = &self.problems;
        match self.config.sample.problems {
            0 => all.clone(),
            count => {
                let first = (round - 1) * count;
                let next = all.iter().cycle().skip(first % all.len().max(1));
                next.take(count.min(all.len())).cloned().collect()
            }
        }
    }

    /// Makes the round's pairs, unless they are there; returns how many.
    fn sample<B: TrainBackend>(&self, model: &Mistral<B>, round: usize) -> Result<usize> {
        let output = self.path(round, "pairs.jsonl");
        if !output.is_file() {
            let sample = &self.config.sample;
            let options = SampleOptions {
                samples: sample.samples,
                pairs_per_problem: sample.pairs_per_problem,
                generate: GenerateConfig {
                    temperature: sample.temperature,
                    top_k: sample.top_k,
                    top_p: sample.top_p,
                    seed: self.seed(round),
                    ..self.generate.clone()
                },
                prompt_template: self.prompt_template.clone(),
                progress: self.mode,
            };
            let adapter = (round > 1).then(|| self.adapter(round - 1));
            let problems = self.problems(round);
            let asked =
                model_settings(&self.name, &self.folder, self.quantize, adapter.as_deref())?
                    .asking(&sample.data, problems.len(), sample.max_new_tokens)?;
            sample_pairs(model, &self.tokenizer, &problems, &options, asked, &output)?;
        }
        let text = std::fs::read_to_string(&output).map_err(|e| Error::io(&output, "read", e))?;
        Ok(text.lines().count())
    }

    fn seed(&self, round: usize) -> u64 {
        self.config.seed.wrapping_add(round as u64 - 1)
    }

    /// Trains the round's adapter, from where an interrupted training stopped.
    fn train<B: TrainBackend>(&self, round: usize, device: &B::Device) -> Result<()> {
        let text = |path: PathBuf| toml::Value::String(path.display().to_string());
        let mut settings = vec![
            format!("output_dir={}", text(self.path(round, "run"))),
            format!("seed={}", self.seed(round)),
            format!("data.train_file={}", text(self.path(round, "pairs.jsonl"))),
        ];
        if round > 1 {
            settings.push(format!("lora.adapter={}", text(self.adapter(round - 1))));
        }
        let config = RunConfig::load(&self.config.run, &settings)?;
        let options =
            RunOptions { existing: Existing::Resume, dry_run: false, progress: self.mode };
        run_training::<B>(&config, &options, device).map(|_| ())
    }

    /// Measures the model after a round, unless that was done.
    fn measure<B: TrainBackend>(&self, model: &Mistral<B>, round: usize) -> Result<Option<Rate>> {
        let Some(evaluate) = &self.config.evaluate else {
            return Ok(None);
        };
        let folder = Folder(self.path(round, "evaluation"));
        let verdicts = folder.file("verdicts.jsonl");
        let judged = match verdicts.is_file() {
            true => read_judged(&verdicts)?,
            false => {
                let adapter = (round > 0).then(|| self.adapter(round));
                let measured = Measured {
                    model: (&self.folder, &self.name),
                    adapter: adapter.as_deref(),
                    data: &evaluate.data,
                    generate: &self.generate,
                    progress: self.mode,
                };
                measure(model, &self.tokenizer, &measured, &folder.0)?
            }
        };
        accuracy(&judged).map(Some)
    }
}
