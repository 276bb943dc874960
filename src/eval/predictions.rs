//! Reads and writes `predictions.json`: a model's answers, in the original project's format.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::answers::ForeignPrompt;
use super::predict::Answer;
use super::problems::{Problem, read_rows, shortened, string_field};
use crate::error::{Error, Result};
use crate::generate::FinishReason;
use crate::output::write_whole;

/// A model's answer to a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "Entry")]
pub struct Prediction {
    /// Question text, without the prompt template.
    pub question: String,
    /// Whole known solution.
    pub ground_truth: String,
    /// Text that the model was given: examples, template and question.
    pub prompt: String,
    /// Text that the model wrote after the prompt. Only this is judged.
    pub completion: String,
    /// Why the completion ended, if that is known.
    pub finish_reason: Option<FinishReason>,
}

/// One entry of the file: the original project's three keys, with the prediction also split into prompt and completion.
#[derive(Serialize)]
struct Entry {
    question: String,
    ground_truth: String,
    prediction: String,
    prompt: String,
    completion: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<FinishReason>,
}

impl From<Prediction> for Entry {
    fn from(prediction: Prediction) -> Self {
        Self {
            prediction: [prediction.prompt.as_str(), &prediction.completion].concat(),
            question: prediction.question,
            ground_truth: prediction.ground_truth,
            prompt: prediction.prompt,
            completion: prediction.completion,
            finish_reason: prediction.finish_reason,
        }
    }
}

const FORM: &str = "a predictions file is an array of {\"question\", \"ground_truth\", \"prediction\"}, as evaluate writes it";

/// Combines `problems`, their `prompts` and `answers` into predictions.
pub fn predictions(
    problems: &[Problem],
    prompts: Vec<String>,
    answers: Vec<Answer>,
) -> Vec<Prediction> {
    let all = problems.iter().zip(prompts).zip(answers);
    let prediction = |((problem, prompt), answer): ((&Problem, String), Answer)| Prediction {
        question: problem.question.clone(),
        ground_truth: problem.ground_truth.clone(),
        prompt,
        completion: answer.completion,
        finish_reason: Some(answer.finish_reason),
    };
    all.map(prediction).collect()
}

/// Reads a predictions file: a JSON array, or JSON lines. If an entry has no completion, `foreign` finds it in the
/// prediction.
///
/// # Errors
/// The file cannot be read or is empty, an entry lacks a key or contradicts itself, or a prediction does not contain the
/// given template.
pub fn read_predictions(path: &Path, foreign: &ForeignPrompt) -> Result<Vec<Prediction>> {
    let all = read_rows(path, FORM)?
        .into_iter()
        .map(|(place, row)| read_entry(&place, &row, foreign))
        .collect::<Result<Vec<_>>>()?;
    if all.is_empty() { Err(Error::file(path, "holds no prediction", FORM)) } else { Ok(all) }
}

fn read_entry(place: &str, row: &Value, foreign: &ForeignPrompt) -> Result<Prediction> {
    let text = |key| string_field(row, &[key]).map_err(|e| Error::invalid(place, e, FORM));
    let optional = |key| row.get(key).and_then(Value::as_str);
    let (question, ground_truth) = (text("question")?, text("ground_truth")?);
    // The prediction may be empty.
    let whole = match optional("prediction") {
        Some(prediction) => prediction.to_string(),
        None => text("prediction")?,
    };
    let (completion, prompt) = match (optional("completion"), optional("prompt")) {
        (Some(completion), prompt) => {
            check_parts(place, &whole, prompt, completion)?;
            (completion, prompt)
        }
        (None, _) => {
            let found = foreign.completion(&question, &whole);
            (found.ok_or_else(|| template_not_found(place, foreign))?, None)
        }
    };
    let before = &whole[..whole.len() - completion.len()];
    let finish_reason = row.get("finish_reason").cloned().unwrap_or_default();
    Ok(Prediction {
        ground_truth,
        prompt: prompt.unwrap_or(before).to_string(),
        completion: completion.to_string(),
        finish_reason: serde_json::from_value(finish_reason).unwrap_or_default(),
        question,
    })
}

/// Returns an error if `whole`, an entry's prediction, is not its prompt followed by its completion.
fn check_parts(place: &str, whole: &str, prompt: Option<&str>, completion: &str) -> Result<()> {
    let before = whole.strip_suffix(completion);
    if before.is_some_and(|before| prompt.is_none_or(|prompt| prompt == before)) {
        return Ok(());
    }
    let problem = "prediction: is not the prompt followed by the completion";
    let remedy =
        "correct the entry (only its completion is judged), or remove its prompt and completion";
    Err(Error::invalid(place, problem, remedy))
}

fn template_not_found(place: &str, foreign: &ForeignPrompt) -> Error {
    let (ForeignPrompt::Given(template) | ForeignPrompt::Usual(template)) = foreign;
    let template = String::from(template.clone());
    let problem = format!("prediction: does not hold its question in the template {template:?}");
    let remedy = "give the --prompt-template of these predictions, or leave it out to search for the question";
    Error::invalid(place, problem, remedy)
}

/// Writes a predictions file, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<()> {
    write_json(path, &predictions)
}

/// Writes `value` as indented JSON, whole or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| Error::io(path, "write", e.into()))?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

/// Checks that `predictions` answer exactly `problems`, in the same order.
///
/// # Errors
/// They do not. The error names the first difference.
pub fn check_same_problems(
    path: &Path,
    predictions: &[Prediction],
    problems: &[Problem],
) -> Result<()> {
    let wrong = |problem: String| {
        Err(Error::file(
            path,
            problem,
            "give the --data that these predictions were made from, or leave it out",
        ))
    };
    let pairs = predictions.iter().zip(problems).zip(1..);
    for ((prediction, problem), number) in pairs {
        if prediction.question != problem.question {
            return wrong(format!(
                "is of another data set: prediction {number} answers {:?}, the data asks {:?}",
                shortened(&prediction.question),
                shortened(&problem.question)
            ));
        }
    }
    if predictions.len() != problems.len() {
        return wrong(format!(
            "holds {} predictions, the data {} problems",
            predictions.len(),
            problems.len()
        ));
    }
    Ok(())
}
