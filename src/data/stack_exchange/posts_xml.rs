//! Reads rows from the official data dump's `Posts.xml`, which has one `<row …/>` per post, questions and answers mixed.
//!
//! An answer may come long before or after its question, so the file is read twice. The first pass writes ids, scores and
//! the location of each text into temporary files, partitioned by question (`spill`, 72 bytes per post). These files are
//! then joined, eight at a time. Memory holds the posts, without their texts, of 128 MiB of input, or of one 64th of the
//! file if that is more. In the second pass, questions come out in the file's order, and the caller fetches only the texts
//! of a pair (`unread`). Most answers follow soon after their question, so that these reads are nearly sequential.
//!
//! The dump has no upvotes, only `Score` (upvotes minus downvotes), which is used instead. The vote score is
//! `round(log2(1 + Score))`, plus one for the accepted answer, and -1 if `Score` is negative.
//!
//! Dumps that were joined by `cat` are several documents in one file. Ids are unique only within a document.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use quick_xml::events::BytesStart;

use super::spill::{Post, Spill};
use super::unread::{Span, Texts, check_escapes, unescape};
use super::xml_tags::{Tag, Tags};
use super::{BadInput, Meter, PostKind, Record, Records};
use crate::data::row_limit;
use crate::error::{Error, Result};
use crate::input_file;

const WHOLE_FILE: &str = "get the file again, or pass --skip-bad-rows to use what can be read";

/// Opens the `Posts.xml` at `path`. Temporary files are created in the folder `temporary` and deleted with the reader.
///
/// # Errors
/// The file cannot be opened, or a temporary file cannot be created.
pub fn open(path: &Path, temporary: &Path, meter: Meter) -> Result<Records> {
    let open = |e| Error::io(path, "open", e);
    let mut file = input_file::open_stream(path).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        file = copy_to_temporary(file, temporary)?;
    }
    let length = file.metadata().map_err(open)?.len();
    let mut texts = Some(Texts { file: file.try_clone().map_err(open)?, path: path.to_path_buf() });
    let spill = Spill::new(length, temporary)?;
    let limit = row_limit::max_row_bytes();
    let tags = Tags::new(BufReader::with_capacity(1 << 18, file), limit);
    let name = path.display().to_string();
    let mut scan = Some(Scan {
        tags,
        spill,
        name,
        meter: meter.clone(),
        position: Position::Before,
        after_bad: false,
    });
    let mut rows: Option<Records> = None;
    Ok(Box::new(std::iter::from_fn(move || {
        if let Some(running) = &mut scan {
            match running.next_bad() {
                Ok(Some(bad)) => return Some(Record::Bad(bad)),
                Ok(None) => {}
                Err(error) => {
                    scan = None;
                    return Some(Record::Failed(error));
                }
            }
        }
        if let (Some(finished), Some(texts)) = (scan.take(), texts.take()) {
            match finished.spill.into_rows(&meter, texts) {
                Ok(records) => rows = Some(records),
                Err(error) => return Some(Record::Failed(error)),
            }
        }
        rows.as_mut()?.next()
    })))
}

/// Copies the input from a pipe into a temporary file, because it is read twice.
fn copy_to_temporary(mut from: File, temporary: &Path) -> Result<File> {
    let fail = |e| Error::io(temporary, "write a temporary file", e);
    let mut file = tempfile::tempfile_in(temporary).map_err(fail)?;
    std::io::copy(&mut from, &mut file).map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok(file)
}

/// Position of the scan relative to the `<posts>` element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Before the first `<posts>`.
    Before,
    /// Between `<posts>` and `</posts>`.
    Inside,
    /// After `</posts>`, where another document may begin because dumps are joined by `cat`.
    After,
    /// The scan has ended.
    Ended,
}

