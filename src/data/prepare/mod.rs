//! The command `prepare`: turns rows of voted answers into a file of preference pairs.
//!
//! A thread reads rows in blocks of a few megabytes. The rows of each block are filtered in parallel (`judge`). Then, in
//! input order, duplicates are removed and the remaining pairs are written. Memory holds a few blocks, the fingerprints of
//! the pairs kept (`duplicates`), and the ids listed in the stats, but never a whole file.

mod duplicates;
mod exclude;
mod judge;
mod output;
mod remembered;
mod rules;
mod stats;
mod words;
mod writer;

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rayon::prelude::*;

pub use duplicates::{Fingerprint, Repeats, Seen};
pub use exclude::Excluded;
pub use output::Form;
pub use rules::{Preset, Rules, TextForm, TitleRule};
pub use stats::{
    InputStats, Lengths, MAX_LISTED, PairLengths, PostCounts, PrepareSummary, Reason, Rejected,
    Stats,
};

use self::judge::{Candidate, Judge};
use self::output::{PairsFile, Paths};
use self::stats::StatsFile;
use self::writer::Writer;
use super::stack_exchange::{
    self as source, BadInput, Format, Meter, PostKind, Record, Records, UnreadRow, jsonl,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::{WholeFile, commit_set};
use crate::progress::{Progress, ProgressMode};

/// Maximum number of rows in a block.
const BLOCK_ROWS: usize = 1024;
/// Number of bytes of text at which a block is complete.
const BLOCK_BYTES: usize = 4 << 20;
/// Maximum number of blocks read ahead.
const BLOCKS_AHEAD: usize = 2;
/// How often the progress is redrawn and Ctrl-C checked while no block arrives.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A source of rows.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, in this format.
    File(PathBuf, Format),
    /// JSON Lines in memory, with a name for messages.
    Memory(String, &'static [u8]),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::File(path, _) => path.display().to_string(),
            Self::Memory(name, _) => name.clone(),
        }
    }

    /// Returns the size of the source in bytes, or 0 if it is unknown.
    fn bytes(&self) -> u64 {
        match self {
            Self::File(path, _) => std::fs::metadata(path).map_or(0, |m| m.len()),
            Self::Memory(_, bytes) => bytes.len() as u64,
        }
    }

    fn open(&self, temporary: &Path, meter: &Meter) -> Result<Records> {
        match self {
            Self::File(path, format) => source::open(path, *format, temporary, meter),
            Self::Memory(name, bytes) => Ok(jsonl::lines(Cursor::new(*bytes), name, meter.clone())),
        }
    }
}

/// Options of [`prepare`].
#[derive(Clone, Debug, Default)]
pub struct PrepareOptions {
    /// Sources of the rows, read in this order.
    pub sources: Vec<Source>,
    /// File to which the pairs are written.
    pub output: PathBuf,
    /// File to which the held-out pairs are written. `None` means `<stem>.held-out.<extension>` beside the output. It is
    /// written only if the rules hold out any pairs.
    pub held_out: Option<PathBuf>,
    /// Rules for selecting pairs.
    pub rules: Rules,
    /// Files of questions to exclude (see [`Excluded::load`]).
    pub exclude_questions: Vec<PathBuf>,
    /// File of the rules, which no output may replace.
    pub config: Option<PathBuf>,
    /// Format of the output files.
    pub form: Form,
    /// Whether unreadable rows are counted and skipped instead of being an error.
    pub skip_bad_rows: bool,
    /// Whether existing outputs are replaced.
    pub overwrite: bool,
}

/// Writes the pairs of all rows, the held-out pairs, and the stats. The files appear under their final names only after all
/// of them are complete.
///
/// # Errors
/// An output exists and may not be replaced, an input is unreadable (unless skipped), the disk is full, or the user pressed
/// Ctrl-C.
pub fn prepare(options: &PrepareOptions, mode: ProgressMode) -> Result<PrepareSummary> {
    let start = Instant::now();
    options.rules.validate(|key| key.to_string())?;
    let paths = Paths::new(options)?;
    if let Some(stale) = paths.stale_held_out()
        && mode != ProgressMode::Quiet
    {
        say!(
            "warning: {}: is left from an earlier run, and its pairs may be among the new ones, because these rules hold \
             nothing out",
            stale.display()
        );
    }
    let excluded = Excluded::load(&options.exclude_questions, options.rules.exclude_overlap)?;
    let excluded_questions = excluded.len();
    let judge = Judge::new(&options.rules, excluded, options.form)?;
    let mut writer = Writer::create(&paths, options)?;
    process_rows(options, &paths, &judge, &mut writer, mode)?;
    let stats = writer.stats;
    let file = StatsFile {
        output: &paths.output,
        held_out_output: paths.held_out.as_deref(),
        stats: &stats,
        ids_listed_at_most: MAX_LISTED,
        settings: &options.rules,
        exclude_questions: &options.exclude_questions,
        excluded_questions,
    };
    let json = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::file(&paths.stats, e, "report this as a bug"))?;
    let mut stats_file = WholeFile::create(&paths.stats)?;
    let written = stats_file.write_all(&json);
    written.map_err(|e| Error::io(&paths.stats, "write", e))?;
    // The pairs are renamed last, so that an interrupted rename never leaves new pairs beside old held-out ones.
    let held_out = writer.held_out.map(PairsFile::into_file).transpose()?;
    let files = held_out.into_iter().chain([stats_file, writer.kept.into_file()?]);
    commit_set(files.collect())?;
    let Paths { output, held_out, stats: stats_file } = paths;
    Ok(PrepareSummary { output, held_out, stats_file, stats, elapsed: start.elapsed() })
}

