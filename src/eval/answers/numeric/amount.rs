//! Reads amounts: numbers with their sign, fraction, power, multiplier and currency.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Pow, ToPrimitive, Zero};

use super::number_words::{letter_multiplier, multiplier};
use super::numeral::MAX_DIGITS;
use super::sign::{Sign, is_minus};
use super::spelled::{fraction_in_words, fraction_with_numerator};
use super::token::{Kind, Token};
use super::words::is_euro;

/// A number in a list of tokens.
#[derive(Clone, Debug)]
pub(super) struct Amount {
    /// Value, or `None` if it is ambiguous.
    pub(super) value: Option<BigRational>,
    /// Index of the first token, after sign and currency.
    pub(super) start: usize,
    /// Index after the last token.
    pub(super) end: usize,
    /// Whether the amount consists of digits only.
    pub(super) is_bare: bool,
    /// Operator between this amount and an operand before it, which makes it part of an expression. Every dash is `-`.
    pub(super) operator: Option<char>,
}

/// Returns the first amount in `tokens` from the index `from` on.
pub(super) fn next_amount(tokens: &[Token<'_>], from: usize) -> Option<Amount> {
    let is_number = |token: &Token<'_>| {
        matches!(token.kind, Kind::Number(_) | Kind::Vulgar(_) | Kind::Formula(..))
    };
    let start = from + tokens.get(from..)?.iter().position(is_number)?;
    Some(amount_at(tokens, start))
}

