//! Finds sentences after a stated answer that state another number: "The answer is 18. Or maybe it is 20."

use std::sync::LazyLock;

use num_rational::BigRational;
use regex::Regex;

use super::sentence::{as_word, first_sentence, read};
use super::token::tokens;
use crate::eval::answers::hedge::after_sentence;
use crate::eval::pattern;

/// Number of sentences after an answer that are examined.
const MAX_SENTENCES: usize = 6;
/// Maximum length in bytes of a sentence that is examined.
const MAX_SENTENCE_BYTES: usize = 200;

/// Words that may come before a number that a sentence states alone: a few words before a comma, "so", "it is".
static LEAD: LazyLock<Regex> = LazyLock::new(|| {
    let clause = r"(?:[a-z'’]+ ){0,3}[a-z'’]+[,:!] +";
    let word = r"(?:(?:so|thus|hence|therefore|and|or|maybe|perhaps|then|now|rather)[, ]+)*";
    let verb = r"(?:(?:it|that)(?:['’]s| is| was| should be| should have been| must be| may be| might be| has to be| equals)|i (?:get|got|find)) +";
    pattern(&format!(r"(?i)\A\s*(?:{clause})?{word}(?:{verb}(?:(?:really|actually|now|just) +)?)?"))
});

/// Words that begin a sentence about another case or another quantity.
static OTHER_CASE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)\A\s*(?:if|when|with|without|for|after|before|at|in|on (?:day|monday|tuesday)|note|step|confidence|score)\b",
    )
});

/// Returns whether a sentence in `after` states only a number other than `value`. The first sentence of `after` is the rest
/// of the one that states `value`, and is skipped.
pub(super) fn is_contradicted(value: &BigRational, after: &str) -> bool {
    let mut rest = after_sentence(after);
    for _ in 0..MAX_SENTENCES {
        let next = after_sentence(rest);
        let sentence = &rest[..rest.len() - next.len()];
        // "1. Add the eggs." begins with the number of a step.
        let is_step =
            rest.len() > sentence.len() && !next.starts_with('\n') && is_step_number(sentence);
        if !is_step && states_other(value, sentence) {
            return true;
        }
        rest = next;
    }
    false
}

/// Returns whether a sentence is a number of at most two digits and a full stop.
fn is_step_number(sentence: &str) -> bool {
    let number = sentence.trim().trim_matches('*').strip_suffix('.');
    number.is_some_and(|number| number.len() <= 2 && number.bytes().all(|c| c.is_ascii_digit()))
}

/// Returns whether a sentence states only a number other than `value`, possibly with a unit of a few words.
fn states_other(value: &BigRational, sentence: &str) -> bool {
    const MAX_TOKENS: usize = 7;
    let sentence = sentence.trim_end_matches(|c: char| c.is_whitespace() || ".!;".contains(c));
    let has_digit = sentence.contains(|c: char| c.is_ascii_digit());
    // Headings and boxes are handled by `statement`.
    let has_mark = sentence.contains('#') || sentence.contains("\\boxed");
    let is_read = has_digit && !has_mark && sentence.len() <= MAX_SENTENCE_BYTES;
    if !is_read || OTHER_CASE.is_match(sentence) {
        return false;
    }
    let lead = LEAD.find(sentence).map_or(0, |lead| lead.end());
    let tokens = tokens(&sentence[lead..]);
    let compares = |word: &str| ["more", "less", "fewer", "than", "of", "times"].contains(&word);
    let is_alone = tokens.len() <= MAX_TOKENS && !tokens.iter().filter_map(as_word).any(compares);
    let reading = read(first_sentence(&tokens)).filter(|reading| reading.is_plain && is_alone);
    reading.and_then(|reading| reading.value).is_some_and(|other| other != *value)
}
