//! `sample-pairs`: several answers to each problem, checked with the numeric scorer, paired right with wrong.

use std::path::{Path, PathBuf};

use arithmo_backends::TrainBackend;
use serde::Serialize;

use super::pairing::{Checked, PairingConfig, pair_up};
use crate::data::pair::{PairWriter, PreferencePair};
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::NUMERIC;
use crate::eval::problems::Problem;
use crate::eval::store::{Settings, Store};
use crate::generate::{Completion, CompletionEvent, FinishReason, GenerateConfig, complete_each};
use crate::model::mistral::Mistral;
use crate::output::write_whole;
use crate::progress::{Progress, ProgressMode};

/// How answers are sampled and paired.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Answers a problem.
    pub samples: usize,
    /// Most pairs of one problem.
    pub pairs_per_problem: usize,
    /// How they are sampled.
    pub generate: GenerateConfig,
    /// Text around each problem.
    pub prompt_template: PromptTemplate,
    /// Where progress goes.
    pub progress: ProgressMode,
}

impl SampleOptions {
    /// Refuses what cannot give pairs.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.generate.validate()?;
        let (place, problem, remedy) = if self.samples < 2 {
            ("--samples", "must be at least 2", "4 to 32 are usual")
        } else if self.pairs_per_problem == 0 {
            ("--pairs-per-problem", "is 0", "ask for at least 1")
        } else if self.generate.temperature == 0.0 {
            let problem = "is 0, which gives the same answer each time";
            ("--temperature", problem, "0.7 to 1 are usual")
        } else {
            return Ok(());
        };
        Err(Error::invalid(place, problem, remedy))
    }
}

/// What became of the problems and samples: `pairs.stats.json`, beside the pairs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SampleStats {
    /// Problems given.
    pub problems: usize,
    /// Problems with a pair.
    pub paired: usize,
    /// Problems whose every sample is right: nothing to learn.
    pub all_right: usize,
    /// Problems without a right sample: no pair.
    pub all_wrong: usize,
    /// Problems whose right samples were all cut off.
    pub right_but_cut_off: usize,
    /// Pairs written.
    pub pairs: usize,
    /// Answers sampled.
    pub samples: usize,
    /// Right ones.
    pub samples_right: usize,
    /// Those that state no number.
    pub samples_without_answer: usize,
    /// Those that reached the token limit.
    pub samples_cut_off: usize,
    /// Mean tokens of the right sides.
    pub mean_tokens_chosen: f64,
    /// Mean tokens of the wrong sides.
    pub mean_tokens_rejected: f64,
    /// The settings.
    pub settings: SampleSettings,
}

/// The settings of a sampling, for the record.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "each is the option of the same name")]
pub struct SampleSettings {
    pub samples: usize,
    pub pairs_per_problem: usize,
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub max_new_tokens: usize,
    pub seed: u64,
    pub prompt_template: String,
}

impl SampleStats {
    fn new(options: &SampleOptions) -> Self {
        let generate = &options.generate;
        Self {
            settings: SampleSettings {
                samples: options.samples,
                pairs_per_problem: options.pairs_per_problem,
                temperature: generate.temperature,
                top_k: generate.top_k,
                top_p: generate.top_p,
                max_new_tokens: generate.max_new_tokens,
                seed: generate.seed,
                prompt_template: options.prompt_template.clone().into(),
            },
            ..Self::default()
        }
    }

    fn count(&mut self, samples: &[Checked], pairs: &[(&Checked, &Checked)]) {
        let count = |is: &dyn Fn(&Checked) -> bool| samples.iter().filter(|s| is(s)).count();
        let right = count(&|sample| sample.correct);
        self.problems += 1;
        self.samples += samples.len();
        self.samples_right += right;
        self.samples_without_answer += count(&|sample| sample.answer.is_none());
        self.samples_cut_off += count(&|sample| !sample.ended);
        self.pairs += pairs.len();
        *match (pairs.is_empty(), right) {
            (false, _) => &mut self.paired,
            (true, 0) => &mut self.all_wrong,
            (true, right) if right == samples.len() => &mut self.all_right,
            _ => &mut self.right_but_cut_off,
        } += 1;
        for (right, wrong) in pairs {
            self.mean_tokens_chosen += right.tokens as f64;
            self.mean_tokens_rejected += wrong.tokens as f64;
        }
    }

    /// Turns sums into means.
    fn finish(&mut self) {
        let pairs = self.pairs.max(1) as f64;
        self.mean_tokens_chosen /= pairs;
        self.mean_tokens_rejected /= pairs;
    }

