//! When two formulas have the same value, as far as that can be told without algebra: numbers however they are written,
//! sets in any order, intervals and tuples element by element. What is not told apart safely is not equal.

use std::sync::LazyLock;

use num_bigint::BigInt;
use num_rational::BigRational;
use regex::Regex;

use super::hendrycks::{normalized, same_when_normalized};
use crate::eval::answers::numeric::whole_number_text;
use crate::eval::pattern;

/// Whether both are the same when normalised (see [`same_when_normalized`]), or in value.
///
/// ```
/// use arithmo::eval::answers::equivalent;
/// assert!(equivalent(r"\frac{1}{4}", "0.25") && equivalent("[1, 2)", r"\left[1,2.0\right)"));
/// assert!(equivalent(r"\{1, 2\}", "2, 1") && equivalent("0.5", r"50\%"));
/// assert!(!equivalent("(1, 2)", "(2, 1)") && !equivalent("0.33", r"\frac{1}{3}"));
/// ```
pub fn equivalent(one: &str, other: &str) -> bool {
    same_when_normalized(one, other) || same(&Value::read(one), &Value::read(other))
}

/// What a formula stands for, as far as it is understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Number {
        value: BigRational,
        percent: bool,
    },
    /// `(a, b)`, `[a, b)`, ...: its brackets and what is between them, in order.
    Tuple(char, char, Vec<Self>),
    /// `\{a, b\}`, or `a, b`: in any order.
    Set(Vec<Self>),
    /// Anything else, letter for letter.
    Formula(String),
}

/// Deeper nests are formulas.
const DEEPEST: usize = 8;

impl Value {
    fn read(text: &str) -> Self {
        Self::parse(&plain(text), DEEPEST)
    }

    fn parse(text: &str, depth: usize) -> Self {
        let text = text.trim();
        if let Some(number) = number(text) {
            return number;
        }
        let parts = |text: &str, separator: &str| {
            let parts = split(text, separator)?;
            Some(parts.into_iter().map(|part| Self::parse(part, depth - 1)).collect::<Vec<_>>())
        };
        if depth == 0 {
            return Self::formula(text);
        }
        // A union of intervals, a list.
        for separator in ["\\cup", ","] {
            if let Some(set) = parts(text, separator).filter(|set| set.len() > 1) {
                return Self::set(set);
            }
        }
        if let Some(inner) = text.strip_prefix("\\{").and_then(|text| text.strip_suffix("\\}")) {
            return Self::set(parts(inner, ",").unwrap_or_else(|| vec![Self::formula(inner)]));
        }
        match brackets(text)
            .and_then(|(open, inner, close)| Some((open, close, parts(inner, ",")?)))
        {
            Some(('(', ')', mut one)) if one.len() == 1 => one.remove(0),
            Some((open, close, elements)) if elements.len() > 1 => {
                Self::Tuple(open, close, elements)
            }
            _ => Self::formula(text),
        }
    }

    fn set(mut elements: Vec<Self>) -> Self {
        elements.sort();
        elements.dedup();
        Self::Set(elements)
    }

    fn formula(text: &str) -> Self {
        static OVER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(-?)([^/+-]+)/([0-9]+|[a-z])$"));
        let text = normalized(text).unwrap_or_else(|| text.to_string());
        let text = OVER.replace(&text, r"$1\frac{$2}{$3}").into_owned();
        let word = text.chars().count() > 1 && text.chars().all(char::is_alphabetic);
        Self::Formula(if word { text.to_lowercase() } else { text })
    }
}

fn same(one: &Value, other: &Value) -> bool {
    let all = |one: &[Value], other: &[Value]| {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
    };
    match (one, other) {
        (Value::Number { value: a, percent: p }, Value::Number { value: b, percent: q }) => {
            let part = |value: &BigRational, percent: bool| match percent {
                true => value / BigRational::from(BigInt::from(100)),
                false => value.clone(),
            };
            part(a, *p) == part(b, *q)
        }
        (Value::Tuple(a, b, one), Value::Tuple(c, d, other)) => a == c && b == d && all(one, other),
        (Value::Set(one), Value::Set(other)) => all(one, other),
        _ => one == other,
    }
}

/// A formula that is a number, with a percent sign, a degree sign or a unit at most.
fn number(text: &str) -> Option<Value> {
    static UNIT: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"^(.*[0-9}])\s*(?:\\(?:text\w*|mathrm|mbox)\s*\{[^{}]*\}|\s[a-zA-Z][a-zA-Z ]+)(?:\^\{?[23]\}?)?$",
        )
    });
    let bare =
        UNIT.captures(text).and_then(|found| found.get(1)).map_or(text, |bare| bare.as_str());
    let short = bare.trim_end().trim_end_matches('%');
    let percent = short.len() < bare.trim_end().len();
    let value = whole_number_text(short.trim())?;
    Some(Value::Number { value, percent })
}

/// `text` between its outermost brackets, if they belong together.
fn brackets(text: &str) -> Option<(char, &str, char)> {
    let mut chars = text.chars();
    let (open, close) = (chars.next()?, chars.next_back()?);
    let inner = chars.as_str();
    // An interval may be half open.
    let pair = matches!(open, '(' | '[') && matches!(close, ')' | ']');
    (pair && split(inner, ",").is_some()).then_some((open, inner, close))
}

/// Splits at separators outside of all brackets; `None` if brackets are not closed.
fn split<'a>(text: &'a str, separator: &str) -> Option<Vec<&'a str>> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 && at >= start && text[at..].starts_with(separator) {
            parts.push(&text[start..at]);
            start = at + separator.len();
        }
    }
    parts.push(&text[start..]);
    (depth == 0).then_some(parts)
}

/// Without what changes no value: dollar signs, spacing, sizes, `x =` and a full stop.
fn plain(text: &str) -> String {
    static NAME: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^\s*[a-zA-Z](?:_\{?\w\}?)?\s*(?:=|\\in(?:\s|\b))"));
    static WORDS: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^\\(?:text\w*|mathrm|mbox)\s*\{([^{}]*)\}$"));
    let mut text = text.trim().trim_end_matches('.').to_string();
    for (from, to) in [
        ("$", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", " "),
        ("\\ ", " "),
        ("\\left", ""),
        ("\\right", ""),
        ("\\displaystyle", ""),
        ("\\%", "%"),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("{,}", ","),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\u{2212}", "-"),
        ("\u{221e}", "\\infty"),
        ("\u{3c0}", "\\pi"),
        ("\u{222a}", "\\cup"),
        ("+\\infty", "\\infty"),
    ] {
        text = text.replace(from, to);
    }
    let text = NAME.replace(&text, "");
    WORDS.replace(text.trim(), "$1").into_owned()
}
