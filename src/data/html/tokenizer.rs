//! Splits HTML into text, tags and the rest, exactly as CPython 3.11.7's `html.parser` does.
//!
//! Broken markup is where HTML parsers disagree, and the original data went through this one. The behaviour was
//! taken down from that version's documentation and from running it; `tests/fixtures/html` holds what it says
//! of 600 random fragments, and its script makes more: among 100 000 of them no difference was found.

use memchr::{memchr, memchr2, memmem};

use super::entities;

/// Where the tokenizer hands its tokens to.
pub(super) trait Sink {
    /// Text, or a piece of it; may be empty.
    fn text(&mut self, text: &str);
    /// `<name …>`, or `<name … />`.
    fn start_tag(&mut self, name: &str, self_closing: bool);
    /// `</name>`.
    fn end_tag(&mut self, name: &str);
    /// `<![CDATA[text]]>`.
    fn cdata(&mut self, text: &str);
    /// A comment, doctype, declaration or processing instruction.
    fn hidden(&mut self);
    /// Whether a tag of this name is a tag at all; if not, it is text.
    fn is_element(&self, _name: &str) -> bool {
        true
    }
}

/// Markup on which `html.parser` gives up, such as `<![x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RejectedMarkup {
    /// Byte offset of the declaration it gave up on.
    pub offset: usize,
}

/// How faithful to be where `html.parser` loses text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// As CPython with `convert_charrefs=False`: each reference decoded on its own, and everything after a
    /// malformed one is plain text.
    Cpython,
    /// Text runs are handed over undecoded; what does not parse is text from its `<` on.
    Forgiving,
}

/// What became of a `<…` construct.
enum Markup {
    /// It was handled and ends before this byte.
    Until(usize),
    /// The text ends within it.
    Incomplete,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Break,
}

pub(super) struct Tokenizer<'a, S> {
    raw: &'a str,
    at: usize,
    dialect: Dialect,
    /// Inside `<script>` or `<style>`: only its end tag counts.
    raw_text_element: Option<&'static str>,
    sink: &'a mut S,
}

impl<'a, S: Sink> Tokenizer<'a, S> {
    /// Hands every token of `raw` to `sink`.
    pub(super) fn run(
        raw: &'a str,
        dialect: Dialect,
        sink: &'a mut S,
    ) -> Result<(), RejectedMarkup> {
        let (at, raw_text_element) = (0, None);
        let mut tokenizer = Self { raw, at, dialect, raw_text_element, sink };
        // CPython's feed(), then close(): the second pass resumes where the first stopped.
        tokenizer.go_ahead(false)?;
        tokenizer.go_ahead(true)
    }

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

    /// Where the next `<`, `&` or, in raw text, the end tag stands; the end of the text if nowhere.
    /// `None` in raw text that never ends.
    fn next_interesting(&self) -> Option<usize> {
        let bytes = &self.raw.as_bytes()[self.at..];
        match (self.raw_text_element, self.dialect) {
            (Some(element), _) => self.find_raw_text_end(element),
            (None, Dialect::Cpython) => memchr2(b'<', b'&', bytes).map(|n| self.at + n),
            (None, Dialect::Forgiving) => memchr(b'<', bytes).map(|n| self.at + n),
        }
        .or(self.raw_text_element.is_none().then_some(self.raw.len()))
    }

    fn find_raw_text_end(&self, element: &str) -> Option<usize> {
        memmem::find_iter(&self.raw.as_bytes()[self.at..], b"</").map(|n| self.at + n).find(|&at| {
            let name = self.skip_spaces(at + 2);
            let end = name + element.len();
            let same = |found: &[u8]| found.eq_ignore_ascii_case(element.as_bytes());
            self.raw.as_bytes().get(name..end).is_some_and(same)
                && self.byte(self.skip_spaces(end)) == Some(b'>')
        })
    }

    /// At a `<`.
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

    /// How much of an unfinished construct at `i` becomes text.
    fn after_incomplete(&self, i: usize) -> usize {
        if self.dialect == Dialect::Forgiving {
            return i + 1;
        }
        let rest = &self.raw.as_bytes()[i + 1..];
        let to_gt = memchr(b'>', rest).map(|n| i + 1 + n + 1);
        to_gt.or_else(|| memchr(b'<', rest).map(|n| i + 1 + n)).unwrap_or(i + 1)
    }

