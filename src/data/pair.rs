//! A preference pair: a prompt and two completions, one of which people preferred. Files of pairs, read and written.

mod columns;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::output::WholeFile;

/// One line of `pairs.jsonl`.
///
/// When read by [`read_pairs`], `question` is accepted for `prompt`; `id` may be missing and is then the line number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// Names the pair in every report: the question's id, or the line number.
    pub id: String,
    /// The question, as text.
    pub prompt: String,
    /// The preferred completion.
    pub chosen: String,
    /// The other completion.
    pub rejected: String,
    /// Vote score of the chosen answer, where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_score: Option<i64>,
    /// Vote score of the rejected answer, where the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_score: Option<i64>,
}

/// Reads all pairs of a file: `.jsonl` (an object a line), `.json` (an array of objects, or lines), `.parquet`.
///
/// Columns: `prompt` or `question`, `chosen`, `rejected`; optional `id` (text or integer), `chosen_score` and
/// `rejected_score` (integers). Others are ignored. A row without `id` is named by its line (`.jsonl`), or its place in
/// the array or table, from 1. An id met again gets `#2`, `#3`, ... appended, so that each names one pair. A UTF-8 byte
/// order mark is skipped.
///
/// # Errors
/// The file cannot be read, is of another kind, is empty, or a row is not a pair; file, line or row, and key are named.
pub fn read_pairs(path: &Path) -> Result<Vec<PreferencePair>> {
    read_rows(path)
}

/// What a file's rows become.
pub(super) trait Row: Sized {
    /// What they are called, several of them.
    const NAME: &'static str;
    /// Which columns a row needs.
    const COLUMNS: &'static str;
    /// Columns a table must have: all of one of these.
    const REQUIRED: &'static [&'static [&'static str]];

    /// Takes a row's columns; its number is its id if it has none.
    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow>;

    fn id_mut(&mut self) -> &mut String;
}

/// As [`read_pairs`], for other kinds of rows.
pub(super) fn read_rows<T: Row>(path: &Path) -> Result<Vec<T>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut rows: Vec<T> = match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" => read_lines(path)?,
        "json" => read_json(path)?,
        "parquet" => columns::read_parquet(path)?,
        other => {
            return Err(Error::file(
                path,
                format!("the extension {other:?} is not one of jsonl, json, parquet"),
                "convert the file; `arithmo prepare` makes pairs.jsonl from Stack Exchange data",
            ));
        }
    };
    if rows.is_empty() {
        let problem = format!("holds no {}", T::NAME);
        return Err(Error::file(path, problem, T::COLUMNS));
    }
    make_ids_unique(&mut rows);
    Ok(rows)
}

/// Writes pairs one by one as JSON lines; the file appears under its name when [`finish`](Self::finish) is called.
#[derive(Debug)]
pub struct PairWriter {
    file: WholeFile,
    path: std::path::PathBuf,
    written: usize,
}

impl PairWriter {
    /// Starts the file.
    ///
    /// # Errors
    /// Its folder cannot be made or written to.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { file: WholeFile::create(path)?, path: path.to_path_buf(), written: 0 })
    }

    /// Appends one pair.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&mut self, pair: &PreferencePair) -> Result<()> {
        let fail = |e| Error::io(&self.path, "write", e);
        serde_json::to_writer(&mut self.file, pair).map_err(|e| fail(e.into()))?;
        self.file.write_all(b"\n").map_err(fail)?;
        self.written += 1;
        Ok(())
    }

    /// Gives the file its name; returns the number of pairs in it.
    ///
    /// # Errors
    /// The disk is full or the rename is refused; an older file of this name is then unchanged.
    pub fn finish(self) -> Result<usize> {
        self.file.commit()?;
        Ok(self.written)
    }
}

/// Writes `pairs` as JSON lines, whole or not at all; returns their number.
///
/// # Errors
/// As [`PairWriter`].
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

fn read_lines<T: Row>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut rows, mut line, mut number) = (Vec::new(), Vec::new(), 0usize);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, "read", e))?;
        if read == 0 {
            return Ok(rows);
        }
        number += 1;
        let text = utf8(path, &line, number)?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{number}", path.display());
        let row: Value = serde_json::from_str(text).map_err(|e| {
            // serde_json counts lines too; there is only one here.
            let problem = e.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default();
            let problem = format!("is not JSON: {problem} (column {})", e.column());
            Error::invalid(
                place(),
                problem,
                "mend or remove the line; .jsonl holds one object a line",
            )
        })?;
        rows.push(from_row(row, number).map_err(|e| e.at(place()))?);
    }
}

fn read_json<T: Row>(path: &Path) -> Result<Vec<T>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let text = utf8(path, &bytes, 1)?.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('{') {
        return read_lines(path);
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Value> = serde_json::from_str(text).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        Error::invalid(place, format!("is not an array of objects: {e}"), "mend the file")
    })?;
    let place = |row: usize| format!("{}: row {row}", path.display());
    let rows = rows.into_iter().zip(1..);
    rows.map(|(value, row)| from_row(value, row).map_err(|e| e.at(place(row)))).collect()
}

