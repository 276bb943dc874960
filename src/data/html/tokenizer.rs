//! Splits HTML into text, tags and other markup, exactly as CPython 3.11.7's `html.parser` does.
//!
//! HTML parsers disagree on broken markup, and the original data went through this one. Its behavior was determined from
//! the documentation of that version and by running it. `tests/fixtures/html` contains its results for 600 random
//! fragments, and a script that makes more; among 100,000 of them no difference was found.

mod references;
mod start_tags;

use std::collections::HashSet;

use memchr::{memchr, memchr2, memmem};

use super::search::{Next, Stops};

/// Receives the tokens of a tokenizer.
pub(super) trait Sink {
    /// Handles text or a piece of it, which may be empty.
    fn text(&mut self, text: &str);
    /// Handles `<name …>` or `<name … />`.
    fn start_tag(&mut self, tag: StartTag<'_>);
    /// Handles `</name>`.
    fn end_tag(&mut self, name: &str);
    /// Handles `<![CDATA[text]]>`.
    fn cdata(&mut self, text: &str);
    /// Handles a comment, doctype, declaration or processing instruction.
    fn hidden(&mut self);
    /// Returns whether a tag of this name is a tag. If not, it is treated as text.
    fn is_element(&self, _name: &str) -> bool {
        true
    }
}

/// A start tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartTag<'a> {
    pub(super) name: &'a str,
    /// Text between the name and the end of the tag.
    pub(super) attributes: &'a str,
    /// Whether the tag ends with `/>`.
    pub(super) self_closing: bool,
    /// Text after the tag.
    pub(super) rest: &'a str,
}

/// Error for markup that `html.parser` rejects, such as `<![x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RejectedMarkup {
    /// Byte offset of the rejected declaration.
    pub offset: usize,
}

/// How malformed markup is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Like CPython with `convert_charrefs=False`: each reference is decoded on its own, and everything after a malformed
    /// one is plain text.
    Cpython,
    /// Character references in text are not decoded, and malformed markup is text from its `<` on, so that none is lost.
    Forgiving,
}

/// Result of handling a `<…` construct.
enum Markup {
    /// The construct was handled and ends before this byte.
    Until(usize),
    /// The text ends within the construct.
    Incomplete,
}

/// Whether the main loop continues.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Break,
}

/// Splits HTML into tokens.
pub(super) struct Tokenizer<'a, S> {
    raw: &'a str,
    /// Position of the next byte to handle.
    at: usize,
    dialect: Dialect,
    /// The element `script` or `style` whose content is being read, in which only its end tag is recognized.
    raw_text_element: Option<&'static str>,
    sink: &'a mut S,
    // The following fields cache searches, so that the text after an unclosed construct is searched only once.
    /// The next byte that ends a tag's name.
    next_name_end: Next,
    /// The next `>`.
    next_gt: Next,
    /// The `--` that ends the next comment.
    next_comment_end: Next,
    /// The first `]` of the end of the next marked section, for ends with one and with two brackets.
    next_section_end: [Next; 2],
    /// Positions of attributes in start tags that do not end before the end of the text.
    endless: HashSet<usize>,
    /// Positions at which parts of attributes end. Computed at the first start tag that does not end.
    stops: Option<Stops>,
}

impl<'a, S: Sink> Tokenizer<'a, S> {
    /// Passes every token of `raw` to `sink`.
    ///
    /// # Errors
    /// CPython's parser rejects the markup.
    pub(super) fn run(
        raw: &'a str,
        dialect: Dialect,
        sink: &'a mut S,
    ) -> Result<(), RejectedMarkup> {
        let (at, raw_text_element) = (0, None);
        let mut tokenizer = Self {
            raw,
            at,
            dialect,
            raw_text_element,
            sink,
            next_name_end: Next::default(),
            next_gt: Next::default(),
            next_comment_end: Next::default(),
            next_section_end: Default::default(),
            endless: HashSet::new(),
            stops: None,
        };
        // Like CPython's feed() followed by close(): the second call resumes where the first stopped.
        tokenizer.go_ahead(false)?;
        tokenizer.go_ahead(true)
    }

    /// Handles tokens until the text is used up or, unless `end` is set, a construct is incomplete. Named after CPython's
    /// `goahead`.
    fn go_ahead(&mut self, end: bool) -> Result<(), RejectedMarkup> {
        while self.at < self.raw.len() {
            let Some(next) = self.next_interesting() else {
                break;
            };
            if self.at < next {
                self.sink.text(&self.raw[self.at..next]);
                self.at = next;
            }
            let flow = match (self.byte(next), self.byte(next + 1)) {
                (None, _) => Flow::Break,
                (Some(b'<'), _) => self.markup(end)?,
                (_, Some(b'#')) => self.numeric_reference(end),
                _ => self.named_reference(end),
            };
            if flow == Flow::Break {
                break;
            }
        }
        if end && self.at < self.raw.len() && self.raw_text_element.is_none() {
            self.sink.text(&self.raw[self.at..]);
            self.at = self.raw.len();
        }
        Ok(())
    }

