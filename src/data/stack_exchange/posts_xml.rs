//! Rows from the official data dump's `Posts.xml`: one `<row …/>` a post, questions and answers mixed.
//!
//! An answer may come long before or after its question, so the file is read twice. The first time, ids, scores and
//! where each text lies are spread over temporary files by question (`spill`, 56 bytes a post), which are then joined,
//! eight at once: memory holds the posts, not the texts, of 128 MiB of input, of a 64th of the file where that is more.
//! The second time, questions come out in the file's order, and the texts that a pair is made of are fetched (`unread`),
//! by whoever judges the row. Most answers follow soon after their question, so that reads move through the file in order.
//!
//! The dump has no upvotes, only `Score` (upvotes minus downvotes), which stands in for them: the vote score is
//! `round(log2(1 + Score))`, one more for the accepted answer, and -1 where `Score` is negative.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use quick_xml::events::BytesStart;

use super::spill::{Post, Spill};
use super::unread::{Span, Texts, check_escapes, unescape};
use super::xml_tags::{Tag, Tags};
use super::{BadInput, Meter, PostKind, Record, Records};
use crate::error::{Error, Result};

const WHOLE_FILE: &str = "get the file again, or pass --skip-bad-rows to use what can be read";

/// Opens the `Posts.xml` at `path`; scratch files go to the folder `temporary` and vanish with the reader.
///
/// # Errors
/// The file cannot be opened, or the scratch files not made.
pub fn open(path: &Path, temporary: &Path, meter: Meter) -> Result<Records> {
    let open = |e| Error::io(path, "open", e);
    let mut file = File::open(path).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        file = copied(file, temporary)?;
    }
    let length = file.metadata().map_err(open)?.len();
    let mut texts = Some(Texts { file: file.try_clone().map_err(open)?, path: path.to_path_buf() });
    let spill = Spill::new(length, temporary)?;
    let tags = Tags::new(BufReader::with_capacity(1 << 18, file));
    let name = path.display().to_string();
    let mut scan = Some(Scan { tags, spill, name, meter: meter.clone(), depth: Depth::Before });
    let mut rows: Option<Records> = None;
    Ok(Box::new(std::iter::from_fn(move || {
        if let Some(reading) = &mut scan {
            match reading.next_bad() {
                Ok(Some(bad)) => return Some(Record::Bad(bad)),
                Ok(None) => {}
                Err(error) => {
                    scan = None;
                    return Some(Record::Failed(error));
                }
            }
        }
        if let (Some(done), Some(texts)) = (scan.take(), texts.take()) {
            match done.spill.into_rows(&meter, texts) {
                Ok(records) => rows = Some(records),
                Err(error) => return Some(Record::Failed(error)),
            }
        }
        rows.as_mut()?.next()
    })))
}

/// What comes through a pipe, as a temporary file: it is read twice.
fn copied(mut from: File, temporary: &Path) -> Result<File> {
    let fail = |e| Error::io(temporary, "write a temporary file", e);
    let mut file = tempfile::tempfile_in(temporary).map_err(fail)?;
    std::io::copy(&mut from, &mut file).map_err(fail)?;
    file.rewind().map_err(fail)?;
    Ok(file)
}

/// Where in the document the scan is.
#[derive(PartialEq, Eq)]
enum Depth {
    Before,
    Inside,
    After,
}

struct Scan<R> {
    tags: Tags<R>,
    spill: Spill,
    name: String,
    meter: Meter,
    depth: Depth,
}

