//! Preference pairs (a prompt, a chosen and a rejected completion), and reading and writing files of them.

mod columns;
mod messages;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::{ChatTemplate, RenderedRow};
use super::json_lines;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::WholeFile;

/// A prompt with a chosen and a rejected completion: one line of `pairs.jsonl`.
///
/// [`read_pairs`] also accepts `question` for `prompt`, and uses the line number as `id` if there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// Identifies the pair in every report: the question's id, or the line number.
    pub id: String,
    /// The question, as plain text.
    pub prompt: String,
    /// The preferred completion.
    pub chosen: String,
    /// The completion that was not preferred.
    pub rejected: String,
    /// Vote score of the chosen answer, if the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_score: Option<i64>,
    /// Vote score of the rejected answer, if the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_score: Option<i64>,
    /// The texts of a conversation, from which its tokens are made. `prompt`, `chosen` and `rejected` are then parts of them.
    #[serde(skip)]
    pub rendered: Option<Box<RenderedRow>>,
}

/// Reads all pairs of a `.parquet` file, or of a `.jsonl`, `.ndjson` or `.json` file with one object per line or an array
/// of objects.
///
/// Required columns are `prompt` (or `question`), `chosen` and `rejected`: text, or lists of messages, which the template
/// `chat` renders; the prompt of a conversation may be what chosen and rejected begin with. Optional are `id` (text or integer),
/// `chosen_score` and `rejected_score` (integers), and for conversations `chat_template_kwargs` and `tools`. Other columns are ignored. The id of a row without `id` is its line
/// number, or its number in the array or table, from 1. An id that occurs again gets `#2`, `#3`, ... appended, so that
/// every id is unique. A UTF-8 byte order mark is skipped.
///
/// # Errors
/// The file cannot be read, has another format or no pairs, or a row is not a pair or cannot be rendered. The error names the
/// file, the line or row, and the key.
pub fn read_pairs(path: &Path, chat: Option<&ChatTemplate>) -> Result<Vec<PreferencePair>> {
    read_rows(path, chat)
}

/// A type that can be read from the rows of a data file.
pub(super) trait Row: Sized {
    /// Plural noun for such rows, used in messages.
    const NAME: &'static str;
    /// Remedy shown for a row that lacks a column: the columns that a row needs.
    const COLUMNS: &'static str;
    /// Alternative sets of required columns. A table must have all columns of one set.
    const REQUIRED: &'static [&'static [&'static str]];

    /// Builds a value from the columns of a row.
    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow>;

    /// Returns the id for modification.
    fn id_mut(&mut self) -> &mut String;
}

/// Reads all rows of a file, like [`read_pairs`], for any type of row.
///
/// # Errors
/// Same as [`read_pairs`].
pub(super) fn read_rows<T: Row>(path: &Path, chat: Option<&ChatTemplate>) -> Result<Vec<T>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut rows: Vec<T> = match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" | "json" => read_json(path, RowReader::new(chat))?,
        "parquet" => columns::read_parquet(path, RowReader::new(chat))?,
        other => {
            return Err(Error::file(
                path,
                format!("the extension {other:?} is not one of jsonl, json, parquet"),
                "convert the file; `arithmo prepare` makes pairs.jsonl from Stack Exchange data",
            ));
        }
    };
    if rows.is_empty() {
        let problem = format!("contains no {}", T::NAME);
        return Err(Error::file(path, problem, T::COLUMNS));
    }
    make_ids_unique(&mut rows);
    Ok(rows)
}

/// Writes pairs one by one as JSON Lines. The file appears under its name when [`finish`](Self::finish) is called.
#[derive(Debug)]
pub struct PairWriter {
    file: WholeFile,
    path: std::path::PathBuf,
    written: usize,
}

impl PairWriter {
    /// Creates a writer for the file at `path`.
    ///
    /// # Errors
    /// The folder of the file cannot be created or written to.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: WholeFile::create(path)?, path: path.to_path_buf(), written: 0 })
    }

    /// Appends one pair: a [`PreferencePair`], or a row with lists of messages.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, pair: &impl Serialize) -> Result<()> {
        let fail = |e| Error::io(&self.path, "write", e);
        serde_json::to_writer(&mut self.file, pair).map_err(|e| fail(e.into()))?;
        self.file.write_all(b"\n").map_err(fail)?;
        self.written += 1;
        Ok(())
    }

    /// Returns the file under its temporary name, for [`commit_set`](crate::output::commit_set) to publish with others.
    pub fn into_file(self) -> WholeFile {
        self.file
    }

    /// Moves the file to its final name. Returns the number of pairs in it.
    ///
    /// # Errors
    /// The disk is full or the file cannot be renamed. An older file of this name is then unchanged.
    pub fn finish(self) -> Result<usize> {
        self.file.commit()?;
        Ok(self.written)
    }
}