    /// Returns the position of the next `<` or `&` or, in raw text, of its end tag. Returns the end of the text if there is
    /// none, but `None` in raw text.
    fn next_interesting(&self) -> Option<usize> {
        let bytes = &self.raw.as_bytes()[self.at..];
        match (self.raw_text_element, self.dialect) {
            (Some(element), _) => self.find_raw_text_end(element),
            (None, Dialect::Cpython) => memchr2(b'<', b'&', bytes).map(|n| self.at + n),
            (None, Dialect::Forgiving) => memchr(b'<', bytes).map(|n| self.at + n),
        }
        .or(self.raw_text_element.is_none().then_some(self.raw.len()))
    }

    /// Returns the position of the end tag of a raw text element.
    fn find_raw_text_end(&self, element: &str) -> Option<usize> {
        memmem::find_iter(&self.raw.as_bytes()[self.at..], b"</").map(|n| self.at + n).find(|&at| {
            let name = self.skip_spaces(at + 2);
            let end = name + element.len();
            let same = |found: &[u8]| found.eq_ignore_ascii_case(element.as_bytes());
            self.raw.as_bytes().get(name..end).is_some_and(same)
                && self.byte(self.skip_spaces(end)) == Some(b'>')
        })
    }

    /// Handles the construct that begins with the `<` at the current position.
    fn markup(&mut self, end: bool) -> Result<Flow, RejectedMarkup> {
        let i = self.at;
        let outcome = match (self.byte(i + 1), self.byte(i + 2)) {
            (Some(b), _) if b.is_ascii_alphabetic() => self.start_tag(i),
            (Some(b'/'), _) => self.end_tag(i),
            (Some(b'!'), _) if self.raw[i..].starts_with("<!--") => self.comment(i),
            (Some(b'?'), _) => self.hidden_until_gt(i + 2),
            (Some(b'!'), Some(b'[')) => self.marked_section(i)?,
            (Some(b'!'), _) => self.declaration(i),
            (Some(_), _) => {
                self.sink.text("<");
                Markup::Until(i + 1)
            }
            (None, _) => return Ok(Flow::Break),
        };
        let next = match outcome {
            Markup::Until(next) => next,
            Markup::Incomplete if !end => return Ok(Flow::Break),
            Markup::Incomplete => {
                let next = self.after_incomplete(i);
                self.sink.text(&self.raw[i..next]);
                next
            }
        };
        self.at = next;
        Ok(Flow::Continue)
    }

    /// Returns the end of the part of an incomplete construct at `i` that becomes text.
    fn after_incomplete(&mut self, i: usize) -> usize {
        if self.dialect == Dialect::Forgiving {
            return i + 1;
        }
        if let Some(gt) = self.find_gt(i + 1) {
            return gt + 1;
        }
        let rest = &self.raw.as_bytes()[i + 1..];
        memchr(b'<', rest).map_or(i + 1, |n| i + 1 + n)
    }

    /// Returns the position of the next `>` at or after `from`.
    fn find_gt(&mut self, from: usize) -> Option<usize> {
        let bytes = self.raw.as_bytes();
        self.next_gt.find(from, || memchr(b'>', &bytes[from..]).map(|n| from + n))
    }

    /// Handles the end tag at `i`.
    fn end_tag(&mut self, i: usize) -> Markup {
        let Some(gt) = self.find_gt(i + 1) else {
            return Markup::Incomplete;
        };
        if let Some(name) = self.plain_end_tag(i + 2, gt) {
            if self.raw_text_element.is_some_and(|element| !element.eq_ignore_ascii_case(name)) {
                self.sink.text(&self.raw[i..=gt]);
                return Markup::Until(gt + 1);
            }
            if self.sink.is_element(name) {
                self.sink.end_tag(name);
            } else {
                self.sink.text(&self.raw[i..=gt]);
            }
            self.raw_text_element = None;
            return Markup::Until(gt + 1);
        }
        if self.raw_text_element.is_some() {
            self.sink.text(&self.raw[i..=gt]);
            return Markup::Until(gt + 1);
        }
        match self.byte(i + 2) {
            Some(b) if b.is_ascii_alphabetic() => {
                let name_end = self.name_end(i + 2);
                self.sink.end_tag(&self.raw[i + 2..name_end]);
            }
            Some(b'>') => {}
            _ => self.sink.hidden(),
        }
        Markup::Until(gt + 1)
    }

