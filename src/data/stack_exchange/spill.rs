//! Joins questions with their answers without holding all of them in memory. Posts, without their texts, are partitioned
//! by question into temporary files. Each file is joined in memory, and the joined rows are merged back into the order of
//! the questions.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::unread::{RowTexts, Span, Texts, UnreadRow};
use super::{Answer, Meter, PostKind, Record, Records};
use crate::data::preference::pm_score;
use crate::error::{Error, Result};

/// Bytes of input per partition. The posts of several megabytes of input take about one megabyte.
const PARTITION_BYTES: u64 = 16 << 20;
/// Maximum number of partitions, each of which is an open file.
const MAX_PARTITIONS: u64 = 512;
/// Maximum number of partitions joined at the same time, each in memory.
const MAX_CONCURRENT_JOINS: usize = 8;

/// A question or an answer, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Post {
    Question {
        id: i64,
        /// Id of the accepted answer.
        accepted: Option<i64>,
        /// Empty if there is no title.
        title: Span,
        body: Span,
    },
    Answer {
        id: i64,
        question: i64,
        score: i64,
        body: Span,
    },
}

impl Post {
    pub(super) fn kind(&self) -> PostKind {
        match self {
            Self::Question { .. } => PostKind::Question,
            Self::Answer { .. } => PostKind::Answer,
        }
    }

    /// Returns the stored form of the post, which is number `order` among all posts.
    fn stored(&self, order: u64) -> Stored {
        match *self {
            Self::Question { id, accepted, title, body } => Stored([
                id as u64,
                0,
                order,
                u64::from(accepted.is_some()),
                accepted.unwrap_or(0) as u64,
                title.start,
                title.len,
                body.start,
                body.len,
            ]),
            Self::Answer { id, question, score, body } => Stored([
                question as u64,
                1,
                order,
                id as u64,
                score as u64,
                0,
                0,
                body.start,
                body.len,
            ]),
        }
    }
}

/// How many numbers store a post.
const NUMBERS: usize = 9;

/// A post as numbers, so that sorting places each question directly before its answers in their order:
///
/// - 0: id of the question it belongs to;
/// - 1: 0 for a question, 1 for an answer;
/// - 2: order number among all posts;
/// - 3 and 4: for a question, whether an answer is accepted (0 or 1) and its id; for an answer, its id and score;
/// - 5 and 6: start and length of the title;
/// - 7 and 8: start and length of the body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stored([u64; NUMBERS]);

impl Stored {
    fn is_question(&self) -> bool {
        self.0[1] == 0
    }

    fn order(&self) -> u64 {
        self.0[2]
    }

    fn body(&self) -> Span {
        let [.., start, len] = self.0;
        Span { start, len }
    }

    /// Returns where the title is, if there is one.
    fn title(&self) -> Option<Span> {
        let [_, _, _, _, _, start, len, ..] = self.0;
        (len > 0).then_some(Span { start, len })
    }

    fn answer_id(&self) -> u64 {
        self.0[3]
    }

    /// Returns the id of the question's accepted answer, if there is one.
    fn accepted(&self) -> Option<i64> {
        let [_, _, _, any, accepted, ..] = self.0;
        (any == 1).then_some(accepted as i64)
    }

    /// Converts to an answer without its text. `accepted` is the id of the question's accepted answer.
    fn answer(&self, accepted: Option<i64>) -> Answer {
        let [_, _, _, id, score, ..] = self.0;
        let selected = accepted == Some(id as i64);
        Answer { text: String::new(), pm_score: pm_score(score as i64, selected), selected }
    }
}

/// Writes posts to the temporary files of their partitions.
pub(super) struct Spill {
    partitions: Vec<BufWriter<File>>,
    folder: PathBuf,
    /// Number of posts so far, which is the order number of the next one.
    count: u64,
    documents: Documents,
}

/// Order numbers of the first post of each document but the first. Ids are unique only within a document.
#[derive(Clone, Debug, Default)]
struct Documents(Vec<u64>);

impl Documents {
    /// Returns the number of the document that contains the post with this order number.
    fn containing(&self, order: u64) -> usize {
        self.0.partition_point(|&first| first <= order)
    }
}

impl Spill {
    /// Creates temporary files in `folder`, as many as the posts of `input_bytes` of input need.
    pub(super) fn new(input_bytes: u64, folder: &Path) -> Result<Self> {
        let partitions = input_bytes.div_ceil(PARTITION_BYTES).clamp(1, MAX_PARTITIONS);
        Self::with_partitions(partitions, folder)
    }