impl<R: BufRead> Scan<R> {
    /// Spills posts up to the next thing that cannot be read; `None` at the end of the document.
    fn next_bad(&mut self) -> Result<Option<BadInput>> {
        loop {
            if self.meter.must_stop() {
                return Err(Error::Interrupted { note: "nothing was written".into() });
            }
            if self.depth == Depth::After {
                return Ok(None);
            }
            let before = self.tags.offset;
            let tag = self.tags.next_tag();
            self.meter.consumed(self.tags.offset - before);
            match tag {
                Ok(Tag::Whole) => {}
                Ok(Tag::Cut) => {
                    let problem = "a tag is not closed before the next one begins";
                    return Ok(Some(BadInput::row(self.place(), problem)));
                }
                Ok(Tag::End) => {
                    self.depth = Depth::After;
                    let problem = "the file ends before </posts>: it was cut short";
                    return Ok(Some(BadInput::file(self.place(), problem, WHOLE_FILE)));
                }
                Err(e) => {
                    self.depth = Depth::After;
                    return Ok(Some(BadInput::file(self.place(), e, WHOLE_FILE)));
                }
            }
            if let Err(bad) = self.whole_tag()? {
                return Ok(Some(bad));
            }
        }
    }

    /// Handles the tag just read.
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
        match (name, &self.depth) {
            _ if text.starts_with(['?', '!']) => {}
            ("posts", Depth::Before) => self.depth = Depth::Inside,
            ("row", Depth::Inside) => match parse_post(text, self.tags.start + 1) {
                Ok(post) => {
                    self.meter.count_post(post.as_ref().map_or(PostKind::Other, Post::kind));
                    post.map_or(Ok(()), |post| self.spill.push(&post))?;
                }
                Err(problem) => return Ok(Err(BadInput::row(self.place(), problem))),
            },
            ("", Depth::Inside) if text.trim_end() == "/posts" => self.depth = Depth::After,
            ("", Depth::Inside) if text.trim_end() == "/row" => {}
            (_, Depth::Inside) => {
                let problem = format!("unexpected tag <{name}>");
                return Ok(Err(BadInput::row(self.place(), problem)));
            }
            _ => {
                self.depth = Depth::After;
                let problem = format!("begins with <{name}>, not <posts>");
                let remedy = "give the dump's Posts.xml";
                return Ok(Err(BadInput::file(self.place(), problem, remedy)));
            }
        }
        if self.depth == Depth::Inside && name == "posts" && text.ends_with('/') {
            self.depth = Depth::After;
        }
        Ok(Ok(()))
    }

    fn place(&self) -> String {
        format!("{}:{} (byte {})", self.name, self.tags.line, self.tags.start)
    }
}

const NAMES: [&str; 6] = ["PostTypeId", "Id", "ParentId", "Score", "AcceptedAnswerId", "Body"];

/// The question or answer in a `<row …>` tag's text, which lies in the file from byte `offset` on; `None` for other
/// kinds of posts.
fn parse_post(text: &str, offset: u64) -> std::result::Result<Option<Post>, String> {
    let mut fields: [Option<Cow<'_, str>>; 5] = Default::default();
    let mut body = None;
    let content = text.strip_suffix('/').unwrap_or(text);
    for attribute in BytesStart::from_content(content, "row".len()).attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        let Some(name) = NAMES.iter().position(|name| *name == attribute.key.as_ref()) else {
            continue;
        };
        let fail = |e| format!("attribute {}: {e}", NAMES[name]);
        let raw: &str = &attribute.value;
        match fields.get_mut(name) {
            Some(field) => *field = Some(unescape(raw).map_err(fail)?.into_owned().into()),
            None => {
                check_escapes(raw).map_err(fail)?;
                let at = raw.as_ptr().addr() - content.as_ptr().addr();
                body = Some(Span { start: offset + at as u64, len: raw.len() as u64 });
            }
        }
    }
    post(&fields, body)
}

