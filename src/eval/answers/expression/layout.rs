//! Reads groups and spaces of LaTeX that change only the appearance of a formula.

use super::lexer::Lexer;

impl Lexer {
    /// Returns whether the next characters are `text`.
    pub(super) fn follows(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, c)| self.peek(ahead) == Some(c))
    }

    /// Reads a space and its closing brace after digits and an open brace: `10{\,}000`. Returns whether there was one.
    pub(super) fn braced_space(&mut self) -> bool {
        const SPACES: [&str; 6] = ["}", " }", "~}", "\\,}", "\\;}", "\\ }"];
        let last = self.at.checked_sub(2).and_then(|last| self.chars.get(last));
        if !last.is_some_and(char::is_ascii_digit) {
            return false;
        }
        let Some(space) = SPACES.iter().find(|space| self.follows(space)) else {
            return false;
        };
        self.at += space.len();
        true
    }

    /// Reads the comma of `\text{,}000`. Returns whether there was one.
    pub(super) fn braced_comma(&mut self) -> bool {
        let digits =
            (3..7).take_while(|ahead| self.peek(*ahead).is_some_and(|c| c.is_ascii_digit()));
        let is_comma = self.follows("{,}") && digits.count() == 3;
        self.at += if is_comma { 3 } else { 0 };
        is_comma
    }

    /// Skips the height of a row: `\\[2mm]`.
    pub(super) fn row_height(&mut self) {
        const MAX_CHARS: usize = 12;
        let end = (1..MAX_CHARS).find(|ahead| self.peek(*ahead) == Some(']'));
        let is_length = |end: usize| {
            let unit: String =
                self.chars[self.at + end.saturating_sub(2)..self.at + end].iter().collect();
            ["mm", "cm", "pt", "em", "ex", "in"].contains(&unit.as_str())
        };
        if let Some(end) = end.filter(|end| self.peek(0) == Some('[') && is_length(*end)) {
            self.at += end + 1;
        }
    }

    pub(super) fn skip_spaces(&mut self) {
        self.take(char::is_whitespace);
    }

    /// Reads `{name}` and returns the name.
    pub(super) fn braced(&mut self) -> Option<String> {
        self.skip_spaces();
        if self.peek(0) != Some('{') {
            return None;
        }
        self.at += 1;
        let name = self.take(|c| c != '}' && c != '{' && c != '\\');
        (self.peek(0)? == '}').then(|| self.at += 1)?;
        Some(name.trim_end_matches('*').to_string())
    }
}