    fn with_partitions(count: u64, folder: &Path) -> Result<Self> {
        let file = |_| tempfile::tempfile_in(folder).map(BufWriter::new);
        let partitions = (0..count).map(file).collect::<io::Result<_>>();
        let partitions = partitions.map_err(|e| Error::io(folder, "make a temporary file", e))?;
        let folder = folder.to_path_buf();
        Ok(Self { partitions, folder, count: 0, documents: Documents::default() })
    }

    /// Starts a new document, to which the following posts belong.
    pub(super) fn begin_document(&mut self) {
        self.documents.0.push(self.count);
    }

    /// Writes a post to the partition of its question.
    pub(super) fn push(&mut self, post: &Post) -> Result<()> {
        let stored = post.stored(self.count);
        self.count += 1;
        // Fibonacci hashing spreads neighboring ids evenly.
        let hash = stored.0[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let partition = (hash % self.partitions.len() as u64) as usize;
        write_numbers(&mut self.partitions[partition], &stored.0)
            .map_err(|e| Error::io(&self.folder, "write a temporary file", e))
    }

    /// Joins all posts and returns the rows in the order of their questions. Their texts are fetched from `texts`.
    pub(super) fn into_rows(self, meter: &Meter, texts: Texts) -> Result<Records> {
        let Self { partitions, folder, documents, .. } = self;
        let texts = Arc::new(texts);
        let fail = |e| Error::io(&folder, "use a temporary file", e);
        let mut joined = Vec::with_capacity(partitions.len());
        let mut partitions = partitions.into_iter();
        let concurrency = rayon::current_num_threads().clamp(1, MAX_CONCURRENT_JOINS);
        loop {
            let group: Vec<_> = partitions.by_ref().take(concurrency).collect();
            if meter.must_stop() {
                return Err(Error::Interrupted { note: "nothing was written".into() });
            }
            if group.is_empty() {
                break;
            }
            joined.extend(join_each(group, &documents, &folder, meter).map_err(fail)?);
        }
        let merge = Merge::new(joined).map_err(fail)?;
        Ok(Box::new(merge.map(move |row| match row {
            Ok(row) => Record::Unread(row.unread(&texts)),
            Err(e) => Record::Failed(Error::io(&folder, "read a temporary file", e)),
        })))
    }
}

/// Calls [`join`] for each partition on a separate thread.
///
/// Rayon's pool would deadlock here: the main thread is one of its workers (`process::set_up`), on one core the only one,
/// and it waits for the reader thread, which would wait for the pool.
fn join_each(
    partitions: Vec<BufWriter<File>>,
    documents: &Documents,
    folder: &Path,
    meter: &Meter,
) -> io::Result<Vec<BufReader<File>>> {
    thread::scope(|scope| {
        let start = |partition| {
            thread::Builder::new()
                .spawn_scoped(scope, move || join(partition, documents, folder, meter))
        };
        let threads = partitions.into_iter().map(start);
        let threads = threads.collect::<io::Result<Vec<_>>>()?;
        let panicked = |_| Err(io::Error::other("a thread that joins posts panicked"));
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked));
        joined.collect()
    })
}

/// Joins the posts of a partition. Returns a file of its questions in order, each followed by its answers.
fn join(
    partition: BufWriter<File>,
    documents: &Documents,
    folder: &Path,
    meter: &Meter,
) -> io::Result<BufReader<File>> {
    let mut posts = Vec::new();
    let mut reader = reread(partition)?;
    while let Some(first) = read_number(&mut reader)? {
        posts.push(read_post(&mut reader, first)?);
    }
    posts.sort_unstable();
    let groups = posts.chunk_by(|a, b| a.0[0] == b.0[0]);
    let mut rows: Vec<Joined> =
        groups.flat_map(|group| join_group(group, documents, meter)).collect();
    rows.sort_unstable_by_key(|row| row.question.order());
    let mut file = BufWriter::new(tempfile::tempfile_in(folder)?);
    for Joined { question, answers } in rows {
        write_numbers(&mut file, &question.0)?;
        write_numbers(&mut file, &[answers.len() as u64])?;
        answers.iter().try_for_each(|answer| write_numbers(&mut file, &answer.0))?;
    }
    reread(file)
}

/// Joins the posts of one question id. Each document's question gets the answers of its document. An answer whose document
/// lacks the question is joined to the question of another document if there is only one such question.
fn join_group(group: &[Stored], documents: &Documents, meter: &Meter) -> Vec<Joined> {
    let (questions, answers) = group.split_at(group.partition_point(Stored::is_question));
    let document = |post: &Stored| documents.containing(post.order());
    let mut rows: Vec<Joined> = Vec::new();
    for question in questions {
        // Posts are sorted by order, so that a repeated question follows the first one of its document.
        let last = rows.last().map(|row| document(&row.question));
        if last == Some(document(question)) {
            meter.count_post(PostKind::Repeated);
        } else {
            rows.push(Joined { question: *question, answers: Vec::new() });
        }
    }
    let mut seen = HashSet::new();
    for answer in answers {
        let own = rows.binary_search_by_key(&document(answer), |row| document(&row.question));
        let only = (rows.len() == 1).then_some(0);
        let Some(index) = own.ok().or(only) else {
            meter.count_post(PostKind::OrphanAnswer);
            continue;
        };
        if !seen.insert((index, answer.answer_id())) {
            meter.count_post(PostKind::Repeated);
        } else if let Some(row) = rows.get_mut(index) {
            row.answers.push(*answer);
        }
    }
    rows
}

