//! Joins questions with their answers without holding all of them: posts, without their texts, are spread over temporary
//! files by question, each file is joined in memory, and the joined rows are merged back into the questions' order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::unread::{Span, Texts, UnreadRow};
use super::{Answer, Meter, PostKind, Record, Records};
use crate::data::preference::pm_score;
use crate::error::{Error, Result};

/// Bytes of input per part: the posts of some megabytes fit a megabyte.
const PART: u64 = 16 << 20;
/// Most parts, which are open files.
const MOST_PARTS: u64 = 512;
/// Parts joined at once, each in memory.
const AT_ONCE: usize = 8;

/// A question or an answer, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Post {
    Question { id: i64, accepted: Option<i64>, body: Span },
    Answer { id: i64, question: i64, score: i64, body: Span },
}

impl Post {
    pub(super) fn kind(&self) -> PostKind {
        match self {
            Self::Question { .. } => PostKind::Question,
            Self::Answer { .. } => PostKind::Answer,
        }
    }

    /// As it is stored, `order` being its place among all posts.
    fn stored(&self, order: u64) -> Stored {
        match *self {
            Self::Question { id, accepted, body } => Stored([
                id as u64,
                0,
                order,
                u64::from(accepted.is_some()),
                accepted.unwrap_or(0) as u64,
                body.start,
                body.len,
            ]),
            Self::Answer { id, question, score, body } => {
                Stored([question as u64, 1, order, id as u64, score as u64, body.start, body.len])
            }
        }
    }
}

/// A post as numbers: the question it belongs to, 0 for a question or 1 for an answer, its place among all posts; then
/// whether an answer is accepted and which, or the answer's id and score; where its text is. Sorted, a question is
/// followed by its answers in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stored([u64; 7]);

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

    /// The answer that a question's asker accepted.
    fn accepted(&self) -> Option<i64> {
        let [_, _, _, any, accepted, ..] = self.0;
        (any == 1).then_some(accepted as i64)
    }

    /// An answer to a question that accepted `accepted`; its text is not read yet.
    fn answer(&self, accepted: Option<i64>) -> (Answer, Span) {
        let [_, _, _, id, score, ..] = self.0;
        let selected = accepted == Some(id as i64);
        let answer =
            Answer { text: String::new(), pm_score: pm_score(score as i64, selected), selected };
        (answer, self.body())
    }
}

/// Posts on their way to disk.
pub(super) struct Spill {
    parts: Vec<BufWriter<File>>,
    folder: PathBuf,
    /// Posts so far: the order number of the next.
    count: u64,
}

impl Spill {
    /// Makes room for posts from `input_bytes` of input, in `folder`.
    pub(super) fn new(input_bytes: u64, folder: &Path) -> Result<Self> {
        Self::with_parts(input_bytes.div_ceil(PART).clamp(1, MOST_PARTS), folder)
    }

    fn with_parts(parts: u64, folder: &Path) -> Result<Self> {
        let file = |_| tempfile::tempfile_in(folder).map(BufWriter::new);
        let parts = (0..parts).map(file).collect::<io::Result<_>>();
        let parts = parts.map_err(|e| Error::io(folder, "make a temporary file", e))?;
        Ok(Self { parts, folder: folder.to_path_buf(), count: 0 })
    }

