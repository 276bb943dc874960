//! Adds the marks around code, preformatted text, superscripts and subscripts when they end.

use super::Page;

impl Page {
    /// Writes fences and margins around the preformatted text at `start`, which was collected without margins.
    pub(super) fn fence(&mut self, start: usize) {
        let text = self.out.split_off(start);
        let text = text.strip_prefix('\n').unwrap_or(&text).trim_end();
        if text.trim().is_empty() {
            return;
        }
        let fence = "`".repeat(longest_run(text, '`').max(2) + 1);
        self.begin_text();
        self.verbatim(&format!("{fence}\n{text}\n{fence}"));
    }

    /// Writes backticks around the code at `start`.
    pub(super) fn surround_code(&mut self, start: usize) {
        let code = self.out.split_off(start);
        let text = code.trim();
        if !text.is_empty() {
            let ticks = "`".repeat(if text.contains('`') { longest_run(text, '`') + 1 } else { 1 });
            let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
            self.out.extend([&ticks, pad, text, pad, &ticks]);
        }
        self.space |= code.ends_with(char::is_whitespace);
    }

    /// Writes the mark of a superscript or subscript before the text at `start`, with parentheses if needed: `^2`, `_i`, or
    /// `^(n+1)`.
    pub(super) fn mark_script(&mut self, start: usize, mark: char) {
        if self.preformatted > 0 || self.code > 0 || start > self.out.len() {
            return;
        }
        let content = self.out.split_off(start);
        let text = content.trim();
        if text.is_empty() {
            return;
        }
        self.out.push(mark);
        if text.chars().all(char::is_alphanumeric) {
            self.out.push_str(text);
        } else {
            self.out.extend(["(", text, ")"]);
        }
    }
}

/// Returns the length of the longest run of the character `wanted`.
fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|c| c != wanted).map(str::len).max().unwrap_or(0)
}