    /// A few lines for people.
    pub fn summary(&self) -> String {
        format!(
            "{} pairs from {} of {} problems; {} were always right, {} never. {} of {} samples are right ({:.1} %). \
             Mean length {:.1} tokens chosen, {:.1} rejected.",
            self.pairs,
            self.paired,
            self.problems,
            self.all_right,
            self.all_wrong,
            self.samples_right,
            self.samples,
            100.0 * self.samples_right as f64 / self.samples.max(1) as f64,
            self.mean_tokens_chosen,
            self.mean_tokens_rejected,
        )
    }
}

/// Samples answers to `problems` and writes the pairs to `output`, and beside it `STEM.stats.json`. `asked` says which model
/// answers what.
///
/// # Errors
/// A setting cannot give pairs, generation fails or is interrupted (the answers so far are kept in `STEM.partial.jsonl`, and
/// the same call goes on), that file was begun with other settings, no pair comes about, or a file cannot be written.
pub fn sample_pairs<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    options: &SampleOptions,
    asked: Settings,
    output: &Path,
) -> Result<SampleStats> {
    options.validate()?;
    let mut stats = SampleStats::new(options);
    let settings = serde_json::to_value(&stats.settings)
        .map_err(|e| Error::run(e, "this is a defect of the program: report it"))?;
    let mut store = Store::open(&partial_path(output), &asked.with("sampling", settings))?;
    sample(model, tokenizer, problems, options, &mut store)?;
    let (samples, partial) = store.finish();
    let mut writer = PairWriter::create(output)?;
    let config = PairingConfig { pairs_per_problem: options.pairs_per_problem };
    let mut balance = 0;
    let by_problem = problems.iter().zip(samples.chunks(options.samples));
    for (number, (problem, samples)) in (1..).zip(by_problem) {
        let pairs = pair_up(samples, &config, &mut balance);
        stats.count(samples, &pairs);
        for (index, (right, wrong)) in pairs.iter().enumerate() {
            writer.write(&PreferencePair {
                id: format!("{number}-{}", index + 1),
                prompt: problem.question.clone(),
                chosen: right.text.clone(),
                rejected: wrong.text.clone(),
                chosen_score: None,
                rejected_score: None,
            })?;
        }
    }
    stats.finish();
    if stats.pairs == 0 {
        partial.remove()?;
        let problem = format!("no pair came about: {}", stats.summary());
        let remedy =
            "raise --samples or --temperature, or take problems the model sometimes solves";
        return Err(Error::run(problem, remedy));
    }
    let json = serde_json::to_vec_pretty(&stats)
        .map_err(|e| Error::run(e, "this is a defect of the program: report it"))?;
    write_whole(&stats_path(output), &json)?;
    writer.finish()?;
    partial.remove()?;
    Ok(stats)
}

/// `pairs.jsonl` -> `pairs.partial.jsonl`
pub fn partial_path(output: &Path) -> PathBuf {
    output.with_extension("partial.jsonl")
}

/// `pairs.jsonl` -> `pairs.stats.json`
fn stats_path(output: &Path) -> PathBuf {
    output.with_extension("stats.json")
}

/// `samples` answers to each problem, problem by problem: those that `store` does not hold yet.
fn sample<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    options: &SampleOptions,
    store: &mut Store<Checked>,
) -> Result<()> {
    let total = problems.len() * options.samples;
    let progress = Progress::new("sample", Some(total as u64), "answers", options.progress);
    let open = (0..total).filter(|place| !store.done().contains_key(place));
    let open: Vec<usize> = open.collect();
    progress.set_position((total - open.len()) as u64);
    let of = |place: usize| &problems[place / options.samples];
    let prompts: Vec<String> = open.iter().map(|place| of(*place).question.clone()).collect();
    let config = GenerateConfig { places: Some(open.clone()), ..options.generate.clone() };
    let mut tokens = 0;
    let template = &options.prompt_template;
    let ended = complete_each(model, tokenizer, &prompts, template, &config, |event| {
        match event {
            CompletionEvent::Text { .. } => {}
            CompletionEvent::Finished { index, completion } => {
                let place = open[index];
                store.put(place, check(of(place), completion))?;
                progress.inc(1);
            }
            CompletionEvent::Step(step) => {
                tokens += step.new_tokens;
                progress.set_message(format!("{tokens} tokens"));
            }
        }
        Ok(())
    });
    progress.finish();
    store.kept(ended, total)
}

fn check(problem: &Problem, completion: &Completion) -> Checked {
    let verdict = NUMERIC.judge(&problem.ground_truth, &completion.completion);
    Checked {
        text: completion.completion.clone(),
        tokens: completion.token_ids.len(),
        answer: verdict.answer,
        correct: verdict.correct,
        ended: completion.finish_reason == FinishReason::Eos,
    }
}
