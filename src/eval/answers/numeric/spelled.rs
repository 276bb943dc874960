//! Reads numbers written in words.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::ToPrimitive;

use super::amount::is_operator;
use super::number_words::{multiplier, part_name, small_number};
use super::sentence::{as_word, is_hyphen};
use super::token::{Kind, Token};
use super::words::begins_phrase;

/// Reads a number in words at the start of `tokens`, such as `twenty-five`, `a dozen`, `two thirds` or `two and a half
/// million`. Returns its value, if it has one, and the index after it.
pub(super) fn number_in_words(tokens: &[Token<'_>]) -> Option<(Option<BigRational>, usize)> {
    let word = |at: usize| match tokens.get(at).map(|token| &token.kind) {
        Some(Kind::Word(word)) => Some(word.to_ascii_lowercase()),
        _ => None,
    };
    if let Some((part, end)) = fraction_in_words(tokens, 0) {
        return Some(multiplied(part, end, word(end)));
    }
    let is_small = |word: Option<String>| word.is_some_and(|word| small_number(&word).is_some());
    if word(0).as_deref() == Some("half") {
        let (value, length) = half(&[word(1), word(2)]);
        return Some((Some(value), length));
    }
    // The sum of the complete thousands, millions and so on, and the number below a thousand that is being read.
    let (mut total, mut current, mut at) = (0u64, None, 0);
    while let Some(next) = word(at) {
        let is_multiplied = word(1).is_some_and(|word| multiplier(&word).is_some());
        let is_fraction = || fraction_in_words(tokens, at + 1).is_some();
        let joins = next == "and" && current.is_some() && is_small(word(at + 1)) && !is_fraction();
        let is_article = next == "a" && at == 0 && is_multiplied;
        if let Some(value) = small_number(&next) {
            current = Some(added(current, value)?);
        } else if let Some(factor) =
            multiplier(&next).and_then(|factor| factor.to_integer().to_u64())
        {
            let value = current.unwrap_or(1).checked_mul(factor)?;
            let is_complete = factor != 100;
            total = if is_complete { total.checked_add(value)? } else { total };
            current = Some(if is_complete { 0 } else { value });
        } else if !joins && !is_article {
            break;
        }
        at += 1;
        if is_operator(tokens, at, '-') && !tokens[at].spaced && is_small(word(at + 1)) {
            at += 1;
        }
    }
    let value = BigRational::from(BigInt::from(total.checked_add(current?)?));
    if word(at).as_deref() == Some("and")
        && let Some((part, end)) = fraction_in_words(tokens, at + 1)
    {
        // "A dozen and a half" is 18, not 12.5, so a fraction after a multiplier has no value here.
        let is_whole = word(at - 1).is_none_or(|last| multiplier(&last).is_none());
        let value = part.filter(|_| is_whole).map(|part| value + part);
        return Some(multiplied(value, end, word(end)));
    }
    Some((Some(value), at))
}

/// Multiplies a number by its next word, if that is a multiplier: `two and a half million`. Returns the product and the
/// index after it; `end` is the index after the number.
fn multiplied(
    number: Option<BigRational>,
    end: usize,
    next: Option<String>,
) -> (Option<BigRational>, usize) {
    match next.and_then(|word| multiplier(&word)) {
        Some(factor) => (number.map(|number| number * factor), end + 1),
        None => (number, end),
    }
}

/// Adds a small number to the number read so far. Returns `None` if the two do not form one number.
fn added(current: Option<u64>, value: u64) -> Option<u64> {
    let Some(current) = current.filter(|current| *current > 0) else {
        return Some(value);
    };
    let after_tens = current % 10 == 0 && current % 100 >= 20 && (1..10).contains(&value);
    let after_hundred = current % 100 == 0 && value > 0;
    (after_tens || after_hundred).then(|| current + value)
}

/// Reads `half` or `half a dozen`. Returns the value and the number of words; `next` are the two words after `half`.
fn half(next: &[Option<String>; 2]) -> (BigRational, usize) {
    let half = BigRational::new(BigInt::from(1), BigInt::from(2));
    let factor = |index: usize| next[index].as_deref().and_then(multiplier);
    match (factor(0), factor(1)) {
        (Some(factor), _) => (half * factor, 2),
        (None, Some(factor)) if next[0].as_deref() == Some("a") => (half * factor, 3),
        _ => (half, 1),
    }
}

/// Reads a fraction in words at the index `at`, such as `a half`, `three quarters` or `two-thirds`. Returns its value and
/// the index after it.
pub(super) fn fraction_in_words(
    tokens: &[Token<'_>],
    at: usize,
) -> Option<(Option<BigRational>, usize)> {
    let numerator = match as_word(tokens.get(at)?)?.to_lowercase().as_str() {
        "a" => 1,
        word => small_number(word).filter(|number| *number > 0)?,
    };
    fraction_with_numerator(tokens, numerator, at + 1)
}

/// Reads the word at the index `at` as the denominator of a fraction with this numerator. Returns the value and the index
/// after the word.
///
/// The value is `None` if the word may be an ordinal (`1 third grader`). `7 quarters` are coins, and `18 third graders` and
/// `3 quarter-mile laps` have a unit; these are not fractions.
pub(super) fn fraction_with_numerator(
    tokens: &[Token<'_>],
    numerator: u64,
    at: usize,
) -> Option<(Option<BigRational>, usize)> {
    let at = at + usize::from(tokens.get(at).is_some_and(is_hyphen));
    let word = tokens.get(at).and_then(as_word)?;
    let (denominator, is_plural) = part_name(word)?;
    let next = tokens.get(at + 1);
    if next.is_some_and(is_hyphen) || is_plural != (numerator > 1) {
        return None;
    }
    let is_ordinal = !is_plural && !["half", "quarter"].contains(&word);
    let is_noun = |word: &str| !begins_phrase(word) && !["is", "and", "or"].contains(&word);
    if is_ordinal && next.and_then(as_word).is_some_and(is_noun) {
        return Some((None, at + 1));
    }
    // In an improper fraction the parts are a unit: seven halves of apples.
    let is_proper = if word == "quarters" {
        numerator == 3
    } else {
        numerator < denominator && denominator > 2
    };
    let value = BigRational::new(BigInt::from(numerator), BigInt::from(denominator));
    (is_proper || !is_plural).then_some((Some(value), at + 1))
}