/// Reads the amount whose number is at `start`.
fn amount_at(tokens: &[Token<'_>], start: usize) -> Amount {
    let sign = Sign::before(tokens, start);
    let euros = is_in_euros(tokens, start);
    let (mut value, mut end) = power(tokens, start, euros);
    if end == start + 1
        && let Some(extended) = mixed(tokens, start, euros)
            .or_else(|| ratio(tokens, start, euros))
            .or_else(|| scientific(tokens, start, euros))
            .or_else(|| counted_parts(tokens, start))
    {
        (value, end) = extended;
    }
    let is_bare = end == start + 1 && !sign.is_money;
    let kind = |at: usize| tokens.get(at).map(|token| &token.kind);
    while let Some(Kind::Word(word)) = kind(end) {
        let glued = !tokens[end].spaced;
        let letter = || letter_multiplier(word, sign.is_money).filter(|_| glued);
        let Some(factor) = multiplier(word).or_else(letter) else {
            break;
        };
        value = value.map(|value| value * factor);
        end += 1;
        // In the formula $5k$, the letter is a variable.
        if glued && word.len() == 1 && matches!(kind(end), Some(Kind::Currency('$'))) {
            value = None;
        }
    }
    if matches!(kind(end), Some(Kind::Percent)) {
        end += 1;
    }
    let symbol = |at: Option<usize>| at.and_then(kind) == Some(&Kind::Symbol);
    if symbol(start.checked_sub(1)) || symbol(Some(end)) || sign.is_unclear {
        value = None;
    }
    Amount {
        value: value.map(|value| if sign.is_minus { -value } else { value }),
        start,
        end,
        is_bare: is_bare && end == start + 1,
        operator: sign.operator,
    }
}

/// Returns the value of the number at `at`.
fn number(tokens: &[Token<'_>], at: usize, euros: bool) -> Option<BigRational> {
    match &tokens.get(at)?.kind {
        Kind::Number(number) if euros => number.in_euros.clone(),
        Kind::Number(number) => number.value.clone(),
        Kind::Vulgar(value) => Some(value.clone()),
        Kind::Formula(value, _) => value.clone(),
        _ => None,
    }
}

fn is_integer(tokens: &[Token<'_>], at: usize) -> bool {
    matches!(tokens.get(at), Some(Token { kind: Kind::Number(number), .. }) if number.is_integer)
}

/// Returns whether the token at `at` is this operator.
pub(super) fn is_operator(tokens: &[Token<'_>], at: usize, operator: char) -> bool {
    tokens.get(at).is_some_and(|token| token.kind == Kind::Operator(operator))
}

/// Reads a number with its exponent, if it has one: `2^{10}`, `10³`. Returns its value and the index after it.
fn power(tokens: &[Token<'_>], at: usize, euros: bool) -> (Option<BigRational>, usize) {
    let base = number(tokens, at, euros);
    match tokens.get(at + 1) {
        Some(Token { kind: Kind::Raised(exponent), spaced: false }) => {
            (base.and_then(|base| raised(&base, *exponent)), at + 2)
        }
        Some(Token { kind: Kind::Operator('^'), .. }) => exponent_after(tokens, at + 2, base),
        _ => (base, at + 1),
    }
}

/// Reads the exponent at `at`. Returns the value of `base` with it and the index after it. `18^\circ` is 18.
fn exponent_after(
    tokens: &[Token<'_>],
    at: usize,
    base: Option<BigRational>,
) -> (Option<BigRational>, usize) {
    if let Some(Token { kind: Kind::Degree, .. }) = tokens.get(at) {
        return (base, at + 1);
    }
    // "the 18^{th}"
    if let Some(Token { kind: Kind::Word("st" | "nd" | "rd" | "th"), .. }) = tokens.get(at) {
        return (base, at + 1);
    }
    let minus = tokens.get(at).is_some_and(|token| is_minus(&token.kind));
    let at = at + usize::from(minus);
    let Some(exponent) = number(tokens, at, false) else {
        return (None, at);
    };
    let exponent = exponent.is_integer().then(|| exponent.to_integer());
    let exponent = exponent.and_then(|exponent| i32::try_from(exponent).ok());
    let exponent = exponent.map(|exponent| if minus { -exponent } else { exponent });
    let value = base.zip(exponent).and_then(|(base, exponent)| raised(&base, exponent));
    (value, at + 1)
}

/// Returns `base` to the power of `exponent`, or `None` if it is undefined or would have too many digits.
fn raised(base: &BigRational, exponent: i32) -> Option<BigRational> {
    let bits = base.numer().bits().max(base.denom().bits());
    let max_bits = 4 * MAX_DIGITS as u64;
    let is_bounded = bits.saturating_mul(u64::from(exponent.unsigned_abs())) <= max_bits;
    let is_defined = !base.is_zero() || exponent > 0;
    (is_bounded && is_defined).then(|| Pow::pow(base, exponent))
}

/// Reads a mixed number: `3½`, `3 1/2`, `3\frac{1}{2}`, `3 and a half`, `3 and 1/2`.
fn mixed(tokens: &[Token<'_>], at: usize, euros: bool) -> Option<(Option<BigRational>, usize)> {
    if !is_integer(tokens, at) {
        return None;
    }
    let whole = number(tokens, at, euros);
    let has_and =
        matches!(tokens.get(at + 1)?.kind, Kind::Word(word) if word.eq_ignore_ascii_case("and"));
    let (part, end) = if has_and {
        proper_fraction(tokens, at + 2).or_else(|| fraction_in_words(tokens, at + 2))?
    } else {
        proper_fraction(tokens, at + 1)?
    };
    Some((whole.zip(part).map(|(whole, part)| whole + part), end))
}

/// Reads a fraction of integers, which may follow an integer in a mixed number.
fn proper_fraction(tokens: &[Token<'_>], at: usize) -> Option<(Option<BigRational>, usize)> {
    match &tokens.get(at)?.kind {
        Kind::Vulgar(_) | Kind::Formula(_, true) => Some((number(tokens, at, false), at + 1)),
        Kind::Number(_) if is_integer(tokens, at) && is_integer(tokens, at + 2) => {
            // With a third number it is a date or a chain of divisions.
            let is_alone = !is_operator(tokens, at + 3, '/');
            (is_operator(tokens, at + 1, '/') && is_alone).then(|| {
                let denominator = number(tokens, at + 2, false);
                (divided(number(tokens, at, false), denominator), at + 3)
            })
        }
        _ => None,
    }
}

/// Reads a ratio of two numbers: `24/2`. It has no value if there is a currency sign before the second.
fn ratio(tokens: &[Token<'_>], at: usize, euros: bool) -> Option<(Option<BigRational>, usize)> {
    let has_currency = matches!(tokens.get(at + 2)?.kind, Kind::Currency(_));
    let second = at + 2 + usize::from(has_currency);
    if !is_operator(tokens, at + 1, '/') {
        return None;
    }
    let divisor = number(tokens, second, euros);
    matches!(tokens.get(second)?.kind, Kind::Number(_) | Kind::Formula(..)).then(|| {
        let quotient = divided(number(tokens, at, euros), divisor);
        (quotient.filter(|_| !has_currency), second + 1)
    })
}

fn divided(dividend: Option<BigRational>, divisor: Option<BigRational>) -> Option<BigRational> {
    let divisor = divisor.filter(|divisor| !divisor.is_zero());
    dividend.zip(divisor).map(|(dividend, divisor)| dividend / divisor)
}

/// Reads a number in scientific notation: `1.5 × 10^3`.
fn scientific(
    tokens: &[Token<'_>],
    at: usize,
    euros: bool,
) -> Option<(Option<BigRational>, usize)> {
    let is_product = match &tokens.get(at + 1)?.kind {
        Kind::Operator('×') => true,
        Kind::Word(word) => *word == "x" || *word == "X",
        _ => false,
    };
    let ten = BigRational::from(BigInt::from(10));
    if !is_product || number(tokens, at + 2, false)? != ten {
        return None;
    }
    let (factor, end) = power(tokens, at + 2, false);
    // Without an exponent, as in 5 * 10, it is a product.
    (end > at + 3).then(|| {
        let value = number(tokens, at, euros).zip(factor);
        (value.map(|(number, factor)| number * factor), end)
    })
}

/// Reads a fraction whose denominator is a word: `3 quarters`, `2 thirds`.
fn counted_parts(tokens: &[Token<'_>], at: usize) -> Option<(Option<BigRational>, usize)> {
    let count = number(tokens, at, false).filter(|_| is_integer(tokens, at))?;
    fraction_with_numerator(tokens, count.to_integer().to_u64()?, at + 1)
}

/// Returns whether the amount at `at` is in euros: the sign or the word is directly before or after it.
fn is_in_euros(tokens: &[Token<'_>], at: usize) -> bool {
    let euro = |token: Option<&Token<'_>>| match token.map(|token| &token.kind) {
        Some(Kind::Currency(sign)) => *sign == '€',
        Some(Kind::Word(word)) => is_euro(word),
        _ => false,
    };
    euro(tokens.get(at + 1)) || euro(at.checked_sub(1).and_then(|before| tokens.get(before)))
}
