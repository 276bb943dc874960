//! Reads the tokens before a number: its sign, an operator, a currency.

use super::token::{Kind, Token};
use super::words::states;

/// The sign, operator and currency before a number.
#[derive(Default)]
pub(super) struct Sign {
    pub(super) is_minus: bool,
    /// Operator between this number and an operand before it.
    pub(super) operator: Option<char>,
    /// Whether there is a currency sign.
    pub(super) is_money: bool,
    /// Whether the sign of the number is ambiguous.
    pub(super) is_unclear: bool,
}

impl Sign {
    /// Reads the tokens before the number at the index `number`.
    pub(super) fn before(tokens: &[Token<'_>], number: usize) -> Self {
        let mut sign = Self::default();
        // Currency signs and opening brackets may come between the sign and the number.
        let mut at = number;
        while let Some(before) = at.checked_sub(1).map(|at| &tokens[at].kind) {
            match before {
                Kind::Currency(_) => sign.is_money = true,
                Kind::Open => {}
                _ => break,
            }
            at -= 1;
        }
        let Some(index) = at.checked_sub(1) else {
            return sign;
        };
        let before = index.checked_sub(1).map(|before| &tokens[before]);
        match &tokens[index].kind {
            Kind::Operator('±' | '<' | '>' | '≤' | '≥' | '≠') => sign.is_unclear = true,
            Kind::Operator('—') => {
                sign.is_unclear = !tokens[at].spaced && before.is_none_or(|_| tokens[index].spaced);
            }
            kind if is_minus(kind) => sign.read_dash(tokens, index),
            Kind::Operator('^') => sign.is_unclear = true,
            Kind::Operator(operator @ ('+' | '×' | '/' | '÷')) => sign.operator = Some(*operator),
            Kind::Word(word) if ["negative", "minus"].contains(&word.to_lowercase().as_str()) => {
                sign.is_minus = true;
                sign.operator = Some('-');
            }
            _ => {}
        }
        if sign.operator.is_some() {
            if before.is_some_and(is_operand) {
                sign.is_minus = false;
                sign.is_unclear = matches!(before, Some(Token { kind: Kind::Word(_), .. }));
            } else {
                sign.operator = None;
            }
        }
        sign
    }

    /// Decides whether the dash at `index` is a minus sign, a subtraction, a hyphen (`COVID-19`) or a dash between phrases.
    fn read_dash(&mut self, tokens: &[Token<'_>], index: usize) {
        let spaced_after = tokens.get(index + 1).is_some_and(|next| next.spaced);
        let spaced_before = tokens[index].spaced;
        let Some(before) = index.checked_sub(1).map(|before| &tokens[before]) else {
            self.is_minus = true;
            return;
        };
        let is_aside = before.kind == Kind::Close && spaced_before && !spaced_after;
        if is_operand(before) && !is_aside {
            self.operator = Some('-');
            return;
        }
        self.is_minus = match before.kind {
            Kind::Word(_) if !spaced_before => false,
            Kind::Word(word) if spaced_after => states(word),
            // If a space follows, the dash is the bullet of a list.
            Kind::Break => !spaced_after,
            _ => true,
        };
    }
}

/// Returns whether a token is a hyphen, an en dash or a minus sign.
pub(super) fn is_minus(kind: &Kind<'_>) -> bool {
    matches!(kind, Kind::Operator('-' | '\u{2212}' | '–'))
}

/// Returns whether a token can end the left operand of an operator.
fn is_operand(token: &Token<'_>) -> bool {
    match &token.kind {
        Kind::Number(_) | Kind::Vulgar(_) | Kind::Formula(..) | Kind::Raised(_) | Kind::Symbol => {
            true
        }
        Kind::Close | Kind::Percent => true,
        // Before an operator, "a" is a variable, not an article.
        Kind::Word("a" | "A") => true,
        _ => is_variable(token),
    }
}

/// Returns whether a token is a variable: a single letter, or a name with digits.
pub(super) fn is_variable(token: &Token<'_>) -> bool {
    let Kind::Word(word) = token.kind else {
        return false;
    };
    let single = word.chars().count() == 1 && !["a", "A", "I"].contains(&word);
    let is_latin = word.starts_with(|c: char| c < '\u{400}');
    is_latin && (single || word.contains(|c: char| c.is_ascii_digit()))
}
