//! Rows of a `Posts.xml` of which ids and scores are known, and the texts still lie in the file: most rows become no
//! pair, and no pair needs more than two answers.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use quick_xml::XmlVersion;
use quick_xml::events::attributes::Attribute;
use quick_xml::name::QName;

use super::{Answer, Row};
use crate::error::{Error, Result};

/// Where in the file a text lies, escaped as an XML attribute's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// First byte.
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// A `Posts.xml` that texts are fetched from.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// A row whose texts are still to be fetched.
#[derive(Debug)]
pub struct UnreadRow {
    row: Row,
    question: Span,
    answers: Vec<Span>,
    texts: Arc<Texts>,
}

impl UnreadRow {
    pub(super) fn new(
        qid: i64,
        question: Span,
        answers: Vec<(Answer, Span)>,
        texts: Arc<Texts>,
    ) -> Self {
        let (known, spans) = answers.into_iter().unzip();
        Self {
            row: Row {
                qid: qid.to_string(),
                question: String::new(),
                answers: known,
            },
            question,
            answers: spans,
            texts,
        }
    }

    /// The row as far as it is known: id and scores, and the texts fetched.
    pub fn row(&self) -> &Row {
        &self.row
    }

    /// The row as far as it is known.
    pub fn into_row(self) -> Row {
        self.row
    }

    /// Fetches the texts of the question and of the answers `wanted`, by their indices.
    ///
    /// # Errors
    /// The file cannot be read, or changed since its posts were found.
    pub fn fetch(&mut self, wanted: &[usize]) -> Result<()> {
        self.row.question = self.texts.text(self.question)?;
        for &index in wanted {
            if let (Some(answer), Some(&span)) =
                (self.row.answers.get_mut(index), self.answers.get(index))
            {
                answer.text = self.texts.text(span)?;
            }
        }
        Ok(())
    }

    /// Bytes of all its texts.
    pub(super) fn len(&self) -> usize {
        let answers: u64 = self.answers.iter().map(|span| span.len).sum();
        (self.question.len + answers) as usize
    }
}

impl Texts {
    fn text(&self, span: Span) -> Result<String> {
        let mut bytes = vec![0; span.len as usize];
        read_exact_at(&self.file, &mut bytes, span.start)
            .map_err(|e| Error::io(&self.path, "read", e))?;
        let raw = String::from_utf8(bytes).map_err(|_| self.changed())?;
        match unescape(&raw).map_err(|_| self.changed())? {
            Cow::Borrowed(_) => Ok(raw),
            Cow::Owned(text) => Ok(text),
        }
    }

    fn changed(&self) -> Error {
        let problem = "changed while being read";
        Error::file(
            &self.path,
            problem,
            "run again when nothing writes to the file",
        )
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut start: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, start) = (&mut bytes[n..], start + n as u64),
        }
    }
    Ok(())
}

/// An attribute's value as XML defines it: entities resolved, other white space than `' '` made one.
pub(super) fn unescape(raw: &str) -> std::result::Result<Cow<'_, str>, quick_xml::Error> {
    if memchr::memchr3(b'\n', b'\r', b'\t', raw.as_bytes()).is_some() {
        return unescape_any(raw);
    }
    let mut text = String::new();
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'&', rest.as_bytes()) {
        let (before, entity) = rest.split_at(at);
        let Some((length, character)) = usual_entity(entity.as_bytes()) else {
            return unescape_any(raw);
        };
        if text.capacity() == 0 {
            text.reserve(raw.len());
        }
        text.push_str(before);
        text.push(character);
        rest = &entity[length..];
    }
    if text.is_empty() {
        return Ok(Cow::Borrowed(rest));
    }
    text.push_str(rest);
    Ok(Cow::Owned(text))
}

/// Whether [`unescape`] succeeds on `raw`, and if not, why.
pub(super) fn check_escapes(raw: &str) -> std::result::Result<(), quick_xml::Error> {
    let bytes = raw.as_bytes();
    let usual = |at| bytes.get(at..).and_then(usual_entity).is_some();
    if memchr::memchr_iter(b'&', bytes).all(usual) {
        return Ok(());
    }
    unescape_any(raw).map(drop)
}

fn unescape_any(raw: &str) -> std::result::Result<Cow<'_, str>, quick_xml::Error> {
    let attribute = Attribute {
        key: QName("Body"),
        value: Cow::Borrowed(raw),
    };
    attribute.normalized_value(XmlVersion::Implicit1_0)
}

/// The entity that `bytes` begin with, if it is one that the dump is written with: its length and what it stands for.
fn usual_entity(bytes: &[u8]) -> Option<(usize, char)> {
    const USUAL: [(&[u8], char); 7] = [
        (b"&lt;", '<'),
        (b"&gt;", '>'),
        (b"&amp;", '&'),
        (b"&quot;", '"'),
        (b"&#xA;", '\n'),
        (b"&#xD;", '\r'),
        (b"&#x9;", '\t'),
    ];
    let found = USUAL.iter().find(|(entity, _)| bytes.starts_with(entity));
    found.map(|(entity, character)| (entity.len(), *character))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the XML library makes of a text is what the short cut makes of it, errors included.
    #[test]
    fn the_short_cut_is_no_other_way() {
        for raw in [
            "",
            "plain",
            "&lt;p&gt;a &amp;lt; b&quot;&#xA;&#xD;&#x9;é&lt;/p&gt;",
            "&lt;a&#38;b&#x26;&apos;&#10;",
            "&lt;a\tb\r\nc\nd&gt;",
            "&lt;&no;",
            "&lt",
            "& lt;",
            "a&",
        ] {
            let whole = unescape_any(raw).map_err(|e| e.to_string());
            assert_eq!(unescape(raw).map_err(|e| e.to_string()), whole, "{raw}");
            let checked = check_escapes(raw).map_err(|e| e.to_string());
            assert_eq!(checked, whole.map(drop), "{raw}");
        }
    }
}
