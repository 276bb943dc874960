//! Runs the rounds of `iterate`: sampling, training and measuring (iterative DPO, arXiv 2404.19733).
//!
//! Each round continues the adapter of the previous round, and its reference is a frozen copy of that (`lora.adapter`
//! with `dpo.reference = "auto"`). So there is one base model and one small adapter per round; merging instead would
//! write the whole model each time, and a quantized base could not represent it. A round without pairs is skipped:
//! the adapter stays, and the next round samples with another seed.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;

use super::measure::{Measured, Measurement, measure};
use super::sample::{SampleOptions, partial_path, sample_pairs, stats_path};
use super::stats::SampleStats;
use crate::adapter::{LoraConfig, peft};
use crate::config::RunConfig;
use crate::data::prompt::PromptTemplate;
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::folder::{EvaluatedModel, answers_key};
use crate::eval::problems::{Problem, read_problems};
use crate::eval::settings::{ResultKey, Settings};
use crate::eval::statistics::Rate;
use crate::generate::{GenerateConfig, stop_ids};
use crate::input_file;
use crate::model::config::DecoderConfig;
use crate::model::decoder::Decoder;
use crate::model::dtype::{Purpose, choose};
use crate::model::hub::Hub;
use crate::model::identity::ModelIdentity;
use crate::model::load::load_as;
use crate::model::quantize::Quantization;
use crate::model::quantize::cache::Cache;
use crate::output::{Lock, remove, write_whole};
use crate::progress::ProgressMode;
use crate::train::folder::Existing;
use crate::train::manifest::RunManifest;
use crate::train::run::{RunOptions, run as run_training};

pub use super::config::{EvaluateSection, IterateConfig, SampleSection};

/// The state after a round.
#[derive(Clone, Debug)]
pub struct RoundSummary {
    /// Number of the round, from 1; 0 is the state before the first round.
    pub round: usize,
    /// Folder of the round.
    pub folder: PathBuf,
    /// Statistics of the samples; `None` before the first round. A round without pairs is skipped.
    pub samples: Option<SampleStats>,
    /// Answers to the held-out problems; `None` if nothing was measured or the round was skipped.
    pub measurement: Option<Measurement>,
    /// Accuracy on the held-out problems; a skipped round keeps the previous value.
    pub accuracy: Option<Rate>,
}

impl RoundSummary {
    /// Returns the number of pairs trained on; `None` before the first round.
    pub fn pairs(&self) -> Option<usize> {
        self.samples.as_ref().map(|samples| samples.pairs)
    }
}

/// Runs the rounds, or continues them: finished work of a round is kept. `done` is called after each round.
///
/// # Errors
/// The existing rounds were made with another configuration or base model; sampling, training or measuring fails; no
/// round gives a pair; or the user interrupts (the same command continues).
pub fn iterate<B: TrainBackend>(
    config: &IterateConfig,
    mode: ProgressMode,
    device: &B::Device,
    mut done: impl FnMut(&RoundSummary) -> Result<()>,
) -> Result<()> {
    // Everything that can be checked before anything is written is checked here.
    let rounds = Rounds::new(config, mode)?;
    let _lock = Lock::folder(&config.output_dir)?;
    let mut model = rounds.load::<B>(device)?;
    rounds.keep_configuration()?;
    let mut summary = RoundSummary {
        round: 0,
        folder: rounds.folder(0),
        samples: None,
        measurement: None,
        accuracy: None,
    };
    rounds.measure(&model, None, &mut summary)?;
    done(&summary)?;
    let mut trained = None;
    for round in 1..=config.rounds {
        let samples = rounds.sample(&model, round, trained)?;
        let skipped = samples.pairs == 0;
        summary = RoundSummary {
            round,
            folder: rounds.folder(round),
            samples: Some(samples),
            measurement: None,
            accuracy: summary.accuracy,
        };
        if !skipped {
            rounds.train::<B>(round, trained, device)?;
            trained = Some(round);
            peft::load(&mut model, &rounds.adapter(round), device)?;
            rounds.measure(&model, trained, &mut summary)?;
        }
        done(&summary)?;
    }
    match trained {
        Some(_) => Ok(()),
        None => Err(Error::run(
            "no round gave a pair, and nothing was trained",
            "raise samples, temperature or max_new_tokens under [sample] in iterate.toml, or choose problems that the model \
             sometimes solves; then the same command samples the last rounds again",
        )),
    }
}

