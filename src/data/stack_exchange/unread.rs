//! Rows of which ids and scores are known, and the texts are not yet taken from where they lie: most rows become no pair,
//! and no pair needs more than two answers. Texts made by the thread that judges a row are freed by it, too: freed by
//! another than made them, they have threads wait for each other.

use std::borrow::Cow;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::ByteArray;
use quick_xml::XmlVersion;
use quick_xml::events::attributes::Attribute;
use quick_xml::name::QName;

use super::{Answer, Row};
use crate::error::{Error, Result};
use crate::read_at::read_exact_at;

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
    texts: Place,
}

/// Where the texts of a row lie: the question's, and the answers' in their order.
#[derive(Debug)]
enum Place {
    Posts(Arc<Texts>, Span, Vec<Span>),
    Page(ByteArray, Vec<ByteArray>),
}

impl UnreadRow {
    /// A row of a `Posts.xml`.
    pub(super) fn in_posts(
        qid: i64,
        question: Span,
        answers: impl Iterator<Item = (Answer, Span)>,
        texts: Arc<Texts>,
    ) -> Self {
        let (answers, spans) = answers.unzip();
        Self::new(qid.to_string(), answers, Place::Posts(texts, question, spans))
    }

    /// A row whose texts are in memory, as part of something larger; they are UTF-8.
    pub(super) fn in_page(
        qid: String,
        question: ByteArray,
        answers: Vec<(Answer, ByteArray)>,
    ) -> Self {
        let (answers, texts) = answers.into_iter().unzip();
        Self::new(qid, answers, Place::Page(question, texts))
    }

    fn new(qid: String, answers: Vec<Answer>, texts: Place) -> Self {
        let question = String::new();
        Self { row: Row { qid, question, answers }, texts }
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
        self.row.question = self.texts.question()?;
        for &index in wanted {
            if let Some(answer) = self.row.answers.get_mut(index) {
                answer.text = self.texts.answer(index)?;
            }
        }
        Ok(())
    }

    /// Bytes of all its texts.
    pub(super) fn len(&self) -> usize {
        match &self.texts {
            Place::Posts(_, question, answers) => {
                (question.len + answers.iter().map(|span| span.len).sum::<u64>()) as usize
            }
            Place::Page(question, answers) => {
                question.len() + answers.iter().map(ByteArray::len).sum::<usize>()
            }
        }
    }
}

impl Place {
    fn question(&self) -> Result<String> {
        match self {
            Self::Posts(texts, question, _) => texts.text(*question),
            Self::Page(question, _) => Ok(text(question)),
        }
    }

    fn answer(&self, index: usize) -> Result<String> {
        match self {
            Self::Posts(texts, _, answers) => {
                answers.get(index).map_or(Ok(String::new()), |span| texts.text(*span))
            }
            Self::Page(_, answers) => Ok(answers.get(index).map(text).unwrap_or_default()),
        }
    }
}

/// A text that is known to be UTF-8.
fn text(bytes: &ByteArray) -> String {
    String::from_utf8_lossy(bytes.data()).into_owned()
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
        Error::file(&self.path, problem, "run again when nothing writes to the file")
    }
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
    let attribute = Attribute { key: QName("Body"), value: Cow::Borrowed(raw) };
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
