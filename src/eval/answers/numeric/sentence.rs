//! Reads sentences that state an answer: one number with its unit, or an equation whose last side is one.

use num_rational::BigRational;

use super::amount::next_amount;
use super::follow::{Next, follow};
use super::number_words::{changes_value, part_name, small_number};
use super::relation::is_not_stated;
use super::sign::is_variable;
use super::spelled::{fraction_in_words, number_in_words};
use super::token::{Kind, Token};
use super::words::{
    begins_phrase, begins_reason, denies_number, excludes_number, is_abbreviation, is_function,
};

/// The number that a sentence states.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// Value of the number, or `None` if the sentence has numbers but does not state a single one.
    pub(super) value: Option<BigRational>,
    /// Whether the sentence consists of the number and its unit only.
    pub(super) is_plain: bool,
}

/// Reads the number that a sentence states. Returns `None` if it has no number in digits and does not begin with one in
/// words.
pub(super) fn read(sentence: &[Token<'_>]) -> Option<Reading> {
    let Some(mut reading) = read_digits(sentence) else {
        return read_words(sentence);
    };
    // "three quarters, or 75%"
    if let Some((fraction, _)) = fraction_in_words(sentence, 0)
        && reading.value != fraction
    {
        reading.value = None;
    }
    Some(reading)
}

/// Reads the number that a sentence states in digits.
pub(super) fn read_digits(sentence: &[Token<'_>]) -> Option<Reading> {
    // The start of the current side of an equation, and the value of the sides before it.
    let (mut from, mut earlier) = (0, None);
    loop {
        let Some(amount) = next_amount(sentence, from) else {
            let is_equation = from > 0;
            return is_equation.then_some(Reading { value: earlier, is_plain: false });
        };
        let before = &sentence[..amount.start];
        let is_excluded = is_excluded(before) || is_argument(before);
        let (value, next) = match amount.operator {
            Some(_) => (None, Next::Expression(amount.end)),
            None => follow(sentence, &amount),
        };
        let value = value.filter(|_| !is_excluded);
        let equals = match next {
            Next::Equals(at) => Some(at),
            Next::Expression(at) if amount.value.is_some() || amount.operator.is_none() => {
                equals_after(sentence, at)
            }
            _ => None,
        };
        let Some(equals) = equals else {
            let is_first = from == 0 && !sentence[..amount.start].iter().any(is_word);
            let is_plain = is_first && value.is_some() && !sentence.iter().any(is_verb);
            let is_expression = matches!(next, Next::Expression(_));
            // "that she sells 9 eggs and makes $18"
            let is_clause = sentence.first().and_then(as_word) == Some("that");
            let has_others = is_clause && next_amount(sentence, amount.end).is_some();
            let value = value.filter(|_| !has_others);
            let value = value.or_else(|| earlier.filter(|_| is_expression));
            return Some(Reading { value, is_plain });
        };
        (from, earlier) = (equals + 1, value.or(earlier));
    }
}

/// Returns the index of the equals sign that ends the expression at `at`.
fn equals_after(sentence: &[Token<'_>], at: usize) -> Option<usize> {
    for (index, token) in sentence.iter().enumerate().skip(at) {
        match &token.kind {
            Kind::Equals => return Some(index),
            Kind::Comma | Kind::Semicolon => return None,
            Kind::Word(word) if begins_reason(word) => return None,
            _ => {}
        }
    }
    None
}

/// Returns whether one of the last three words before a number denies it: `not 18`, `cannot have 18`.
pub(super) fn is_denied(before: &[Token<'_>]) -> bool {
    let words: Vec<&str> = before.iter().rev().take(3).map_while(as_word).collect();
    // "no es 18", but "no 18-year-old"
    let is_verb = |word: &str| ["es", "son", "è", "é", "sono", "são"].contains(&word);
    let mut pairs = words.windows(2);
    let is_denied = pairs.any(|pair| is_verb(pair[0]) && ["no", "non", "não"].contains(&pair[1]));
    is_denied || words.into_iter().any(denies_number)
}

/// Returns whether a word shortly before a number shows that it is not the stated one: `not 18`, `half of 18`, `step 2`.
fn is_excluded(before: &[Token<'_>]) -> bool {
    let near = before.iter().rev().take(4);
    let mut words = near.map_while(|token| match token.kind {
        Kind::Word(word) => Some(word),
        Kind::Currency(_) | Kind::Open | Kind::Quote => Some(""),
        _ => None,
    });
    words.any(excludes_number)
}

/// Returns whether the number after these tokens is the argument of a function, or a factor: `log 100`, `sqrt(16)`, `f(9)`,
/// `the root of 16`, `two thirds of the 27`, `two times 9`.
pub(super) fn is_argument(before: &[Token<'_>]) -> bool {
    let is_power = |word: &str| ["root", "square", "cube", "factorial"].contains(&word);
    const DETERMINERS: [&str; 7] = ["the", "his", "her", "its", "their", "my", "all"];
    let without_determiner = match before {
        [rest @ .., last] if as_word(last).is_some_and(|word| DETERMINERS.contains(&word)) => rest,
        all => all,
    };
    if let [.., root, of] = without_determiner
        && as_word(of) == Some("of")
        && as_word(root).is_some_and(|word| is_power(word) || part_name(word).is_some())
    {
        return true;
    }
    let Some((open, rest)) = before.split_last().filter(|(last, _)| last.kind == Kind::Open) else {
        let word = before.last().and_then(as_word);
        return word.is_some_and(|word| word == "times" || is_function(word));
    };
    let name = rest.last().filter(|_| !open.spaced);
    name.is_some_and(|name| is_variable(name) || as_word(name).is_some_and(is_function))
}

/// Reads a number in words at the start of a sentence: `eighteen`, `two dozen eggs`. Only a unit may follow it.
fn read_words(sentence: &[Token<'_>]) -> Option<Reading> {
    const FILLERS: [&str; 14] = [
        "about",
        "approximately",
        "exactly",
        "only",
        "just",
        "the",
        "therefore",
        "thus",
        "simply",
        "in",
        "total",
        "be",
        "that",
        "a",
    ];
    let is_filler = |token: &&Token<'_>| match token.kind {
        Kind::Word(word) => FILLERS.contains(&word.to_lowercase().as_str()),
        Kind::Quote | Kind::Colon | Kind::Comma | Kind::Open => true,
        _ => false,
    };
    let word = |at: usize| sentence.get(at).and_then(as_word);
    let mut start = sentence.iter().take_while(is_filler).count();
    // "a third"
    let is_part = word(start).is_some_and(|word| word != "half" && part_name(word).is_some());
    if is_part && start > 0 && word(start - 1) == Some("a") {
        start -= 1;
    }
    let (value, length) = number_in_words(&sentence[start..])?;
    let rest = &sentence[start + length..];
    let is_fraction = value.as_ref().is_some_and(|value| !value.is_integer());
    if is_fraction && rest.first().and_then(as_word) == Some("of") {
        let is_alone = !rest.iter().any(|token| is_number(token) || is_small_number(token));
        return Some(Reading { value: value.filter(|_| is_alone), is_plain: is_alone });
    }
    let units = rest.iter().map_while(as_word).count();
    let is_unit = |word: &str| {
        !begins_phrase(word)
            && !changes_value(word)
            && !["and", "or", "to"].contains(&word)
            && small_number(word).is_none()
    };
    let ends = rest
        .get(units)
        .is_none_or(|token| !matches!(token.kind, Kind::Operator(_) | Kind::Colon | Kind::Equals));
    let are_units = rest.iter().map_while(as_word).all(is_unit) && !is_not_stated(rest, 0, true);
    let is_plain = units <= 2 && ends && are_units;
    Some(Reading { value: value.filter(|_| is_plain), is_plain })
}

/// Returns whether a sentence states a number of things and then an amount of money: `She sells 9 eggs for $18`.
pub(super) fn states_pair(sentence: &[Token<'_>]) -> bool {
    let is_money = |amount: &super::amount::Amount| {
        let sign = amount.start.checked_sub(1).map(|at| &sentence[at].kind);
        let unit = sentence.get(amount.end).and_then(as_word);
        matches!(sign, Some(Kind::Currency(_))) || matches!(unit, Some("dollars" | "cents"))
    };
    let Some(first) = next_amount(sentence, 0).filter(|first| !is_money(first)) else {
        return false;
    };
    let is_clause = sentence[..first.start].iter().any(is_word);
    let is_equation = sentence.iter().any(|token| token.kind == Kind::Equals);
    let mut from = first.end;
    while let Some(next) = next_amount(sentence, from).filter(|_| is_clause && !is_equation) {
        if is_money(&next) && next.value != first.value {
            return true;
        }
        from = next.end;
    }
    false
}

/// Returns whether a token is a word for a number below a hundred.
pub(super) fn is_small_number(token: &Token<'_>) -> bool {
    as_word(token).is_some_and(|word| small_number(word).is_some())
}

/// Returns whether a token is a number or a currency sign.
pub(super) fn is_number(token: &Token<'_>) -> bool {
    matches!(token.kind, Kind::Number(_) | Kind::Vulgar(_) | Kind::Formula(..) | Kind::Currency(_))
}

/// Returns whether a token is a hyphen, which joins two words.
pub(super) fn is_hyphen(token: &Token<'_>) -> bool {
    token.kind == Kind::Operator('-') && !token.spaced
}

pub(super) fn is_word(token: &Token<'_>) -> bool {
    matches!(token.kind, Kind::Word(_))
}

pub(super) fn as_word<'a>(token: &Token<'a>) -> Option<&'a str> {
    match token.kind {
        Kind::Word(word) => Some(word),
        _ => None,
    }
}

fn is_verb(token: &Token<'_>) -> bool {
    const VERBS: [&str; 16] = [
        "is", "are", "was", "were", "has", "have", "had", "will", "can", "do", "does", "did",
        "gets", "makes", "sells", "buys",
    ];
    as_word(token).is_some_and(|word| VERBS.contains(&word.to_lowercase().as_str()))
}

/// Returns the tokens of the first sentence: up to the end of the line, or a full stop, question mark or semicolon before a
/// space.
pub(super) fn first_sentence<'t, 'a>(tokens: &'t [Token<'a>]) -> &'t [Token<'a>] {
    let ends = |at: usize| {
        let next = tokens.get(at + 1);
        let spaced = next
            .is_none_or(|next| next.spaced || next.kind == Kind::Break || next.kind == Kind::Quote);
        match tokens[at].kind {
            Kind::Break => true,
            Kind::Semicolon | Kind::Question => spaced,
            Kind::Stop => spaced && !(next.is_some_and(is_number) && is_abbreviated(&tokens[..at])),
            _ => false,
        }
    };
    let end = (0..tokens.len()).find(|at| ends(*at));
    &tokens[..end.unwrap_or(tokens.len())]
}

fn is_abbreviated(before: &[Token<'_>]) -> bool {
    before.last().and_then(as_word).is_some_and(is_abbreviation)
}
