//! Problems with known solutions: GSM8K, MATH, and files in their form.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// A problem and its known solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The whole known solution, as the file has it.
    pub ground_truth: String,
    /// Its subject, where the file has one (MATH: `type` or `subject`).
    pub subject: Option<String>,
    /// Its level, where the file has one.
    pub level: Option<String>,
}

const FORM: &str = "each row needs question (or problem) and answer (or solution), both of them text, as GSM8K and MATH have them";

/// Reads the problems of a `.jsonl` file or of a JSON array.
///
/// Keys: `question` or `problem`; `solution`, `answer` or `ground_truth`: of a MATH row the solution counts, with the
/// answer in its `\boxed{}`, or the answer where the solution boxes none. `type` or `subject`, and `level`, are kept.
///
/// # Errors
/// The file cannot be read, holds no problem, or a row lacks a key: file, line or row, and key are named.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let problems = read_rows(path, FORM)?
        .into_iter()
        .map(|(place, row)| problem(&row).map_err(|said| Error::invalid(place, said, FORM)))
        .collect::<Result<Vec<_>>>()?;
    match problems.is_empty() {
        true => Err(Error::file(path, "holds no problem", FORM)),
        false => Ok(problems),
    }
}

/// The objects of a JSON array or of JSON lines, each with its place in words.
///
/// # Errors
/// The file cannot be read, or is neither; `form` says what it should be.
pub(super) fn read_rows(path: &Path, form: &str) -> Result<Vec<(String, Value)>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file(path, format!("is not UTF-8: {e}"), "convert the file to UTF-8")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let place = |kind: &str, number: usize| format!("{}{kind}{number}", path.display());
    if text.trim_start().starts_with('[') {
        let rows: Vec<Value> = serde_json::from_str(text).map_err(|e| {
            Error::invalid(place(":", e.line()), format!("is not an array of objects: {e}"), form)
        })?;
        let rows = rows.into_iter().zip(1..);
        return Ok(rows.map(|(row, number)| (place(": row ", number), row)).collect());
    }
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| match serde_json::from_str(line) {
            Ok(row) => Ok((place(":", number), row)),
            Err(e) => Err(Error::invalid(
                place(":", number),
                format!("is not JSON (column {})", e.column()),
                form,
            )),
        })
        .collect()
}

/// The text of the first of `keys` that `row` has.
pub(super) fn text_of(row: &Value, keys: &[&str]) -> std::result::Result<String, String> {
    let Some(object) = row.as_object() else {
        return Err("is not an object".to_string());
    };
    match keys.iter().find_map(|key| Some((key, object.get(*key)?))) {
        Some((_, Value::String(text))) if !text.trim().is_empty() => Ok(text.clone()),
        Some((key, Value::String(_))) => Err(format!("{key}: is empty")),
        Some((key, value)) => {
            Err(format!("{key}: is no text but {}", shortened(&value.to_string())))
        }
        None => {
            let there: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
            let there = if there.is_empty() { "nothing".to_string() } else { there.join(", ") };
            Err(format!("{}: is missing; the row has {there}", keys.join(" or ")))
        }
    }
}

fn problem(row: &Value) -> std::result::Result<Problem, String> {
    let solution = text_of(row, &["solution", "answer", "ground_truth"])?;
    let boxes = solution.contains("\\boxed") || solution.contains("\\fbox");
    let ground_truth = match row.get("answer").and_then(Value::as_str) {
        Some(answer) if !boxes => answer.to_string(),
        _ => solution,
    };
    let label = |keys: &[&str]| match keys.iter().find_map(|key| row.get(key))? {
        Value::String(label) => Some(label.clone()),
        Value::Number(label) => Some(format!("Level {label}")),
        _ => None,
    };
    Ok(Problem {
        question: text_of(row, &["question", "problem"])?,
        ground_truth,
        subject: label(&["type", "subject"]),
        level: label(&["level"]),
    })
}

/// The beginning of a text, for messages and lists.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}\u{2026}", &line[..end]),
        None => line,
    }
}
