//! Greedy answers to held-out problems, scored: the folder that `arithmo evaluate gsm8k` leaves, but for its page.

use std::path::Path;

use arithmo_backends::TrainBackend;

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::NUMERIC;
use crate::eval::folder::{Folder, model_settings};
use crate::eval::judged::{Judged, Results, count, judge_all};
use crate::eval::predict::{Answering, prompts};
use crate::eval::predictions::{predictions, write_predictions};
use crate::eval::problems::read_problems;
use crate::eval::statistics::Rate;
use crate::eval::store::Store;
use crate::eval::task::Task;
use crate::generate::GenerateConfig;
use crate::model::mistral::Mistral;
use crate::progress::ProgressMode;

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
/// The problems cannot be read, generation fails or is interrupted (answers so far are kept, the same call goes on), or a
/// file cannot be written.
pub fn measure<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    measured: &Measured<'_>,
    folder: &Path,
) -> Result<Vec<Judged>> {
    let problems = read_problems(measured.data)?;
    let template = Task::Gsm8k.template()?;
    let prompts = prompts(&problems, &template, &[]);
    let (model_folder, name) = measured.model;
    let packed = model.config.quantization;
    let settings = model_settings(name, model_folder, packed, measured.adapter)?
        .asking(measured.data, problems.len(), measured.generate.max_new_tokens)?
        .with("prompt_template", String::from(template));
    let folder = Folder(folder.to_path_buf());
    let mut store = Store::open(&folder.partial(), &settings)?;
    let answering = Answering {
        model,
        tokenizer,
        config: measured.generate,
        scorers: Task::Gsm8k.scorers(),
        progress: measured.progress,
    };
    answering.answer(&problems, &prompts, &[], &mut store)?;
    let (texts, partial) = store.finish();
    let predictions = predictions(&problems, texts);
    write_predictions(&folder.predictions(), &predictions)?;
    let judged = judge_all(&predictions, Some(&problems), Task::Gsm8k.scorers());
    let rules = Task::Gsm8k.rules();
    Results::new(Task::Gsm8k.name(), &judged, &rules, settings).write(&folder.0, &judged)?;
    partial.remove()?;
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