/// A question with its answers.
struct Joined {
    question: Stored,
    answers: Vec<Stored>,
}

impl Joined {
    /// Converts to a row whose texts are fetched from `texts`.
    fn unread(self, texts: &Arc<Texts>) -> UnreadRow {
        let accepted = self.question.accepted();
        let answers = self.answers.iter().map(|answer| answer.answer(accepted));
        let spans = RowTexts {
            title: self.question.title(),
            question: self.question.body(),
            answers: self.answers.iter().map(Stored::body).collect(),
        };
        let id = self.question.0[0] as i64;
        UnreadRow::in_posts(id, answers.collect(), spans, texts.clone())
    }
}

/// Merges files of rows, each in the order of its questions, into one stream in that order.
struct Merge {
    files: Vec<BufReader<File>>,
    /// The next question of each file that has one, by its order number.
    heads: BinaryHeap<Reverse<(u64, usize, Stored)>>,
}

impl Merge {
    fn new(files: Vec<BufReader<File>>) -> io::Result<Self> {
        let heads = BinaryHeap::with_capacity(files.len());
        let mut merge = Self { files, heads };
        for index in 0..merge.files.len() {
            merge.read_head(index)?;
        }
        Ok(merge)
    }

    /// Reads the next question of a file, if there is one.
    fn read_head(&mut self, index: usize) -> io::Result<()> {
        let file = &mut self.files[index];
        if let Some(first) = read_number(file)? {
            let question = read_post(file, first)?;
            self.heads.push(Reverse((question.order(), index, question)));
        }
        Ok(())
    }

    fn next_row(&mut self) -> io::Result<Option<Joined>> {
        let Some(Reverse((_, index, question))) = self.heads.pop() else {
            return Ok(None);
        };
        let file = &mut self.files[index];
        let answers = (0..number(file)?).map(|_| {
            let first = number(file)?;
            read_post(file, first)
        });
        let answers = answers.collect::<io::Result<_>>()?;
        self.read_head(index)?;
        Ok(Some(Joined { question, answers }))
    }
}

impl Iterator for Merge {
    type Item = io::Result<Joined>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// Flushes a file and opens it for reading from its start.
fn reread(file: BufWriter<File>) -> io::Result<BufReader<File>> {
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

fn write_numbers(out: &mut impl Write, numbers: &[u64]) -> io::Result<()> {
    numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
}

/// Reads a number, or returns `None` at the end of the file.
fn read_number(input: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match input.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a number. The end of the file is an error.
fn number(input: &mut impl Read) -> io::Result<u64> {
    read_number(input)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Reads a post whose first number, `first`, is already read.
fn read_post(input: &mut impl Read, first: u64) -> io::Result<Stored> {
    let mut numbers = [first; NUMBERS];
    for rest in &mut numbers[1..] {
        *rest = number(input)?;
    }
    Ok(Stored(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same posts in one partition and in seven give the same rows in the same order.
    #[test]
    fn the_number_of_partitions_does_not_change_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let rows = |partitions| {
            let mut spill = Spill::with_partitions(partitions, folder.path()).unwrap();
            for n in 0..500i64 {
                let id = n * 7919 % 500;
                let body = Span { start: n as u64, len: 1 };
                let post = match id % 5 {
                    0 => {
                        Post::Question { id, accepted: Some(id + 1), title: Span::default(), body }
                    }
                    _ => Post::Answer { id, question: id - id % 5, score: n - 100, body },
                };
                spill.push(&post).unwrap();
            }
            let texts = Texts { file: tempfile::tempfile().unwrap(), path: PathBuf::new() };
            let rows = spill.into_rows(&Meter::default(), texts).unwrap();
            rows.map(|record| match record {
                Record::Unread(row) => row.into_row(),
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
        };
        let one = rows(1);
        assert_eq!((one.len(), one[0].qid.as_str()), (100, "0"));
        assert!(one.iter().all(|row| row.answers.len() == 4));
        assert_eq!(one.iter().filter(|row| row.answers.iter().any(|a| a.selected)).count(), 100);
        assert_eq!(one, rows(7));
    }
}
