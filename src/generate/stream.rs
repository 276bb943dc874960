//! The text of a completion while its tokens come one by one, and the stop strings in it.

use crate::data::tokenizer::Tokenizer;
use crate::error::Result;

/// Ids of the prompt that new ids are decoded behind. Alone they would lose a leading space, as a text's first word does.
const CONTEXT: usize = 8;

/// The text that new tokens add to a prompt.
///
/// Only whole characters are passed on, and nothing that may turn out to be the beginning of a stop string.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// The last ids of the prompt, then the new ones.
    ids: Vec<u32>,
    /// Those before this one have become text.
    read: usize,
    /// Decoding begins here, some ids before `read`.
    first: usize,
    /// The new text, up to the first stop string.
    text: String,
    /// Bytes of `text` passed on.
    told: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// The stream behind `prompt`, which ends before the first of `stops` in the new text.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self {
            tokenizer,
            stops,
            read: ids.len(),
            first: 0,
            ids,
            text: String::new(),
            told: 0,
            stopped: false,
        }
    }

    /// Takes the next token and returns the text that is certain now; empty: none yet.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.ids.push(id);
        let before = self.decode(self.first..self.read)?;
        let whole = self.decode(self.first..self.ids.len())?;
        // The first bytes of a character decode to the replacement character.
        if whole.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok("");
        }
        // Bytes that make no character can change what stood before them: what is passed on stays.
        let new = whole.get(before.len()..).unwrap_or_default();
        if !new.is_empty() {
            (self.first, self.read) = (self.read, self.ids.len());
        }
        let known = self.text.len();
        self.text.push_str(new);
        if let Some(stop) = find_stop(&self.text, known, self.stops) {
            self.text.truncate(stop);
            self.stopped = true;
        }
        let certain = match self.stopped {
            true => self.text.len(),
            false => self.text.len() - may_begin_stop(&self.text, self.stops),
        };
        let certain = certain.max(self.told);
        let start = std::mem::replace(&mut self.told, certain);
        Ok(&self.text[start..self.told])
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text so far, before the stop string if there is one.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What of `whole`, the final text, was not passed on yet.
    pub fn rest<'w>(&self, whole: &'w str) -> &'w str {
        whole.get(self.told..).unwrap_or_default()
    }

    fn decode(&self, range: std::ops::Range<usize>) -> Result<String> {
        self.tokenizer.decode(&self.ids[range], true)
    }
}

/// Where the first stop string begins that ends after the `known` bytes, which were searched before.
fn find_stop(text: &str, known: usize, stops: &[String]) -> Option<usize> {
    let first_in = |stop: &String| {
        let from = text.floor_char_boundary(known.saturating_sub(stop.len()));
        Some(from + text[from..].find(stop.as_str())?)
    };
    stops.iter().filter_map(first_in).min()
}

/// Bytes at the end of `text` that are the beginning of a stop string.
fn may_begin_stop(text: &str, stops: &[String]) -> usize {
    let of = |stop: &String| {
        let beginnings = stop.char_indices().skip(1).map(|(end, _)| &stop[..end]);
        let those_here = beginnings.filter(|beginning| text.ends_with(beginning));
        those_here.map(str::len).max().unwrap_or(0)
    };
    stops.iter().map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn the_first_stop_is_found_across_the_border_of_what_was_searched() {
        let two = stops(&["\n\nQ", "b"]);
        assert_eq!(find_stop("a\n\nQb", 3, &two), Some(1));
        assert_eq!(find_stop("ab\n\nQ", 0, &two), Some(1));
        assert_eq!(find_stop("a\n\n", 0, &two), None);
        assert_eq!(find_stop("é\n\nQ", 4, &stops(&["\n\nQ"])), Some(2));
        assert_eq!(find_stop("anything", 0, &[]), None);
    }

    #[test]
    fn the_beginning_of_a_stop_is_held_back() {
        let two = stops(&["\n\nQ", "né"]);
        assert_eq!(may_begin_stop("a\n", &two), 1);
        assert_eq!(may_begin_stop("a\n\n", &two), 2);
        assert_eq!(may_begin_stop("a n", &two), 1);
        assert_eq!(may_begin_stop("a", &two), 0);
    }
}
