//! Finds the last number of a text that does not announce an answer.

use num_rational::BigRational;

use super::amount::{Amount, next_amount};
use super::follow::{has_inner_digit, is_half};
use super::number_words::changes_value;
use super::relation::is_not_stated;
use super::sentence::{as_word, is_argument, is_denied, is_hyphen};
use super::sign::is_variable;
use super::token::{Kind, Token, tokens};
use super::words::{is_compound, is_unit_letter};

/// Number of bytes of a line that are read, from its end.
const MAX_LINE_BYTES: usize = 1 << 16;

/// Returns the last number of `text`, or `None` if there is none or it is part of a time, a product, a compound and so on.
pub(super) fn last_number(text: &str) -> Option<BigRational> {
    let has_number = |line: &&str| {
        line.contains(|c: char| {
            c.is_ascii_digit() || ('¼'..='¾').contains(&c) || ('⅓'..='⅞').contains(&c)
        })
    };
    let is_list = text.trim().contains('\n');
    let mut lines = text.rsplit('\n').filter(has_number);
    lines.find_map(|line| last_in_line(line, is_list))?
}

/// Returns the value of the last number of a line, or `None` if the line has no number except that of a step. `is_list`
/// means that the text has several lines, so that the line may begin with a bullet or the number of a step.
fn last_in_line(line: &str, is_list: bool) -> Option<Option<BigRational>> {
    let start = line.len().saturating_sub(MAX_LINE_BYTES);
    let tokens = tokens(&line[line.ceil_char_boundary(start)..]);
    let tokens = match &tokens[..] {
        [bullet, next, ..] if is_list && bullet.kind == Kind::Operator('-') && next.spaced => {
            &tokens[1..]
        }
        all => all,
    };
    let (mut before, mut last) = (None, None);
    let mut from = 0;
    while let Some(amount) = next_amount(tokens, from) {
        from = amount.end;
        if !is_list || !is_step(tokens, &amount) {
            before = last.replace(amount);
        }
    }
    last.map(|last| {
        let value = independent_value(tokens, before.as_ref(), &last);
        value.filter(|_| !is_asked(tokens, &last))
    })
}