/// Writes `pairs` as JSON Lines. Either the whole file appears at `path` or nothing does. Returns the number of pairs.
///
/// # Errors
/// Same as the methods of [`PairWriter`].
pub fn write_pairs<'a>(
    path: &Path,
    pairs: impl IntoIterator<Item = &'a PreferencePair>,
) -> Result<usize> {
    let mut writer = PairWriter::create(path)?;
    for pair in pairs {
        writer.write(pair)?;
    }
    writer.finish()
}

fn read_json<T: Row>(path: &Path, mut reader: RowReader<'_>) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    json_lines::read_values(
        path,
        "write one object per line, or an array of objects",
        |place, number, value| {
            rows.push(reader.read(value, number, || place.to_string())?);
            Ok(())
        },
    )?;
    Ok(rows)
}

/// An error in a row, without the row's place in the file.
#[derive(Debug)]
pub(super) struct BadRow {
    problem: String,
    remedy: &'static str,
}

impl BadRow {
    /// Returns the error for a row at `place`.
    fn at(self, place: String) -> Error {
        Error::invalid(place, self.problem, self.remedy)
    }
}

/// The columns of one row.
pub(super) struct Columns<'a> {
    row: Map<String, Value>,
    number: usize,
    chat: Option<&'a ChatTemplate>,
    /// Whether the row turned out to be a conversation.
    conversational: bool,
    /// Remedy of the error for a missing column.
    remedy: &'static str,
}

impl Columns<'_> {
    /// Takes the id, or returns the row's number if it has none.
    pub(super) fn id(&mut self) -> std::result::Result<String, BadRow> {
        Ok(take_id(&mut self.row)?.unwrap_or_else(|| self.number.to_string()))
    }

    /// Returns whether the row has the column `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.row.contains_key(key)
    }

    /// Takes the value of the column `key`, which is true or false.
    pub(super) fn flag(&mut self, key: &str) -> std::result::Result<bool, BadRow> {
        match self.row.remove(key) {
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => {
                let problem = format!("{key}: is {}, not true or false", kind(&other));
                Err(BadRow { problem, remedy: self.remedy })
            }
            None => {
                let problem = format!("{key}: is missing; the row has {}", self.present());
                Err(BadRow { problem, remedy: self.remedy })
            }
        }
    }

    /// Returns the names of the row's first columns.
    fn present(&self) -> String {
        let mut present: Vec<&str> = self.row.keys().map(String::as_str).collect();
        present.truncate(8);
        present.join(", ")
    }

    /// Takes the text of the first of the columns `keys` that the row has.
    pub(super) fn text(&mut self, keys: &[&str]) -> std::result::Result<String, BadRow> {
        let found = keys.iter().find(|key| self.row.contains_key(**key));
        let bad = |problem| BadRow { problem, remedy: self.remedy };
        let Some(key) = found else {
            let name = match keys {
                [one] => (*one).to_string(),
                [first, rest @ ..] => format!("{first} (or {})", rest.join(", ")),
                [] => String::new(),
            };
            let problem = format!("{name}: is missing; the row has {}", self.present());
            return Err(bad(problem));
        };
        match self.row.get_mut(*key).map(Value::take) {
            Some(Value::String(text)) => Ok(text),
            other => {
                let other = other.unwrap_or_default();
                Err(bad(format!("{key}: is {}, not text", kind(&other))))
            }
        }
    }
}

/// Converts the rows of a file, which are all text or all conversations.
struct RowReader<'a> {
    chat: Option<&'a ChatTemplate>,
    /// Whether the first row is a conversation, and its place.
    first: Option<(bool, String)>,
}

impl<'a> RowReader<'a> {
    fn new(chat: Option<&'a ChatTemplate>) -> Self {
        Self { chat, first: None }
    }

