//! Splits XML into tags, with their positions, and gets over broken ones.

use std::io::{self, BufRead};

use memchr::memchr2;

/// What ended a tag.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// Its `>`.
    Whole,
    /// The `<` of the next one.
    Cut,
    /// There is none: the end of the file.
    End,
}

/// Splits XML into tags, keeping count of bytes and lines. After a broken tag it goes on with the next.
pub(super) struct Tags<R> {
    reader: R,
    /// Bytes read so far.
    pub(super) offset: u64,
    /// Where the tag in `tag` starts: its byte offset, and its line counted from 1.
    pub(super) start: u64,
    pub(super) line: u64,
    next_line: u64,
    /// What stands between `<` and `>`.
    pub(super) tag: Vec<u8>,
}

impl<R: BufRead> Tags<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, offset: 0, start: 0, line: 1, next_line: 1, tag: Vec::new() }
    }

    /// Reads on to the end of the next tag.
    pub(super) fn next_tag(&mut self) -> io::Result<Tag> {
        self.tag.clear();
        self.offset += self.reader.read_until(b'<', &mut self.tag)? as u64;
        self.count_lines();
        let found = self.tag.last() == Some(&b'<');
        (self.start, self.line) = (self.offset - u64::from(found), self.next_line);
        self.tag.clear();
        if !found {
            return Ok(Tag::End);
        }
        let (mut quote, mut scanned) = (None, 0);
        let ended = loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                break Tag::End;
            }
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
                break Tag::Cut;
            }
            if stop == b'>' && self.is_closed(&mut quote, &mut scanned) {
                break Tag::Whole;
            }
            self.tag.push(stop);
        };
        self.count_lines();
        Ok(ended)
    }

    fn count_lines(&mut self) {
        self.next_line += memchr::memchr_iter(b'\n', &self.tag).count() as u64;
    }

    /// Whether a `>` behind what was read so far ends the tag: not inside quotes or a comment.
    fn is_closed(&self, quote: &mut Option<u8>, scanned: &mut usize) -> bool {
        if self.tag.starts_with(b"!--") {
            return self.tag.len() >= 5 && self.tag.ends_with(b"--");
        }
        if self.tag.starts_with(b"!") || self.tag.starts_with(b"?") {
            return true;
        }
        while *scanned < self.tag.len() {
            let rest = &self.tag[*scanned..];
            let next = match *quote {
                Some(open) => memchr::memchr(open, rest),
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
