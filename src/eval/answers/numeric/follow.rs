//! Reads the text after an amount in its sentence: a unit, a phrase, or something that makes the amount part of more.

use num_rational::BigRational;
use num_traits::{One, ToPrimitive};

use super::amount::{Amount, next_amount};
use super::number_words::{changes_value, is_fraction_of_one};
use super::relation::is_not_stated;
use super::sentence::{as_word, is_hyphen, is_number, is_small_number, is_word};
use super::sign::is_variable;
use super::token::{Kind, Token};
use super::words::{begins_phrase, begins_reason, is_short_unit, is_unit_letter, restates};

/// The item after an amount and its unit.
pub(super) enum Next {
    /// The end of the statement.
    End,
    /// An equals sign at this index.
    Equals(usize),
    /// The rest of an expression, from this index on.
    Expression(usize),
}

/// Reads the tokens after an amount: its unit, a phrase that does not change it, or something that makes it part of an
/// expression, a range, a list or a compound. Returns the value of the amount, if it still states one, and the next item.
pub(super) fn follow(sentence: &[Token<'_>], amount: &Amount) -> (Option<BigRational>, Next) {
    let value = amount.value.clone();
    let mut unit = None;
    let mut at = amount.end;
    while let Some(token) = sentence.get(at) {
        let next = sentence.get(at + 1);
        match &token.kind {
            Kind::Equals => return (value, Next::Equals(at)),
            Kind::Currency(_) | Kind::Percent | Kind::Degree | Kind::Quote | Kind::Close => {}
            Kind::Raised(_) if unit.is_some() => {}
            Kind::Word(word) => match after_word(sentence, at, unit, amount) {
                Some(end) => return end,
                None => unit = Some(*word),
            },
            Kind::Open => match after_open(sentence, at, amount) {
                Some(closed) => at = closed,
                None => return (None, Next::Expression(at)),
            },
            Kind::Comma => return (after_comma(sentence, at, amount), Next::End),
            // In "18 eggs: 9 and 9" and "18: 9 * 2 = 18" an explanation follows, but not in 18:30 and 3 : 4.
            Kind::Colon if next.is_some_and(is_number) => {
                let spaced = !token.spaced && next.is_some_and(|next| next.spaced);
                let mut later = sentence[at..].iter();
                let is_explained = unit.is_some() || later.any(|token| token.kind == Kind::Equals);
                return (value.filter(|_| spaced && is_explained), Next::End);
            }
            Kind::Stop if next.is_some_and(|next| is_word(next) && !next.spaced) => {}
            // 0.\overline{3}, 6 ft. 2 in., 1;2
            Kind::Stop | Kind::Question | Kind::Semicolon if next.is_some_and(is_number) => {
                return (None, Next::End);
            }
            Kind::Stop if next.is_some_and(|next| !next.spaced && next.kind == Kind::Symbol) => {
                return (None, Next::End);
            }
            Kind::Colon | Kind::Semicolon | Kind::Stop | Kind::Question | Kind::Break => {
                return (value, Next::End);
            }
            Kind::Operator(operator) => {
                match after_operator(*operator, token, next, unit, amount) {
                    Operation::Unit => at += 1,
                    Operation::Dash => return (unless_restated(sentence, at, amount), Next::End),
                    Operation::Expression => return (None, Next::Expression(at)),
                }
            }
            _ => return (None, Next::Expression(at)),
        }
        at += 1;
    }
    (value, Next::End)
}

/// The role of an operator after an amount.
enum Operation {
    /// Part of the unit: `miles/hour`, `m^2`, `18-year`.
    Unit,
    /// Dash between phrases, or another mark that ends the statement.
    Dash,
    /// Operator of an expression.
    Expression,
}

fn after_operator(
    operator: char,
    token: &Token<'_>,
    next: Option<&Token<'_>>,
    unit: Option<&str>,
    amount: &Amount,
) -> Operation {
    let is_repeated = next.is_some_and(|next| next.kind == Kind::Operator(operator));
    let is_word = next.is_some_and(is_word) && !next.is_some_and(is_variable_here);
    match operator {
        '/' if is_word => Operation::Unit,
        '^' if unit.is_some() && next.is_some_and(is_number) => Operation::Unit,
        // 5! is a factorial, but $5!, 5 eggs! and 5!!! are not.
        '!' if !amount.is_bare || unit.is_some() || token.spaced || is_repeated => Operation::Dash,
        '-' | '\u{2212}' | '–' | '—' | '\u{2010}' | '\u{2011}' if is_word && !token.spaced => {
            Operation::Unit
        }
        '-' | '\u{2212}' | '–' | '—' if is_word || next.is_none() => Operation::Dash,
        // "18+" without a space means 18 or more.
        '+' if next.is_none() && token.spaced => Operation::Dash,
        _ => Operation::Expression,
    }
}

/// Returns the result of [`follow`] at a word after an amount, or `None` if the word is part of the unit.
fn after_word(
    sentence: &[Token<'_>],
    at: usize,
    unit: Option<&str>,
    amount: &Amount,
) -> Option<(Option<BigRational>, Next)> {
    let token = &sentence[at];
    let word = as_word(token).unwrap_or_default();
    let next = sentence.get(at + 1);
    let number_next = next.is_some_and(|next| is_number(next) || is_small_number(next));
    let value = || amount.value.clone();
    let unclear = || Some((None, Next::End));
    let expression = || Some((None, Next::Expression(at)));
    if is_not_stated(sentence, at, unit.is_none()) {
        return unclear();
    }
    match word.to_lowercase().as_str() {
        "and" if is_half(sentence, at) => unclear(),
        "grand" if !next.is_some_and(is_word) => unclear(),
        "and" if number_next => Some((with_cents(sentence, at, unit, amount), Next::End)),
        "and" => Some((unless_restated(sentence, at, amount), Next::End)),
        "or" => Some((unless_restated(sentence, at, amount), Next::End)),
        "to" | "through" | "than" | "at" if number_next => unclear(),
        "to" if sentence.get(at + 2).and_then(as_word) == Some("power") => unclear(),
        "to" | "through" => Some((value(), Next::End)),
        "x" | "times" | "plus" | "minus" | "of" if number_next => expression(),
        "plus" | "minus" | "multiplied" | "divided" | "added" | "subtracted" => expression(),
        // "20 rather than 18"
        "rather" | "instead" => Some((value(), Next::End)),
        "in" | "over" | "per"
            if number_next && unit.is_none() && !sentence.get(at + 2).is_some_and(is_word) =>
        {
            unclear()
        }
        "out" | "for" if unit.is_none() && is_ratio(&sentence[at + 1..]) => unclear(),
        // In "18 half-gallons" the word is part of the unit.
        "half" if sentence.get(at + 1).is_some_and(is_hyphen) => None,
        lower if changes_value(lower) => unclear(),
        lower if is_fraction_of_one(lower) && amount.value.as_ref().is_some_and(One::is_one) => {
            unclear()
        }
        // A word with digits is a name, except for the square or cube of a unit.
        _ if has_inner_digit(word) => unclear(),
        _ if is_variable_here(token) => unclear(),
        _ if !token.spaced && unit.is_none() && word.len() == 2 && !is_short_unit(word) => {
            unclear()
        }
        lower if begins_reason(lower) => Some((value(), Next::End)),
        lower if begins_phrase(lower) => Some((unless_restated(sentence, at, amount), Next::End)),
        _ => None,
    }
}

/// Returns whether `and a half`, `and a quarter` or `and a third` begins at `at`.
pub(super) fn is_half(tokens: &[Token<'_>], at: usize) -> bool {
    let word = |at: usize| tokens.get(at).and_then(as_word);
    word(at) == Some("and")
        && word(at + 1) == Some("a")
        && matches!(word(at + 2), Some("half" | "quarter" | "third"))
}

/// Returns whether the text after "out" or "for" completes a ratio: `of 8`, `of every 8`, `every 5`.
fn is_ratio(rest: &[Token<'_>]) -> bool {
    let is_link =
        |token: &Token<'_>| ["of", "every", "each"].contains(&as_word(token).unwrap_or_default());
    let links = rest.iter().take(2).take_while(|token| is_link(token)).count();
    links > 0 && rest.get(links).is_some_and(is_number)
}

/// Returns the index of the bracket that closes the one at `at`, or `None` if the brackets contain a factor, as in `5(3)`.
fn after_open(sentence: &[Token<'_>], at: usize, amount: &Amount) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in sentence.iter().enumerate().skip(at) {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let inside = &sentence[at + 1..index];
            let has_words = inside.iter().any(|token| is_word(token) && !is_variable(token));
            let is_same = next_amount(inside, 0).is_some_and(|other| other.value == amount.value);
            return (has_words || is_same || inside.is_empty()).then_some(index);
        }
    }
    None
}

/// Returns the value of an amount before the comma at `at`, or `None` if it is part of a list.
fn after_comma(sentence: &[Token<'_>], at: usize, amount: &Amount) -> Option<BigRational> {
    let rest = &sentence[at + 1..];
    let joined = rest.first().and_then(as_word).is_some_and(|word| word == "and");
    match rest.get(usize::from(joined)) {
        Some(next) if is_number(next) => None,
        _ => unless_restated(sentence, at, amount),
    }
}

/// Returns the value of `amount`, or `None` if the rest of the sentence, from the index `from` on, states another value: `9
/// eggs, or $18`, `x = 5, y = 6`.
fn unless_restated(sentence: &[Token<'_>], from: usize, amount: &Amount) -> Option<BigRational> {
    let rest = &sentence[from..];
    let is_labeled = amount.start > 0 && sentence[amount.start - 1].kind == Kind::Colon;
    let mut is_restated = false;
    for (at, token) in rest.iter().enumerate() {
        match &token.kind {
            Kind::Word(word) if begins_reason(word) || *word == "with" => break,
            // "5 from Ann plus 13 from Bob", but not "42, which is 40 plus 2"
            Kind::Word("plus" | "minus")
                if rest.get(at + 1).is_some_and(is_number) && !rest[..at].iter().any(is_number) =>
            {
                return None;
            }
            Kind::Word(word) => {
                is_restated |= is_rounded(rest, at);
                let is_abbreviation = *word == "i"
                    && matches!(rest.get(at + 1), Some(stop) if stop.kind == Kind::Stop);
                is_restated |= restates(word) || is_abbreviation;
            }
            Kind::Equals => is_restated = true,
            _ if is_number(token) && is_parallel(sentence, amount, from + at) => {
                let other = next_amount(rest, at)?;
                return amount.value.clone().filter(|value| other.value.as_ref() == Some(value));
            }
            _ if is_number(token) && is_total(rest, at) => {
                let other = next_amount(rest, at)?;
                return amount.value.clone().filter(|value| other.value.as_ref() == Some(value));
            }
            // "Ann: 18, Tom: 20"
            Kind::Colon => is_restated |= is_labeled,
            _ if is_number(token) && is_another(rest, at) => {
                return None;
            }
            _ if is_restated && is_number(token) && !matches!(token.kind, Kind::Currency(_)) => {
                let other = next_amount(rest, at)?;
                return amount.value.clone().filter(|value| other.value.as_ref() == Some(value));
            }
            _ => {}
        }
    }
    amount.value.clone()
}

/// Returns whether a phrase such as "rounded to 18" or "rounds up to 18", but not "rounded to 2 decimals", begins at `at`.
fn is_rounded(rest: &[Token<'_>], at: usize) -> bool {
    let word = |at: usize| rest.get(at).and_then(as_word).unwrap_or_default();
    let at = match word(at) {
        "rounded" | "rounds" | "rounding" => at + 1,
        _ => return false,
    };
    let to = at + usize::from(["up", "down", "off"].contains(&word(at)));
    let is_precision = word(to + 2).starts_with("decimal") || word(to + 2).starts_with("signif");
    word(to) == "to" && rest.get(to + 1).is_some_and(is_number) && !is_precision
}

/// Returns whether the number at the index `at` is called the total: `6 each, 18 in all`.
fn is_total(rest: &[Token<'_>], at: usize) -> bool {
    let mut words = rest.iter().skip(at + 1).take(4).filter_map(as_word);
    let follows_comma = at.checked_sub(1).is_some_and(|last| rest[last].kind == Kind::Comma);
    follows_comma && words.any(|word| ["total", "all", "altogether", "overall"].contains(&word))
}

/// Returns whether the number at the index `other` and `amount` have parallel tokens before them, so that they are two
/// answers: `Ann 5, Bob 13`, `Ann has 5 and Bob has 13`, `(a) 18, (b) 20`.
fn is_parallel(sentence: &[Token<'_>], amount: &Amount, other: usize) -> bool {
    let before = |index: usize| {
        let mut tokens = sentence[..index].iter().rev();
        tokens.find(|token| !matches!(token.kind, Kind::Currency(_) | Kind::Quote))
    };
    let is_name = |word: &str| word.len() > 1 && word.starts_with(char::is_uppercase);
    match (before(amount.start).map(|one| &one.kind), before(other).map(|token| &token.kind)) {
        (Some(Kind::Close), Some(Kind::Close)) => true,
        (Some(Kind::Word(one)), Some(Kind::Word(other))) => {
            let is_verb = one == other && !begins_phrase(one);
            is_verb || is_name(one) && is_name(other)
        }
        _ => false,
    }
}

/// Returns whether the number at `at` begins a second phrase like that of the amount: `18 for Ann and 20 for Bob`.
fn is_another(rest: &[Token<'_>], at: usize) -> bool {
    let link = rest.first().and_then(as_word);
    let is_joined = at > 1
        && matches!(rest[at - 1].kind, Kind::Comma | Kind::Word("and"))
        && link.is_some_and(|link| link != "and");
    let mut next = rest.iter().skip(at + 1).take(2);
    is_joined && next.any(|token| as_word(token) == link)
}

/// Returns the value of `3 dollars and 25 cents`, or `None` for other compounds. `and` is the index of that word.
fn with_cents(
    sentence: &[Token<'_>],
    and: usize,
    unit: Option<&str>,
    amount: &Amount,
) -> Option<BigRational> {
    let is_dollar = unit.is_some_and(|unit| {
        ["dollar", "dollars", "euro", "euros"].contains(&unit.to_lowercase().as_str())
    });
    let cents = next_amount(sentence, and).filter(|cents| cents.start == and + 1 && is_dollar)?;
    let named = sentence.get(cents.end).and_then(as_word);
    named.filter(|word| ["cent", "cents"].contains(&word.to_lowercase().as_str()))?;
    let value = cents.value?;
    let hundred = BigRational::from_integer(100.into());
    let is_below_dollar = value.to_f64().is_some_and(|value| (0.0..100.0).contains(&value));
    amount.value.clone().filter(|_| is_below_dollar).map(|dollars| dollars + value / hundred)
}

/// Returns whether a word after a number is a variable: a single letter that is not a unit.
fn is_variable_here(token: &Token<'_>) -> bool {
    let Some(word) = as_word(token) else {
        return false;
    };
    let is_article = word == "a" && token.spaced;
    let is_letter = word.chars().count() == 1 && (is_variable(token) || word == "a");
    is_letter && !is_article && (!is_unit_letter(word) || word == "a")
}

/// Returns whether a word has digits other than the exponent of a unit: `x2`, but not `m2` or `cm3`.
pub(super) fn has_inner_digit(word: &str) -> bool {
    let letters = word.strip_suffix(['2', '3']).unwrap_or(word);
    letters.contains(|c: char| c.is_ascii_digit())
        || letters.len() == 1 && letters != word && letters != "m"
}
