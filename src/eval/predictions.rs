//! `predictions.json`: what a model answered, in the original project's form.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::problems::{Problem, read_rows, shortened, text_of};
use crate::error::{Error, Result};
use crate::output::write_whole;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// The problem, without the prompt's template.
    pub question: String,
    /// The whole known solution.
    pub ground_truth: String,
    /// The whole text, prompt included.
    pub prediction: String,
}

const FORM: &str = "a predictions file is an array of {\"question\", \"ground_truth\", \"prediction\"}, as evaluate writes it";

/// `texts`, prompt and answer each, as predictions of `problems`.
pub fn predictions(problems: &[Problem], texts: Vec<String>) -> Vec<Prediction> {
    let prediction = |(problem, prediction): (&Problem, String)| Prediction {
        question: problem.question.clone(),
        ground_truth: problem.ground_truth.clone(),
        prediction,
    };
    problems.iter().zip(texts).map(prediction).collect()
}

/// Reads a predictions file: an array, or JSON lines.
///
/// # Errors
/// It cannot be read, is empty, or an entry lacks a key.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let entry = |(place, row): (String, serde_json::Value)| {
        let text = |key| text_of(&row, &[key]).map_err(|said| Error::invalid(&place, said, FORM));
        Ok(Prediction {
            question: text("question")?,
            ground_truth: text("ground_truth")?,
            // A model may say nothing.
            prediction: match row.get("prediction").and_then(serde_json::Value::as_str) {
                Some(prediction) => prediction.to_string(),
                None => text("prediction")?,
            },
        })
    };
    let all = read_rows(path, FORM)?.into_iter().map(entry).collect::<Result<Vec<_>>>()?;
    match all.is_empty() {
        true => Err(Error::file(path, "holds no prediction", FORM)),
        false => Ok(all),
    }
}

/// Writes a predictions file, whole or not at all.
///
/// # Errors
/// The disk is full.
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

/// Checks that `predictions` answer exactly `problems`, in their order.
///
/// # Errors
/// They are of another data set: the first place where they part is named.
pub fn check_same_problems(
    path: &Path,
    predictions: &[Prediction],
    problems: &[Problem],
) -> Result<()> {
    let wrong = |problem: String| {
        Err(Error::file(
            path,
            problem,
            "give the --data these predictions were made from, or leave it out",
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
