//! Rows from parquet files in the schema of `HuggingFaceH4/stack-exchange-preferences`: columns `qid` (integer),
//! `question` (HTML), `answers` (list of {`text` HTML, `pm_score` integer, `selected` boolean, …}).
//!
//! Read column by column, a few hundred rows at a time: memory holds a page of each column read, never a file.

use std::fs::File;
use std::path::Path;

use parquet::basic::{Compression, Type as PhysicalType};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::parquet_leaf::{Integers, Leaf};
use super::{Answer, BadInput, Meter, Record, Records, UnreadRow};
use crate::error::{Error, Result};

/// Rows decoded at a time.
const BATCH: usize = 256;
const WHOLE_FILE: &str =
    "get the file again, or pass --skip-bad-rows to go on with what can be read";

/// Opens the parquet file at `path`. One that cannot be read, by its footer or its schema, is a single
/// [`Record::Bad`].
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path, meter: Meter) -> Result<Records> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let length = file.metadata().map_err(|e| Error::io(path, "open", e))?.len();
    let name = path.display().to_string();
    let opened = SerializedFileReader::new(file).map_err(|e| bad_file(&name, "footer", &e));
    let rows = opened.and_then(|reader| {
        let columns = Columns::find(&reader, &name)?;
        Ok(Rows::new(reader, columns, name, length, meter))
    });
    Ok(match rows {
        Ok(rows) => Box::new(rows),
        Err(bad) => Box::new(std::iter::once(Record::Bad(bad))),
    })
}

fn bad_file(name: &str, part: &str, error: &ParquetError) -> BadInput {
    let text = error.to_string();
    let text = text.strip_prefix("Parquet error: ").unwrap_or(&text);
    BadInput::file(format!("{name}: {part}"), text, WHOLE_FILE)
}

/// Indices of the leaf columns read.
#[derive(Clone, Copy, Debug)]
struct Columns {
    qid: usize,
    question: usize,
    text: usize,
    pm_score: usize,
    selected: Option<usize>,
}

impl Columns {
    fn find(
        reader: &SerializedFileReader<File>,
        name: &str,
    ) -> std::result::Result<Self, BadInput> {
        let schema = reader.metadata().file_metadata().schema_descr();
        let find = |root: &str, leaf: &str, kinds: &[PhysicalType]| {
            let found = schema.columns().iter().position(|column| {
                let path = column.path().parts();
                path.first().is_some_and(|p| p == root) && path.last().is_some_and(|p| p == leaf)
            });
            let column = if root == leaf { leaf.to_string() } else { format!("{root}.{leaf}") };
            let expected = "a file of HuggingFaceH4/stack-exchange-preferences has the columns qid, question, and \
                 answers with text and pm_score";
            let Some(index) = found else {
                let problem = format!("there is no column {column}");
                return Err(BadInput::file(name.to_string(), problem, expected));
            };
            let kind = schema.column(index).physical_type();
            if !kinds.contains(&kind) {
                let problem = format!("column {column} is of type {kind}");
                return Err(BadInput::file(name.to_string(), problem, expected));
            }
            Ok(index)
        };
        let (text, integer) =
            (PhysicalType::BYTE_ARRAY, [PhysicalType::INT64, PhysicalType::INT32]);
        let columns = Self {
            qid: find("qid", "qid", &[integer[0], integer[1], text])?,
            question: find("question", "question", &[text])?,
            text: find("answers", "text", &[text])?,
            pm_score: find("answers", "pm_score", &integer)?,
            selected: find("answers", "selected", &[PhysicalType::BOOLEAN]).ok(),
        };
        columns.check_codecs(reader, name)?;
        Ok(columns)
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        [self.qid, self.question, self.text, self.pm_score].into_iter().chain(self.selected)
    }

