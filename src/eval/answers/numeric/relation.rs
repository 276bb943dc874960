//! Recognizes phrases after a number that make it a ratio, a bound or a denied number: `3 times as many`, `18 or more`, `18
//! is wrong`.

use super::sentence::as_word;
use super::token::Token;
use super::words::{is_comparison, is_times};

/// Returns whether the words at the index `at` after an amount show that it is not a stated value. `is_direct` means that
/// there is no unit between the amount and `at`.
pub(super) fn is_not_stated(tokens: &[Token<'_>], at: usize, is_direct: bool) -> bool {
    is_bound(tokens, at) || is_denial(tokens, at) || is_direct && is_ratio(tokens, at)
}

fn lower(tokens: &[Token<'_>], at: usize) -> String {
    tokens.get(at).and_then(as_word).unwrap_or_default().to_lowercase()
}

/// Matches `times as many`, `times the amount`, `times longer`; `as many`, `as old as`.
fn is_ratio(tokens: &[Token<'_>], at: usize) -> bool {
    let (first, second) = (lower(tokens, at), lower(tokens, at + 1));
    if is_times(&first) {
        return is_comparison(&second);
    }
    // "18 as long as she sells them all" states 18.
    let is_condition = ["long", "soon", "far", "well"].contains(&second.as_str());
    let is_equality = ["many", "much", "few", "little"].contains(&second.as_str())
        || !is_condition && lower(tokens, at + 2) == "as";
    first == "as" && is_equality
}

/// Matches `or more`, `and above`, `or fewer`.
fn is_bound(tokens: &[Token<'_>], at: usize) -> bool {
    const BOUNDS: [&str; 16] = [
        "more", "less", "fewer", "higher", "lower", "greater", "above", "over", "below", "under",
        "up", "larger", "bigger", "smaller", "longer", "older",
    ];
    let is_link = ["or", "and"].contains(&lower(tokens, at).as_str());
    is_link && BOUNDS.contains(&lower(tokens, at + 1).as_str())
}

/// Matches `is wrong`, `is not the answer`, `cannot be`.
fn is_denial(tokens: &[Token<'_>], at: usize) -> bool {
    let (first, second, third) = (lower(tokens, at), lower(tokens, at + 1), lower(tokens, at + 2));
    let ends_denial = |word: &str| {
        ["the", "correct", "right", "possible", "an", "our", "my", "true"].contains(&word)
    };
    match first.as_str() {
        "is" | "was" if second == "not" => ends_denial(&third),
        "is" | "was" => ["wrong", "incorrect", "false", "impossible"].contains(&second.as_str()),
        "isn't" | "wasn't" | "isn’t" | "wasn’t" => ends_denial(&second),
        "cannot" | "can't" | "can’t" => second == "be",
        _ => false,
    }
}