/// Remedy if the existing rounds were made with other settings.
const REMEDY: &str = "undo the change, or choose another output_dir in iterate.toml";

/// The configuration and state that all steps of all rounds share.
struct Rounds {
    config: IterateConfig,
    /// Folder of the base model, its name as the user wrote it, and its identity.
    base: (PathBuf, String, ModelIdentity),
    dtype: Option<burn::tensor::DType>,
    quantize: Option<Quantization>,
    tokenizer: Tokenizer,
    problems: Vec<Problem>,
    prompt_format: PromptFormat,
    eos_ids: Vec<u32>,
    mode: ProgressMode,
}

/// Checks that the configuration of the rounds' runs sets nothing that only a single run can have.
fn check_run(path: &Path, run: &RunConfig) -> Result<()> {
    let refused = |key: &str, problem: &str, remedy: &str| {
        Err(Error::invalid(format!("{}: {key}", path.display()), problem, remedy))
    };
    if run.train.push_to_hub {
        let remedy = "remove the key; push the adapter of a round with `arithmo push`";
        return refused("train.push_to_hub", "would push every round", remedy);
    }
    if run.lora.adapter_name != peft::DEFAULT_NAME {
        let problem = "the adapters of rounds have no names of their own";
        return refused("lora.adapter_name", problem, "remove the key");
    }
    Ok(())
}

impl Rounds {
    /// Reads all inputs of the rounds and checks that they agree with existing rounds.
    fn new(config: &IterateConfig, mode: ProgressMode) -> Result<Self> {
        let mut config = config.clone();
        config.continue_from_kept()?;
        let run = RunConfig::load(&config.run, &[])?;
        check_run(&config.run, &run)?;
        let problems = read_problems(&config.sample.data)?;
        if let Some(evaluate) = &config.evaluate {
            read_problems(&evaluate.data)?;
        }
        let (name, revision) = (&run.model.model_name_or_path, &run.model.revision);
        let folder = Hub::open(mode).resolve(name, revision)?;
        let tokenizer = Tokenizer::from_folder(&folder)?;
        let eos_ids = stop_ids(&folder, &DecoderConfig::load(&folder)?, tokenizer.eos_id())?;
        let identity = ModelIdentity::read(&folder)?;
        let prompt_format = config
            .sample
            .prompt_format(&tokenizer, PromptTemplate::new(&run.data.prompt_template)?)?;
        let rounds = Self {
            config,
            base: (folder, name.clone(), identity),
            dtype: run.model.dtype.dtype(),
            quantize: run.model.quantize(),
            tokenizer,
            problems,
            prompt_format,
            eos_ids,
            mode,
        };
        rounds.check_base()?;
        Ok(rounds)
    }