/// The post with these attributes, in the order of [`NAMES`].
fn post(
    fields: &[Option<Cow<'_, str>>; 5],
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
        1 => Post::Question { id, accepted, body },
        _ => Post::Answer { id, question, score, body },
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    fn read(xml: &[u8]) -> (Vec<Row>, Vec<BadInput>, Meter) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Posts.xml");
        std::fs::write(&path, xml).unwrap();
        let meter = Meter::default();
        let (mut rows, mut bad) = (Vec::new(), Vec::new());
        for record in open(&path, folder.path(), meter.clone()).unwrap() {
            match record {
                Record::Unread(mut row) => {
                    let all: Vec<_> = (0..row.row().answers.len()).collect();
                    row.fetch(&all).unwrap();
                    rows.push(row.into_row());
                }
                Record::Bad(mut input) => {
                    input.place = input.place.rsplit_once('/').unwrap().1.to_string();
                    bad.push(input);
                }
                other => panic!("{other:?}"),
            }
        }
        (rows, bad, meter)
    }

    const HEAD: &str = "\u{feff}<?xml version=\"1.0\"?>\n<!-- a > b < c -->\n<posts>\n";

    #[test]
    fn joins_answers_before_and_after_their_question() {
        let (rows, bad, meter) = read(
            format!(
                "{HEAD}<row Id='3' PostTypeId='2' ParentId='2' Score='3' Body='&lt;p&gt;early > one&#xA;' />\n\
                 <row Id=\"2\" PostTypeId=\"1\" AcceptedAnswerId=\"9\" Score=\"1\" Body=\"Q\"></row>\n\
                 <row Id=\"4\" PostTypeId=\"5\" />\n\
                 <row Id=\"9\" PostTypeId=\"2\" ParentId=\"2\" Score=\"0\" Body=\"late\" />\n\
                 <row Id=\"8\" PostTypeId=\"2\" ParentId=\"77\" Score=\"0\" Body=\"lost\" />\n</posts>\n"
            )
            .as_bytes(),
        );
        assert_eq!(bad, []);
        let answers: Vec<_> =
            rows[0].answers.iter().map(|a| (&*a.text, a.pm_score, a.selected)).collect();
        assert_eq!((rows.len(), &*rows[0].qid, &*rows[0].question), (1, "2", "Q"));
        assert_eq!(answers, [("<p>early > one\n", 2, false), ("late", 1, true)]);
        assert_eq!((meter.posts(PostKind::OrphanAnswer), meter.posts(PostKind::Other)), (1, 1));
    }

    #[test]
    fn a_bad_row_does_not_take_the_next_with_it() {
        let good = "<row Id=\"2\" PostTypeId=\"1\" Score=\"1\" Body=\"Q\" />\n";
        let mut xml = HEAD.to_string();
        xml += "<row Id=\"1\" PostTypeId=1 Score=\"1\" Body=\"Q\" />\n";
        xml += "<row Id=\"5 PostTypeId=\"1\" Score=\"1\" Body=\"Q\" />\n";
        xml += "<row Id=\"6\" PostTypeId=\"1\" Score=\"x\" Body=\"Q\" />\n";
        xml += "<row Id=\"7\" PostTypeId=\"1\" Score=\"1\" Body=\"&no;\" />\n";
        xml += good;
        let mut bytes = xml.into_bytes();
        bytes.extend(b"<row Id=\"8\" PostTypeId=\"1\" Score=\"1\" Body=\"\xff\" />");
        let (rows, bad, _) = read(&bytes);
        assert_eq!(rows.len(), 1);
        let places: Vec<_> = bad.iter().map(|b| b.place.split(' ').next().unwrap()).collect();
        let lines = [4, 5, 6, 7, 9, 9].map(|n| format!("Posts.xml:{n}"));
        assert_eq!(places, lines);
        assert!(bad[2].problem.contains("\"x\", not an integer"), "{}", bad[2].problem);
        assert!(bad[5].rest_of_file && bad[5].problem.contains("cut short"));
    }

    #[test]
    fn another_document_is_refused() {
        let (_, bad, _) = read(b"<?xml version=\"1.0\"?><comments></comments>");
        assert_eq!(bad[0].problem, "begins with <comments>, not <posts>");
    }
}
