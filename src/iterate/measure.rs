//! Greedy answers to held-out problems, scored: the folder that `arithmo evaluate gsm8k` leaves, but for its page.

use std::path::Path;

use arithmo_backends::TrainBackend;

use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::NUMERIC;
use crate::eval::folder::{Folder, model_settings};
use crate::eval::judged::{Judged, Results, count, judge_all};
use crate::eval::predict::prompts;
use crate::eval::predictions::{Prediction, write_predictions};
use crate::eval::problems::read_problems;
use crate::eval::statistics::Rate;
use crate::eval::store::sha256;
use crate::eval::task::Task;
use crate::generate::{GenerateConfig, complete};
use crate::model::mistral::Mistral;
use crate::progress::{Progress, ProgressMode};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// The model's folder, and its name as the user gave it.
    pub model: (&'a Path, &'a str),
    /// The adapter that is on it.
    pub adapter: Option<&'a Path>,
    /// The held-out problems.
    pub data: &'a Path,
    /// Length, stops, batch; greedy.
    pub generate: &'a GenerateConfig,
    /// Where progress goes.
    pub progress: ProgressMode,
}

/// Answers the problems with `model` and scores the answers; `folder` gets predictions, verdicts and results.
///
/// # Errors
/// The problems cannot be read, generation fails or is interrupted, or a file cannot be written.
pub fn measure<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    measured: &Measured<'_>,
    folder: &Path,
) -> Result<Vec<Judged>> {
    let problems = read_problems(measured.data)?;
    let template = Task::Gsm8k.template()?;
    let prompts = prompts(&problems, &template, &[]);
    let total = Some(prompts.len() as u64);
    let progress = Progress::new("evaluate", total, "answers", measured.progress);
    let (as_it_is, config) = (PromptTemplate::default(), measured.generate);
    let completions = complete(model, tokenizer, &prompts, &as_it_is, config, |step| {
        progress.inc(step.finished as u64);
    })?;
    progress.finish();
    let answered = problems.iter().zip(completions);
    let predictions: Vec<Prediction> = answered
        .map(|(problem, completion)| Prediction {
            question: problem.question.clone(),
            ground_truth: problem.ground_truth.clone(),
            prediction: completion.prompt + &completion.completion,
        })
        .collect();
    let folder = Folder(folder.to_path_buf());
    write_predictions(&folder.predictions(), &predictions)?;
    let (model_folder, name) = measured.model;
    let settings = model_settings(name, model_folder, measured.adapter)?
        .with("data", measured.data.display().to_string())
        .with("data_sha256", sha256(measured.data)?)
        .with("problems", problems.len())
        .with("max_new_tokens", config.max_new_tokens)
        .with("prompt_template", String::from(template));
    let judged = judge_all(&predictions, Some(&problems), Task::Gsm8k.scorers());
    let rules = Task::Gsm8k.rules();
    Results::new(Task::Gsm8k.name(), &judged, &rules, settings).write(&folder.0, &judged)?;
    Ok(judged)
}

/// How many are right by the numeric scorer.
///
/// # Errors
/// It did not judge them.
pub fn accuracy(judged: &[Judged]) -> Result<Rate> {
    let rate = count(judged, NUMERIC.name).rate;
    match rate.total == judged.len() {
        true => Ok(rate),
        false => Err(Error::run(
            format!("{} of {} answers have a verdict", rate.total, judged.len()),
            "evaluate them again",
        )),
    }
}