    /// Checks that existing rounds were made with this base model.
    fn check_base(&self) -> Result<()> {
        let path = self.base_path();
        let text = match input_file::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let remedy = "restore the base model, or choose another output_dir";
        let kept: Settings =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, e, remedy))?;
        let changed = kept.differences(&self.model_settings(None)?);
        if changed.is_empty() {
            return Ok(());
        }
        let problem =
            format!("the base model changed since the rounds were started: {}", changed.join("; "));
        Err(Error::file(&path, problem, remedy))
    }

    /// Saves the configuration and the base model's identity beside the rounds.
    fn keep_configuration(&self) -> Result<()> {
        write_whole(&self.config.kept_path(), self.config.kept_text()?.as_bytes())?;
        let path = self.base_path();
        let base = serde_json::to_vec_pretty(&self.model_settings(None)?);
        write_whole(&path, &base.map_err(|e| Error::io(&path, "write", e.into()))?)
    }

    /// Returns the path of the base model's recorded identity.
    fn base_path(&self) -> PathBuf {
        self.config.output_dir.join("base-model.json")
    }

    /// Returns the settings that identify the model with the adapter of the round `trained`.
    fn model_settings(&self, trained: Option<usize>) -> Result<Settings> {
        let (folder, name, identity) = &self.base;
        let adapter = trained.map(|round| self.adapter(round));
        let model = EvaluatedModel {
            name,
            folder,
            adapter: adapter.as_deref(),
            packed: self.quantize,
            dtype: self.dtype,
        };
        model.settings_on(identity.clone())
    }

    /// Loads the base model, quantized if the run is configured so.
    fn load<B: TrainBackend>(&self, device: &B::Device) -> Result<Decoder<B>> {
        let (folder, ..) = &self.base;
        let shape = DecoderConfig::load(folder)?;
        let dtype = choose::<B>(&shape, self.dtype, Purpose::Hold, device)?;
        let cache = Cache::from_env(self.mode);
        load_as(folder, dtype, self.quantize, &cache, device)
    }

    /// Returns the folder of a round.
    fn folder(&self, round: usize) -> PathBuf {
        self.config.output_dir.join(format!("round-{round}"))
    }

    /// Returns the folder of the adapter that a round trains.
    fn adapter(&self, round: usize) -> PathBuf {
        self.folder(round).join("run/adapter")
    }

    /// Returns the path of a round's pairs.
    fn pairs(&self, round: usize) -> PathBuf {
        self.folder(round).join("pairs.jsonl")
    }

    /// Returns the problems of a round: the next ones each time, starting over after the last.
    fn problems(&self, round: usize) -> Vec<Problem> {
        let all = &self.problems;
        match self.config.sample.problems {
            0 => all.clone(),
            count => {
                let first = (round - 1).saturating_mul(count);
                let next = all.iter().cycle().skip(first % all.len().max(1));
                next.take(count.min(all.len())).cloned().collect()
            }
        }
    }

    /// Makes the round's pairs with the adapter of the round `trained`, unless they exist. A round that gave no pair
    /// is sampled again if `[sample]` has changed and no later round has started.
    fn sample<B: TrainBackend>(
        &self,
        model: &Decoder<B>,
        round: usize,
        trained: Option<usize>,
    ) -> Result<SampleStats> {
        let output = self.pairs(round);
        let kept = read_stats(&stats_path(&output))?;
        if output.is_file() {
            // A process that was killed right after it wrote the pairs has left it.
            remove(&partial_path(&output))?;
            return kept.map_or_else(|| count_pairs(&output), Ok);
        }
        let generate = GenerateConfig {
            seed: self.config.seed.wrapping_add(round as u64 - 1),
            eos_ids: self.eos_ids.clone(),
            ..GenerateConfig::default()
        };
        let sample = &self.config.sample;
        let options = sample.options(generate, self.prompt_format.clone(), self.mode);
        let problems = self.problems(round);
        let model_settings = self.model_settings(trained)?;
        let key = answers_key(
            model_settings,
            &sample.data,
            &problems,
            sample.max_new_tokens,
        )
        .with_remedy(format!(
            "undo the change until round {round} is complete, or remove {} to restart the round",
            partial_path(&output).display()
        ));
        if let Some(kept) = kept {
            let later = (round + 1..).take_while(|later| self.folder(*later).exists());
            let begun_later = later.into_iter().any(|later| self.is_begun(later));
            if begun_later || kept.was_made_with(&options, &key) {
                return Ok(kept);
            }
        }
        sample_pairs(model, &self.tokenizer, &problems, &options, key, &output)
    }

    /// Returns whether a round has left any file of samples.
    fn is_begun(&self, round: usize) -> bool {
        let output = self.pairs(round);
        output.exists() || partial_path(&output).exists()
    }

    /// Trains the round's adapter, continuing an interrupted training.
    fn train<B: TrainBackend>(
        &self,
        round: usize,
        trained: Option<usize>,
        device: &B::Device,
    ) -> Result<()> {
        let text = |path: PathBuf| toml::Value::String(path.display().to_string());
        let seed = self.config.seed.wrapping_add(round as u64 - 1);
        let mut settings = vec![
            format!("output_dir={}", text(self.folder(round).join("run"))),
            format!("seed={seed}"),
            format!("data.train_file={}", text(self.pairs(round))),
        ];
        if let Some(trained) = trained {
            let adapter = self.adapter(trained);
            // An adapter that took a part of the base is written with twice its rank.
            let lora = peft::read_config(&adapter)?;
            self.note_rank(round, lora.r)?;
            settings.push(format!("lora.r={}", lora.r));
            settings.push(format!("lora.lora_alpha={:?}", lora.lora_alpha));
            settings.extend(pattern_settings(&lora));
            settings.push("lora.init_lora_weights=true".into());
            settings.push(format!("lora.adapter={}", text(adapter)));
        }
        let config = RunConfig::load(&self.config.run, &settings)?;
        // An interrupted round is resumed; no warning is needed when a new one starts from its first step.
        let existing = if RunManifest::path(&config.output_dir).exists() {
            Existing::Resume
        } else {
            Existing::Refuse
        };
        let options = RunOptions { existing, dry_run: false, progress: self.mode };
        // Training's remedy names its own flags; here the changed file is the run.toml of all rounds.
        let manifest = RunManifest::path(&config.output_dir);
        match run_training::<B>(&config, &options, device) {
            Ok(_) => Ok(()),
            Err(Error::Invalid { place, problem, .. })
                if place == manifest.display().to_string() =>
            {
                Err(Error::invalid(place, problem, REMEDY))
            }
            Err(error) => Err(error),
        }
    }

    /// Says that the adapter of the first round, which took a part of the base, continues with twice its rank.
    fn note_rank(&self, round: usize, r: usize) -> Result<()> {
        let run = RunConfig::load(&self.config.run, &[])?;
        if round > 1 && run.lora.changes_base() && self.mode != ProgressMode::Quiet {
            say!(
                "note: round {round} continues the adapter with rank {r}, twice lora.r: it holds the part of the base that \
                 lora.init_lora_weights moved into it, too"
            );
        }
        Ok(())
    }

    /// Measures the model with the adapter of the round `trained`; an existing measurement is scored again.
    fn measure<B: TrainBackend>(
        &self,
        model: &Decoder<B>,
        trained: Option<usize>,
        summary: &mut RoundSummary,
    ) -> Result<()> {
        let Some(evaluate) = &self.config.evaluate else {
            return Ok(());
        };
        let default = self.config.sample.max_new_tokens;
        let measured = Measured {
            model: self.model_settings(trained)?,
            data: &evaluate.data,
            format: &self.prompt_format,
            generate: &GenerateConfig {
                max_new_tokens: evaluate.max_new_tokens.unwrap_or(default),
                batch_size: self.config.sample.batch_size,
                eos_ids: self.eos_ids.clone(),
                ..GenerateConfig::default()
            },
            remedy: REMEDY,
            progress: self.mode,
        };
        let folder = summary.folder.join("evaluation");
        let measurement = measure(model, &self.tokenizer, &measured, &folder)?;
        summary.accuracy = Some(measurement.accuracy()?);
        summary.measurement = Some(measurement);
        Ok(())
    }
}

