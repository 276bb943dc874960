//! Splits XML into tags with their positions, and continues after broken ones.

use std::io::{self, BufRead};

use memchr::{memchr, memchr_iter, memchr2};

/// How a tag ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// With its `>`.
    Whole,
    /// With the `<` of the next tag.
    Cut,
    /// At the length limit. The rest of the tag is skipped as text.
    TooLong,
    /// There was no further tag before the end of the file.
    End,
}

/// Splits XML into tags and counts bytes and lines. After a broken tag it continues with the next one.
pub(super) struct Tags<R> {
    reader: R,
    /// Maximum length of a tag in bytes.
    pub(super) limit: u64,
    /// Number of bytes read so far.
    pub(super) offset: u64,
    /// Byte offset at which `tag` starts.
    pub(super) start: u64,
    /// Line on which `tag` starts, from 1.
    pub(super) line: u64,
    next_line: u64,
    /// Content of the tag between `<` and `>`.
    pub(super) tag: Vec<u8>,
    /// Line and byte offset of the first text before the tag that is neither white space nor a byte order mark.
    pub(super) stray: Option<(u64, u64)>,
}

impl<R: BufRead> Tags<R> {
    pub(super) fn new(reader: R, limit: u64) -> Self {
        Self {
            reader,
            limit,
            offset: 0,
            start: 0,
            line: 1,
            next_line: 1,
            tag: Vec::new(),
            stray: None,
        }
    }

    /// Reads up to the end of the next tag.
    pub(super) fn next_tag(&mut self) -> io::Result<Tag> {
        self.tag.clear();
        let found = self.skip_text()?;
        (self.start, self.line) = (self.offset - u64::from(found), self.next_line);
        if !found {
            return Ok(Tag::End);
        }
        let ended = self.read_tag()?;
        self.next_line += memchr_iter(b'\n', &self.tag).count() as u64;
        Ok(ended)
    }

    /// Skips the text up to and including the next `<`. Returns false if there is none.
    fn skip_text(&mut self) -> io::Result<bool> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let found = memchr(b'<', buffer);
            let text = buffer.get(..found.unwrap_or(buffer.len())).unwrap_or(buffer);
            // Each of several joined documents may begin with a byte order mark.
            let stray = |b: &u8| !b.is_ascii_whitespace() && !matches!(b, 0xef | 0xbb | 0xbf);
            if self.stray.is_none()
                && let Some(at) = text.iter().position(stray)
            {
                let lines = memchr_iter(b'\n', &text[..at]).count() as u64;
                self.stray = Some((self.next_line + lines, self.offset + at as u64));
            }
            self.next_line += memchr_iter(b'\n', text).count() as u64;
            let taken = text.len() + usize::from(found.is_some());
            self.reader.consume(taken);
            self.offset += taken as u64;
            if found.is_some() {
                return Ok(true);
            }
        }
    }

    /// Reads the content of the tag whose `<` was read last.
    fn read_tag(&mut self) -> io::Result<Tag> {
        let (mut quote, mut scanned) = (None, 0);
        loop {
            if self.tag.len() as u64 > self.limit {
                return Ok(Tag::TooLong);
            }
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(Tag::End);
            }
            let room = (self.limit as usize).saturating_add(1) - self.tag.len();
            let buffer = buffer.get(..room).unwrap_or(buffer);
            let Some(n) = memchr2(b'<', b'>', buffer) else {
                let n = buffer.len();
                self.tag.extend_from_slice(buffer);
                self.reader.consume(n);
                self.offset += n as u64;
                continue;
            };
            let (stop, comment) = (buffer[n], self.tag.first().or(buffer.first()) == Some(&b'!'));
            self.tag.extend_from_slice(&buffer[..n]);
            let cut = stop == b'<' && !comment;
            let taken = if cut { n } else { n + 1 };
            self.reader.consume(taken);
            self.offset += taken as u64;
            if cut {
                return Ok(Tag::Cut);
            }
            if stop == b'>' && self.is_closed(&mut quote, &mut scanned) {
                return Ok(Tag::Whole);
            }
            self.tag.push(stop);
        }
    }

    /// Returns whether a `>` after the content read so far ends the tag, which it does not inside quotes or a comment.
    /// `quote` and `scanned` keep the state of the scan for quotes between calls.
    fn is_closed(&self, quote: &mut Option<u8>, scanned: &mut usize) -> bool {
        if self.tag.starts_with(b"!--") {
            return self.tag.len() >= 5 && self.tag.ends_with(b"--");
        }
        if self.tag.starts_with(b"!") {
            // A document type may contain declarations in brackets.
            let subset = memchr(b'[', &self.tag).is_some();
            return !subset || self.tag.trim_ascii_end().ends_with(b"]");
        }
        if self.tag.starts_with(b"?") {
            return true;
        }
        while *scanned < self.tag.len() {
            let rest = &self.tag[*scanned..];
            let next = match *quote {
                Some(open) => memchr(open, rest),
                None => memchr2(b'"', b'\'', rest),
            };
            let Some(n) = next else {
                *scanned = self.tag.len();
                break;
            };
            *quote = if quote.is_some() { None } else { Some(rest[n]) };
            *scanned += n + 1;
        }
        quote.is_none()
    }
}