/// Consecutive records of one source.
struct Block {
    /// Index of the source.
    source: usize,
    records: Vec<Record>,
}

/// A readable row and the result of filtering it.
struct Judged {
    id: String,
    has_title: bool,
    outcome: std::result::Result<Candidate, Reason>,
}

/// A filtered row, or the error of an unreadable one.
type Verdict = std::result::Result<Judged, BadInput>;

/// Reads all rows on a separate thread, filters them in parallel, and writes their pairs in input order. Records the
/// counts of posts in the stats of `writer`.
fn process_rows(
    options: &PrepareOptions,
    paths: &Paths,
    judge: &Judge,
    writer: &mut Writer,
    mode: ProgressMode,
) -> Result<()> {
    let total: u64 = options.sources.iter().map(Source::bytes).sum();
    let progress = Progress::new("preparing", Some(total / 1000), "kB", mode);
    let meter = Meter::default();
    let (sender, receiver) = sync_channel(BLOCKS_AHEAD);
    let outcome = std::thread::scope(|scope| {
        let reader_meter = meter.clone();
        let thread =
            scope.spawn(move || read(&options.sources, paths.folder(), &reader_meter, &sender));
        let outcome = judge_and_write(&receiver, judge, writer, &meter, &progress);
        meter.stop();
        drop(receiver);
        // A reader that panicked looks like one that is done, so its result is checked: part of the input must never pass
        // for all of it.
        let panicked = |_| {
            Error::run("the thread that reads the input panicked", "please report this as a bug")
        };
        thread.join().map_err(panicked).and(outcome)
    });
    outcome?;
    progress.finish();
    let posts = PostCounts {
        questions: meter.posts(PostKind::Question),
        answers: meter.posts(PostKind::Answer),
        orphan_answers: meter.posts(PostKind::OrphanAnswer),
        other: meter.posts(PostKind::Other),
        repeated: meter.posts(PostKind::Repeated),
    };
    writer.stats.posts = (posts != PostCounts::default()).then_some(posts);
    Ok(())
}

/// Reads all sources block by block, and stops early if the receiver is gone or the meter asks for it.
fn read(sources: &[Source], temporary: &Path, meter: &Meter, sender: &SyncSender<Block>) {
    for (source, from) in sources.iter().enumerate() {
        let records: Records = match from.open(temporary, meter) {
            Ok(records) => records,
            Err(error) => Box::new(std::iter::once(Record::Failed(error))),
        };
        let (mut block, mut bytes) = (Vec::new(), 0);
        for record in records {
            bytes += record.len();
            block.push(record);
            if block.len() >= BLOCK_ROWS || bytes >= BLOCK_BYTES {
                bytes = 0;
                if sender.send(Block { source, records: std::mem::take(&mut block) }).is_err() {
                    return;
                }
            }
        }
        if sender.send(Block { source, records: block }).is_err() || meter.must_stop() {
            return;
        }
    }
}

/// Receives blocks, filters their rows in parallel and writes the pairs in input order.
fn judge_and_write(
    receiver: &Receiver<Block>,
    judge: &Judge,
    writer: &mut Writer,
    meter: &Meter,
    progress: &Progress,
) -> Result<()> {
    let mut shown = 0;
    loop {
        if interrupt::requested() {
            return Err(Error::Interrupted { note: "nothing was written".into() });
        }
        let block = match receiver.recv_timeout(POLL_INTERVAL) {
            Ok(block) => Some(block),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Some(Block { source, records }) = block {
            let judged = records.into_par_iter().map(|record| judge_record(judge, record));
            for verdict in judged.collect::<Vec<_>>() {
                writer.write(source, verdict?)?;
            }
        }
        let now = meter.bytes() / 1000;
        progress.inc(now - shown);
        shown = now;
        progress
            .set_message(format!("{} rows, {} pairs", writer.stats.rows_read, writer.stats.kept));
    }
    // The reader also ends its stream after Ctrl-C, which must not look like the end of the input.
    if interrupt::requested() {
        return Err(Error::Interrupted { note: "nothing was written".into() });
    }
    Ok(())
}

/// Parses the record if necessary and filters its row.
fn judge_record(judge: &Judge, record: Record) -> Result<Verdict> {
    let row = match record {
        Record::Unread(row) => return judge_unread(judge, row).map(Ok),
        Record::Line(line) => jsonl::parse_line(&line),
        Record::Bad(bad) => Err(bad),
        Record::Failed(error) => return Err(error),
    };
    Ok(row.map(|row| Judged {
        outcome: judge.judge(&row),
        has_title: !row.title.trim().is_empty(),
        id: row.qid,
    }))
}

/// Filters a row. Its texts are fetched only if its scores give a pair, and only those of the pair.
fn judge_unread(judge: &Judge, mut unread: UnreadRow) -> Result<Judged> {
    let outcome = match judge.pick(&unread.row().answers) {
        Ok((best, worst)) => {
            unread.fetch(&[best, worst])?;
            judge.pair(unread.row(), best, worst)
        }
        Err(reason) => Err(reason),
    };
    Ok(Judged { outcome, has_title: unread.has_title(), id: unread.into_row().qid })
}
