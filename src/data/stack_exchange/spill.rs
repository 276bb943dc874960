//! Joins questions with their answers without holding all of them: posts are spread over temporary files by
//! question, each file is joined in memory, and the joined rows are merged back into the questions' order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Answer, Meter, PostKind, Record, Records, Row};
use crate::data::preference::pm_score;
use crate::error::{Error, Result};

/// Bytes of input per part: what a join may hold in memory, once for each thread.
const PART: u64 = 16 << 20;
/// Most parts, which are open files.
const MOST_PARTS: u64 = 512;

/// A question or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Post {
    Question {
        id: i64,
        accepted: Option<i64>,
        body: String,
    },
    Answer {
        id: i64,
        question: i64,
        score: i64,
        body: String,
    },
}

impl Post {
    pub(super) fn kind(&self) -> PostKind {
        match self {
            Self::Question { .. } => PostKind::Question,
            Self::Answer { .. } => PostKind::Answer,
        }
    }

    /// The question this post belongs to.
    fn key(&self) -> i64 {
        match self {
            Self::Question { id, .. } => *id,
            Self::Answer { question, .. } => *question,
        }
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
        Ok(Self {
            parts,
            folder: folder.to_path_buf(),
            count: 0,
        })
    }

    pub(super) fn push(&mut self, post: Post) -> Result<()> {
        // Fibonacci hashing: neighbouring ids spread evenly.
        let hash = (post.key() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let part = (hash % self.parts.len() as u64) as usize;
        let written = write_post(&mut self.parts[part], self.count, &post);
        self.count += 1;
        written.map_err(|e| Error::io(&self.folder, "write a temporary file", e))
    }

    /// The joined rows, in the order of their questions.
    pub(super) fn into_rows(self, meter: Meter) -> Result<Records> {
        let fail = |e| Error::io(&self.folder, "use a temporary file", e);
        if self.parts.len() == 1 {
            let mut rows = Vec::new();
            for part in self.parts {
                rows = join(part, &meter).map_err(fail)?;
            }
            return Ok(Box::new(rows.into_iter().map(|(_, row)| Record::Row(row))));
        }
        let joined = self.parts.into_par_iter().map(|part| {
            if meter.must_stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let rows = join(part, &meter)?;
            let mut file = BufWriter::new(tempfile::tempfile_in(&self.folder)?);
            rows.iter()
                .try_for_each(|(order, row)| write_row(&mut file, *order, row))?;
            reread(file)
        });
        let joined: io::Result<Vec<_>> = joined.collect();
        if meter.must_stop() {
            return Err(Error::Interrupted {
                note: "nothing was written".into(),
            });
        }
        let merge = joined.and_then(Merge::new).map_err(fail)?;
        let folder = self.folder.clone();
        Ok(Box::new(merge.map(move |row| match row {
            Ok(row) => Record::Row(row),
            Err(e) => Record::Failed(Error::io(&folder, "read a temporary file", e)),
        })))
    }
}

/// The rows of a part with their order numbers, ordered.
fn join(part: BufWriter<File>, meter: &Meter) -> io::Result<Vec<(u64, Row)>> {
    let mut reader = reread(part)?;
    let mut questions: Vec<(u64, i64, Option<i64>, Row)> = Vec::new();
    let mut answers: HashMap<i64, Vec<(i64, i64, String)>> = HashMap::new();
    while let Some((order, post)) = read_post(&mut reader)? {
        match post {
            Post::Question { id, accepted, body } => {
                let row = Row {
                    qid: id.to_string(),
                    question: body,
                    answers: Vec::new(),
                };
                questions.push((order, id, accepted, row));
            }
            Post::Answer {
                id,
                question,
                score,
                body,
            } => {
                answers.entry(question).or_default().push((id, score, body));
            }
        }
    }
    let rows = questions.into_iter().map(|(order, id, accepted, mut row)| {
        row.answers
            .extend(answers.remove(&id).unwrap_or_default().into_iter().map(
                |(id, score, text)| {
                    let selected = accepted == Some(id);
                    Answer {
                        text,
                        pm_score: pm_score(score, selected),
                        selected,
                    }
                },
            ));
        if row.answers.len() < 2 {
            // No pair can come of it: its texts need not go to disk and back.
            row.question.clear();
            row.answers
                .iter_mut()
                .for_each(|answer| answer.text.clear());
        }
        (order, row)
    });
    let rows = rows.collect();
    for _ in answers.values().flatten() {
        meter.count_post(PostKind::OrphanAnswer);
    }
    Ok(rows)
}

/// Merges ordered files of rows.
struct Merge {
    parts: Vec<BufReader<File>>,
    /// Order number of the next row of each part that has one.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Merge {
    fn new(mut parts: Vec<BufReader<File>>) -> io::Result<Self> {
        let mut heads = BinaryHeap::new();
        for (index, part) in parts.iter_mut().enumerate() {
            if let Some(order) = read_number(part)? {
                heads.push(Reverse((order, index)));
            }
        }
        Ok(Self { parts, heads })
    }

