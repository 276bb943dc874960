//! Handles character references in text one by one, as CPython's parser does.

use memchr::memchr;

use super::super::entities;
use super::{Flow, Sink, Tokenizer};

impl<S: Sink> Tokenizer<'_, S> {
    /// Handles the numeric reference that begins with `&#` at the current position.
    pub(super) fn numeric_reference(&mut self, _end: bool) -> Flow {
        let i = self.at;
        let hexadecimal = matches!(self.byte(i + 2), Some(b'x' | b'X'));
        let (start, radix) = if hexadecimal { (i + 3, 16) } else { (i + 2, 10) };
        let digits_end = self.skip_while(start, |c| c.is_digit(radix));
        // A character other than a hexadecimal digit must follow, even in decimal references.
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

    /// Handles the named reference or lone `&` at the current position.
    pub(super) fn named_reference(&mut self, end: bool) -> Flow {
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
            // If only two characters `&x` are left, CPython drops the `&`.
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

    /// Returns the end of a reference's name. A character other than a letter or digit must follow; at the end of the text
    /// this can be the name's own last `-` or `.`.
    fn reference_name_end(&self, start: usize) -> Option<usize> {
        let more = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let end = self.skip_while(start, more);
        if end < self.raw.len() {
            return Some(end);
        }
        let last = self.raw.as_bytes()[start + 1..].iter().rposition(|b| matches!(b, b'-' | b'.'));
        last.map(|n| start + 1 + n)
    }
}
