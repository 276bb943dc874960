//! Answers as exact numbers: `1,000`, `1000.0`, `$1,000.00` and `\boxed{1{,}000}` are one number, and `1/2` is `0.5`.

use std::sync::LazyLock;

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;
use regex::{Captures, Regex};

use super::{STOP_STRINGS, Scorer, Verdict, last_boxed, until};
use crate::eval::pattern;

/// The stated number, compared by value.
pub const NUMERIC: Scorer = Scorer::new(
    "numeric",
    "the stated number (boxed, after \"####\" or \"answer is\", else the last one) by value: 1,000 = $1000.00 = 1000 eggs",
    |ground_truth, completion| {
        let answer = final_number(completion);
        Verdict {
            correct: answer.is_some() && answer == final_number(ground_truth),
            answer: answer.map(|number| number.to_string()),
        }
    },
);

/// Digits with or without thousands separators, or a decimal fraction without its leading zero.
const DECIMAL: &str = r"(?:(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)";
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    // 1: minus; 2 3 4: mixed number; 5: decimal or numerator; 6: denominator; 7 8: power of ten
    pattern(&format!(
        r"(-[$€£¥₹]?|[$€£¥₹]\s?-)?(?:([0-9]+)\s+([0-9]+)\s?/\s?([0-9]+)|({DECIMAL})(?:\s?/\s?({DECIMAL}))?(?:\s?[×x*]\s?10\s?\^\s?\{{?(-?[0-9]+)\}}?|[eE]([-+]?[0-9]+))?)"
    ))
});
/// What makes the number before it a part of something else: an expression, a time, a range, a list.
static GOES_ON: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:\s*[-–+*/^:×÷x]\s*[($]?[0-9]|,\s*[0-9]|\s*(?:and|or|to)\s+\$?[0-9]|!)")
});
/// Before digits that are no number of their own: x2, B12, the end of 1,00 and of 1.2.3.
static PART_OF_A_NAME: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:\w|[0-9][.,])$"));
/// Before a minus that subtracts.
static OPERAND: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:[0-9)]\s*|\w)$"));
/// After a number that has more than one point, or commas at odd places.
static TORN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[.,][0-9]"));
static STATED: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\banswer(?:\s+is|\s*:)\s*:?"));
static SENTENCE: LazyLock<Regex> = LazyLock::new(|| pattern(r"[.;]\s|\n"));
static FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"([0-9]\s*)?\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
});
static WORDS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\\(?:text\w*|mathrm|mathbf|mathit|mbox|rm|bf)\s*\{([^{}]*)\}"));

/// The number a completion (or a known solution) ends with: in its last `\boxed{}`, else after its last `####`, else after
/// its last `answer is` or `answer:`; where none of these states a number, the last number of the text. A next `Question:`
/// ends the text. `None` also if something else is stated: a range, a time, an expression.
pub fn final_number(text: &str) -> Option<BigRational> {
    let text = until(text, &STOP_STRINGS);
    let has_digit = |text: &&str| text.contains(|c: char| c.is_ascii_digit());
    let boxed = last_boxed(text).filter(has_digit);
    let marked = || text.rsplit_once("####").map(|(_, answer)| first_line(answer));
    let stated = || Some(first_line(&text[STATED.find_iter(text).last()?.end()..]));
    let statement = boxed.or_else(|| marked().filter(has_digit));
    match statement.or_else(|| stated().filter(has_digit)) {
        Some(statement) => stated_number(&plain(statement)),
        None => numbers(&plain(text)).last().and_then(|(number, _)| number),
    }
}

/// The value of a text that is a number and nothing else but a currency, a percent sign or a unit in words.
///
/// ```
/// use arithmo::eval::answers::parse_number;
/// assert_eq!(parse_number("$1,000.50"), parse_number(r"\frac{2001}{2}"));
/// assert_eq!(parse_number("10-15"), None);
/// ```
pub fn parse_number(text: &str) -> Option<BigRational> {
    stated_number(&plain(text))
}

