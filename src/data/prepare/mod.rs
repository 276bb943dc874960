//! `prepare`: from rows of voted answers to a file of preference pairs.
//!
//! A thread reads rows in blocks of a few megabytes; each block is judged row by row in parallel (`judge`); then,
//! in the rows' order, duplicates are refused, and what is left is written. Memory holds a handful of blocks, what is
//! remembered of each pair kept (`duplicates`), and the ids listed in the stats; never a file.

mod duplicates;
mod exclude;
mod judge;
mod output;
mod remembered;
mod rules;
mod stats;
mod words;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rayon::prelude::*;

pub use duplicates::{Fingerprint, Repeats, Seen};
pub use exclude::Excluded;
pub use output::Form;
pub use rules::{Preset, Rules, TextForm};
pub use stats::{
    InputStats, Lengths, Lost, MOST_LISTED, PairLengths, PostCounts, PrepareSummary, Reason, Stats,
};

use self::judge::{Candidate, Judge};
use self::output::{PairsFile, Paths};
use self::stats::StatsFile;
use super::stack_exchange::{
    self as source, BadInput, Format, Meter, PostKind, Record, Records, UnreadRow, jsonl,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::write_whole;
use crate::progress::{Progress, ProgressMode};

/// Rows and bytes of text in a block at most.
const BLOCK_ROWS: usize = 1024;
const BLOCK_BYTES: usize = 4 << 20;
/// Blocks read ahead.
const AHEAD: usize = 2;
/// How often the progress is redrawn and Ctrl-C looked for while a reader is busy.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, in this format.
    File(PathBuf, Format),
    /// JSON Lines in memory, under a name for messages.
    Memory(String, &'static [u8]),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::File(path, _) => path.display().to_string(),
            Self::Memory(name, _) => name.clone(),
        }
    }

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

/// A job for [`prepare`].
#[derive(Clone, Debug, Default)]
pub struct PrepareOptions {
    /// The rows, read in this order.
    pub sources: Vec<Source>,
    /// Where the pairs go.
    pub output: PathBuf,
    /// Where the held-out pairs go; `None`: beside the output, as `<stem>.held-out.<extension>`. Written only if
    /// the rules hold any out.
    pub held_out: Option<PathBuf>,
    /// The rules.
    pub rules: Rules,
    /// Files of questions to keep out (see [`Excluded::load`]).
    pub exclude_questions: Vec<PathBuf>,
    /// Form of the outputs.
    pub form: Form,
    /// Whether unreadable rows are counted and skipped rather than an error.
    pub skip_bad_rows: bool,
    /// Whether existing outputs are replaced.
    pub overwrite: bool,
}

/// Writes the pairs of all rows, the held-out ones, and the stats. Nothing appears under its final name before
/// everything is whole.
///
/// # Errors
/// An output exists and may not be replaced; an input is unreadable (unless skipped); the disk is full; Ctrl-C.
pub fn prepare(options: &PrepareOptions, mode: ProgressMode) -> Result<PrepareSummary> {
    let start = Instant::now();
    options.rules.validate(|key| key.to_string())?;
    let paths = Paths::new(options)?;
    let excluded = Excluded::load(&options.exclude_questions, options.rules.exclude_overlap)?;
    let excluded_questions = excluded.len();
    let judge = Judge::new(&options.rules, excluded, options.form)?;
    let mut writer = Writer::create(&paths, options)?;
    read_judge_write(options, &paths, &judge, &mut writer, mode)?;
    let stats = writer.stats;
    let file = StatsFile {
        output: &paths.output,
        held_out_output: paths.held_out.as_deref(),
        stats: &stats,
        ids_listed_at_most: MOST_LISTED,
        settings: &options.rules,
        exclude_questions: &options.exclude_questions,
        excluded_questions,
    };
    let json = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::file(&paths.stats, e, "report this as a bug"))?;
    // The pairs last: where they are, everything is.
    if let Some(held_out) = writer.held_out {
        held_out.commit()?;
    }
    write_whole(&paths.stats, &json)?;
    writer.kept.commit()?;
    let Paths { output, held_out, stats: stats_file } = paths;
    Ok(PrepareSummary { output, held_out, stats_file, stats, elapsed: start.elapsed() })
}

/// Records of one source.
struct Block {
    source: usize,
    records: Vec<Record>,
}

/// A row's id and verdict; or why it could not be read.
type Judged = (String, std::result::Result<Candidate, Reason>);
type Verdict = std::result::Result<Judged, BadInput>;

