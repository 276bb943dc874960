//! Reads Stack Exchange questions with their answers from three file formats:
//!
//! - Parquet files in the schema of the data set `HuggingFaceH4/stack-exchange-preferences` ([`parquet_rows`]);
//! - the official data dump's `Posts.xml` ([`posts_xml`]);
//! - JSON Lines, one object of that parquet schema per line ([`jsonl`]).
//!
//! Each reader is a stream of [`Record`]s. Unreadable input is a record too ([`Record::Bad`]), so that the caller decides
//! whether to stop there or to count it and continue.

pub mod input;
pub mod jsonl;
pub mod parquet_rows;
pub mod posts_xml;
mod spill;
mod unread;
mod values;
mod xml_tags;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use unread::UnreadRow;

use crate::error::{Error, Result};

/// An answer to a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The answer's HTML.
    pub text: String,
    /// The vote score of [`pm_score`](crate::data::preference::pm_score).
    pub pm_score: i64,
    /// Whether the asker accepted it.
    pub selected: bool,
}

/// A question with its answers. The texts are HTML, except the title.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The question's id.
    pub qid: String,
    /// The question's title as plain text, or empty if it has none.
    pub title: String,
    /// The question's HTML.
    pub question: String,
    /// The answers, in the order of the source.
    pub answers: Vec<Answer>,
}

/// An error in the input: an unreadable row, or a file that is unreadable from some point on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput {
    /// File, and the line and byte or the row group and row.
    pub place: String,
    /// Description of the problem.
    pub problem: String,
    /// How the user can solve it.
    pub remedy: &'static str,
    /// Whether the rest of the file is unreadable too.
    pub rest_of_file: bool,
}

impl BadInput {
    /// Creates the error for an unreadable row.
    pub(crate) fn row(place: String, problem: impl ToString) -> Self {
        let remedy = "correct the row, or pass --skip-bad-rows to count and skip such rows";
        Self { place, problem: problem.to_string(), remedy, rest_of_file: false }
    }

    /// Replaces the remedy.
    pub(crate) fn with_remedy(self, remedy: &'static str) -> Self {
        Self { remedy, ..self }
    }

    /// Creates the error for a file that cannot be read any further.
    pub(crate) fn file(place: String, problem: impl ToString, remedy: &'static str) -> Self {
        Self { place, problem: problem.to_string(), remedy, rest_of_file: true }
    }
}

impl From<BadInput> for Error {
    fn from(bad: BadInput) -> Self {
        Self::invalid(bad.place, bad.problem, bad.remedy)
    }
}

/// An item of a reader's stream.
#[derive(Debug)]
pub enum Record {
    /// A row whose texts are still to be fetched with [`UnreadRow::fetch`], which the caller may do in parallel.
    Unread(UnreadRow),
    /// A JSON line still to be parsed with [`jsonl::parse_line`], which the caller may do in parallel.
    Line(jsonl::Line),
    /// An unreadable row or file.
    Bad(BadInput),
    /// An error of the reader itself, which ends the stream (no room for temporary files, interruption).
    Failed(Error),
}

impl Record {
    /// Returns the approximate number of bytes of text in the record.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Unread(row) => row.len(),
            Self::Line(line) => line.bytes.len(),
            Self::Bad(_) | Self::Failed(_) => 0,
        }
    }
}

/// A stream of records.
pub type Records = Box<dyn Iterator<Item = Record> + Send>;

/// Counters and a stop flag that a reader shares with its caller.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    bytes: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    posts: Arc<[AtomicU64; 5]>,
}

impl Meter {
    /// Returns the number of input bytes consumed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Adds to the number of input bytes consumed.
    pub(crate) fn consumed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the reader to stop because the caller no longer reads its records.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns whether the reader should stop, at the caller's request or because the user pressed Ctrl-C.
    pub(crate) fn must_stop(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || crate::interrupt::requested()
    }

    /// Counts one post of `kind`.
    pub(crate) fn count_post(&self, kind: PostKind) {
        self.posts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of posts of `kind` in the `Posts.xml` files read so far.
    pub fn posts(&self, kind: PostKind) -> u64 {
        self.posts[kind as usize].load(Ordering::Relaxed)
    }
}

/// Classification of the posts in a `Posts.xml`, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostKind {
    /// A question.
    Question,
    /// An answer.
    Answer,
    /// An answer whose question is not in the file.
    OrphanAnswer,
    /// A tag wiki, a moderator nomination or the like.
    Other,
    /// A post whose id occurred before in the same document. It is skipped.
    Repeated,
}

/// File format of the input of `prepare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Detect the format from the file's first bytes.
    Auto,
    /// Parquet, in the schema of HuggingFaceH4/stack-exchange-preferences.
    H4,
    /// The official data dump's Posts.xml.
    PostsXml,
    /// JSON Lines, objects of the H4 schema.
    Jsonl,
}

/// Opens the file at `path` for reading. The reader writes its temporary files into the folder `temporary`.
///
/// # Errors
/// The file cannot be opened or its format not detected, or a temporary file cannot be created.
pub fn open(path: &Path, format: Format, temporary: &Path, meter: &Meter) -> Result<Records> {
    let format = match format {
        Format::Auto => input::sniff(path)?,
        known => known,
    };
    match format {
        Format::H4 => parquet_rows::open(path, meter.clone()),
        Format::PostsXml => posts_xml::open(path, temporary, meter.clone()),
        Format::Jsonl | Format::Auto => jsonl::open(path, meter.clone()),
    }
}