/// Returns whether the sentence that contains `amount` is a question.
fn is_asked(tokens: &[Token<'_>], amount: &Amount) -> bool {
    let rest = tokens.get(amount.end..).unwrap_or_default();
    let end = rest.iter().find(|token| matches!(token.kind, Kind::Stop | Kind::Question));
    end.is_some_and(|end| end.kind == Kind::Question)
}

/// Returns whether `amount` is the number of a step: `3. Total`, `3) Total`, `Step 3: total`.
fn is_step(tokens: &[Token<'_>], amount: &Amount) -> bool {
    let mark = tokens.get(amount.end).map(|token| &token.kind);
    let text = tokens.get(amount.end + 1).is_some_and(|token| token.spaced);
    match amount.start.checked_sub(1).map(|at| &tokens[at]) {
        None => text && matches!(mark, Some(Kind::Stop | Kind::Close)),
        Some(before) => matches!(as_word(before), Some("Step" | "step")),
    }
}

/// Returns the value of `amount`, or `None` if it is part of a larger expression with the text around it. `before` is the
/// amount before it.
fn independent_value(
    tokens: &[Token<'_>],
    before: Option<&Amount>,
    amount: &Amount,
) -> Option<BigRational> {
    // A number after a minus sign is read as a result, but not one after another operator.
    let is_factor = matches!(amount.operator, Some('+' | '×' | '÷' | '/'));
    let is_sign = |token: &&Token<'_>| matches!(token.kind, Kind::Currency(_));
    let signs = tokens[..amount.start].iter().rev().take_while(is_sign).count();
    let leading = &tokens[..amount.start - signs];
    if is_factor || is_argument(leading) || is_compared(leading) || is_changed(tokens, amount) {
        return None;
    }
    if before.is_some_and(|before| is_joined(tokens, before, amount)) {
        return None;
    }
    amount.value.clone()
}

/// Returns whether the number after these tokens is denied or used in a comparison: `not 18`, `more than 18`, `instead of
/// 18`, `twice 9`.
fn is_compared(before: &[Token<'_>]) -> bool {
    const COMPARES: [&str; 6] = ["than", "twice", "double", "triple", "thrice", "plus"];
    const DETERMINERS: [&str; 4] = ["the", "his", "her", "their"];
    let is_determiner =
        |token: &&Token<'_>| as_word(token).is_some_and(|word| DETERMINERS.contains(&word));
    let mut near = before.iter().rev().skip_while(is_determiner);
    let (last, earlier) = (near.next().and_then(as_word), near.next().and_then(as_word));
    let is_instead = (earlier, last) == (Some("instead"), Some("of"));
    is_instead || last.is_some_and(|word| COMPARES.contains(&word)) || is_denied(before)
}

/// Returns whether the text after an amount changes its value: `2x`, `5 thirds`, `3 hours and a half`.
fn is_changed(tokens: &[Token<'_>], amount: &Amount) -> bool {
    let after = |at: usize| tokens.get(amount.end + at);
    let glued = |at: usize| after(at).is_some_and(|token| !token.spaced);
    if is_half(tokens, amount.end) || is_half(tokens, amount.end + 1) {
        return true;
    }
    // In "24/8 = 3 times the amount", 3 is a result.
    let is_result = amount.start.checked_sub(1).is_some_and(|at| tokens[at].kind == Kind::Equals);
    let is_direct = !is_result;
    if is_not_stated(tokens, amount.end, is_direct) || is_not_stated(tokens, amount.end + 1, false)
    {
        return true;
    }
    match after(0).map(|next| &next.kind) {
        Some(Kind::Symbol | Kind::Operator('^') | Kind::Open) => glued(0),
        Some(Kind::Operator('-')) => after(1).and_then(as_word) == Some("fold"),
        // 0.\overline{3}
        Some(Kind::Stop) => glued(1) && after(1).is_some_and(|token| token.kind == Kind::Symbol),
        Some(Kind::Word("half")) => !after(1).is_some_and(is_hyphen),
        Some(Kind::Word(word)) => {
            let is_variable = word.chars().count() == 1 && after(0).is_some_and(is_variable);
            changes_value(word) || has_inner_digit(word) || is_variable && !is_unit_letter(word)
        }
        _ => false,
    }
}

/// Returns whether an amount forms a time, a range, a product or a compound with the amount before it.
fn is_joined(tokens: &[Token<'_>], before: &Amount, amount: &Amount) -> bool {
    let glued = |at: usize| tokens.get(at).is_some_and(|token| !token.spaced);
    let rises = before.value < amount.value;
    let hundred = BigRational::from_integer(100.into());
    let is_short = amount.value.as_ref().is_some_and(|value| *value < hundred);
    let between = tokens.get(before.end..amount.start).unwrap_or_default();
    let is_percent = matches!(tokens.get(amount.end - 1), Some(Token { kind: Kind::Percent, .. }));
    let first = before.end;
    let word_before = before.start.checked_sub(1).and_then(|at| as_word(&tokens[at]));
    let is_compound =
        units(tokens, before, amount).is_some_and(|(larger, smaller)| is_compound(larger, smaller));
    match between {
        // 5:30 and 3 : 4, but not "Step 1: 18".
        [colon] if colon.kind == Kind::Colon => {
            is_short && (glued(first) && glued(amount.start) || !glued(first))
        }
        // 5(3)
        [open] if open.kind == Kind::Open => glued(first),
        // 5'6
        [quote] if quote.kind == Kind::Quote => glued(first) && glued(amount.start),
        // 10-15 is a range, 10-5 is 5.
        _ if amount.operator == Some('-') => rises && between.len() == 1,
        [link] => match as_word(link) {
            // "0.6 or 60%" and "5A/5 or 20 = A" state the same number twice.
            Some("or") => before.operator.is_none() && !is_percent,
            Some("to") => word_before != Some("from"),
            Some("of") => true,
            Some("and") => word_before == Some("between") || are_cents(tokens, amount),
            Some("x" | "X" | "times") => true,
            _ => is_compound,
        },
        // x = 18 or x = -3
        [or, rest @ ..]
            if as_word(or) == Some("or") && rest.iter().any(|token| token.kind == Kind::Equals) =>
        {
            let before_it = before.start.checked_sub(1).map(|at| &tokens[at].kind);
            matches!(before_it, Some(Kind::Equals)) && before.value != amount.value
        }
        // "18 out of 20", "18 of the 20"
        [out, of] if as_word(out) == Some("out") && as_word(of) == Some("of") => true,
        [of, _] if as_word(of) == Some("of") => true,
        _ => is_compound,
    }
}

/// Returns whether the unit of an amount is cents: `$3 and 4 cents`.
fn are_cents(tokens: &[Token<'_>], amount: &Amount) -> bool {
    let unit = tokens.get(amount.end).and_then(as_word);
    matches!(unit, Some("cent" | "cents"))
}

/// Returns the units of two amounts, if only `and` or a comma is between the first unit and the second amount.
fn units<'a>(tokens: &[Token<'a>], before: &Amount, amount: &Amount) -> Option<(&'a str, &'a str)> {
    let between = tokens.get(before.end + 1..amount.start)?;
    let joined = between.iter().all(|token| matches!(token.kind, Kind::Comma | Kind::Word("and")));
    let smaller = tokens.get(amount.end).and_then(as_word)?;
    let larger = tokens.get(before.end).and_then(as_word);
    larger.filter(|_| joined).map(|larger| (larger, smaller))
}
