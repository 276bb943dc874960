//! Decodes the text of a completion while its tokens arrive, and finds stop strings in it.

use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Number of prompt ids decoded before the new ones. Without them, the new text would lose a leading space, like any
/// first word.
const CONTEXT: usize = 8;

/// The text that new tokens add to a prompt.
///
/// It passes on whole characters only, and holds back text that may turn out to be the start of a stop string.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// The last ids of the prompt, then the new ones.
    ids: Vec<u32>,
    /// Number of ids that are decoded to text.
    decoded: usize,
    /// Index of the first id to decode, some ids before `decoded`.
    first: usize,
    /// The new text up to the first stop string.
    text: String,
    /// Number of bytes of `text` passed on.
    emitted: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// Creates the stream after `prompt`, which ends before the first of `stops` in the new text.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            tokenizer,
            stops,
            decoded: ids.len(),
            first: 0,
            ids,
            text: String::new(),
            emitted: 0,
            stopped: false,
        }
    }

    /// Adds the next token and returns the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.ids.push(id);
        let before = self.decode(self.first..self.decoded)?;
        let whole = self.decode(self.first..self.ids.len())?;
        // The first bytes of a multi-byte character decode to the replacement character.
        if whole.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok("");
        }
        // Bytes that form no character can change the text before them; text already passed on stays.
        let new = whole.get(before.len()..).unwrap_or_default();
        if !new.is_empty() {
            (self.first, self.decoded) = (self.decoded, self.ids.len());
        }
        let known = self.text.len();
        self.text.push_str(new);
        if let Some(stop) = find_stop(&self.text, known, self.stops) {
            self.text.truncate(stop);
            self.stopped = true;
        }
        let certain = if self.stopped {
            self.text.len()
        } else {
            self.text.len() - may_begin_stop(&self.text, self.stops)
        };
        let certain = certain.max(self.emitted);
        let start = std::mem::replace(&mut self.emitted, certain);
        Ok(&self.text[start..self.emitted])
    }

    /// Returns whether a stop string has occurred.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Returns the text so far, without the stop string.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the part of `whole`, the final text, that was not yet passed on.
    pub fn rest<'w>(&self, whole: &'w str) -> &'w str {
        whole.get(self.emitted..).unwrap_or_default()
    }

    fn decode(&self, range: std::ops::Range<usize>) -> Result<String> {
        self.tokenizer.decode(&self.ids[range], true)
    }
}

/// Returns the start of the first stop string that ends after the first `known` bytes, which were searched before.
fn find_stop(text: &str, known: usize, stops: &[String]) -> Option<usize> {
    let first_in = |stop: &String| {
        let from = text.floor_char_boundary(known.saturating_sub(stop.len()));
        Some(from + text[from..].find(stop.as_str())?)
    };
    stops.iter().filter_map(first_in).min()
}

/// Returns the number of bytes at the end of `text` that may be the start of a stop string.
fn may_begin_stop(text: &str, stops: &[String]) -> usize {
    let partial_match = |stop: &String| {
        let starts = stop.char_indices().skip(1).map(|(end, _)| &stop[..end]);
        let matching = starts.filter(|start| text.ends_with(start));
        matching.map(str::len).max().unwrap_or(0)
    };
    stops.iter().map(partial_match).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn the_first_stop_is_found_across_the_border_of_the_searched_text() {
        let two = stops(&["\n\nQ", "b"]);
        assert_eq!(find_stop("a\n\nQb", 3, &two), Some(1));
        assert_eq!(find_stop("ab\n\nQ", 0, &two), Some(1));
        assert_eq!(find_stop("a\n\n", 0, &two), None);
        assert_eq!(find_stop("é\n\nQ", 4, &stops(&["\n\nQ"])), Some(2));
        assert_eq!(find_stop("anything", 0, &[]), None);
    }

    #[test]
    fn the_start_of_a_stop_is_held_back() {
        let two = stops(&["\n\nQ", "né"]);
        assert_eq!(may_begin_stop("a\n", &two), 1);
        assert_eq!(may_begin_stop("a\n\n", &two), 2);
        assert_eq!(may_begin_stop("a n", &two), 1);
        assert_eq!(may_begin_stop("a", &two), 0);
    }
}