fn read_judge_write(
    options: &PrepareOptions,
    paths: &Paths,
    judge: &Judge,
    writer: &mut Writer,
    mode: ProgressMode,
) -> Result<()> {
    let total: u64 = options.sources.iter().map(Source::bytes).sum();
    let progress = Progress::new("preparing", Some(total / 1000), "kB", mode);
    let meter = Meter::default();
    let (sender, receiver) = sync_channel(AHEAD);
    let outcome = std::thread::scope(|scope| {
        let reader = meter.clone();
        let thread = scope.spawn(move || read(&options.sources, paths.folder(), &reader, &sender));
        let outcome = judge_and_write(&receiver, judge, writer, &meter, &progress);
        meter.stop();
        drop(receiver);
        // A reader that ended early looks like one that is done: never take half the input for all of it.
        let panicked =
            |_| Error::run("the reader of the input broke down", "please report this as a bug");
        thread.join().map_err(panicked).and(outcome)
    });
    outcome?;
    progress.finish();
    let posts = PostCounts {
        questions: meter.posts(PostKind::Question),
        answers: meter.posts(PostKind::Answer),
        orphan_answers: meter.posts(PostKind::OrphanAnswer),
        other: meter.posts(PostKind::Other),
    };
    writer.stats.posts = (posts != PostCounts::default()).then_some(posts);
    Ok(())
}

/// Reads all sources, block by block, until done or nobody listens.
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
        let block = match receiver.recv_timeout(PATIENCE) {
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
    // The reader also ends its stream when it sees Ctrl-C.
    if interrupt::requested() {
        return Err(Error::Interrupted { note: "nothing was written".into() });
    }
    Ok(())
}

fn judge_record(judge: &Judge, record: Record) -> Result<Verdict> {
    let row = match record {
        Record::Unread(row) => return judge_unread(judge, row).map(Ok),
        Record::Line(line) => jsonl::parse_line(&line),
        Record::Bad(bad) => Err(bad),
        Record::Failed(error) => return Err(error),
    };
    Ok(row.map(|row| {
        let verdict = judge.judge(&row);
        (row.qid, verdict)
    }))
}

/// Judges a row, fetching only the texts its pair is made of, if it has one.
fn judge_unread(judge: &Judge, mut unread: UnreadRow) -> Result<Judged> {
    let verdict = match judge.pick(&unread.row().answers) {
        Ok((best, worst)) => {
            unread.fetch(&[best, worst])?;
            judge.pair(unread.row(), best, worst)
        }
        Err(reason) => Err(reason),
    };
    Ok((unread.into_row().qid, verdict))
}

/// The outputs and what is remembered while they are written.
struct Writer {
    kept: PairsFile,
    held_out: Option<PairsFile>,
    seen: Seen,
    rules: Rules,
    skip_bad_rows: bool,
    stats: Stats,
}

impl Writer {
    fn create(paths: &Paths, options: &PrepareOptions) -> Result<Self> {
        let held_out = paths.held_out.as_ref();
        let held_out = held_out.map(|path| PairsFile::create(path, options.form)).transpose()?;
        let inputs =
            options.sources.iter().map(|source| InputStats { path: source.name(), rows: 0 });
        Ok(Self {
            kept: PairsFile::create(&paths.output, options.form)?,
            held_out,
            seen: Seen::new(options.rules.near_duplicate_threshold, paths.folder()),
            rules: options.rules.clone(),
            skip_bad_rows: options.skip_bad_rows,
            stats: Stats { inputs: inputs.collect(), ..Stats::default() },
        })
    }

    /// Counts a row and, if it is a pair, writes it.
    fn write(&mut self, source: usize, verdict: Verdict) -> Result<()> {
        self.stats.rows_read += 1;
        if let Some(input) = self.stats.inputs.get_mut(source) {
            input.rows += 1;
        }
        match verdict {
            Ok((id, Ok(candidate))) => return self.write_pair(id, &candidate),
            Ok((id, Err(reason))) => self.stats.lose(reason, id),
            Err(bad) if !self.skip_bad_rows => return Err(bad.into()),
            Err(bad) => {
                let reason = match bad.rest_of_file {
                    true => Reason::UnreadableRest,
                    false => Reason::UnreadableRow,
                };
                self.stats.lose(reason, format!("{}: {}", bad.place, bad.problem));
            }
        }
        Ok(())
    }

    fn write_pair(&mut self, id: String, candidate: &Candidate) -> Result<()> {
        let mut held_out = false;
        if let Some(question) = &candidate.fingerprint {
            let found = self.seen.find(question)?;
            match found {
                Some((Repeats::Exactly, _)) if self.rules.drop_duplicates => {
                    self.stats.lose(Reason::Duplicate, id);
                    return Ok(());
                }
                Some((Repeats::Nearly, _)) if self.rules.drop_near_duplicates => {
                    self.stats.lose(Reason::NearDuplicate, id);
                    return Ok(());
                }
                _ => {}
            }
            // What repeats another question goes where that one went.
            let key = found.map_or(question.exact, |(_, key)| key);
            self.seen.insert(question, key)?;
            held_out = words::mix(key) as f64 / 2f64.powi(64) < self.rules.held_out_fraction;
        }
        let stats = &mut self.stats;
        stats.lengths_in_characters.add(candidate.lengths);
        stats.kept_with_an_empty_side += u64::from(candidate.blank);
        stats.kept_with_identical_answers += u64::from(candidate.identical);
        match &mut self.held_out {
            Some(file) if held_out => {
                stats.held_out += 1;
                file.push(&candidate.encoded)
            }
            _ => {
                stats.kept += 1;
                self.kept.push(&candidate.encoded)
            }
        }
    }
}