    /// Refuses codecs this build cannot decode, before any row is read.
    fn check_codecs(
        &self,
        reader: &SerializedFileReader<File>,
        name: &str,
    ) -> std::result::Result<(), BadInput> {
        let groups = reader.metadata().row_groups().iter();
        let codecs = groups.flat_map(|group| self.all().map(|i| group.column(i).compression()));
        for codec in codecs {
            if matches!(codec, Compression::ZSTD(_) | Compression::LZO) {
                let codec = codec.to_string();
                let codec = codec.split('(').next().unwrap_or(&codec);
                let problem = format!("is compressed with {codec}, which is not built in");
                let remedy = "write it again with snappy, gzip, brotli, lz4 or no compression (pyarrow: \
                    pq.write_table(pq.read_table(path), path, compression=\"snappy\"))";
                return Err(BadInput::file(name.to_string(), problem, remedy));
            }
        }
        Ok(())
    }
}

/// The rows of one file.
struct Rows {
    reader: SerializedFileReader<File>,
    columns: Columns,
    name: String,
    meter: Meter,
    /// Row group being read, and its open columns.
    group: usize,
    open: Option<Group>,
    /// Rows decoded but not handed out, last first.
    ready: Vec<Record>,
    /// Bytes of the file not yet reported as consumed, and per row of the open group.
    unreported: u64,
    bytes_per_row: u64,
}

impl Rows {
    fn new(
        reader: SerializedFileReader<File>,
        columns: Columns,
        name: String,
        length: u64,
        meter: Meter,
    ) -> Self {
        let (group, open, ready) = (0, None, Vec::new());
        Self {
            reader,
            columns,
            name,
            meter,
            group,
            open,
            ready,
            unreported: length,
            bytes_per_row: 0,
        }
    }

    /// Decodes the next batch into `ready`; false at the end of the file.
    fn fill(&mut self) -> bool {
        while !self.meter.must_stop() {
            if self.open.is_none() {
                if self.group >= self.reader.num_row_groups() {
                    self.meter.consumed(std::mem::take(&mut self.unreported));
                    return false;
                }
                let metadata = self.reader.metadata().row_group(self.group);
                let rows = metadata.num_rows().max(0) as u64;
                let size: i64 = metadata.columns().iter().map(|c| c.compressed_size()).sum();
                self.bytes_per_row = size.max(0) as u64 / rows.max(1);
                match Group::open(&self.reader, self.group, self.columns, rows) {
                    Ok(group) => self.open = Some(group),
                    Err(e) => return self.lose_group(&e, 0),
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
                    let bytes = (self.bytes_per_row * rows.len() as u64).min(self.unreported);
                    self.unreported -= bytes;
                    self.meter.consumed(bytes);
                    let (name, group) = (&self.name, self.group);
                    let number =
                        |(i, row): (usize, std::result::Result<UnreadRow, String>)| match row {
                            Ok(row) => Record::Unread(row),
                            Err(problem) => {
                                let row = first + i as u64;
                                let place = format!("{name}: row group {group}, row {row}");
                                Record::Bad(BadInput::row(place, problem))
                            }
                        };
                    self.ready = rows.into_iter().enumerate().map(number).rev().collect();
                    return true;
                }
                Err(e) => return self.lose_group(&e, first),
            }
        }
        false
    }

    /// Goes on with the next row group after an error in this one.
    fn lose_group(&mut self, error: &ParquetError, row: u64) -> bool {
        let part = format!("row group {}, from row {row}", self.group);
        self.ready.push(Record::Bad(bad_file(&self.name, &part, error)));
        (self.open, self.group) = (None, self.group + 1);
        true
    }
}

impl Iterator for Rows {
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
    qid: Qid,
    question: Leaf<ByteArrayType>,
    text: Leaf<ByteArrayType>,
    pm_score: Integers,
    selected: Option<Leaf<BoolType>>,
    /// Rows read, of `rows`.
    row: u64,
    rows: u64,
}

enum Qid {
    Number(Integers),
    Text(Leaf<ByteArrayType>),
}

