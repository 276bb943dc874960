//! Reads answers to word problems as exact numbers: `1,000`, `1000.0`, `$1,000.00` and `\boxed{1{,}000}` are the same
//! number, `1/2` is `0.5`, and `3 million` is 3000000.
//!
//! A completion is cut off at a next problem. Then the statement of its answer is found, and its sentence is parsed by a
//! small grammar:
//!
//! - a *numeral* is digits, with thousands separated in any way;
//! - an *amount* is a numeral with its sign, fraction, power, multiplier and currency;
//! - a *sentence* states one amount with its unit, or an equation whose last side is one.
//!
//! A statement without a single value (a range, a time, a list, `2 hours and 30 minutes`, `2x`) is not an answer. The rules
//! are strict, because an answer wrongly judged correct would become a chosen completion of a preference pair.

mod amount;
mod contradiction;
mod follow;
mod heading;
mod last;
mod latex;
mod number_words;
mod numeral;
mod relation;
mod sentence;
mod sign;
mod spelled;
mod statement;
mod token;
mod words;

use std::borrow::Cow;

use num_rational::BigRational;

use super::hedge::gives_up;
use super::{Scorer, Verdict, before_next_problem};

/// Compares the stated number by value.
pub const NUMERIC: Scorer = Scorer::new(
    "numeric",
    "the stated number (boxed, after \"####\" or \"answer is\", else the last one), compared by value: 1,000 = $1000.00 = 1000 eggs",
    |ground_truth, completion| {
        let answer = final_number(completion);
        Verdict {
            correct: answer.is_some() && answer == final_number(ground_truth),
            answer: answer.map(|number| number.to_string()),
        }
    },
);

/// Number of bytes of a text that are read, from its end. No model writes that much about one problem.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Returns the number that a completion or a known solution states as its answer.
///
/// It is the number in the last closed `\boxed{}`, else after the last `####` that is not a heading, else after the last
/// `answer is` or `answer:`, else the last number before a next problem. Returns `None` if there is no number, or if
/// something else is stated: a range, a time, a compound, an expression with a variable.
///
/// ```
/// use arithmo::eval::answers::{final_number, parse_number};
/// assert_eq!(final_number("#### Step 2\nSo the answer is $3 thousand."), parse_number("3,000"));
/// assert_eq!(final_number("It takes 2 hours and 30 minutes."), None);
/// ```
pub fn final_number(text: &str) -> Option<BigRational> {
    let start = text.len().saturating_sub(MAX_TEXT_BYTES);
    let text = with_ascii_forms(&text[text.ceil_char_boundary(start)..]);
    let text = before_next_problem(&text);
    match statement::stated_answer(text) {
        Some(value) => value,
        None if gives_up(text) => None,
        None => last::last_number(text),
    }
}

/// Returns the value of a text that consists of one number, possibly with a currency, a percent sign or a unit in words, or
/// of an equation whose last side is such a number.
///
/// ```
/// use arithmo::eval::answers::parse_number;
/// assert_eq!(parse_number("$1,000.50"), parse_number(r"\frac{2001}{2}"));
/// assert_eq!(parse_number("10-15"), None);
/// ```
pub fn parse_number(text: &str) -> Option<BigRational> {
    let text = with_ascii_forms(text);
    let tokens = token::tokens(&text[..text.floor_char_boundary(MAX_TEXT_BYTES)]);
    sentence::read_digits(sentence::first_sentence(&tokens))?.value
}

/// Replaces full-width characters, which East Asian models write, by their ASCII forms, and `&nbsp;` by a no-break space.
fn with_ascii_forms(text: &str) -> Cow<'_, str> {
    let is_wide = |c: char| ('\u{ff01}'..='\u{ff5e}').contains(&c);
    if !text.contains(|c: char| is_wide(c) || c == '&') {
        return Cow::Borrowed(text);
    }
    let narrow = |c: char| {
        let narrow = is_wide(c).then(|| char::from_u32(u32::from(c) - 0xfee0));
        narrow.flatten().unwrap_or(c)
    };
    let text: String = text.chars().map(narrow).collect();
    Cow::Owned(text.replace("&nbsp;", "\u{a0}"))
}
