//! Reads JSON Lines files. Every reader of such files uses this module: it numbers the lines, limits their length to
//! `--max-row-bytes`, and skips a byte order mark and blank lines.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use super::row_limit;
use crate::error::{Error, Result};
use crate::input_file;

/// Reads a file line by line, blank lines included.
pub(crate) struct Lines<R> {
    reader: R,
    limit: u64,
    /// Number of the line read last, counted from 1.
    pub(crate) number: u64,
}

/// Why a line cannot be read. The rest of the file is then unreadable too.
#[derive(Debug)]
pub(crate) enum BadLine {
    /// The file cannot be read.
    Io(io::Error),
    /// The line has more bytes than this limit.
    TooLong(u64),
}

impl<R: BufRead> Lines<R> {
    /// Creates a line reader that accepts lines of at most [`row_limit::max_row_bytes`] bytes.
    pub(crate) fn new(reader: R) -> Self {
        Self::with_limit(reader, row_limit::max_row_bytes())
    }

    fn with_limit(reader: R, limit: u64) -> Self {
        Self { reader, limit, number: 0 }
    }

    /// Reads the next line, including its line terminator, into `line`. Returns the number of bytes read, which is 0 at
    /// the end of the file.
    pub(crate) fn next(&mut self, line: &mut Vec<u8>) -> std::result::Result<usize, BadLine> {
        line.clear();
        self.number += 1;
        // The limit does not include a byte order mark (3 bytes) and the line terminator (up to 2 bytes).
        let max_read = self.limit.saturating_add(5);
        let mut limited = Read::take(&mut self.reader, max_read);
        let read = limited.read_until(b'\n', line).map_err(BadLine::Io)?;
        let has_bom = self.number == 1 && line.starts_with(b"\xef\xbb\xbf");
        let length = line.trim_ascii_end().len() - if has_bom { 3 } else { 0 };
        if length as u64 > self.limit || (read as u64 == max_read && line.last() != Some(&b'\n')) {
            return Err(BadLine::TooLong(self.limit));
        }
        if has_bom {
            line.drain(..3);
        }
        Ok(read)
    }
}

/// Calls `each` for every non-blank line of the file at `path`, with the line's number (from 1) and its text.
///
/// # Errors
/// The file cannot be read, a line is too long or is not UTF-8, or `each` fails.
pub(crate) fn read_lines(path: &Path, each: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let file = input_file::open_once(path).map_err(|e| Error::io(path, "open", e))?;
    read_lines_from(BufReader::with_capacity(1 << 18, file), path, each)
}

fn read_lines_from(
    reader: impl BufRead,
    path: &Path,
    mut each: impl FnMut(usize, &str) -> Result<()>,
) -> Result<()> {
    let (mut lines, mut line) = (Lines::new(reader), Vec::new());
    loop {
        match lines.next(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(BadLine::Io(e)) => return Err(Error::io(path, "read", e)),
            Err(BadLine::TooLong(limit)) => {
                let place = format!("{}:{}", path.display(), lines.number);
                return Err(Error::invalid(place, row_limit::problem(limit), row_limit::REMEDY));
            }
        }
        let number = lines.number as usize;
        let text = utf8(path, &line, number)?;
        if !text.trim().is_empty() {
            each(number, text)?;
        }
    }
}

