//! Reads `iterate.toml`, the configuration of the rounds of `iterate`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sample::SampleOptions;
use crate::config::toml_error;
use crate::data::prompt::PromptTemplate;
use crate::data::prompt_format::{ChatPrompt, PromptFormat};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::GenerateConfig;
use crate::input_file;
use crate::output::{lock, same_file};
use crate::progress::ProgressMode;

/// The configuration in `iterate.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IterateConfig {
    /// Folder of the rounds.
    pub output_dir: PathBuf,
    /// Seed of samples and training; each round derives its own.
    #[serde(default = "seed")]
    pub seed: u64,
    /// Number of rounds.
    pub rounds: usize,
    /// Path of the run.toml for each round's training. The round sets `output_dir`, `seed`, `data.train_file` and
    /// `lora.adapter`.
    pub run: PathBuf,
    /// How pairs are made; may change for rounds that have not started.
    pub sample: SampleSection,
    /// The measurement after each round; absent means none.
    pub evaluate: Option<EvaluateSection>,
}

fn seed() -> u64 {
    42
}

/// The section `[sample]`, with the options of `sample-pairs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSection {
    /// File of problems with known answers.
    pub data: PathBuf,
    /// Number of problems per round, the next ones each time; 0 means all.
    pub problems: usize,
    /// Number of answers per problem.
    pub samples: usize,
    /// Maximum number of pairs per problem.
    pub pairs_per_problem: usize,
    /// Whether wrong answers that reached the token limit may be rejected sides too.
    pub keep_cut_off: bool,
    /// Divides the logits: the higher, the more varied the answers.
    pub temperature: f64,
    /// Samples among this many most likely tokens; 0 means all.
    pub top_k: usize,
    /// Samples among the fewest tokens whose probabilities sum to this; 1 means all.
    pub top_p: f64,
    /// Maximum number of tokens per answer.
    pub max_new_tokens: usize,
    /// Number of answers decoded together.
    pub batch_size: usize,
    /// Whether questions are asked with the model's chat template, if it has one and the run has no `data.prompt_template`;
    /// the pairs are then conversations.
    pub chat_template: bool,
    /// System message before each question; needs the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
}

impl Default for SampleSection {
    fn default() -> Self {
        Self {
            data: "problems.jsonl".into(),
            problems: 0,
            samples: 8,
            pairs_per_problem: 1,
            keep_cut_off: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            max_new_tokens: 512,
            batch_size: 64,
            chat_template: true,
            system: None,
        }
    }
}

impl SampleSection {
    /// Returns how questions are asked: in `prompt_template` if the run sets one, else with the chat template of the model
    /// if it has one.
    ///
    /// # Errors
    /// `system` is set and no chat template is used, or the template is not valid.
    pub(super) fn prompt_format(
        &self,
        tokenizer: &Tokenizer,
        prompt_template: PromptTemplate,
    ) -> Result<PromptFormat> {
        let chat = tokenizer.chat_template().filter(|_| self.chat_template);
        match chat.filter(|_| prompt_template == PromptTemplate::default()) {
            Some(template) => {
                template.check()?;
                Ok(PromptFormat::Chat(ChatPrompt {
                    template: template.clone(),
                    system: self.system.clone(),
                    request: PromptTemplate::default(),
                }))
            }
            None if self.system.is_some() => Err(Error::invalid(
                "sample.system",
                "needs the model's chat template, which is not used",
                "remove it; or remove data.prompt_template in the run.toml, set sample.chat_template = true and take a model with \
                 a chat template",
            )),
            None => Ok(PromptFormat::Text(prompt_template)),
        }
    }

    /// Returns the options that these keys describe; `generate` provides seed and end tokens.
    pub(super) fn options(
        &self,
        generate: GenerateConfig,
        prompt_format: PromptFormat,
        progress: ProgressMode,
    ) -> SampleOptions {
        SampleOptions {
            samples: self.samples,
            pairs_per_problem: self.pairs_per_problem,
            keep_cut_off: self.keep_cut_off,
            generate: GenerateConfig {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                max_new_tokens: self.max_new_tokens,
                batch_size: self.batch_size,
                ..generate
            },
            prompt_format,
            progress,
        }
    }
}

