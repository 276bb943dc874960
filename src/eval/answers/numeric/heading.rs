//! Recognizes `####` headings that begin with a number and are not GSM8K's answer mark: `#### 2 apples cost`.

use num_rational::BigRational;

use super::last::last_number;

/// Returns whether the line after a `####` is a heading: it has words, and below it follows work that ends in a number other
/// than `value`, the number in the line. `text` is the text between this `####` and the next; `length` is the length of the
/// line.
pub(super) fn is_heading(text: &str, length: usize, value: Option<&BigRational>) -> bool {
    let (line, below) = text.split_at(length);
    if !line.contains(char::is_alphabetic) {
        return false;
    }
    let has_digit = |line: &str| line.contains(|c: char| c.is_ascii_digit());
    let Some(first) = below.lines().find(|line| line.contains(char::is_alphanumeric)) else {
        return false;
    };
    // After an empty line, a sentence may begin a next problem.
    let mut lines = below.lines().skip(1);
    let is_apart = lines.next().is_none_or(|line| line.trim().is_empty());
    let is_work = has_digit(first) && (!is_apart || first.contains('='));
    is_work && last_number(below).is_some_and(|result| Some(&result) != value)
}