/// Returns the settings of `[lora]` for the ranks and alphas of single projections that `lora` has.
fn pattern_settings(lora: &LoraConfig) -> Vec<String> {
    let ranks = lora.rank_pattern.0.iter().map(|(pattern, r)| (pattern, r.to_string()));
    let alphas =
        lora.alpha_pattern.0.iter().map(|(pattern, alpha)| (pattern, format!("{alpha:?}")));
    let setting = |key: &str, entries: Vec<(&String, String)>| {
        let entries = entries
            .into_iter()
            .map(|(pattern, value)| format!("{} = {value}", toml::Value::String(pattern.clone())));
        let entries: Vec<String> = entries.collect();
        (!entries.is_empty()).then(|| format!("lora.{key}={{ {} }}", entries.join(", ")))
    };
    let settings =
        [setting("rank_pattern", ranks.collect()), setting("alpha_pattern", alphas.collect())];
    settings.into_iter().flatten().collect()
}

/// Counts the pairs of a round whose other statistics are unknown.
fn count_pairs(path: &Path) -> Result<SampleStats> {
    let text = input_file::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    Ok(SampleStats { pairs: text.lines().count(), ..SampleStats::default() })
}

impl SampleStats {
    /// Returns whether the statistics are of the same model, problems and settings.
    fn was_made_with(&self, options: &SampleOptions, key: &ResultKey) -> bool {
        let now = Self::new(options);
        self.settings == now.settings && self.asked.differences(&key.settings()).is_empty()
    }
}

/// Reads the statistics of a round's sampling, if it is complete.
fn read_stats(path: &Path) -> Result<Option<SampleStats>> {
    let text = match input_file::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "read", e)),
    };
    let remedy = "remove it; a round without pairs is then sampled again";
    let stats = serde_json::from_str(&text);
    stats.map(Some).map_err(|e| Error::file(path, e, remedy))
}
