//! Implements `sample-pairs`: samples several answers per problem, checks them with the numeric scorer, and pairs
//! right with wrong ones.

use std::io::Write;
use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use serde::{Deserialize, Serialize};

use super::pairing::{CheckedAnswer, PairingConfig, pair_up};
use super::stats::SampleStats;
use crate::data::chat::Message;
use crate::data::pair::{PairWriter, PreferencePair};
use crate::data::prompt_format::{ChatPrompt, PromptFormat};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::NUMERIC;
use crate::eval::predict::{prompts, too_long};
use crate::eval::problems::Problem;
use crate::eval::settings::ResultKey;
use crate::eval::store::Store;
use crate::generate::{Completion, CompletionEvent, FinishReason, GenerateConfig, complete_each};
use crate::model::decoder::Decoder;
use crate::output::{WholeFile, commit_set};
use crate::progress::{Progress, ProgressMode, TokenWork};

/// How answers are sampled and paired.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Number of answers per problem.
    pub samples: usize,
    /// Maximum number of pairs per problem.
    pub pairs_per_problem: usize,
    /// Whether wrong answers that reached the token limit may be rejected sides too.
    pub keep_cut_off: bool,
    /// Settings of generation.
    pub generate: GenerateConfig,
    /// How each problem is asked.
    pub prompt_format: PromptFormat,
    /// Where progress goes.
    pub progress: ProgressMode,
}

/// Maximum number of samples per problem.
const MAX_SAMPLES: usize = 10_000;

/// Maximum number of samples in all. Each has a prompt in memory.
const MAX_ALL_SAMPLES: usize = 10_000_000;

impl SampleOptions {
    /// Checks that the settings can give pairs.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.generate.validate()?;
        let (place, problem, remedy) = if self.samples < 2 {
            ("--samples", "must be at least 2", "4 to 32 are usual")
        } else if self.samples > MAX_SAMPLES {
            ("--samples", "must be at most 10000", "4 to 32 are usual")
        } else if self.pairs_per_problem == 0 {
            ("--pairs-per-problem", "is 0", "ask for at least 1")
        } else if self.generate.temperature == 0.0 {
            let problem = "is 0, which gives the same answer every time";
            ("--temperature", problem, "0.7 to 1 are usual")
        } else {
            return Ok(());
        };
        Err(Error::invalid(place, problem, remedy))
    }
}

/// A sampled answer exactly as it was generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sample {
    completion: String,
    /// Number of its tokens.
    tokens: usize,
    finish_reason: FinishReason,
}

impl Sample {
    /// Judges the answer with the numeric scorer.
    fn check(&self, problem: &Problem) -> CheckedAnswer {
        let verdict = NUMERIC.judge(&problem.ground_truth, &self.completion);
        CheckedAnswer {
            text: self.completion.clone(),
            tokens: self.tokens,
            answer: verdict.answer,
            correct: verdict.correct,
            ended: self.finish_reason == FinishReason::Eos,
        }
    }
}

/// A line of `STEM.samples.jsonl`.
#[derive(Serialize)]
struct SampleLine<'a> {
    /// Number of the problem, from 1: the first part of its pairs' ids.
    problem: usize,
    prompt: &'a str,
    ground_truth: &'a str,
    completion: &'a str,
    tokens: usize,
    finish_reason: FinishReason,
    answer: Option<&'a str>,
    correct: bool,
}

