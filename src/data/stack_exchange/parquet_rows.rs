//! Reads rows from parquet files in the schema of `HuggingFaceH4/stack-exchange-preferences`.
//!
//! The columns are `qid` (integer or text), `question` (HTML), `answers` (list of {`text` HTML, `pm_score` integer,
//! `selected` boolean, …}), and optionally `title` (plain text). `answers` may also be a structure of lists, as Hugging
//! Face's `Sequence` writes it.
//!
//! Files are read column by column, a few hundred rows at a time. Memory holds one page of each column, never a whole file.

use std::path::Path;

use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};

use super::unread::RowTexts;
use super::values::{Field, Flag, Id, Score};
use super::{Answer, BadInput, Meter, Record, Records, UnreadRow};
use crate::data::columnar::{self, Cell, Column, Found, Kind, Table};
use crate::data::row_limit;
use crate::error::{Error, Result};

const WHOLE_FILE: &str = "get the file again, or pass --skip-bad-rows to use what can be read";
const SCHEMA: &str = "a file of HuggingFaceH4/stack-exchange-preferences has the columns qid, question, and answers with \
    text (text), pm_score (integer) and optionally selected (boolean)";
const REWRITE: &str = "write it again with snappy, gzip, brotli, lz4, zstd or no compression (pyarrow: \
    pq.write_table(pq.read_table(path), path, compression=\"zstd\"))";

/// A decoded value, or the problem with it.
type Decoded<T> = std::result::Result<T, String>;

/// Opens the parquet file at `path`. If its footer or its schema is unreadable, the only record is a [`Record::Bad`].
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path, meter: Meter) -> Result<Records> {
    let opened = Table::open(path).map_err(|e| Error::io(path, "open", e))?;
    let name = path.display().to_string();
    let opened = opened.map_err(|e| bad_file(&name, "footer", &e));
    let rows = opened.and_then(|table| {
        let columns = Columns::find(&table, &name)?;
        Ok(Reader::new(table, columns, name, meter))
    });
    Ok(match rows {
        Ok(rows) => Box::new(rows),
        Err(bad) => Box::new(std::iter::once(Record::Bad(bad))),
    })
}

/// Creates the error for an unreadable part of the file `name`.
fn bad_file(name: &str, part: &str, error: &ParquetError) -> BadInput {
    let (problem, too_large) = columnar::explain(error);
    let remedy = if too_large { row_limit::REMEDY } else { WHOLE_FILE };
    BadInput::file(format!("{name}: {part}"), problem, remedy)
}

/// Indices of the columns that are read.
#[derive(Clone, Copy, Debug)]
struct Columns {
    qid: usize,
    title: Option<usize>,
    question: usize,
    text: usize,
    pm_score: usize,
    selected: Option<usize>,
}

impl Columns {
    /// Finds the columns and checks their types.
    fn find(table: &Table, name: &str) -> std::result::Result<Self, BadInput> {
        let bad = |problem: String| BadInput::file(name.to_string(), problem, SCHEMA);
        // A column of the wrong type is an error, never treated as missing.
        let checked =
            |column: &str, found: Decoded<Option<Found>>, allowed: fn(&Kind) -> bool| match found
                .map_err(bad)?
            {
                Some(found) if !allowed(&found.kind) => {
                    Err(bad(format!("column {column} is of type {}", found.kind.name())))
                }
                found => Ok(found.map(|found| found.index)),
            };
        let required = |column: &str, index: Option<usize>| {
            index.ok_or_else(|| bad(format!("there is no column {column}")))
        };
        let text = |kind: &Kind| *kind == Kind::Text;
        let title = |kind: &Kind| matches!(kind, Kind::Text | Kind::Null);
        let number = |kind: &Kind| matches!(kind, Kind::Integer { .. } | Kind::Real);
        let id = |kind: &Kind| matches!(kind, Kind::Integer { .. } | Kind::Real | Kind::Text);
        let flag = |kind: &Kind| {
            matches!(kind, Kind::Integer { .. } | Kind::Real | Kind::Flag | Kind::Null)
        };
        let flat = |column: &str, allowed| checked(column, table.flat(column), allowed);
        let answers = |field: &str, allowed| {
            checked(&format!("answers.{field}"), table.in_list("answers", field), allowed)
        };
        let columns = Self {
            qid: required("qid", flat("qid", id)?)?,
            title: flat("title", title)?,
            question: required("question", flat("question", text)?)?,
            text: required("answers.text", answers("text", text)?)?,
            pm_score: required("answers.pm_score", answers("pm_score", number)?)?,
            selected: answers("selected", flag)?,
        };
        match table.unreadable_codec(&columns.all()) {
            Some(codec) => {
                let problem = format!("is compressed with {codec}, which is not supported");
                Err(BadInput::file(name.to_string(), problem, REWRITE))
            }
            None => Ok(columns),
        }
    }

