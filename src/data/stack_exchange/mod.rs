//! Rows of Stack Exchange questions with their answers, from the three forms they come in.
//!
//! - Parquet files in the schema of the data set `HuggingFaceH4/stack-exchange-preferences` ([`parquet_rows`]);
//! - the official data dump's `Posts.xml` ([`posts_xml`]);
//! - JSON Lines, one object of that parquet schema a line ([`jsonl`]).
//!
//! Each reader streams and hands out [`Record`]s; what cannot be read is a record too ([`Record::Bad`]), so that
//! whoever reads decides whether to stop there or to count it and go on.

pub mod input;
pub mod jsonl;
mod parquet_leaf;
pub mod parquet_rows;
pub mod posts_xml;
mod spill;
mod unread;
mod xml_tags;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use unread::UnreadRow;

use crate::error::{Error, Result};

/// An answer, as HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The answer's HTML.
    pub text: String,
    /// The vote score of [`pm_score`](crate::data::preference::pm_score).
    pub pm_score: i64,
    /// Whether the asker accepted it.
    pub selected: bool,
}

/// A question with its answers, as HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The question's id.
    pub qid: String,
    /// The question's HTML.
    pub question: String,
    /// Its answers, in the source's order.
    pub answers: Vec<Answer>,
}

/// Input that could not be read: a row, or a file from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput {
    /// File and line, byte, or row group and row.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
    /// What to do about it.
    pub remedy: &'static str,
    /// Whether the rest of the file is lost with it.
    pub rest_of_file: bool,
}

impl BadInput {
    /// A row that cannot be read.
    pub(crate) fn row(place: String, problem: impl ToString) -> Self {
        let remedy = "mend the row, or pass --skip-bad-rows to count and skip such rows";
        Self { place, problem: problem.to_string(), remedy, rest_of_file: false }
    }

    /// A file that cannot be read any further.
    pub(crate) fn file(place: String, problem: impl ToString, remedy: &'static str) -> Self {
        Self { place, problem: problem.to_string(), remedy, rest_of_file: true }
    }
}

impl From<BadInput> for Error {
    fn from(bad: BadInput) -> Self {
        Self::invalid(bad.place, bad.problem, bad.remedy)
    }
}

/// What a reader hands out.
#[derive(Debug)]
pub enum Record {
    /// A row whose texts are still to be fetched (by [`UnreadRow::fetch`], which the caller may do in parallel).
    Unread(UnreadRow),
    /// A JSON line still to be parsed (by [`jsonl::parse_line`], which the caller may do in parallel).
    Line(jsonl::Line),
    /// Something unreadable.
    Bad(BadInput),
    /// The reader itself cannot go on (no room for its temporary files, interrupted).
    Failed(Error),
}

impl Record {
    /// About how many bytes of text it holds.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Unread(row) => row.len(),
            Self::Line(line) => line.bytes.len(),
            Self::Bad(_) | Self::Failed(_) => 0,
        }
    }
}

/// A stream of records, shared counters at its side.
pub type Records = Box<dyn Iterator<Item = Record> + Send>;

/// What reader and caller tell each other while records flow.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    bytes: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    posts: Arc<[AtomicU64; 4]>,
}

impl Meter {
    /// Bytes of input consumed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn consumed(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells the reader that nobody listens any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether to stop: nobody listens, or the user pressed Ctrl-C.
    pub(crate) fn must_stop(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || crate::interrupt::requested()
    }

    pub(crate) fn count_post(&self, kind: PostKind) {
        self.posts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Posts of `kind` seen in `Posts.xml` files.
    pub fn posts(&self, kind: PostKind) -> u64 {
        self.posts[kind as usize].load(Ordering::Relaxed)
    }
}

/// What a post of a `Posts.xml` is to us.
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
}

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// By the file's first bytes.
    Auto,
    /// Parquet, in the schema of HuggingFaceH4/stack-exchange-preferences.
    H4,
    /// The official data dump's Posts.xml.
    PostsXml,
    /// JSON Lines, objects of the H4 schema.
    Jsonl,
}

/// Opens `path` for reading; `temporary` is a folder for the reader's scratch files.
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
