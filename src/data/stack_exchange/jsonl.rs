//! Rows from JSON Lines: one object of the HuggingFaceH4 schema a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::{Answer, BadInput, Meter, Record, Records, Row};
use crate::error::{Error, Result};

/// Longest line accepted, in bytes: the largest posts are a thousand times smaller.
const LONGEST_LINE: u64 = 64 << 20;

/// A line not yet parsed.
#[derive(Debug)]
pub struct Line {
    pub(crate) file: Arc<str>,
    /// Counted from 1.
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct JsonRow {
    qid: Qid,
    question: String,
    answers: Vec<JsonAnswer>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Qid {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
struct JsonAnswer {
    text: String,
    pm_score: i64,
    #[serde(default)]
    selected: bool,
}

/// Opens the JSON Lines file at `path`.
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path, meter: Meter) -> Result<Records> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let reader = BufReader::with_capacity(1 << 18, file);
    Ok(lines(reader, &path.display().to_string(), meter))
}

/// The lines of `reader`, blank ones left out, as [`Record::Line`]s of a file called `name`.
pub fn lines(mut reader: impl BufRead + Send + 'static, name: &str, meter: Meter) -> Records {
    let file: Arc<str> = name.into();
    let (mut number, mut ended) = (0, false);
    Box::new(std::iter::from_fn(move || {
        while !ended && !meter.must_stop() {
            number += 1;
            let mut bytes = Vec::new();
            let read = std::io::Read::take(&mut reader, LONGEST_LINE).read_until(b'\n', &mut bytes);
            let place = || format!("{file}:{number}");
            match read {
                Ok(0) => return None,
                Ok(n) if n as u64 == LONGEST_LINE && bytes.last() != Some(&b'\n') => {
                    ended = true;
                    let problem = "the line is longer than 64 MiB";
                    let remedy = "is this JSON Lines? one object a line is expected";
                    return Some(Record::Bad(BadInput::file(place(), problem, remedy)));
                }
                Ok(n) => meter.consumed(n as u64),
                Err(e) => {
                    ended = true;
                    let remedy = "check the disk and the file's permissions";
                    return Some(Record::Bad(BadInput::file(place(), e, remedy)));
                }
            }
            if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(Record::Line(Line { file: file.clone(), number, bytes }));
            }
        }
        None
    }))
}

/// Parses a line into a row; other keys than `qid`, `question`, `answers` and their `text`, `pm_score`, `selected`
/// are ignored.
///
/// # Errors
/// It is not UTF-8, not JSON, or lacks a key: with the file, line and byte.
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
    let qid = match row.qid {
        Qid::Number(number) => number.to_string(),
        Qid::Text(text) => text,
    };
    let answers = row.answers.into_iter();
    let answers =
        answers.map(|a| Answer { text: a.text, pm_score: a.pm_score, selected: a.selected });
    Ok(Row { qid, question: row.question, answers: answers.collect() })
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
        assert_eq!(rows[0], Ok(Row { qid: "7".into(), question: "q".into(), answers }));
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
}