    /// Returns the indices of all columns.
    fn all(&self) -> Vec<usize> {
        let required = [self.qid, self.question, self.text, self.pm_score];
        let optional = self.title.into_iter().chain(self.selected);
        required.into_iter().chain(optional).collect()
    }
}

/// Reads the rows of one file.
struct Reader {
    table: Table,
    columns: Columns,
    name: String,
    meter: Meter,
    /// Index of the row group being read.
    group: usize,
    /// Columns of that row group, once they are open.
    open: Option<Group>,
    /// Decoded records that were not returned yet, the last one first.
    ready: Vec<Record>,
    /// Bytes of the file that were not reported as consumed yet.
    unreported: u64,
    /// Average compressed bytes per row of the row group.
    bytes_per_row: u64,
}

impl Reader {
    fn new(table: Table, columns: Columns, name: String, meter: Meter) -> Self {
        Self {
            unreported: table.length(),
            table,
            columns,
            name,
            meter,
            group: 0,
            open: None,
            ready: Vec::new(),
            bytes_per_row: 0,
        }
    }

    /// Decodes the next batch into `ready`. Returns false at the end of the file.
    fn fill(&mut self) -> bool {
        while !self.meter.must_stop() {
            if self.open.is_none() {
                if self.group >= self.table.groups() {
                    self.meter.consumed(std::mem::take(&mut self.unreported));
                    return false;
                }
                let rows = self.table.rows(self.group);
                self.bytes_per_row = self.table.compressed_bytes(self.group) / rows.max(1);
                match Group::open(&self.table, self.group, self.columns, rows) {
                    Ok(group) => self.open = Some(group),
                    Err(e) => return self.skip_group(&e, 0),
                }
            }
            let Some(group) = &mut self.open else {
                return false;
            };
            let first = group.row;
            if first == group.rows {
                (self.open, self.group) = (None, self.group + 1);
                continue;
            }
            match group.read_batch() {
                Ok(rows) => {
                    self.set_ready(first, rows);
                    return true;
                }
                Err(e) => return self.skip_group(&e, first),
            }
        }
        false
    }

    /// Converts `rows`, which begin with row `first` of the group, to records in `ready`.
    fn set_ready(&mut self, first: u64, rows: Vec<Decoded<UnreadRow>>) {
        let bytes = (self.bytes_per_row * rows.len() as u64).min(self.unreported);
        self.unreported -= bytes;
        self.meter.consumed(bytes);
        let (name, group, limit) = (&self.name, self.group, row_limit::max_row_bytes());
        let record = |(row, decoded): (u64, Decoded<UnreadRow>)| {
            let place = || format!("{name}: row group {group}, row {row}");
            match decoded {
                Ok(row) if row.len() as u64 > limit => {
                    let problem = row_limit::problem(limit);
                    Record::Bad(BadInput::row(place(), problem).with_remedy(row_limit::REMEDY))
                }
                Ok(row) => Record::Unread(row),
                Err(problem) => Record::Bad(BadInput::row(place(), problem)),
            }
        };
        self.ready = (first..).zip(rows).map(record).collect();
        self.ready.reverse();
    }

    /// Records an error of this row group, which occurred at `row`, and continues with the next row group. Returns true
    /// because `ready` then has a record.
    fn skip_group(&mut self, error: &ParquetError, row: u64) -> bool {
        let part = format!("row group {}, from row {row}", self.group);
        self.ready.push(Record::Bad(bad_file(&self.name, &part, error)));
        (self.open, self.group) = (None, self.group + 1);
        true
    }
}