    /// Converts the JSON object of row `number` at `place`.
    fn read<T: Row>(&mut self, row: Value, number: usize, place: impl Fn() -> String) -> Result<T> {
        if interrupt::requested() {
            let note = format!("stopped while reading {}", place());
            return Err(Error::Interrupted { note });
        }
        let row = match row {
            Value::Object(row) => row,
            other => {
                let problem = format!("is {}, not an object", kind(&other));
                return Err(BadRow { problem, remedy: T::COLUMNS }.at(place()));
            }
        };
        let (chat, conversational) = (self.chat, false);
        let mut columns = Columns { row, number, chat, conversational, remedy: T::COLUMNS };
        let converted = T::from_columns(&mut columns).map_err(|e| e.at(place()))?;
        let form = |conversational| if conversational { "a conversation" } else { "text" };
        match &self.first {
            Some((first, before)) if *first != columns.conversational => Err(Error::invalid(
                place(),
                format!("is {}, but {before} is {}", form(columns.conversational), form(*first)),
                "write all rows as text, or all as lists of messages",
            )),
            Some(_) => Ok(converted),
            None => {
                self.first = Some((columns.conversational, place()));
                Ok(converted)
            }
        }
    }
}

impl Row for PreferencePair {
    const NAME: &'static str = "pairs";
    const COLUMNS: &'static str = "each row needs prompt (or question), chosen and rejected: all of them text, or lists of messages";
    const REQUIRED: &'static [&'static [&'static str]] = &[&["chosen", "rejected"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        let mut pair = Self {
            id: row.id()?,
            prompt: String::new(),
            chosen: String::new(),
            rejected: String::new(),
            chosen_score: take_score(&mut row.row, "chosen_score")?,
            rejected_score: take_score(&mut row.row, "rejected_score")?,
            rendered: None,
        };
        if row.is_conversation(&["prompt", "chosen", "rejected"]) {
            let conversation = row.preference()?;
            let rendered = row.render(&conversation)?;
            let (prompt, completions) = rendered.split();
            pair.prompt = prompt.to_string();
            if let [chosen, rejected] = completions[..] {
                (pair.chosen, pair.rejected) = (chosen.to_string(), rejected.to_string());
            }
            pair.rendered = Some(Box::new(rendered));
        } else {
            pair.prompt = row.text(&["prompt", "question"])?;
            pair.chosen = row.text(&["chosen"])?;
            pair.rejected = row.text(&["rejected"])?;
        }
        Ok(pair)
    }

    fn id_mut(&mut self) -> &mut String {
        &mut self.id
    }
}

/// Removes the id from a row and returns it, or `None` if there is none.
fn take_id(row: &mut Map<String, Value>) -> std::result::Result<Option<String>, BadRow> {
    match row.remove("id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if !id.is_empty() => Ok(Some(id)),
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(Some(id.to_string())),
        Some(other) => Err(BadRow {
            problem: format!("id: must be text or an integer, is {other}"),
            remedy: "correct the id, or leave the key out to use the line number",
        }),
    }
}

/// Removes the score `key` from a row and returns it, or `None` if there is none.
fn take_score(row: &mut Map<String, Value>, key: &str) -> std::result::Result<Option<i64>, BadRow> {
    let Some(value) = row.remove(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    // Tables often store whole numbers as floats.
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64);
    match value.as_i64().or(whole) {
        Some(score) => Ok(Some(score)),
        None => Err(BadRow {
            problem: format!("{key}: must be an integer, is {value}"),
            remedy: "correct the score or leave the key out; training does not use it",
        }),
    }
}

/// Returns the type of a JSON value in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Appends `#2`, `#3`, ... to ids that occurred before.
fn make_ids_unique<T: Row>(rows: &mut [T]) {
    // The highest suffix used for each id so far.
    let mut suffixes: HashMap<String, usize> = HashMap::with_capacity(rows.len());
    for row_id in rows.iter_mut().map(T::id_mut) {
        let next = suffixes.get(row_id).copied().unwrap_or(0) + 1;
        let mut id = row_id.clone();
        for n in next.. {
            if n > 1 {
                id = format!("{row_id}#{n}");
            }
            if !suffixes.contains_key(&id) {
                suffixes.insert(row_id.clone(), n);
                break;
            }
        }
        suffixes.entry(id.clone()).or_insert(1);
        *row_id = id;
    }
}

#[cfg(test)]
mod tests;