/// The first pass over a `Posts.xml`.
struct Scan<R> {
    tags: Tags<R>,
    spill: Spill,
    name: String,
    meter: Meter,
    position: Position,
    /// Whether the last tag was bad. Text after it may belong to that tag.
    after_bad: bool,
}

impl<R: BufRead> Scan<R> {
    /// Writes posts to the temporary files until the next unreadable input, which it returns. Returns `None` at the end of
    /// the file.
    fn next_bad(&mut self) -> Result<Option<BadInput>> {
        loop {
            if self.meter.must_stop() {
                return Err(Error::Interrupted { note: "nothing was written".into() });
            }
            if self.position == Position::Ended {
                return Ok(None);
            }
            let before = self.tags.offset;
            let tag = self.tags.next_tag();
            self.meter.consumed(self.tags.offset - before);
            let stray = self.tags.stray.take().filter(|_| !self.after_bad);
            self.after_bad = false;
            let bad = match tag {
                Ok(Tag::Whole) => self.whole_tag()?.err(),
                Ok(Tag::Cut) => {
                    let problem = "a tag is not closed before the next one begins";
                    Some(BadInput::row(self.place(), problem))
                }
                Ok(Tag::TooLong) => {
                    let problem = row_limit::problem(self.tags.limit);
                    Some(BadInput::row(self.place(), problem).with_remedy(row_limit::REMEDY))
                }
                Ok(Tag::End) => self.end_of_file(),
                Err(e) => {
                    self.position = Position::Ended;
                    Some(BadInput::file(self.place(), e, WHOLE_FILE))
                }
            };
            self.after_bad = bad.is_some();
            let stray = stray.map(|(line, byte)| {
                let place = format!("{}:{line} (byte {byte})", self.name);
                BadInput::row(place, "there is text between the tags")
            });
            if let Some(bad) = bad.or(stray) {
                return Ok(Some(bad));
            }
        }
    }

    /// Handles the end of the file. Returns an error if it comes before `</posts>`.
    fn end_of_file(&mut self) -> Option<BadInput> {
        let position = std::mem::replace(&mut self.position, Position::Ended);
        if position == Position::After {
            return None;
        }
        let problem = "the file ends before </posts>: it was cut short";
        Some(BadInput::file(self.place(), problem, WHOLE_FILE))
    }

    /// Handles the tag read last.
    fn whole_tag(&mut self) -> Result<std::result::Result<(), BadInput>> {
        let text = match std::str::from_utf8(&self.tags.tag) {
            Ok(text) => text,
            Err(e) => {
                let byte = self.tags.start + 1 + e.valid_up_to() as u64;
                let place = format!("{}:{} (byte {byte})", self.name, self.tags.line);
                return Ok(Err(BadInput::row(place, "not UTF-8")));
            }
        };
        let name = text.split([' ', '\t', '\r', '\n', '/']).next().unwrap_or_default();
        match (name, self.position) {
            _ if text.starts_with(['?', '!']) => {}
            ("posts", position) => {
                if position == Position::After {
                    self.spill.begin_document();
                }
                self.position =
                    if text.ends_with('/') { Position::After } else { Position::Inside };
                if position == Position::Inside {
                    self.spill.begin_document();
                    let problem = "another <posts> begins before </posts>: the document before it was cut short";
                    return Ok(Err(BadInput::row(self.place(), problem)));
                }
            }
            ("row", Position::Inside | Position::After) => {
                match parse_post(text, self.tags.start + 1) {
                    Ok(post) => {
                        self.meter.count_post(post.as_ref().map_or(PostKind::Other, Post::kind));
                        post.map_or(Ok(()), |post| self.spill.push(&post))?;
                    }
                    Err(problem) => return Ok(Err(BadInput::row(self.place(), problem))),
                }
            }
            ("", Position::Inside | Position::After) if text.trim_end() == "/posts" => {
                self.position = Position::After;
            }
            ("", Position::Inside | Position::After) if text.trim_end() == "/row" => {}
            (_, Position::Inside) => {
                let problem = format!("unexpected tag <{}>", tag_name(text));
                return Ok(Err(BadInput::row(self.place(), problem)));
            }
            (_, position) => {
                self.position = Position::Ended;
                let problem = match position {
                    Position::Before => format!("begins with <{}>, not <posts>", tag_name(text)),
                    _ => format!("after </posts> comes <{}>, not another <posts>", tag_name(text)),
                };
                let remedy = "give the dump's Posts.xml";
                return Ok(Err(BadInput::file(self.place(), problem, remedy)));
            }
        }
        Ok(Ok(()))
    }