/// The value of a text that is a number to its last letter: `-1/2`, `1{,}000.5`, `-\frac{1}{2}`, `1 1/2`.
pub(super) fn whole_number_text(text: &str) -> Option<BigRational> {
    let text = plain(text);
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    let (number, end) = numbers(text).next()?;
    number.filter(|_| end == text.len() && NUMBER.find(text).is_some_and(|all| all.start() == 0))
}

fn first_line(text: &str) -> &str {
    let text = text.trim_start();
    let end = SENTENCE.find(text).map_or(text.len(), |end| end.start());
    &text[..end]
}

/// The first number of a statement, of what stands after its last `=`.
fn stated_number(statement: &str) -> Option<BigRational> {
    let digit = |c: char| c.is_ascii_digit();
    let result = statement.rsplit('=').find(|part| part.contains(digit))?;
    let (number, end) = numbers(result).next()?;
    number.filter(|_| !GOES_ON.is_match(&result[end..]))
}

/// All numbers of `text`, each with the place where it ends.
fn numbers(text: &str) -> impl Iterator<Item = (Option<BigRational>, usize)> {
    let all = NUMBER.captures_iter(text);
    all.filter_map(|found| {
        let (whole, digits) = (found.get(0)?, found.get(2).or(found.get(5))?);
        if PART_OF_A_NAME.is_match(&text[..digits.start()]) {
            return None;
        }
        let negative = found.get(1).is_some() && !OPERAND.is_match(&text[..whole.start()]);
        let value = value(&found).map(|value| if negative { -value } else { value });
        let torn = TORN.is_match(&text[whole.end()..]);
        Some((value.filter(|_| !torn), whole.end()))
    })
}

/// The value of what [`NUMBER`] found, without its sign.
fn value(found: &Captures<'_>) -> Option<BigRational> {
    let group = |index: usize| found.get(index).map(|group| group.as_str());
    if let (Some(whole), Some(above), Some(below)) = (group(2), group(3), group(4)) {
        return Some(decimal(whole)? + ratio(decimal(above)?, decimal(below)?)?);
    }
    let number = decimal(group(5)?)?;
    let number = match group(6) {
        Some(below) => ratio(number, decimal(below)?)?,
        None => number,
    };
    let Some(power) = group(7).or(group(8)) else {
        return Some(number);
    };
    let power: i32 = power.parse().ok().filter(|p: &i32| p.abs() <= MOST_DIGITS as i32)?;
    let ten = BigRational::from(BigInt::from(10));
    Some(number * num_traits::pow::Pow::pow(&ten, power))
}

/// Longer ones are no answers.
const MOST_DIGITS: usize = 400;

fn decimal(text: &str) -> Option<BigRational> {
    if text.len() > MOST_DIGITS {
        return None;
    }
    let text = text.replace(',', "");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let digits: BigInt = format!("{whole}{part}").parse().ok()?;
    let one = BigInt::from(10).pow(part.len() as u32);
    Some(BigRational::new(digits, one))
}

fn ratio(above: BigRational, below: BigRational) -> Option<BigRational> {
    (!below.is_zero()).then(|| above / below)
}

/// `text` without what LaTeX and Markdown put around numbers.
fn plain(text: &str) -> String {
    let mut text = text.to_string();
    for (from, to) in [
        ("**", ""),
        ("{,}", ","),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", " "),
        ("\\ ", " "),
        ("~", " "),
        ("\\$", "$"),
        ("\\%", "%"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\(", " "),
        ("\\)", " "),
        ("\\[", " "),
        ("\\]", " "),
        ("\\times", "×"),
        ("\\cdot", "×"),
        ("\\div", "÷"),
        ("\u{2212}", "-"),
        ("\u{a0}", " "),
        ("\u{202f}", ""),
        ("\u{2009}", ""),
    ] {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    if !text.contains('\\') {
        return text;
    }
    let text = WORDS.replace_all(&text, " $1");
    let fraction = |found: &Captures<'_>| {
        let group = |index: usize| found.get(index).map_or("", |group| group.as_str().trim());
        let whole = group(1);
        let space = if whole.is_empty() { "" } else { " " };
        let (above, below) = (group(2).to_string() + group(4), group(3).to_string() + group(5));
        format!("{whole}{space}{above}/{below}")
    };
    FRACTION.replace_all(&text, fraction).into_owned()
}
