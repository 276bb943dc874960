//! Joins numbers with separated thousands: `1,000`, `1{,}000`, `1,\!000`, `1\,000`, `1 000`.

use super::super::lexer::{Kind, THOUSANDS, Token};
use super::Commas;

/// Joins the digits of each number with separated thousands into one token. Also returns whether there were commas that may
/// separate thousands or the elements of a list, which are read according to `commas`.
pub(super) fn join_thousands(tokens: Vec<Token>, commas: Commas) -> (Vec<Token>, bool) {
    let mut result = Vec::with_capacity(tokens.len());
    let (mut at, mut depth, mut ambiguous) = (0, 0usize, false);
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Symbol('(' | '[' | '⦃' | '{' | '⟨') => depth += 1,
            Kind::Symbol(')' | ']' | '⦄' | '}' | '⟩') => depth = depth.saturating_sub(1),
            _ => {}
        }
        let chain = Chain::at(&tokens[at..]);
        let join = match chain.separator {
            None => false,
            Some(Separator::Certain) => true,
            // (1,000) is one number, (2,100) is a pair.
            Some(Separator::Comma) if depth > 0 => chain.has_leading_zero,
            Some(Separator::Comma) => {
                ambiguous |= !chain.has_leading_zero;
                chain.has_leading_zero || commas == Commas::Thousands
            }
        };
        if join {
            let digits = chain.digits.concat();
            result.push(Token { kind: Kind::Number(digits), spaced: tokens[at].spaced });
        } else {
            result.extend_from_slice(&tokens[at..at + chain.length]);
        }
        at += chain.length;
    }
    (result, ambiguous)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Separator {
    /// A comma, which may also separate the elements of a list.
    Comma,
    /// A comma in braces or a space, which can only separate thousands.
    Certain,
}

/// A chain of numbers at the start of a list of tokens, with the same separator between them.
struct Chain<'a> {
    /// Number of tokens, or 1 if the first is not a number.
    length: usize,
    digits: Vec<&'a str>,
    /// Separator, or `None` if the numbers are not groups of three digits.
    separator: Option<Separator>,
    /// Whether a group after the first begins with 0, which an element of a list does not.
    has_leading_zero: bool,
}

impl<'a> Chain<'a> {
    fn at(tokens: &'a [Token]) -> Self {
        let number = |at: usize| match tokens.get(at).map(|token| &token.kind) {
            Some(Kind::Number(digits)) => Some(digits.as_str()),
            _ => None,
        };
        let mut chain =
            Chain { length: 1, digits: Vec::new(), separator: None, has_leading_zero: false };
        let Some(first) = number(0) else {
            return chain;
        };
        chain.digits.push(first);
        let mut separator = None;
        loop {
            let after = tokens.get(chain.length);
            let (found, tokens_between) = match after.map(|token| &token.kind) {
                Some(Kind::Symbol(',')) => (Separator::Comma, 1),
                Some(Kind::Symbol(THOUSANDS)) => (Separator::Certain, 1),
                Some(Kind::Number(_)) => (Separator::Certain, 0),
                _ => break,
            };
            let spaced = (chain.length..=chain.length + tokens_between)
                .any(|at| tokens.get(at).is_some_and(|token| token.spaced));
            let Some(group) = number(chain.length + tokens_between) else {
                break;
            };
            // A comma with a space separates elements of a list.
            if (tokens_between == 1 && found == Separator::Comma && spaced)
                || separator.is_some_and(|separator| separator != found)
            {
                break;
            }
            separator = Some(found);
            chain.digits.push(group);
            chain.length += tokens_between + 1;
        }
        chain.has_leading_zero = chain.digits[1..].iter().any(|group| group.starts_with('0'));
        chain.separator = separator.filter(|_| chain.is_grouped());
        chain
    }

    /// Returns whether the chain is a group of one to three digits without a leading zero and then groups of three digits. A
    /// decimal fraction may follow the last.
    fn is_grouped(&self) -> bool {
        let Some((first, groups)) = self.digits.split_first() else {
            return false;
        };
        let Some((last, between)) = groups.split_last() else {
            return false;
        };
        let is_digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
        let last = last.split_once('.').map_or(*last, |(last, _)| last);
        let is_first =
            (1..=3).contains(&first.len()) && is_digits(first) && !first.starts_with('0');
        let mut all = between.iter().copied().chain([last]);
        is_first && all.all(|group| group.len() == 3 && is_digits(group))
    }
}