    /// Returns the name of an end tag if there are only spaces around it between `at` and the `>` at `gt`.
    fn plain_end_tag(&self, at: usize, gt: usize) -> Option<&'a str> {
        let inside = self.raw.get(at..gt)?.trim_matches(is_space);
        let more = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
        let plain = inside.bytes().next()?.is_ascii_alphabetic() && inside.bytes().all(more);
        plain.then_some(inside)
    }

    /// Handles the comment `<!-- … -- >` at `i`.
    fn comment(&mut self, i: usize) -> Markup {
        let (start, bytes) = (i + 4, self.raw.as_bytes());
        let mut next_end = std::mem::take(&mut self.next_comment_end);
        let dashes = next_end.find(start, || {
            let mut from = start;
            while let Some(n) = memmem::find(&bytes[from..], b"--") {
                if self.byte(self.skip_spaces(from + n + 2)) == Some(b'>') {
                    return Some(from + n);
                }
                from += n + 1;
            }
            None
        });
        self.next_comment_end = next_end;
        let Some(dashes) = dashes else {
            return Markup::Incomplete;
        };
        self.sink.hidden();
        Markup::Until(self.skip_spaces(dashes + 2) + 1)
    }

    /// Handles a construct that ends with the next `>` and is not shown.
    fn hidden_until_gt(&mut self, from: usize) -> Markup {
        match self.find_gt(from) {
            Some(gt) => {
                self.sink.hidden();
                Markup::Until(gt + 1)
            }
            None => Markup::Incomplete,
        }
    }

    /// Handles `<!doctype …>` or another `<!…>`, which is a comment.
    fn declaration(&mut self, i: usize) -> Markup {
        let doctype = self.raw.as_bytes().get(i + 2..i + 9);
        let doctype = doctype.is_some_and(|found| found.eq_ignore_ascii_case(b"doctype"));
        self.hidden_until_gt(if doctype { i + 9 } else { i + 2 })
    }

    /// Handles `<![CDATA[ … ]]>` and other marked sections.
    fn marked_section(&mut self, i: usize) -> Result<Markup, RejectedMarkup> {
        let start = i + 3;
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let rejected = Err(RejectedMarkup { offset: i });
        match self.byte(start) {
            None => return Ok(Markup::Incomplete),
            Some(b) if !b.is_ascii_alphabetic() => return rejected,
            Some(_) => {}
        }
        let name_end = self.skip_while(start, word);
        if self.skip_spaces(name_end) == self.raw.len() {
            return Ok(Markup::Incomplete);
        }
        let brackets = match self.raw[start..name_end].to_ascii_lowercase().as_str() {
            "temp" | "cdata" | "ignore" | "include" | "rcdata" => 2,
            "if" | "else" | "endif" => 1,
            _ => return rejected,
        };
        let Some((close, end)) = self.find_section_end(start, brackets) else {
            return Ok(Markup::Incomplete);
        };
        let content = &self.raw[start..close];
        match content.as_bytes().get(..6) {
            Some(head) if head.eq_ignore_ascii_case(b"CDATA[") => self.sink.cdata(&content[6..]),
            _ => self.sink.hidden(),
        }
        Ok(Markup::Until(end))
    }

    /// Returns the start and the end of the first `]>` (or `]]>` if `brackets` is 2) at or after `from`. Spaces are allowed
    /// between its characters.
    fn find_section_end(&mut self, from: usize, brackets: usize) -> Option<(usize, usize)> {
        let bytes = self.raw.as_bytes();
        let mut all_next = std::mem::take(&mut self.next_section_end);
        let next = &mut all_next[usize::from(brackets > 1)];
        let close = next.find(from, || {
            let mut closes = memchr::memchr_iter(b']', &bytes[from..]).map(|n| from + n);
            closes.find(|close| self.section_end(*close, brackets).is_some())
        });
        self.next_section_end = all_next;
        close.and_then(|close| Some((close, self.section_end(close, brackets)?)))
    }

    /// Returns the end of the marked section whose end begins with the `]` at `close`, if it does.
    fn section_end(&self, close: usize, brackets: usize) -> Option<usize> {
        let mut at = self.skip_spaces(close + 1);
        for _ in 1..brackets {
            at = (self.byte(at) == Some(b']')).then(|| self.skip_spaces(at + 1))?;
        }
        (self.byte(at) == Some(b'>')).then_some(at + 1)
    }

    /// Returns the byte at `at`, or `None` at the end of the text.
    fn byte(&self, at: usize) -> Option<u8> {
        self.raw.as_bytes().get(at).copied()
    }

    /// Returns the position after the `wanted` characters at `at`.
    fn skip_while(&self, at: usize, wanted: impl Fn(char) -> bool) -> usize {
        let rest = &self.raw[at..];
        at + rest.find(|c| !wanted(c)).unwrap_or(rest.len())
    }

    /// Returns the position after the white space at `at`.
    fn skip_spaces(&self, at: usize) -> usize {
        self.skip_while(at, is_space)
    }
}

/// Returns whether Python's `\s` matches the character: Unicode's white space and the four information separators.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r' | '\u{1c}'..='\u{1f}') || (c > '\u{7f}' && c.is_whitespace())
}
