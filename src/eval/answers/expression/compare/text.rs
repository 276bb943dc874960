//! Compares answers as text, in linear time. Answers that cannot be parsed are compared only in this way.

use super::super::lexer::{Kind, Token, tokens};

/// Maximum length of texts that are compared by tokens. Longer texts are compared by characters.
const MAX_BYTES: usize = 10_000;

/// Returns whether both texts have the same tokens. Spaces and braces around single tokens are ignored.
pub(super) fn same_text(one: &str, other: &str) -> bool {
    if one.trim() == other.trim() {
        return true;
    }
    if one.len().max(other.len()) > MAX_BYTES {
        let letters =
            |text: &str| -> Vec<char> { text.chars().filter(|c| !c.is_whitespace()).collect() };
        return letters(one) == letters(other);
    }
    match (tokens(one), tokens(other)) {
        (Some(one), Some(other)) => plain(&one) == plain(&other),
        _ => false,
    }
}

/// Returns the texts of tokens, without braces around single tokens and without a full stop at the end.
fn plain(tokens: &[Token]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let text = match &token.kind {
            Kind::Number(text) | Kind::Letters(text) | Kind::Word(text) => text.clone(),
            Kind::Command(name) => format!("\\{name}"),
            Kind::Symbol(symbol) => symbol.to_string(),
        };
        let is_single = text == "}" && texts.len() >= 2 && texts[texts.len() - 2] == "{";
        if is_single && texts[texts.len() - 1] != "{" {
            let inner = texts.pop();
            texts.pop();
            texts.extend(inner);
        } else {
            texts.push(text);
        }
    }
    let mut texts = with_times_of_day(texts);
    let stops = texts.iter().rev().take_while(|text| *text == ".").count();
    if stops == 1 {
        texts.pop();
    }
    texts
}

/// Replaces `p.m.` and `PM` after a number by `pm`, and `a.m.` and `AM` by `am`.
fn with_times_of_day(texts: Vec<String>) -> Vec<String> {
    let mut result: Vec<String> = Vec::with_capacity(texts.len());
    for text in texts {
        let is_number = |back: usize| {
            let digit = |text: &String| text.starts_with(|c: char| c.is_ascii_digit());
            result.len().checked_sub(back).and_then(|at| result.get(at)).is_some_and(digit)
        };
        let ends = |end: &[&str]| {
            result.ends_with(&end.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let half = ["a", "p"].into_iter().find(|half| ends(&[*half, "."]) && is_number(3));
        match (text.to_lowercase().as_str(), half) {
            ("m", Some(half)) => {
                result.truncate(result.len() - 2);
                result.push(format!("{half}m"));
            }
            (lower @ ("am" | "pm"), _) if is_number(1) => result.push(lower.to_string()),
            _ => result.push(text),
        }
    }
    result
}