impl Iterator for Reader {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.ready.is_empty() && !self.fill() {
            return None;
        }
        self.ready.pop()
    }
}

/// The open columns of a row group.
struct Group {
    qid: Column,
    title: Option<Column>,
    question: Column,
    text: Column,
    pm_score: Column,
    selected: Option<Column>,
    /// Number of rows read.
    row: u64,
    /// Number of rows in the group.
    rows: u64,
    /// Number of rows to read at a time.
    batch: u64,
}

impl Group {
    fn open(table: &Table, group: usize, columns: Columns, rows: u64) -> ParquetResult<Self> {
        let column = |index: usize| table.column(group, index);
        Ok(Self {
            qid: column(columns.qid)?,
            title: columns.title.map(column).transpose()?,
            question: column(columns.question)?,
            text: column(columns.text)?,
            pm_score: column(columns.pm_score)?,
            selected: columns.selected.map(column).transpose()?,
            row: 0,
            rows,
            batch: table.batch(group, &columns.all()),
        })
    }

    /// Reads the next rows. A row that lacks a value or is not UTF-8 is returned as its problem.
    fn read_batch(&mut self) -> ParquetResult<Vec<Decoded<UnreadRow>>> {
        let rows = self.batch.min(self.rows - self.row) as usize;
        let qids = self.qid.read_flat(rows)?;
        let mut titles = match &mut self.title {
            Some(column) => column.read_flat(rows)?,
            None => Vec::new(),
        }
        .into_iter();
        let questions = self.question.read_flat(rows)?;
        let (texts, scores) = (self.text.read_lists(rows)?, self.pm_score.read_lists(rows)?);
        let mut selected = match &mut self.selected {
            Some(column) => column.read_lists(rows)?,
            None => Vec::new(),
        }
        .into_iter();
        self.row += rows as u64;
        let rows = qids.into_iter().zip(questions).zip(texts.into_iter().zip(scores));
        Ok(rows
            .map(|((qid, question), (texts, scores))| {
                let (title, flags) = (titles.next().flatten(), selected.next().unwrap_or_default());
                let title = title.map(|title| text(Some(title), "title")).transpose()?;
                let (answers, texts) = answers(texts, &scores, &flags)?;
                let texts = RowTexts {
                    title: title.filter(|title| !title.data().trim_ascii().is_empty()),
                    question: text(question, "question")?,
                    answers: texts,
                };
                let Id(qid) = Id::from_cell(qid.as_ref(), "qid")?;
                Ok(UnreadRow::in_page(qid, answers, texts))
            })
            .collect())
    }
}

/// Returns a text cell if it is not null and is UTF-8, or else the problem.
fn text(value: Option<Cell>, column: &str) -> Decoded<ByteArray> {
    let value = match value {
        Some(Cell::Text(value)) => value,
        Some(_) => return Err(format!("{column} is not text")),
        None => return Err(format!("{column} is null")),
    };
    match std::str::from_utf8(value.data()) {
        Ok(_) => Ok(value),
        Err(e) => Err(format!("{column} is not UTF-8 from byte {} on", e.valid_up_to())),
    }
}

/// Returns the answers of a row, and separately their texts.
fn answers(
    texts: Vec<Option<Cell>>,
    scores: &[Option<Cell>],
    selected: &[Option<Cell>],
) -> Decoded<(Vec<Answer>, Vec<ByteArray>)> {
    let count = texts.len();
    if count != scores.len() {
        return Err("answers.text and answers.pm_score differ in length".into());
    }
    // If the list of flags is null, no answer is accepted.
    if !selected.is_empty() && count != selected.len() {
        return Err("answers.text and answers.selected differ in length".into());
    }
    let each = texts.into_iter().zip(scores).enumerate().map(|(i, (value, score))| {
        let Score(pm_score) = Score::from_cell(score.as_ref(), "answers.pm_score")?;
        let flag = selected.get(i).and_then(Option::as_ref);
        let Flag(selected) = Flag::from_cell(flag, "answers.selected")?;
        let answer = Answer { text: String::new(), pm_score, selected };
        Ok((answer, text(value, "answers.text")?))
    });
    each.collect()
}

#[cfg(test)]
mod tests;
