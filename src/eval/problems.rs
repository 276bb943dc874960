//! Reads problems with known solutions: GSM8K, MATH, and files in their format.

use std::path::Path;

use serde_json::Value;

use crate::data::json_lines;
use crate::error::{Error, Result};

/// A problem and its known solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Question text.
    pub question: String,
    /// Whole known solution, unchanged from the file.
    pub ground_truth: String,
    /// Subject, if the file has one (in MATH, `type` or `subject`).
    pub subject: Option<String>,
    /// Level, if the file has one.
    pub level: Option<String>,
}

const FORM: &str = "each row needs question (or problem) and answer (or solution), both of them text, as GSM8K and MATH have them";

/// Reads the problems of a `.jsonl` file or of a JSON array.
///
/// A row has the keys `question` or `problem`, and `solution`, `answer` or `ground_truth`. If a row has both `solution` and
/// `answer`, as in MATH, the solution is used if it has a `\boxed{}` answer, else the answer. `type` or `subject`, and
/// `level`, are optional.
///
/// # Errors
/// The file cannot be read, holds no problem, or a row lacks a key. The error names the file, the line or row, and the key.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let problems = read_rows(path, FORM)?
        .into_iter()
        .map(|(place, row)| problem(&row).map_err(|e| Error::invalid(place, e, FORM)))
        .collect::<Result<Vec<_>>>()?;
    if problems.is_empty() {
        Err(Error::file(path, "holds no problem", FORM))
    } else {
        Ok(problems)
    }
}

/// Reads the rows of a JSON array or of JSON lines. Returns each with its place, for messages.
///
/// # Errors
/// The file cannot be read or is neither. The error includes `form`, the expected format.
pub(super) fn read_rows(path: &Path, form: &str) -> Result<Vec<(String, Value)>> {
    let mut rows = Vec::new();
    json_lines::read_values(path, form, |place, _, row| {
        rows.push((place.to_string(), row));
        Ok(())
    })?;
    Ok(rows)
}

/// Returns the string under the first of `keys` that `row` has.
///
/// # Errors
/// `row` is not an object, has none of the keys, or the value is not a string or is blank.
pub(super) fn string_field(row: &Value, keys: &[&str]) -> std::result::Result<String, String> {
    let Some(object) = row.as_object() else {
        return Err("is not an object".to_string());
    };
    match keys.iter().find_map(|key| Some((key, object.get(*key)?))) {
        Some((_, Value::String(text))) if !text.trim().is_empty() => Ok(text.clone()),
        Some((key, Value::String(_))) => Err(format!("{key}: is empty")),
        Some((key, value)) => {
            Err(format!("{key}: is not text but {}", shortened(&value.to_string())))
        }
        None => {
            let present: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
            let present =
                if present.is_empty() { "nothing".to_string() } else { present.join(", ") };
            Err(format!("{}: is missing; the row has {present}", keys.join(" or ")))
        }
    }
}

fn problem(row: &Value) -> std::result::Result<Problem, String> {
    let solution = string_field(row, &["solution", "answer", "ground_truth"])?;
    let has_box = solution.contains("\\boxed") || solution.contains("\\fbox");
    let ground_truth = match row.get("answer").and_then(Value::as_str) {
        Some(answer) if !has_box => answer.to_string(),
        _ => solution,
    };
    let label = |keys: &[&str]| match keys.iter().find_map(|key| row.get(key))? {
        Value::String(label) => Some(label.clone()),
        Value::Number(label) => Some(format!("Level {label}")),
        _ => None,
    };
    Ok(Problem {
        question: string_field(row, &["question", "problem"])?,
        ground_truth,
        subject: label(&["type", "subject"]),
        level: label(&["level"]),
    })
}

/// Returns the first 60 characters of a text on one line, for messages and lists.
pub fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}\u{2026}", &line[..end]),
        None => line,
    }
}
