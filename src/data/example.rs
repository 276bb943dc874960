//! Examples for supervised fine-tuning: a prompt and the completion to learn.

use std::path::Path;

use serde::Serialize;

use super::chat::{ChatTemplate, RenderedRow};
use super::pair::{BadRow, Columns, Row, read_rows};
use crate::error::Result;

/// One supervised fine-tuning example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Identifies the example in every report: the id in the file, or else the line number.
    pub id: String,
    /// The prompt, which is given to the model and not scored.
    pub prompt: String,
    /// The completion, which the model learns to write.
    pub completion: String,
    /// The texts of a conversation, from which its tokens are made.
    #[serde(skip)]
    pub rendered: Option<Box<RenderedRow>>,
}

/// Reads all examples of a file in one of the formats of [`super::pair::read_pairs`].
///
/// Required columns are `prompt` (or `question`) and `completion` (or `chosen`, so that a file of preference pairs can be
/// used), as text or as lists of messages, which the template `chat` renders; or `messages` (or `conversations`), a list of
/// messages that is learned as a whole, as TRL's `SFTTrainer` does. The column `id` is optional. Other columns are ignored.
///
/// # Errors
/// Same as [`super::pair::read_pairs`].
pub fn read_examples(path: &Path, chat: Option<&ChatTemplate>) -> Result<Vec<Example>> {
    read_rows(path, chat)
}

impl Example {
    /// Takes a row whose columns are lists of messages.
    fn from_messages(id: String, row: &mut Columns) -> std::result::Result<Self, BadRow> {
        let conversation = if row.has("completion") {
            let (prompt, completion) = (row.messages("prompt")?, row.messages("completion")?);
            row.conversation(prompt, vec![completion])?
        } else if let Some(key) =
            ["messages", "conversations"].into_iter().find(|key| row.is_list(key))
        {
            let messages = row.messages(key)?;
            row.conversation(Vec::new(), vec![messages])?
        } else {
            let mut conversation = row.preference()?;
            conversation.completions.truncate(1);
            conversation
        };
        let rendered = row.render(&conversation)?;
        let (prompt, completion) = rendered.split();
        let (prompt, completion) = (prompt.to_string(), completion.concat());
        Ok(Self { id, prompt, completion, rendered: Some(Box::new(rendered)) })
    }
}

impl Row for Example {
    const NAME: &'static str = "examples";
    const COLUMNS: &'static str = "each row needs prompt (or question) and completion (or chosen), text or lists of messages; or messages";
    const REQUIRED: &'static [&'static [&'static str]] =
        &[&["completion"], &["chosen"], &["messages"], &["conversations"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        let id = row.id()?;
        if row.is_conversation(&["prompt", "completion", "chosen", "messages", "conversations"]) {
            return Self::from_messages(id, row);
        }
        let prompt = row.text(&["prompt", "question"])?;
        let completion = row.text(&["completion", "chosen"])?;
        Ok(Self { id, prompt, completion, rendered: None })
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
        let examples = read_examples(&path, None).unwrap();
        let seen = examples.iter().map(|e| [&e.id[..], &e.prompt, &e.completion]);
        assert_eq!(seen.collect::<Vec<_>>(), [["1", "p", "c"], ["1#2", "q", "d"]]);
        std::fs::write(&path, "{\"prompt\": \"p\", \"text\": \"c\"}\n").unwrap();
        let error = read_examples(&path, None).unwrap_err().to_string();
        for part in ["a.jsonl:1", "completion (or chosen): is missing", "prompt, text"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
