//! A problem whose answer is known: what answers of a model are checked with.

use std::path::Path;

use serde::Serialize;

use super::pair::{BadRow, Columns, Row, read_rows};
use crate::error::Result;

/// One row of `problems.jsonl`. Written as GSM8K has it: `question`, `answer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownProblem {
    /// Names the problem in every report: its id, or the line number.
    pub id: String,
    /// The question.
    #[serde(rename = "question")]
    pub prompt: String,
    /// The known solution, or the answer alone.
    #[serde(rename = "answer")]
    pub solution: String,
}

/// Reads all problems of a file, in the forms of [`super::pair::read_pairs`]: columns `prompt` or `question`, and `answer`,
/// `solution` or `completion`; optional `id`. Others are ignored.
///
/// # Errors
/// As [`super::pair::read_pairs`].
pub fn read_problems(path: &Path) -> Result<Vec<KnownProblem>> {
    read_rows(path)
}

impl Row for KnownProblem {
    const NAME: &'static str = "problems";
    const COLUMNS: &'static str =
        "each row needs question (or prompt) and answer (or solution, completion), both of them text";
    const REQUIRED: &'static [&'static [&'static str]] =
        &[&["answer"], &["solution"], &["completion"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        Ok(Self {
            id: row.id()?,
            prompt: row.text(&["question", "prompt"])?,
            solution: row.text(&["answer", "solution", "completion"])?,
        })
    }

    fn id_mut(&mut self) -> &mut String {
        &mut self.id
    }
}