/// The text of `bytes`, which begin on line `first_line`.
fn utf8<'a>(path: &Path, bytes: &'a [u8], first_line: usize) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = first_line + before.iter().filter(|b| **b == b'\n').count();
        let place = format!("{}:{line}", path.display());
        if first_line == 1 && (bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]))
        {
            return Error::invalid(place, "is UTF-16 text (byte order mark)", "save it as UTF-8");
        }
        let column = before.iter().rev().take_while(|b| **b != b'\n').count();
        let problem = format!("is not UTF-8 at byte {} of the line", column + 1);
        Error::invalid(place, problem, "convert the file to UTF-8")
    })
}

/// What is wrong with a row, before it is known where the row stands.
#[derive(Debug)]
pub(super) struct BadRow {
    problem: String,
    remedy: &'static str,
}

impl BadRow {
    fn at(self, place: String) -> Error {
        Error::invalid(place, self.problem, self.remedy)
    }
}

/// The columns of one row of any source.
pub(super) struct Columns {
    row: Map<String, Value>,
    number: usize,
    /// What is said where one is missing.
    remedy: &'static str,
}

impl Columns {
    /// The id, or else the row's number.
    pub(super) fn id(&mut self) -> std::result::Result<String, BadRow> {
        Ok(take_id(&mut self.row)?.unwrap_or_else(|| self.number.to_string()))
    }

    /// The text in the first of the columns `keys` that there is.
    pub(super) fn text(&mut self, keys: &[&str]) -> std::result::Result<String, BadRow> {
        let found = keys.iter().find(|key| self.row.contains_key(**key));
        let bad = |problem| BadRow { problem, remedy: self.remedy };
        let Some(key) = found else {
            let mut have: Vec<&str> = self.row.keys().map(String::as_str).collect();
            have.truncate(8);
            let name = match keys {
                [one] => (*one).to_string(),
                [first, rest @ ..] => format!("{first} (or {})", rest.join(", ")),
                [] => String::new(),
            };
            let problem = format!("{name}: is missing; the row has {}", have.join(", "));
            return Err(bad(problem));
        };
        match self.row.get_mut(*key).map(Value::take) {
            Some(Value::String(text)) => Ok(text),
            Some(Value::Array(_) | Value::Object(_)) => Err(conversational(key)),
            other => {
                let other = other.unwrap_or_default();
                Err(bad(format!("{key}: is {}, not text", kind(&other))))
            }
        }
    }
}

/// A row of any source.
fn from_row<T: Row>(row: Value, number: usize) -> std::result::Result<T, BadRow> {
    match row {
        Value::Object(row) => T::from_columns(&mut Columns { row, number, remedy: T::COLUMNS }),
        other => Err(BadRow {
            problem: format!("is {}, not an object", kind(&other)),
            remedy: T::COLUMNS,
        }),
    }
}

impl Row for PreferencePair {
    const NAME: &'static str = "pairs";
    const COLUMNS: &'static str =
        "each row needs prompt (or question), chosen and rejected, all of them text";
    const REQUIRED: &'static [&'static [&'static str]] = &[&["chosen", "rejected"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        Ok(Self {
            id: row.id()?,
            prompt: row.text(&["prompt", "question"])?,
            chosen: row.text(&["chosen"])?,
            rejected: row.text(&["rejected"])?,
            chosen_score: take_score(&mut row.row, "chosen_score")?,
            rejected_score: take_score(&mut row.row, "rejected_score")?,
        })
    }

    fn id_mut(&mut self) -> &mut String {
        &mut self.id
    }
}

/// Columns of messages (`[{"role": ..., "content": ...}]`) need a chat template, which base models do not have.
fn conversational(key: &str) -> BadRow {
    BadRow {
        problem: format!(
            "{key}: is a list of messages (role, content); only plain text is supported"
        ),
        remedy: "render the conversation to text first, prompt and completions apart",
    }
}

fn take_id(row: &mut Map<String, Value>) -> std::result::Result<Option<String>, BadRow> {
    match row.remove("id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if !id.is_empty() => Ok(Some(id)),
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(Some(id.to_string())),
        Some(other) => Err(BadRow {
            problem: format!("id: must be text or an integer, is {other}"),
            remedy: "mend the id, or leave the key out: the line number is taken then",
        }),
    }
}

fn take_score(row: &mut Map<String, Value>, key: &str) -> std::result::Result<Option<i64>, BadRow> {
    let Some(value) = row.remove(key).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    // Tables often hold whole numbers as floats.
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64);
    match value.as_i64().or(whole) {
        Some(score) => Ok(Some(score)),
        None => Err(BadRow {
            problem: format!("{key}: must be an integer, is {value}"),
            remedy: "mend the score or leave the key out; training does not use it",
        }),
    }
}

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

/// Appends `#2`, `#3`, ... to ids that were met before.
fn make_ids_unique<T: Row>(rows: &mut [T]) {
    let mut met: HashMap<String, usize> = HashMap::with_capacity(rows.len());
    for given in rows.iter_mut().map(T::id_mut) {
        let count = met.get(given).copied().unwrap_or(0) + 1;
        let mut id = given.clone();
        for n in count.. {
            if n > 1 {
                id = format!("{given}#{n}");
            }
            if !met.contains_key(&id) {
                met.insert(given.clone(), n);
                break;
            }
        }
        met.entry(id.clone()).or_insert(1);
        *given = id;
    }
}

#[cfg(test)]
mod tests;