    fn start_tag(&mut self, i: usize) -> Markup {
        let name_end = self.name_end(i + 1);
        let name = &self.raw[i + 1..name_end];
        if !self.sink.is_element(name) {
            self.sink.text("<");
            return Markup::Until(i + 1);
        }
        let mut k = self.skip_gap(name_end);
        while let Some(next) = self.attribute(k) {
            k = next;
        }
        match (self.byte(k), self.byte(k + 1)) {
            (Some(b'>'), _) => {
                self.sink.start_tag(name, false);
                let raw_text = ["script", "style"].into_iter();
                self.raw_text_element = raw_text.into_iter().find(|e| e.eq_ignore_ascii_case(name));
                Markup::Until(k + 1)
            }
            (Some(b'/'), Some(b'>')) => {
                self.sink.start_tag(name, true);
                Markup::Until(k + 2)
            }
            (None, _) => Markup::Incomplete,
            (Some(b), _) if b.is_ascii_alphabetic() || matches!(b, b'=' | b'/') => {
                Markup::Incomplete
            }
            _ => {
                self.sink.text(&self.raw[i..k]);
                Markup::Until(k)
            }
        }
    }

    /// Past a tag name, which any of tab, newline, return, form feed, space, `/`, `>` and NUL ends.
    fn name_end(&self, at: usize) -> usize {
        let ends = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0xc | b' ' | b'/' | b'>' | 0);
        let rest = &self.raw.as_bytes()[at..];
        at + rest.iter().position(ends).unwrap_or(rest.len())
    }

    /// Past one attribute and the spaces and slashes that follow it, if an attribute starts here.
    fn attribute(&self, at: usize) -> Option<usize> {
        let first = self.raw[at..].chars().next()?;
        let before = self.raw[..at].chars().next_back()?;
        let may_follow = matches!(before, '\'' | '"' | '/') || is_space(before);
        if !may_follow || matches!(first, '/' | '>') || is_space(first) {
            return None;
        }
        let name_end = self
            .skip_while(at + first.len_utf8(), |c| !matches!(c, '/' | '=' | '>') && !is_space(c));
        Some(self.skip_gap(self.attribute_value(name_end).unwrap_or(name_end)))
    }

    /// Past `= value`, if that is what stands here.
    fn attribute_value(&self, at: usize) -> Option<usize> {
        let equals = self.skip_spaces(at);
        let after = self.skip_while(equals, |c| c == '=');
        if after == equals {
            return None;
        }
        let bare = |at| self.skip_while(at, |c| c != '>' && !is_space(c));
        let value = self.skip_spaces(after);
        match self.byte(value) {
            Some(quote @ (b'"' | b'\'')) => {
                match memchr(quote, &self.raw.as_bytes()[value + 1..]) {
                    Some(n) => Some(value + n + 2),
                    // The quote is never closed. With a space before it the value is empty and the quote begins
                    // the next attribute; with `==` before it the second `=` begins a bare value.
                    None if value > after => Some(value),
                    None if after - equals > 1 => Some(bare(after - 1)),
                    None => None,
                }
            }
            _ => Some(bare(value)),
        }
    }

    fn end_tag(&mut self, i: usize) -> Markup {
        let Some(gt) = memchr(b'>', &self.raw.as_bytes()[i + 1..]).map(|n| i + 1 + n) else {
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
                self.sink.end_tag(&self.raw[i + 2..self.name_end(i + 2)]);
            }
            Some(b'>') => {}
            _ => self.sink.hidden(),
        }
        Markup::Until(gt + 1)
    }

    /// The name, if nothing but spaces stands around it between `at` and the `>` at `gt`.
    fn plain_end_tag(&self, at: usize, gt: usize) -> Option<&'a str> {
        let inside = self.raw.get(at..gt)?.trim_matches(is_space);
        let more = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
        let plain = inside.bytes().next()?.is_ascii_alphabetic() && inside.bytes().all(more);
        plain.then_some(inside)
    }

    /// `<!-- … -- >`.
    fn comment(&mut self, i: usize) -> Markup {
        let start = i + 4;
        let mut from = start;
        while let Some(n) = memmem::find(&self.raw.as_bytes()[from..], b"--") {
            let gt = self.skip_spaces(from + n + 2);
            if self.byte(gt) == Some(b'>') {
                self.sink.hidden();
                return Markup::Until(gt + 1);
            }
            from += n + 1;
        }
        Markup::Incomplete
    }

    fn hidden_until_gt(&mut self, from: usize) -> Markup {
        match memchr(b'>', &self.raw.as_bytes()[from..]) {
            Some(n) => {
                self.sink.hidden();
                Markup::Until(from + n + 1)
            }
            None => Markup::Incomplete,
        }
    }

    /// `<!doctype …>`, or another `<!…>`, which is a comment.
    fn declaration(&mut self, i: usize) -> Markup {
        let doctype = self.raw.as_bytes().get(i + 2..i + 9);
        let doctype = doctype.is_some_and(|found| found.eq_ignore_ascii_case(b"doctype"));
        self.hidden_until_gt(if doctype { i + 9 } else { i + 2 })
    }

    /// `<![CDATA[ … ]]>` and its relatives.
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

    /// Start and end of the first `]>` (or `]]>`, by `brackets`), spaces allowed between its characters.
    fn find_section_end(&self, from: usize, brackets: usize) -> Option<(usize, usize)> {
        let bytes = &self.raw.as_bytes()[from..];
        memchr::memchr_iter(b']', bytes).map(|n| from + n).find_map(|close| {
            let mut at = self.skip_spaces(close + 1);
            for _ in 1..brackets {
                at = (self.byte(at) == Some(b']')).then(|| self.skip_spaces(at + 1))?;
            }
            (self.byte(at) == Some(b'>')).then_some((close, at + 1))
        })
    }

    /// At `&#`.
    fn numeric_reference(&mut self, _end: bool) -> Flow {
        let i = self.at;
        let hexadecimal = matches!(self.byte(i + 2), Some(b'x' | b'X'));
        let (start, radix) = if hexadecimal { (i + 3, 16) } else { (i + 2, 10) };
        let digits_end = self.skip_while(start, |c| c.is_digit(radix));
        // A character that is no hexadecimal digit must follow, in decimal references too.
        let follows = self.byte(digits_end).is_some_and(|b| !b.is_ascii_hexdigit());
        if digits_end == start || !follows {
            if memchr(b';', &self.raw.as_bytes()[i..]).is_some() {
                self.sink.text("&#");
                self.at = i + 2;
            }
            return Flow::Break;
        }
        let number = u32::from_str_radix(&self.raw[start..digits_end], radix).ok();
        self.sink.text(entities::numbered(number).encode_utf8(&mut [0; 4]));
        self.at = digits_end + usize::from(self.byte(digits_end) == Some(b';'));
        Flow::Continue
    }

    /// At `&` and no `#`.
    fn named_reference(&mut self, end: bool) -> Flow {
        let i = self.at;
        match self.byte(i + 1) {
            Some(b) if b.is_ascii_alphabetic() => {}
            Some(_) => {
                self.sink.text("&");
                self.at = i + 1;
                return Flow::Continue;
            }
            None => return Flow::Break,
        }
        let Some(name_end) = self.reference_name_end(i + 1) else {
            // Two characters left, `&x`: CPython forgets the `&`.
            if end && i + 2 == self.raw.len() {
                self.at = i + 1;
            }
            return Flow::Break;
        };
        let name = &self.raw[i + 1..name_end];
        match entities::named(name) {
            Some(characters) => self.sink.text(characters),
            None => {
                self.sink.text("&");
                self.sink.text(name);
            }
        }
        self.at = name_end + usize::from(self.byte(name_end) == Some(b';'));
        Flow::Continue
    }

    /// End of a reference's name: something that is no letter or digit must follow, be it the name's own last
    /// `-` or `.` at the end of the text.
    fn reference_name_end(&self, start: usize) -> Option<usize> {
        let more = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let end = self.skip_while(start, more);
        if end < self.raw.len() {
            return Some(end);
        }
        let last = self.raw.as_bytes()[start + 1..].iter().rposition(|b| matches!(b, b'-' | b'.'));
        last.map(|n| start + 1 + n)
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.raw.as_bytes().get(at).copied()
    }

    fn skip_while(&self, at: usize, wanted: impl Fn(char) -> bool) -> usize {
        let rest = &self.raw[at..];
        at + rest.find(|c| !wanted(c)).unwrap_or(rest.len())
    }

    fn skip_spaces(&self, at: usize) -> usize {
        self.skip_while(at, is_space)
    }

    /// Past spaces and slashes, but not a slash that closes the tag.
    fn skip_gap(&self, at: usize) -> usize {
        let mut at = at;
        loop {
            let next = self.skip_spaces(at);
            match (self.byte(next), self.byte(next + 1)) {
                (Some(b'/'), after) if after != Some(b'>') => at = next + 1,
                _ => return next,
            }
        }
    }
}

/// Whitespace as Python's `\s` has it: Unicode's, and the four information separators.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r' | '\u{1c}'..='\u{1f}') || (c > '\u{7f}' && c.is_whitespace())
}