impl Group {
    fn open(
        file: &SerializedFileReader<File>,
        index: usize,
        columns: Columns,
        rows: u64,
    ) -> ParquetResult<Self> {
        let group = file.get_row_group(index)?;
        let schema = file.metadata().file_metadata().schema_descr();
        let reader = |column: usize| group.get_column_reader(column);
        let column = |column: usize| schema.column(column);
        let (qid_reader, qid_column) = (reader(columns.qid)?, column(columns.qid));
        let qid = match qid_column.physical_type() {
            PhysicalType::BYTE_ARRAY => Qid::Text(Leaf::new(qid_reader, &qid_column)?),
            _ => Qid::Number(Integers::new(qid_reader, &qid_column)?),
        };
        let selected = columns.selected.map(|i| Leaf::new(reader(i)?, &column(i))).transpose()?;
        Ok(Self {
            qid,
            question: Leaf::new(reader(columns.question)?, &column(columns.question))?,
            text: Leaf::new(reader(columns.text)?, &column(columns.text))?,
            pm_score: Integers::new(reader(columns.pm_score)?, &column(columns.pm_score))?,
            selected,
            row: 0,
            rows,
        })
    }

    /// The next rows; for one that lacks a value or is not UTF-8, what is wrong with it.
    fn read_batch(&mut self) -> ParquetResult<Vec<std::result::Result<UnreadRow, String>>> {
        let rows = BATCH.min((self.rows - self.row) as usize);
        let qids: Vec<std::result::Result<String, String>> = match &mut self.qid {
            Qid::Text(leaf) => leaf
                .read(rows)?
                .into_iter()
                .map(|v| {
                    one_text(v, "qid").map(|qid| String::from_utf8_lossy(qid.data()).into_owned())
                })
                .collect(),
            Qid::Number(numbers) => {
                let number = |v: Vec<Option<i64>>| v.into_iter().next().flatten();
                let text =
                    |v| number(v).map(|n| n.to_string()).ok_or_else(|| "qid is null".to_string());
                numbers.read(rows)?.into_iter().map(text).collect()
            }
        };
        let questions = self.question.read(rows)?;
        let (texts, scores) = (self.text.read(rows)?, self.pm_score.read(rows)?);
        let mut selected = match &mut self.selected {
            Some(leaf) => leaf.read(rows)?,
            None => Vec::new(),
        }
        .into_iter();
        self.row += rows as u64;
        let rows = qids.into_iter().zip(questions).zip(texts.into_iter().zip(scores));
        Ok(rows
            .map(|((qid, question), (texts, scores))| {
                let flags = selected.next().unwrap_or_default();
                let question = one_text(question, "question")?;
                let qid = qid?;
                let answers = answers(texts, scores, &flags)?;
                Ok(UnreadRow::in_page(qid, question, answers))
            })
            .collect())
    }
}

fn one_text(
    values: Vec<Option<ByteArray>>,
    column: &str,
) -> std::result::Result<ByteArray, String> {
    text(values.into_iter().next().flatten(), column)
}

/// The value if it is there and UTF-8.
fn text(value: Option<ByteArray>, column: &str) -> std::result::Result<ByteArray, String> {
    let value = value.ok_or_else(|| format!("{column} is null"))?;
    match std::str::from_utf8(value.data()) {
        Ok(_) => Ok(value),
        Err(e) => Err(format!("{column} is not UTF-8 from its byte {} on", e.valid_up_to())),
    }
}

fn answers(
    texts: Vec<Option<ByteArray>>,
    scores: Vec<Option<i64>>,
    selected: &[Option<bool>],
) -> std::result::Result<Vec<(Answer, ByteArray)>, String> {
    if texts.len() != scores.len() {
        return Err("answers.text and answers.pm_score differ in number".into());
    }
    let each = texts.into_iter().zip(scores).enumerate().map(|(i, (value, score))| {
        let pm_score = score.ok_or("answers.pm_score is null")?;
        let selected = selected.get(i).copied().flatten().unwrap_or(false);
        let answer = Answer { text: String::new(), pm_score, selected };
        Ok((answer, text(value, "answers.text")?))
    });
    each.collect()
}