    /// Returns the file, line and byte of the tag read last.
    fn place(&self) -> String {
        format!("{}:{} (byte {})", self.name, self.tags.line, self.tags.start)
    }
}

/// Returns the name of the tag with the content `text`, shortened to 40 characters for messages.
fn tag_name(text: &str) -> String {
    let rest = text.strip_prefix('/').unwrap_or(text);
    let name = rest.split([' ', '\t', '\r', '\n', '/']).next().unwrap_or_default();
    let name: String = name.chars().take(40).collect();
    if rest.len() == text.len() { name } else { format!("/{name}") }
}

/// Attributes that are read, those with numbers first.
const NAMES: [&str; 7] =
    ["PostTypeId", "Id", "ParentId", "Score", "AcceptedAnswerId", "Title", "Body"];
/// How many of [`NAMES`] have numbers.
const NUMBERS: usize = 5;

/// Parses the question or answer in the content of a `<row …>` tag, which begins at byte `offset` of the file. Returns
/// `None` for other kinds of posts.
fn parse_post(text: &str, offset: u64) -> std::result::Result<Option<Post>, String> {
    let mut fields: [Option<Cow<'_, str>>; NUMBERS] = Default::default();
    let (mut title, mut body) = (Span::default(), None);
    let content = text.strip_suffix('/').unwrap_or(text);
    for attribute in BytesStart::from_content(content, "row".len()).attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        let Some(name) = NAMES.iter().position(|name| *name == attribute.key.as_ref()) else {
            continue;
        };
        let fail = |e| format!("attribute {}: {e}", NAMES[name]);
        let raw: &str = &attribute.value;
        if let Some(field) = fields.get_mut(name) {
            *field = Some(unescape(raw).map_err(fail)?.into_owned().into());
            continue;
        }
        check_escapes(raw).map_err(fail)?;
        let at = raw.as_ptr().addr() - content.as_ptr().addr();
        let span = Span { start: offset + at as u64, len: raw.len() as u64 };
        match NAMES[name] {
            "Body" => body = Some(span),
            _ if raw.trim().is_empty() => {}
            _ => title = span,
        }
    }
    post(&fields, title, body)
}

/// Builds the post with these attributes. `fields` are in the order of [`NAMES`].
fn post(
    fields: &[Option<Cow<'_, str>>; NUMBERS],
    title: Span,
    body: Option<Span>,
) -> std::result::Result<Option<Post>, String> {
    let number = |field: usize| match &fields[field] {
        None => Err(format!("the attribute {} is missing", NAMES[field])),
        Some(text) => text
            .parse::<i64>()
            .map_err(|_| format!("the attribute {} is {text:?}, not an integer", NAMES[field])),
    };
    let kind = number(0)?;
    if kind != 1 && kind != 2 {
        return Ok(None);
    }
    let (id, score) = (number(1)?, number(3)?);
    let question = if kind == 1 { id } else { number(2)? };
    let accepted = match &fields[4] {
        Some(_) if kind == 1 => Some(number(4)?),
        _ => None,
    };
    let body = body.ok_or("the attribute Body is missing")?;
    Ok(Some(match kind {
        1 => Post::Question { id, accepted, title, body },
        _ => Post::Answer { id, question, score, body },
    }))
}

#[cfg(test)]
mod tests;
