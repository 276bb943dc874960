//! Rows whose ids and scores are known but whose texts are fetched only when needed. Most rows do not become a pair, and no
//! pair needs more than two answers.
//!
//! The thread that filters a row also allocates and frees its texts. If another thread freed them, the threads would wait
//! for each other in the allocator.

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

/// Byte range of a text in the file, where it is escaped as an XML attribute's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Offset of the first byte.
    pub(super) start: u64,
    /// Number of bytes.
    pub(super) len: u64,
}

/// A `Posts.xml` from which texts are fetched.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// A row whose texts are not fetched yet.
#[derive(Debug)]
pub struct UnreadRow {
    row: Row,
    texts: TextSource,
}

/// Where the texts of a row are.
#[derive(Debug)]
enum TextSource {
    /// In a `Posts.xml`.
    Posts(Arc<Texts>, RowTexts<Span>),
    /// In memory, in a decoded parquet page.
    Page(RowTexts<ByteArray>),
}

/// The texts of a row, or the location of each.
#[derive(Debug)]
pub(super) struct RowTexts<T> {
    /// `None` if the question has no title.
    pub(super) title: Option<T>,
    pub(super) question: T,
    /// One text per answer of the row, in the same order.
    pub(super) answers: Vec<T>,
}

impl UnreadRow {
    /// Creates a row of a `Posts.xml`. The texts of `answers` are empty until they are fetched.
    pub(super) fn in_posts(
        qid: i64,
        answers: Vec<Answer>,
        spans: RowTexts<Span>,
        texts: Arc<Texts>,
    ) -> Self {
        Self::new(qid.to_string(), answers, TextSource::Posts(texts, spans))
    }

    /// Creates a row whose texts are in memory, as parts of a larger allocation. They must be UTF-8.
    pub(super) fn in_page(qid: String, answers: Vec<Answer>, texts: RowTexts<ByteArray>) -> Self {
        Self::new(qid, answers, TextSource::Page(texts))
    }

    fn new(qid: String, answers: Vec<Answer>, texts: TextSource) -> Self {
        let row = Row { qid, answers, ..Row::default() };
        Self { row, texts }
    }

    /// Returns whether the question has a title.
    pub fn has_title(&self) -> bool {
        match &self.texts {
            TextSource::Posts(_, texts) => texts.title.is_some(),
            TextSource::Page(texts) => texts.title.is_some(),
        }
    }

    /// Returns the row with its id, its scores, and the texts fetched so far. Other texts are empty.
    pub fn row(&self) -> &Row {
        &self.row
    }

    /// Converts to the row with the texts fetched so far. Other texts are empty.
    pub fn into_row(self) -> Row {
        self.row
    }

    /// Fetches the title, the question, and the answers with the given indices.
    ///
    /// # Errors
    /// The file cannot be read, or changed since its posts were read.
    pub fn fetch(&mut self, answers: &[usize]) -> Result<()> {
        self.row.title = self.texts.title()?;
        self.row.question = self.texts.question()?;
        for &index in answers {
            if let Some(answer) = self.row.answers.get_mut(index) {
                answer.text = self.texts.answer(index)?;
            }
        }
        Ok(())
    }

    /// Returns the total number of bytes of all texts, as they are stored.
    pub(super) fn len(&self) -> usize {
        match &self.texts {
            TextSource::Posts(_, texts) => texts.total(|span| span.len as usize),
            TextSource::Page(texts) => texts.total(ByteArray::len),
        }
    }
}

impl<T> RowTexts<T> {
    /// Returns the sum of `length` over all texts.
    fn total(&self, length: impl Fn(&T) -> usize) -> usize {
        let texts = self.title.iter().chain([&self.question]);
        texts.chain(&self.answers).map(length).sum()
    }
}

impl TextSource {
    fn title(&self) -> Result<String> {
        match self {
            Self::Posts(file, texts) => file.optional(texts.title.as_ref()),
            Self::Page(texts) => Ok(texts.title.as_ref().map(text).unwrap_or_default()),
        }
    }

    fn question(&self) -> Result<String> {
        match self {
            Self::Posts(file, texts) => file.text(texts.question),
            Self::Page(texts) => Ok(text(&texts.question)),
        }
    }

    fn answer(&self, index: usize) -> Result<String> {
        match self {
            Self::Posts(file, texts) => file.optional(texts.answers.get(index)),
            Self::Page(texts) => Ok(texts.answers.get(index).map(text).unwrap_or_default()),
        }
    }
}

/// Copies a text that is known to be UTF-8.
fn text(bytes: &ByteArray) -> String {
    String::from_utf8_lossy(bytes.data()).into_owned()
}

impl Texts {
    fn optional(&self, span: Option<&Span>) -> Result<String> {
        span.map_or(Ok(String::new()), |span| self.text(*span))
    }

    /// Reads the text at `span` and decodes its XML escapes.
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

    /// Returns the error for a file that changed while it was read.
    fn changed(&self) -> Error {
        let problem = "changed while being read";
        Error::file(&self.path, problem, "run again when nothing writes to the file")
    }
}

/// Decodes an XML attribute's value: replaces entities, and replaces other white space by `' '`.
pub(super) fn unescape(raw: &str) -> std::result::Result<Cow<'_, str>, quick_xml::Error> {
    if memchr::memchr3(b'\n', b'\r', b'\t', raw.as_bytes()).is_some() {
        return unescape_any(raw);
    }
    let mut text = String::new();
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'&', rest.as_bytes()) {
        let (before, entity) = rest.split_at(at);
        let Some((length, character)) = common_entity(entity.as_bytes()) else {
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

/// Checks that [`unescape`] succeeds on `raw`.
///
/// # Errors
/// Same as [`unescape`].
pub(super) fn check_escapes(raw: &str) -> std::result::Result<(), quick_xml::Error> {
    let bytes = raw.as_bytes();
    let is_common = |at| bytes.get(at..).and_then(common_entity).is_some();
    if memchr::memchr_iter(b'&', bytes).all(is_common) {
        return Ok(());
    }
    unescape_any(raw).map(drop)
}

/// Decodes an XML attribute's value with the XML library, which is slower than [`unescape`] for common entities.
fn unescape_any(raw: &str) -> std::result::Result<Cow<'_, str>, quick_xml::Error> {
    let attribute = Attribute { key: QName("Body"), value: Cow::Borrowed(raw) };
    attribute.normalized_value(XmlVersion::Implicit1_0)
}

/// Returns the length and the character of the entity at the start of `bytes`, if it is one of those used in the dump.
fn common_entity(bytes: &[u8]) -> Option<(usize, char)> {
    const COMMON: [(&[u8], char); 7] = [
        (b"&lt;", '<'),
        (b"&gt;", '>'),
        (b"&amp;", '&'),
        (b"&quot;", '"'),
        (b"&#xA;", '\n'),
        (b"&#xD;", '\r'),
        (b"&#x9;", '\t'),
    ];
    let found = COMMON.iter().find(|(entity, _)| bytes.starts_with(entity));
    found.map(|(entity, character)| (entity.len(), *character))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fast path for common entities gives the same texts and errors as the XML library.
    #[test]
    fn the_fast_path_decodes_like_the_xml_library() {
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
