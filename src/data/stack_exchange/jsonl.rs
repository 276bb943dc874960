//! Reads rows from JSON Lines with one object of the HuggingFaceH4 schema per line.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use super::values::{Flag, Id, Score};
use super::{Answer, BadInput, Meter, Record, Records, Row};
use crate::data::json_lines::{BadLine, Lines};
use crate::data::row_limit;
use crate::error::{Error, Result};
use crate::input_file;

/// A line that is not parsed yet.
#[derive(Debug)]
pub struct Line {
    pub(crate) file: Arc<str>,
    /// Line number, from 1.
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct JsonRow {
    qid: Id,
    #[serde(default)]
    title: Option<String>,
    question: String,
    answers: Answers,
}

#[derive(Deserialize)]
struct JsonAnswer {
    text: String,
    pm_score: Score,
    #[serde(default)]
    selected: Flag,
}

/// Answers as a structure of lists, as Hugging Face's `Sequence` writes them.
#[derive(Deserialize)]
struct AnswerLists {
    text: Vec<String>,
    pm_score: Vec<Score>,
    #[serde(default)]
    selected: Option<Vec<Flag>>,
}

impl AnswerLists {
    /// Returns one value per answer, or the names of two lists that differ in length.
    fn into_answers(self) -> std::result::Result<Vec<JsonAnswer>, [&'static str; 2]> {
        let count = self.text.len();
        let mut selected = self.selected.unwrap_or_default();
        if self.pm_score.len() != count {
            return Err(["text", "pm_score"]);
        }
        if !selected.is_empty() && selected.len() != count {
            return Err(["text", "selected"]);
        }
        selected.resize(count, Flag::default());
        let answers = self.text.into_iter().zip(self.pm_score).zip(selected);
        let answer = |((text, pm_score), selected)| JsonAnswer { text, pm_score, selected };
        Ok(answers.map(answer).collect())
    }
}

/// Answers read from a list, from a structure of lists, or from null if there are none.
struct Answers(Vec<JsonAnswer>);

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(AnswersVisitor)
    }
}

struct AnswersVisitor;

