//! Answers held-out problems greedily and scores the answers; writes the folder of `arithmo evaluate gsm8k` without
//! its page.

use std::path::Path;

use arithmo_backends::TrainBackend;

use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::answers::{ForeignPrompt, NUMERIC};
use crate::eval::folder::{Folder, answers_key};
use crate::eval::judged::{Judged, Results, count, judge_all};
use crate::eval::predict::{Answering, prompts, too_long};
use crate::eval::predictions::{
    check_same_problems, predictions, read_predictions, write_predictions,
};
use crate::eval::problems::read_problems;
use crate::eval::settings::{ResultKey, Settings};
use crate::eval::statistics::Rate;
use crate::eval::store::Store;
use crate::eval::task::Task;
use crate::generate::GenerateConfig;
use crate::model::decoder::Decoder;
use crate::output::remove;
use crate::progress::ProgressMode;

/// The inputs and settings of a measurement.
#[derive(Clone, Debug)]
pub struct Measured<'a> {
    /// The settings that identify the model (`EvaluatedModel::settings`).
    pub model: Settings,
    /// File of held-out problems.
    pub data: &'a Path,
    /// How each problem is asked.
    pub format: &'a PromptFormat,
    /// Maximum length, end tokens and batch size; decoding is greedy.
    pub generate: &'a GenerateConfig,
    /// Remedy to name if the folder holds other answers.
    pub remedy: &'a str,
    /// Where progress goes.
    pub progress: ProgressMode,
}

/// Answers with their verdicts, and the results computed from them.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Judged answers, one per problem.
    pub judged: Vec<Judged>,
    /// Results as in `results.json`.
    pub results: Results,
}

impl Measurement {
    /// Returns the rate of answers that the numeric scorer finds correct.
    ///
    /// # Errors
    /// The numeric scorer did not judge all answers.
    pub fn accuracy(&self) -> Result<Rate> {
        accuracy(&self.judged)
    }
}

/// Answers the problems with `model`, scores the answers and writes predictions, verdicts and results to `folder`.
/// Existing answers are scored again.
///
/// # Errors
/// The problems cannot be read, generation fails or is interrupted (finished answers are kept, and the same call
/// continues), the folder holds answers of another model or to other problems, or a file cannot be written.
pub fn measure<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    measured: &Measured<'_>,
    folder: &Path,
) -> Result<Measurement> {
    let problems = read_problems(measured.data)?;
    let format = measured.format;
    let prompts = prompts(&problems, format, &[])?;
    let max_new_tokens = measured.generate.max_new_tokens;
    let key = answers_key(measured.model.clone(), measured.data, &problems, max_new_tokens)
        .with("prompt_template", format.identity())
        .with_remedy(measured.remedy);
    let folder = Folder(folder.to_path_buf());
    let score = |predictions: &[_], key: &ResultKey| -> Result<Measurement> {
        let judged = judge_all(predictions, Some(&problems), Task::Gsm8k.scorers());
        let (task, rules) = (Task::Gsm8k.name(), Task::Gsm8k.rules());
        let results = Results::new(task, &judged, &rules, key.settings());
        results.write(&folder.0, &judged)?;
        Ok(Measurement { judged, results })
    };
    if folder.rows_done(&key)? == problems.len() {
        let file = folder.predictions();
        let predictions = read_predictions(&file, &ForeignPrompt::usual(format))?;
        check_same_problems(&file, &predictions, &problems)?;
        let measurement = score(&predictions, &key)?;
        // A process that was killed right after it wrote the results has left it.
        remove(&folder.partial())?;
        return Ok(measurement);
    }
    let mut store = Store::open(&folder.partial(), &key, problems.len())?;
    if store.done().len() < problems.len() {
        let answering = Answering {
            model,
            tokenizer,
            special_tokens: format.adds_special_tokens(),
            config: measured.generate,
            scorers: Task::Gsm8k.scorers(),
            progress: measured.progress,
        };
        let positions = model.config.max_position_embeddings;
        let too_long = too_long(&prompts, tokenizer, format.adds_special_tokens(), positions)?;
        answering.answer(&problems, &prompts, &too_long, &mut store)?;
    }
    let (answers, partial) = store.finish()?;
    let predictions = predictions(&problems, prompts, answers);
    write_predictions(&folder.predictions(), &predictions)?;
    let measurement = score(&predictions, &key)?;
    partial.remove()?;
    Ok(measurement)
}

/// Returns the rate of answers that the numeric scorer finds correct.
///
/// # Errors
/// The numeric scorer did not judge all answers.
pub fn accuracy(judged: &[Judged]) -> Result<Rate> {
    let rate = count(judged, NUMERIC.name).rate;
    if rate.total == judged.len() {
        return Ok(rate);
    }
    Err(Error::run(
        format!("only {} of {} answers have a verdict", rate.total, judged.len()),
        "evaluate them again",
    ))
}