/// The section `[evaluate]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSection {
    /// File of held-out problems with known answers, asked with the run's `data.prompt_template`.
    pub data: PathBuf,
    /// Maximum number of tokens per answer; absent means that of `[sample]` when the rounds were started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
}

impl IterateConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or a value cannot give pairs.
    pub fn load(path: &Path) -> Result<Self> {
        let text = input_file::read_once(path).map_err(|e| Error::io(path, "read", e))?;
        let remedy = "correct it; docs/configuration.md and configs/iterate.toml have every key";
        let config: Self =
            toml::from_str(&text).map_err(|e| toml_error(path, &text, &e, remedy))?;
        let place = |key: &str| format!("{}: {key}", path.display());
        if config.rounds == 0 {
            return Err(Error::invalid(place("rounds"), "is 0", "ask for at least 1"));
        }
        let evaluate = config.evaluate.as_ref();
        if evaluate.and_then(|evaluate| evaluate.max_new_tokens) == Some(0) {
            let place = place("evaluate.max_new_tokens");
            return Err(Error::invalid(place, "is 0", "ask for at least 1"));
        }
        let options = config.sample.options(
            GenerateConfig::default(),
            PromptTemplate::default().into(),
            ProgressMode::Quiet,
        );
        // The options' errors name flags; here they are keys.
        options.validate().map_err(|error| match error {
            Error::Invalid { place: flag, problem, remedy } => {
                let key = flag.trim_start_matches('-').replace('-', "_");
                Error::invalid(place(&format!("sample.{key}")), problem, remedy)
            }
            other => other,
        })?;
        Ok(config)
    }

    /// Checks that neither `config_file` nor a file that it names lies in a folder to which the rounds are written.
    ///
    /// # Errors
    /// The first such input, with the key that names it.
    pub fn check_inputs(&self, config_file: &Path) -> Result<()> {
        let evaluate = self.evaluate.as_ref().map(|evaluate| evaluate.data.as_path());
        let inputs = [
            ("--config", Some(config_file)),
            ("run", Some(self.run.as_path())),
            ("sample.data", Some(self.sample.data.as_path())),
            ("evaluate.data", evaluate),
        ];
        let entries = std::fs::read_dir(&self.output_dir).into_iter().flatten().flatten();
        let is_round = |name: &str| {
            let number = name.strip_prefix("round-");
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let rounds = entries.filter(|entry| is_round(&entry.file_name().to_string_lossy()));
        let rounds = rounds.map(|entry| entry.path());
        let files = ["iterate.toml", "base-model.json", "index.html", lock::NAME];
        let files = files.map(|name| self.output_dir.join(name));
        let places: Vec<PathBuf> = rounds.chain(files).collect();
        for (key, input) in inputs {
            // An input that is not there is reported where it is read.
            let Some((input, real)) =
                input.and_then(|path| Some((path, path.canonicalize().ok()?)))
            else {
                continue;
            };
            let above = |place: &&PathBuf| real.ancestors().any(|above| same_file(above, place));
            if let Some(place) = places.iter().find(above) {
                let problem = format!(
                    "{} lies in {}, where the rounds are written",
                    input.display(),
                    place.display()
                );
                let remedy = "move the input elsewhere, or choose another output_dir";
                return Err(Error::invalid(key, problem, remedy));
            }
        }
        Ok(())
    }

    /// Sets `evaluate.max_new_tokens`, if absent, to the value with which the rounds in `output_dir` began, and checks that
    /// nothing but `rounds` and `[sample]` changed since.
    ///
    /// # Errors
    /// Another key changed (the error names it), or there are more rounds than `rounds`.
    pub(super) fn continue_from_kept(&mut self) -> Result<()> {
        let path = self.kept_path();
        let mut kept: Self = match input_file::read_to_string(&path) {
            Ok(text) => {
                let remedy = "choose another output_dir, or remove this one's rounds";
                toml::from_str(&text).map_err(|e| Error::file(&path, e, remedy))?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.check_new()?;
                self.clone()
            }
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        kept.settle_evaluation();
        if let (Some(now), Some(kept)) = (&mut self.evaluate, &kept.evaluate) {
            now.max_new_tokens = now.max_new_tokens.or(kept.max_new_tokens);
        }
        self.settle_evaluation();
        let measured = |config: &Self, value: fn(&EvaluateSection) -> Option<String>| {
            let value = config.evaluate.as_ref().and_then(value);
            value.unwrap_or_else(|| "absent".to_string())
        };
        let data =
            |config: &Self| measured(config, |evaluate| Some(evaluate.data.display().to_string()));
        let longest =
            |config: &Self| measured(config, |evaluate| Some(evaluate.max_new_tokens?.to_string()));
        let keys = [
            ("seed", kept.seed.to_string(), self.seed.to_string()),
            ("run", kept.run.display().to_string(), self.run.display().to_string()),
            ("evaluate.data", data(&kept), data(self)),
            ("evaluate.max_new_tokens", longest(&kept), longest(self)),
        ];
        let changed = keys.iter().filter(|(_, kept, now)| kept != now);
        let changed = changed.map(|(key, kept, now)| format!("{key} was {kept}, is {now}"));
        let changed: Vec<String> = changed.collect();
        if changed.is_empty() {
            return self.check_length();
        }
        let problem = format!(
            "the rounds there were made with another configuration: {}",
            changed.join("; ")
        );
        let remedy = "undo the change, or choose another output_dir in iterate.toml; only rounds and [sample] may change";
        Err(Error::file(&path, problem, remedy))
    }

    /// Checks that no more rounds exist than asked for; the page over all rounds would leave them out.
    fn check_length(&self) -> Result<()> {
        let next = self.rounds.saturating_add(1);
        let folder = self.output_dir.join(format!("round-{next}"));
        if !folder.exists() {
            return Ok(());
        }
        Err(Error::file(
            &folder,
            format!("already exists, but rounds = {} asks for fewer", self.rounds),
            "ask for at least as many rounds as there are, or choose another output_dir in iterate.toml",
        ))
    }

    /// Checks that no files of unknown origin are in the folder of new rounds.
    fn check_new(&self) -> Result<()> {
        let files = ["round-0", "round-1", "index.html", "base-model.json"];
        let files = files.map(|name| self.output_dir.join(name));
        match files.iter().find(|file| file.exists()) {
            Some(file) => Err(Error::file(
                file,
                "exists, but no iterate.toml beside it says how it was made",
                "choose another output_dir",
            )),
            None => Ok(()),
        }
    }

    /// Sets `evaluate.max_new_tokens` to `sample.max_new_tokens` if it is absent.
    fn settle_evaluation(&mut self) {
        let default = self.sample.max_new_tokens;
        if let Some(evaluate) = &mut self.evaluate {
            evaluate.max_new_tokens = evaluate.max_new_tokens.or(Some(default));
        }
    }

    /// Returns the path of the saved configuration of the rounds.
    pub(super) fn kept_path(&self) -> PathBuf {
        self.output_dir.join("iterate.toml")
    }

    /// Returns the configuration in its saved form, independent of its folder and of the number of rounds.
    ///
    /// # Errors
    /// TOML cannot express the configuration.
    pub(super) fn kept_text(&self) -> Result<String> {
        let all = Self { rounds: 0, output_dir: PathBuf::new(), ..self.clone() };
        toml::to_string(&all)
            .map_err(|e| Error::invalid("iterate.toml", e, "choose a seed below 2^63"))
    }
}