impl<'de> Visitor<'de> for AnswersVisitor {
    type Value = Answers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of answers")
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<Answers, E> {
        Ok(Answers(Vec::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> std::result::Result<Answers, A::Error> {
        Deserialize::deserialize(SeqAccessDeserializer::new(list)).map(Answers)
    }

    fn visit_map<A: MapAccess<'de>>(self, lists: A) -> std::result::Result<Answers, A::Error> {
        let lists = AnswerLists::deserialize(MapAccessDeserializer::new(lists))?;
        let differ = |[a, b]: [&str; 2]| {
            de::Error::custom(format!("answers.{a} and answers.{b} differ in length"))
        };
        lists.into_answers().map(Answers).map_err(differ)
    }
}

/// Opens the JSON Lines file at `path`.
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path, meter: Meter) -> Result<Records> {
    let file = input_file::open_stream(path).map_err(|e| Error::io(path, "open", e))?;
    let reader = BufReader::with_capacity(1 << 18, file);
    Ok(lines(reader, &path.display().to_string(), meter))
}

/// Returns the non-blank lines of `reader` as [`Record::Line`]s of a file called `name`.
pub fn lines(reader: impl BufRead + Send + 'static, name: &str, meter: Meter) -> Records {
    let file: Arc<str> = name.into();
    let (mut lines, mut ended) = (Lines::new(reader), false);
    Box::new(std::iter::from_fn(move || {
        while !ended && !meter.must_stop() {
            let mut bytes = Vec::new();
            let read = lines.next(&mut bytes);
            let number = lines.number;
            let place = || format!("{file}:{number}");
            match read {
                Ok(0) => return None,
                Ok(n) => meter.consumed(n as u64),
                Err(BadLine::TooLong(limit)) => {
                    ended = true;
                    let problem = row_limit::problem(limit);
                    return Some(Record::Bad(BadInput::file(place(), problem, row_limit::REMEDY)));
                }
                Err(BadLine::Io(e)) => {
                    ended = true;
                    let remedy = "check the disk and the file's permissions";
                    return Some(Record::Bad(BadInput::file(place(), e, remedy)));
                }
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(Record::Line(Line { file: file.clone(), number, bytes }));
            }
        }
        None
    }))
}

/// Parses a line into a row.
///
/// The keys are `qid`, `title`, `question` and `answers` with `text`, `pm_score` and `selected`; others are ignored.
/// `answers` may also be an object of lists, as Hugging Face's `Sequence` writes it.
///
/// # Errors
/// The line is not UTF-8, is not JSON, or lacks a key. The error names the file, line and byte.
pub fn parse_line(line: &Line) -> std::result::Result<Row, BadInput> {
    let place = format!("{}:{}", line.file, line.number);
    let text = std::str::from_utf8(&line.bytes).map_err(|e| {
        let at = e.valid_up_to() + 1;
        BadInput::row(format!("{place}:{at}"), format!("byte {at} of the line is not UTF-8"))
    })?;
    let row: JsonRow = serde_json::from_str(text).map_err(|e| {
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message);
        BadInput::row(format!("{place}:{}", e.column()), message)
    })?;
    let Id(qid) = row.qid;
    let Answers(answers) = row.answers;
    let answer = |answer: JsonAnswer| Answer {
        text: answer.text,
        pm_score: answer.pm_score.0,
        selected: answer.selected.0,
    };
    Ok(Row {
        qid,
        title: row.title.unwrap_or_default(),
        question: row.question,
        answers: answers.into_iter().map(answer).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static [u8]) -> Vec<std::result::Result<Row, BadInput>> {
        let records = lines(text, "x.jsonl", Meter::default());
        let parse = |record| match record {
            Record::Line(line) => parse_line(&line),
            other => panic!("{other:?}"),
        };
        records.map(parse).collect()
    }

    #[test]
    fn reads_rows_and_ignores_other_keys() {
        let rows = parse(
            b"\xef\xbb\xbf{\"qid\":7,\"question\":\"q\",\"date\":\"x\",\"answers\":[{\"text\":\"a\",\"pm_score\":-1,\
              \"selected\":true,\"author\":\"n\"}]}\r\n\n{\"qid\":\"k\",\"question\":\"\",\"answers\":[]}",
        );
        let answers = vec![Answer { text: "a".into(), pm_score: -1, selected: true }];
        assert_eq!(
            rows[0],
            Ok(Row { qid: "7".into(), title: String::new(), question: "q".into(), answers })
        );
        assert_eq!(rows[1].as_ref().map(|row| row.qid.as_str()), Ok("k"));
    }

    #[test]
    fn says_where_a_line_is_bad() {
        let rows = parse(b"{\"qid\":1,\"answers\":[]}\n{\"qid\":\"\xff\"}\n{\"qid\":1,\"que");
        let bad: Vec<_> = rows.into_iter().map(|row| row.unwrap_err()).collect();
        assert_eq!(bad[0].problem, "missing field `question`");
        assert_eq!(bad[1].place, "x.jsonl:2:9");
        assert_eq!(bad[2].place, "x.jsonl:3:13");
    }

    #[test]
    fn forms_of_other_writers_are_read() {
        let rows = parse(
            b"{\"qid\":7.0,\"title\":\"t\",\"question\":\"q\",\"answers\":{\"text\":[\"a\",\"b\"],\"pm_score\":[3.0,1],\
              \"selected\":[null,1]}}\n{\"qid\":1,\"title\":null,\"question\":\"q\",\"answers\":null}\n\
              {\"qid\":1,\"question\":\"q\",\"answers\":{\"text\":[\"a\"],\"pm_score\":[]}}\n\
              {\"qid\":1,\"question\":\"q\",\"answers\":[{\"text\":\"a\",\"pm_score\":3.5}]}",
        );
        let first = rows[0].as_ref().unwrap();
        assert_eq!((&*first.qid, &*first.title), ("7", "t"));
        let answers = first.answers.iter().map(|a| (&*a.text, a.pm_score, a.selected));
        assert_eq!(answers.collect::<Vec<_>>(), [("a", 3, false), ("b", 1, true)]);
        assert_eq!(rows[1].as_ref().map(|row| row.answers.len()), Ok(0));
        let problem = |row: usize| rows[row].as_ref().unwrap_err();
        assert_eq!(problem(2).problem, "answers.text and answers.pm_score differ in length");
        assert_eq!(problem(3).problem, "invalid value: floating point `3.5`, expected an integer");
        assert_eq!(problem(3).place, "x.jsonl:4:61");
    }
}
