//! An example of supervised fine-tuning: a prompt and the completion to be learnt.

use std::path::Path;

use serde::Serialize;

use super::pair::{BadRow, Columns, Row, read_rows};
use crate::error::Result;

/// One row of a file of examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Names the example in every report: its id, or the line number.
    pub id: String,
    /// What is given.
    pub prompt: String,
    /// What is learnt.
    pub completion: String,
}

/// Reads all examples of a file, in the forms of [`super::pair::read_pairs`]: columns `prompt` or `question`, and
/// `completion`, or else `chosen` of a file of pairs; optional `id`. Others are ignored.
///
/// # Errors
/// As [`super::pair::read_pairs`].
pub fn read_examples(path: &Path) -> Result<Vec<Example>> {
    read_rows(path)
}

impl Row for Example {
    const NAME: &'static str = "examples";
    const COLUMNS: &'static str =
        "each row needs prompt (or question) and completion (or chosen), both of them text";
    const REQUIRED: &'static [&'static [&'static str]] = &[&["completion"], &["chosen"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        Ok(Self {
            id: row.id()?,
            prompt: row.text(&["prompt", "question"])?,
            completion: row.text(&["completion", "chosen"])?,
        })
    }

    fn id_mut(&mut self) -> &mut String {
        &mut self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_examples_and_of_pairs_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let text = "{\"prompt\": \"p\", \"completion\": \"c\", \"chosen\": \"x\"}\n\
                    {\"id\": 1, \"question\": \"q\", \"chosen\": \"d\", \"rejected\": \"e\"}\n";
        std::fs::write(&path, text).unwrap();
        let examples = read_examples(&path).unwrap();
        let seen = examples.iter().map(|e| [&e.id[..], &e.prompt, &e.completion]);
        assert_eq!(seen.collect::<Vec<_>>(), [["1", "p", "c"], ["1#2", "q", "d"]]);
        std::fs::write(&path, "{\"prompt\": \"p\", \"text\": \"c\"}\n").unwrap();
        let error = read_examples(&path).unwrap_err().to_string();
        for part in ["a.jsonl:1", "completion (or chosen): is missing", "prompt, text"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
