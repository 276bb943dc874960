//! Writes text: joins white space, breaks and indents lines, and keeps TeX unchanged.

use memchr::memchr2;

use super::super::roles::Math;
use super::Page;

impl Page {
    /// Requests at least `breaks` line breaks before the next text.
    pub(super) fn break_line(&mut self, breaks: u8) {
        self.breaks = self.breaks.max(breaks);
        self.space = false;
        self.math = Math::None;
    }

    /// Writes the pending line breaks, margins and space before text.
    pub(super) fn begin_text(&mut self) {
        if self.out.is_empty() || self.breaks > 0 {
            if !self.out.is_empty() {
                for _ in 1..self.breaks {
                    self.out.push('\n');
                    self.margin(false);
                    self.out.truncate(self.out.trim_end_matches(' ').len());
                }
                self.out.push('\n');
            }
            self.margin(true);
        } else if self.space {
            self.out.push(' ');
        }
        (self.breaks, self.space) = (0, false);
    }

    /// Writes the margins of a line. A line with text uses up the first-line margins.
    fn margin(&mut self, has_text: bool) {
        for margin in &mut self.margins {
            match (has_text, &margin.first) {
                (true, Some(first)) => {
                    self.out.push_str(first);
                    margin.first = None;
                }
                (false, Some(_)) => {}
                _ => self.out.push_str(&margin.rest),
            }
        }
    }

    /// Writes text and keeps its white space.
    pub(super) fn verbatim(&mut self, text: &str) {
        for (i, line) in text.split('\n').enumerate() {
            if i > 0 {
                self.out.push('\n');
                self.margin(true);
            }
            self.out.push_str(line);
        }
    }

    /// Writes text and joins its white space outside TeX.
    pub(super) fn flowing(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let in_math = self.math != Math::None;
            if !in_math && rest.starts_with(blank) {
                rest = rest.trim_start_matches(blank);
                self.space = true;
                continue;
            }
            let plain = if in_math { tex_run(rest) } else { plain_run(rest) };
            let (next, delimiter) = match plain {
                0 => self.math.step(rest),
                _ => (self.math, 0),
            };
            let length = match (plain, delimiter) {
                (0, 0) => 1, // A single `$` or backslash.
                (0, n) => n,
                (n, _) => n,
            };
            let (now, later) = rest.split_at(length);
            if !self.out.is_empty() || !now.trim().is_empty() {
                if self.breaks > 0 || self.out.is_empty() || self.space {
                    self.begin_text();
                }
                self.verbatim(now);
            }
            self.math = next;
            rest = later;
        }
    }
}

/// Returns whether a character is white space to be joined.
fn blank(c: char) -> bool {
    c.is_ascii_whitespace() || matches!(c, '\u{b}' | '\u{a0}')
}

/// Returns the number of bytes before the next character that may end TeX.
fn tex_run(text: &str) -> usize {
    memchr2(b'$', b'\\', text.as_bytes()).unwrap_or(text.len())
}

/// Returns the number of bytes that can be copied unchanged: those before the next `$`, backslash, or white space other
/// than a single `' '` between words.
fn plain_run(text: &str) -> usize {
    let bytes = text.as_bytes();
    let special = |&b: &u8| b <= b' ' || matches!(b, b'$' | b'\\' | 0xc2);
    let mut from = 0;
    while let Some(n) = bytes.get(from..).and_then(|rest| rest.iter().position(special)) {
        let at = from + n;
        let single = |next: &u8| !special(next);
        match bytes.get(at) {
            Some(b' ') if bytes.get(at + 1).is_some_and(single) => from = at + 1,
            // 0xc2 begins a no-break space, among others.
            Some(0xc2) if bytes.get(at + 1) != Some(&0xa0) => from = at + 2,
            Some(b) if *b < b' ' && !blank(char::from(*b)) => from = at + 1,
            _ => return at,
        }
    }
    bytes.len()
}
