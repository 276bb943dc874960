//! Parses start tags and their attributes.

use super::super::search::{Stop, Stops};
use super::{Markup, Sink, StartTag, Tokenizer, is_space};

impl<S: Sink> Tokenizer<'_, S> {
    /// Handles the start tag at `i`.
    pub(super) fn start_tag(&mut self, i: usize) -> Markup {
        let name_end = self.name_end(i + 1);
        let raw = self.raw;
        let name = &raw[i + 1..name_end];
        if !self.sink.is_element(name) {
            self.sink.text("<");
            return Markup::Until(i + 1);
        }
        let first = self.skip_gap(name_end);
        let mut k = first;
        while let Some(next) = self.attribute(k) {
            if self.endless.contains(&k) {
                return Markup::Incomplete;
            }
            k = next;
        }
        let tag = |self_closing, end| StartTag {
            name,
            attributes: &raw[name_end..k],
            self_closing,
            rest: &raw[end..],
        };
        match (self.byte(k), self.byte(k + 1)) {
            (Some(b'>'), _) => {
                self.sink.start_tag(tag(false, k + 1));
                let raw_text = ["script", "style"].into_iter();
                self.raw_text_element = raw_text.into_iter().find(|e| e.eq_ignore_ascii_case(name));
                Markup::Until(k + 1)
            }
            (Some(b'/'), Some(b'>')) => {
                self.sink.start_tag(tag(true, k + 2));
                Markup::Until(k + 2)
            }
            (None, _) => self.endless_tag(first),
            (Some(b), _) if b.is_ascii_alphabetic() || matches!(b, b'=' | b'/') => {
                self.endless_tag(first)
            }
            _ => {
                self.sink.text(&self.raw[i..k]);
                Markup::Until(k)
            }
        }
    }

    /// Records that a start tag with an attribute at `first`, or at any position after it, does not end before the end of
    /// the text.
    fn endless_tag(&mut self, first: usize) -> Markup {
        if self.stops.is_none() {
            self.stops = Stops::new(self.raw);
        }
        let mut k = first;
        while self.endless.insert(k)
            && let Some(next) = self.attribute(k)
        {
            k = next;
        }
        Markup::Incomplete
    }

    /// Returns the end of the tag name at `at`. It ends before a tab, newline, return, form feed, space, `/`, `>` or NUL.
    pub(super) fn name_end(&mut self, at: usize) -> usize {
        let ends = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0xc | b' ' | b'/' | b'>' | 0);
        let rest = &self.raw.as_bytes()[at..];
        let found = self.next_name_end.find(at, || rest.iter().position(ends).map(|n| at + n));
        found.unwrap_or(self.raw.len())
    }

    /// Returns the position after the attribute at `at` and after the spaces and slashes that follow it. Returns `None` if
    /// no attribute starts at `at`.
    fn attribute(&self, at: usize) -> Option<usize> {
        let first = self.raw[at..].chars().next()?;
        let before = self.raw[..at].chars().next_back()?;
        let may_follow = matches!(before, '\'' | '"' | '/') || is_space(before);
        if !may_follow || matches!(first, '/' | '>') || is_space(first) {
            return None;
        }
        let name_end = self.stop(Stop::Name, at + first.len_utf8());
        Some(self.skip_gap(self.attribute_value(name_end).unwrap_or(name_end)))
    }

    /// Returns the position after the `= value` at `at`, or `None` if there is none.
    fn attribute_value(&self, at: usize) -> Option<usize> {
        let equals = self.skip_spaces(at);
        let after = self.skip_while(equals, |c| c == '=');
        if after == equals {
            return None;
        }
        let bare = |at| self.stop(Stop::Bare, at);
        let value = self.skip_spaces(after);
        match self.byte(value) {
            Some(quote @ (b'"' | b'\'')) => {
                let stop = match quote {
                    b'"' => Stop::DoubleQuote,
                    _ => Stop::SingleQuote,
                };
                match self.stop(stop, value + 1) {
                    closed if closed < self.raw.len() => Some(closed + 1),
                    // The quote is not closed. After a space, the value is empty and the quote begins the next
                    // attribute. After `==`, the second `=` begins an unquoted value.
                    _ if value > after => Some(value),
                    _ if after - equals > 1 => Some(bare(after - 1)),
                    _ => None,
                }
            }
            _ => Some(bare(value)),
        }
    }

    /// Returns the next position at or after `at` at which a part of an attribute ends, or the end of the text if there is
    /// none.
    fn stop(&self, stop: Stop, at: usize) -> usize {
        match &self.stops {
            Some(stops) => stops.next(stop, at),
            None => stop.search(self.raw, at),
        }
    }

    /// Returns the position after spaces and slashes, but not after a slash that closes the tag.
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