    pub(super) fn push(&mut self, post: &Post) -> Result<()> {
        let stored = post.stored(self.count);
        self.count += 1;
        // Fibonacci hashing: neighbouring ids spread evenly.
        let hash = stored.0[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let part = (hash % self.parts.len() as u64) as usize;
        write_numbers(&mut self.parts[part], &stored.0)
            .map_err(|e| Error::io(&self.folder, "write a temporary file", e))
    }

    /// The joined rows, in the order of their questions; `texts` is where their texts are.
    pub(super) fn into_rows(self, meter: &Meter, texts: Texts) -> Result<Records> {
        let Self { parts, folder, .. } = self;
        let texts = Arc::new(texts);
        let fail = |e| Error::io(&folder, "use a temporary file", e);
        let mut joined = Vec::with_capacity(parts.len());
        let mut parts = parts.into_iter();
        loop {
            let some: Vec<_> = parts.by_ref().take(AT_ONCE).collect();
            if meter.must_stop() {
                return Err(Error::Interrupted { note: "nothing was written".into() });
            }
            if some.is_empty() {
                break;
            }
            let some = some.into_par_iter().map(|part| join(part, &folder, meter));
            joined.extend(some.collect::<io::Result<Vec<_>>>().map_err(fail)?);
        }
        let merge = Merge::new(joined).map_err(fail)?;
        Ok(Box::new(merge.map(move |row| match row {
            Ok(row) => Record::Unread(row.unread(&texts)),
            Err(e) => Record::Failed(Error::io(&folder, "read a temporary file", e)),
        })))
    }
}

/// Writes the questions of a part, each followed by its answers, in the questions' order.
fn join(part: BufWriter<File>, folder: &Path, meter: &Meter) -> io::Result<BufReader<File>> {
    let mut posts = Vec::new();
    let mut reader = reread(part)?;
    while let Some(first) = read_number(&mut reader)? {
        posts.push(read_post(&mut reader, first)?);
    }
    posts.sort_unstable();
    let mut rows: Vec<(&Stored, &[Stored])> = Vec::new();
    for family in posts.chunk_by(|a, b| a.0[0] == b.0[0]) {
        let (questions, answers) =
            family.split_at(family.partition_point(|post| post.is_question()));
        if questions.is_empty() {
            answers.iter().for_each(|_| meter.count_post(PostKind::OrphanAnswer));
        }
        // Of two questions with one id, the first gets the answers.
        let mut answers = Some(answers);
        rows.extend(
            questions.iter().map(|question| (question, answers.take().unwrap_or_default())),
        );
    }
    rows.sort_unstable_by_key(|(question, _)| question.order());
    let mut file = BufWriter::new(tempfile::tempfile_in(folder)?);
    for (question, answers) in rows {
        write_numbers(&mut file, &question.0)?;
        write_numbers(&mut file, &[answers.len() as u64])?;
        answers.iter().try_for_each(|answer| write_numbers(&mut file, &answer.0))?;
    }
    reread(file)
}

/// A question with its answers.
struct Joined {
    question: Stored,
    answers: Vec<Stored>,
}

impl Joined {
    fn unread(self, texts: &Arc<Texts>) -> UnreadRow {
        let accepted = self.question.accepted();
        let answers = self.answers.iter().map(|answer| answer.answer(accepted));
        let (id, body) = (self.question.0[0] as i64, self.question.body());
        UnreadRow::in_posts(id, body, answers, texts.clone())
    }
}

/// Merges ordered files of rows.
struct Merge {
    parts: Vec<BufReader<File>>,
    /// The next question of each part that has one, by its order number.
    heads: BinaryHeap<Reverse<(u64, usize, Stored)>>,
}

impl Merge {
    fn new(parts: Vec<BufReader<File>>) -> io::Result<Self> {
        let heads = BinaryHeap::with_capacity(parts.len());
        let mut merge = Self { parts, heads };
        for index in 0..merge.parts.len() {
            merge.read_head(index)?;
        }
        Ok(merge)
    }

    fn read_head(&mut self, index: usize) -> io::Result<()> {
        let part = &mut self.parts[index];
        if let Some(first) = read_number(part)? {
            let question = read_post(part, first)?;
            self.heads.push(Reverse((question.order(), index, question)));
        }
        Ok(())
    }

    fn next_row(&mut self) -> io::Result<Option<Joined>> {
        let Some(Reverse((_, index, question))) = self.heads.pop() else {
            return Ok(None);
        };
        let part = &mut self.parts[index];
        let answers = (0..number(part)?).map(|_| {
            let first = number(part)?;
            read_post(part, first)
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

fn reread(file: BufWriter<File>) -> io::Result<BufReader<File>> {
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

fn write_numbers(out: &mut impl Write, numbers: &[u64]) -> io::Result<()> {
    numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
}

/// `None` at the end of the file.
fn read_number(input: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match input.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn number(input: &mut impl Read) -> io::Result<u64> {
    read_number(input)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A post whose `first` number is already read.
fn read_post(input: &mut impl Read, first: u64) -> io::Result<Stored> {
    let mut numbers = [first; 7];
    for rest in &mut numbers[1..] {
        *rest = number(input)?;
    }
    Ok(Stored(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same posts through one part and through seven give the same rows in the same order.
    #[test]
    fn parts_do_not_change_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let rows = |parts| {
            let mut spill = Spill::with_parts(parts, folder.path()).unwrap();
            for n in 0..500i64 {
                let id = n * 7919 % 500;
                let body = Span { start: n as u64, len: 1 };
                let post = match id % 5 {
                    0 => Post::Question { id, accepted: Some(id + 1), body },
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