    fn next_row(&mut self) -> io::Result<Option<Row>> {
        let Some(Reverse((_, index))) = self.heads.pop() else {
            return Ok(None);
        };
        let part = &mut self.parts[index];
        let row = read_row(part)?;
        if let Some(order) = read_number(part)? {
            self.heads.push(Reverse((order, index)));
        }
        Ok(Some(row))
    }
}

impl Iterator for Merge {
    type Item = io::Result<Row>;

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
    numbers
        .iter()
        .try_for_each(|number| out.write_all(&number.to_le_bytes()))
}

fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    write_numbers(out, &[text.len() as u64])?;
    out.write_all(text.as_bytes())
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

fn read_text(input: &mut impl Read) -> io::Result<String> {
    let mut bytes = vec![0; number(input)? as usize];
    input.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn write_post(out: &mut impl Write, order: u64, post: &Post) -> io::Result<()> {
    let (numbers, body) = match post {
        Post::Question { id, accepted, body } => (
            [
                order,
                1,
                *id as u64,
                u64::from(accepted.is_some()),
                accepted.unwrap_or(0) as u64,
            ],
            body,
        ),
        Post::Answer {
            id,
            question,
            score,
            body,
        } => (
            [order, 2, *id as u64, *question as u64, *score as u64],
            body,
        ),
    };
    write_numbers(out, &numbers)?;
    write_text(out, body)
}

fn read_post(input: &mut impl Read) -> io::Result<Option<(u64, Post)>> {
    let Some(order) = read_number(input)? else {
        return Ok(None);
    };
    let kind = number(input)?;
    let id = number(input)? as i64;
    let (first, second) = (number(input)?, number(input)? as i64);
    let body = read_text(input)?;
    let post = match kind {
        1 => Post::Question {
            id,
            accepted: (first == 1).then_some(second),
            body,
        },
        _ => Post::Answer {
            id,
            question: first as i64,
            score: second,
            body,
        },
    };
    Ok(Some((order, post)))
}

fn write_row(out: &mut impl Write, order: u64, row: &Row) -> io::Result<()> {
    write_numbers(out, &[order])?;
    write_text(out, &row.qid)?;
    write_text(out, &row.question)?;
    write_numbers(out, &[row.answers.len() as u64])?;
    row.answers.iter().try_for_each(|answer| {
        write_numbers(out, &[answer.pm_score as u64, u64::from(answer.selected)])?;
        write_text(out, &answer.text)
    })
}

/// A row, its order number already read.
fn read_row(input: &mut impl Read) -> io::Result<Row> {
    let (qid, question) = (read_text(input)?, read_text(input)?);
    let answers = (0..number(input)?).map(|_| {
        let (pm_score, selected) = (number(input)? as i64, number(input)? == 1);
        Ok(Answer {
            pm_score,
            selected,
            text: read_text(input)?,
        })
    });
    let answers = answers.collect::<io::Result<_>>()?;
    Ok(Row {
        qid,
        question,
        answers,
    })
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
                let (id, body) = (n * 7919 % 500, format!("post {n}"));
                let post = match id % 5 {
                    0 => Post::Question {
                        id,
                        accepted: Some(id + 1),
                        body,
                    },
                    _ => Post::Answer {
                        id,
                        question: id - id % 5,
                        score: n - 100,
                        body,
                    },
                };
                spill.push(post).unwrap();
            }
            let rows = spill.into_rows(Meter::default()).unwrap();
            rows.map(|record| match record {
                Record::Row(row) => row,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
        };
        let one = rows(1);
        assert_eq!((one.len(), one[0].qid.as_str()), (100, "0"));
        assert!(one.iter().all(|row| row.answers.len() == 4));
        assert_eq!(
            one.iter()
                .filter(|row| row.answers.iter().any(|a| a.selected))
                .count(),
            100
        );
        assert_eq!(one, rows(7));
    }
}