/// Calls `each` for every JSON value of the file at `path`, which holds either an array of values or one value per line.
/// The arguments of `each` are the value's place for error messages, its line or element number (from 1), and the value.
///
/// # Errors
/// The file cannot be read, is not JSON (`form` says what it should be), a row is too long, or `each` fails.
pub(crate) fn read_values(
    path: &Path,
    form: &str,
    mut each: impl FnMut(&str, usize, Value) -> Result<()>,
) -> Result<()> {
    let file = input_file::open_once(path).map_err(|e| Error::io(path, "open", e))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let start = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let is_array = start.trim_ascii_start().first() == Some(&b'[');
    if !is_array {
        return read_lines_from(reader, path, |number, text| {
            let place = format!("{}:{number}", path.display());
            let value = parse(text).map_err(|problem| Error::invalid(&place, problem, form))?;
            each(&place, number, value)
        });
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    let text = utf8(path, &bytes, 1)?.trim_start_matches('\u{feff}');
    let values: Vec<Value> = serde_json::from_str(text).map_err(|e| {
        let place = format!("{}:{}", path.display(), e.line());
        Error::invalid(place, format!("is not an array of objects: {e}"), form)
    })?;
    drop(bytes);
    for (value, number) in values.into_iter().zip(1..) {
        let place = format!("{}: row {number}", path.display());
        check_size(&value).map_err(|problem| Error::invalid(&place, problem, row_limit::REMEDY))?;
        each(&place, number, value)?;
    }
    Ok(())
}

/// Parses one line as JSON.
///
/// # Errors
/// Returns the problem, with its column, if the line is not JSON.
pub(crate) fn parse(text: &str) -> std::result::Result<Value, String> {
    serde_json::from_str(text).map_err(|e| {
        // serde_json also reports a line number, which is always 1 here and would mislead.
        let problem = e.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        format!("is not JSON: {problem} (column {})", e.column())
    })
}

/// Checks that the texts of a row have at most [`row_limit::max_row_bytes`] bytes in total.
///
/// # Errors
/// Returns the problem if the row is longer.
pub(crate) fn check_size(row: &Value) -> std::result::Result<(), String> {
    let limit = row_limit::max_row_bytes();
    let bytes = row.as_object().map_or(0, |row| {
        let texts = row.values().filter_map(Value::as_str);
        texts.map(|text| text.len() as u64).sum::<u64>()
    });
    if bytes > limit { Err(row_limit::problem(limit)) } else { Ok(()) }
}

/// Decodes `bytes` as UTF-8. They begin on line `first_line` of the file at `path`.
///
/// # Errors
/// Returns an error that names the line and byte if the bytes are not UTF-8.
pub(crate) fn utf8<'a>(path: &Path, bytes: &'a [u8], first_line: usize) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = first_line + before.iter().filter(|b| **b == b'\n').count();
        let place = format!("{}:{line}", path.display());
        if first_line == 1 && (bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]))
        {
            return Error::invalid(place, "is UTF-16 text (byte order mark)", "save it as UTF-8");
        }
        let column = before.iter().rev().take_while(|b| **b != b'\n').count();
        let problem = format!("is not UTF-8 at byte {} of the line", column + 1);
        Error::invalid(place, problem, "convert the file to UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_may_have_as_many_bytes_as_the_bound() {
        let read = |text: &[u8]| {
            let (mut lines, mut line, mut out) =
                (Lines::with_limit(text, 4), Vec::new(), Vec::new());
            loop {
                match lines.next(&mut line) {
                    Ok(0) => return (out, None),
                    Ok(_) => out.push(String::from_utf8_lossy(line.trim_ascii()).into_owned()),
                    Err(_) => return (out, Some(lines.number)),
                }
            }
        };
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            read(b"\xef\xbb\xbfabcd\nabcd\r\n\nabcd"),
            (texts(&["abcd", "abcd", "", "abcd"]), None)
        );
        assert_eq!(read(b"abcd\nabcde\nx"), (texts(&["abcd"]), Some(2)));
        assert_eq!(read(b"abcdefghijklmnop"), (vec![], Some(1)));
        assert_eq!(read(b"abcde"), (vec![], Some(1)));
    }

    #[test]
    fn arrays_and_lines_are_told_apart_by_their_first_character() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            let mut out = Vec::new();
            let read = read_values(&path, "write rows", |place, number, value| {
                let place = place.rsplit('/').next().unwrap_or_default().to_string();
                out.push((place, number, value));
                Ok(())
            });
            read.map(|()| out).map_err(|e| e.to_string())
        };
        let row = |place: &str, number, n: i32| (place.to_string(), number, Value::from(n));
        assert_eq!(
            read("\u{feff} [1,\n2]").unwrap(),
            [row("x.json: row 1", 1, 1), row("x.json: row 2", 2, 2)]
        );
        assert_eq!(read("\n1\n\n2").unwrap(), [row("x.json:2", 2, 1), row("x.json:4", 4, 2)]);
        assert_eq!(read("").unwrap(), []);
        assert!(read("[1").unwrap_err().contains("x.json:1: is not an array"));
        assert!(read("1\n{").unwrap_err().contains("x.json:2: is not JSON"));
        // Nested too deeply for a parser that calls itself.
        let deep = "[".repeat(200_000);
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
        assert!(read(&format!("{{\"a\":{deep}")).unwrap_err().contains("recursion limit"));
    }
}