/// Samples answers to `problems` and writes the pairs to `output`, and beside it `STEM.samples.jsonl` with every
/// sample and `STEM.stats.json`. `key` identifies the model and the problems. If there is no pair, `output` is left as
/// it is.
///
/// # Errors
/// A setting cannot give pairs, generation fails or is interrupted (finished answers are kept in
/// `STEM.partial.jsonl`, and the same call continues), that file was started with other settings, or a file cannot be
/// written.
pub fn sample_pairs<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    options: &SampleOptions,
    key: ResultKey,
    output: &Path,
) -> Result<SampleStats> {
    options.validate()?;
    let total = problems.len().saturating_mul(options.samples);
    if total > MAX_ALL_SAMPLES {
        let problem = format!("{total} samples of {} problems are too many", problems.len());
        let remedy = format!("ask for at most {MAX_ALL_SAMPLES} in all");
        return Err(Error::invalid("--samples", problem, remedy));
    }
    let mut stats = SampleStats::new(options);
    stats.asked = key.settings();
    let defect = |e| Error::run(e, "this is a defect of arithmo: please report it");
    let key = key.with("sampling", serde_json::to_value(&stats.settings).map_err(defect)?);
    let mut store = Store::open(&partial_path(output), &key, total)?;
    sample(model, tokenizer, problems, options, &mut store)?;
    let (samples, partial) = store.finish()?;
    let by_problem = problems.iter().zip(samples.chunks(options.samples));
    let samples_file = samples_file(&samples_path(output), by_problem.clone())?;
    let (stats, pairs) = pair_all(by_problem, options, stats);
    let json = serde_json::to_vec_pretty(&stats).map_err(defect)?;
    let stats_path = stats_path(output);
    let mut stats_file = WholeFile::create(&stats_path)?;
    let written = stats_file.write_all(&json);
    written.map_err(|e| Error::io(&stats_path, "write", e))?;
    let mut files = vec![samples_file, stats_file];
    if !pairs.is_empty() {
        let mut writer = PairWriter::create(output)?;
        pairs.iter().try_for_each(|pair| match &options.prompt_format {
            PromptFormat::Text(_) => writer.write(pair),
            PromptFormat::Chat(chat) => writer.write(&ConversationPair::new(pair, chat)),
        })?;
        files.push(writer.into_file());
    }
    commit_set(files)?;
    partial.remove()?;
    Ok(stats)
}

/// A pair as a conversation, so that training asks with the chat template too.
#[derive(Serialize)]
struct ConversationPair<'a> {
    id: &'a str,
    prompt: Vec<Message>,
    chosen: [Message; 1],
    rejected: [Message; 1],
}

impl<'a> ConversationPair<'a> {
    fn new(pair: &'a PreferencePair, chat: &ChatPrompt) -> Self {
        let mut prompt = chat.start();
        prompt.push(chat.message(&pair.prompt));
        let answer = |text: &str| [Message::new("assistant", text)];
        Self {
            id: &pair.id,
            prompt,
            chosen: answer(&pair.chosen),
            rejected: answer(&pair.rejected),
        }
    }
}

/// Checks and pairs the samples of all problems.
fn pair_all<'a>(
    by_problem: impl Iterator<Item = (&'a Problem, &'a [Sample])>,
    options: &SampleOptions,
    mut stats: SampleStats,
) -> (SampleStats, Vec<PreferencePair>) {
    let config = PairingConfig {
        pairs_per_problem: options.pairs_per_problem,
        keep_cut_off: options.keep_cut_off,
    };
    let (mut balance, mut all) = (0, Vec::new());
    for (number, (problem, samples)) in (1..).zip(by_problem) {
        let checked: Vec<CheckedAnswer> =
            samples.iter().map(|sample| sample.check(problem)).collect();
        let pairs = pair_up(&checked, &config, &mut balance);
        stats.count(&checked, &pairs);
        let pair =
            |(index, (right, wrong)): (usize, &(&CheckedAnswer, &CheckedAnswer))| PreferencePair {
                id: format!("{number}-{}", index + 1),
                prompt: problem.question.clone(),
                chosen: right.text.clone(),
                rejected: wrong.text.clone(),
                chosen_score: None,
                rejected_score: None,
                rendered: None,
            };
        all.extend(pairs.iter().enumerate().map(pair));
    }
    stats.finish();
    (stats, all)
}

/// Writes every sample with its verdict to a file that is not yet published, one per line, problem by problem.
fn samples_file<'a>(
    path: &Path,
    by_problem: impl Iterator<Item = (&'a Problem, &'a [Sample])>,
) -> Result<WholeFile> {
    let fail = |e| Error::io(path, "write", e);
    let mut file = WholeFile::create(path)?;
    for (number, (problem, samples)) in (1..).zip(by_problem) {
        for sample in samples {
            let checked = sample.check(problem);
            let line = SampleLine {
                problem: number,
                prompt: &problem.question,
                ground_truth: &problem.ground_truth,
                completion: &sample.completion,
                tokens: sample.tokens,
                finish_reason: sample.finish_reason,
                answer: checked.answer.as_deref(),
                correct: checked.correct,
            };
            serde_json::to_writer(&mut file, &line).map_err(|e| fail(e.into()))?;
            file.write_all(b"\n").map_err(fail)?;
        }
    }
    Ok(file)
}

/// Returns the path of unfinished answers: `pairs.jsonl` -> `pairs.partial.jsonl`.
pub fn partial_path(output: &Path) -> PathBuf {
    output.with_extension("partial.jsonl")
}

/// Returns the path of all samples: `pairs.jsonl` -> `pairs.samples.jsonl`.
pub fn samples_path(output: &Path) -> PathBuf {
    output.with_extension("samples.jsonl")
}

/// Returns the path of the statistics: `pairs.jsonl` -> `pairs.stats.json`.
pub fn stats_path(output: &Path) -> PathBuf {
    output.with_extension("stats.json")
}

/// Samples the answers that `store` does not hold yet, problem by problem.
fn sample<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    options: &SampleOptions,
    store: &mut Store<Sample>,
) -> Result<()> {
    let total = problems.len() * options.samples;
    skip_too_long(model, tokenizer, problems, options, store)?;
    let progress = Progress::new("sample", Some(total as u64), "answers", options.progress);
    let open = (0..total).filter(|place| !store.done().contains_key(place));
    let open: Vec<usize> = open.collect();
    progress.set_position((total - open.len()) as u64);
    let prompt = |place: &usize| problems[place / options.samples].question.clone();
    let prompts: Vec<String> = open.iter().map(prompt).collect();
    let config = GenerateConfig { places: Some(open.clone()), ..options.generate.clone() };
    let mut tokens = 0;
    let mut work = TokenWork::new(open.len(), config.max_new_tokens);
    let format = &options.prompt_format;
    let ended = complete_each(model, tokenizer, &prompts, format, &config, |event| {
        match event {
            CompletionEvent::Text { .. } => {}
            CompletionEvent::Finished { index, completion } => {
                work.finished(completion.token_ids.len());
                store.put(open[index], Sample::from(completion))?;
                progress.inc(1);
            }
            CompletionEvent::Step(step) => {
                tokens += step.new_tokens;
                work.generated(step.new_tokens);
                progress.set_message(format!("{tokens} tokens"));
                progress.set_share(work.share());
            }
        }
        Ok(())
    });
    progress.finish();
    store.with_kept_note(ended)
}

/// Stores empty samples, which are in no pair, for problems whose prompts leave no room for an answer.
fn skip_too_long<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    options: &SampleOptions,
    store: &mut Store<Sample>,
) -> Result<()> {
    let format = &options.prompt_format;
    let prompts = prompts(problems, format, &[])?;
    let positions = model.config.max_position_embeddings;
    for number in too_long(&prompts, tokenizer, format.adds_special_tokens(), positions)? {
        for sample in 0..options.samples {
            let place = (number - 1) * options.samples + sample;
            if !store.done().contains_key(&place) {
                let empty = Sample {
                    completion: String::new(),
                    tokens: 0,
                    finish_reason: FinishReason::Length,
                };
                store.put(place, empty)?;
            }
        }
    }
    Ok(())
}

impl From<&Completion> for Sample {
    fn from(completion: &Completion) -> Self {
        Self {
            completion: completion.completion.clone(),
            tokens: completion.token_ids.len(),
            finish_reason: completion.finish_reason,
        }
    }
}
