//! Numbers the items of a list like browsers do, by the attributes `start`, `value`, `reversed` and `type`.

use memchr::memchr_iter;

use super::attributes::attribute;
use super::tokenizer::StartTag;

/// An open `ul` or `ol`.
#[derive(Debug)]
pub(super) struct List {
    /// `None` for bullets.
    numbering: Option<Numbering>,
}

#[derive(Debug)]
struct Numbering {
    next: i32,
    step: i32,
    style: Style,
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Decimal,
    /// Letters, in upper case if true.
    Letters(bool),
    /// Roman numerals, in upper case if true.
    Roman(bool),
}

impl List {
    pub(super) fn unordered() -> Self {
        Self { numbering: None }
    }

    /// Returns the list that an `<ol …>` opens. For a reversed list, the items are counted in at most `*budget` bytes of
    /// the text after the tag.
    pub(super) fn ordered(tag: &StartTag<'_>, budget: &mut usize) -> Self {
        let value = |name| attribute(tag.attributes, name);
        let reversed = value("reversed").is_some();
        let start = value("start").and_then(|text| integer(&text));
        let next =
            start.unwrap_or_else(|| if reversed { count_items(tag.rest, budget) } else { 1 });
        let style = match value("type").as_deref() {
            Some("a") => Style::Letters(false),
            Some("A") => Style::Letters(true),
            Some("i") => Style::Roman(false),
            Some("I") => Style::Roman(true),
            _ => Style::Decimal,
        };
        let step = if reversed { -1 } else { 1 };
        Self { numbering: Some(Numbering { next, step, style }) }
    }

    /// Returns the bullet or number of the item that an `<li …>` opens.
    pub(super) fn bullet(&mut self, tag: &StartTag<'_>) -> String {
        let Some(numbering) = &mut self.numbering else {
            return "- ".to_string();
        };
        let value = attribute(tag.attributes, "value").and_then(|text| integer(&text));
        let number = value.unwrap_or(numbering.next);
        numbering.next = number.saturating_add(numbering.step);
        format!("{}. ", numbering.style.write(number))
    }
}

/// Parses an integer by HTML's rules, which ignore everything after the digits.
fn integer(text: &str) -> Option<i32> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let number: i64 = digits.get(..end)?.parse().ok()?;
    let number = if text.starts_with('-') { -number } else { number };
    i32::try_from(number).ok()
}

/// Counts the items of a list in the text `rest` after its start tag. Reads at most `*budget` bytes and subtracts the
/// number of bytes read from it.
fn count_items(rest: &str, budget: &mut usize) -> i32 {
    let bytes = rest.as_bytes();
    let bytes = bytes.get(..*budget).unwrap_or(bytes);
    let (mut items, mut depth, mut read) = (0, 0, bytes.len());
    for at in memchr_iter(b'<', bytes) {
        let tag = bytes.get(at + 1..).unwrap_or_default();
        let (closing, tag) = match tag.strip_prefix(b"/") {
            Some(tag) => (true, tag),
            None => (false, tag),
        };
        let end = tag.iter().position(|b| !b.is_ascii_alphanumeric());
        let name = tag.get(..end.unwrap_or(tag.len())).unwrap_or_default();
        if name.eq_ignore_ascii_case(b"li") && !closing && depth == 0 {
            items += 1;
        } else if name.eq_ignore_ascii_case(b"ol") || name.eq_ignore_ascii_case(b"ul") {
            depth += if closing { -1 } else { 1 };
            if depth < 0 {
                read = at;
                break;
            }
        }
    }
    *budget -= read;
    items
}

impl Style {
    /// Formats a number. Numbers that the style cannot express are written in decimal.
    fn write(self, number: i32) -> String {
        let with_case = |text: String, upper| if upper { text.to_uppercase() } else { text };
        match self {
            Self::Letters(upper) if number > 0 => with_case(letters(number), upper),
            Self::Roman(upper) if (1..4000).contains(&number) => with_case(roman(number), upper),
            _ => number.to_string(),
        }
    }
}

/// Formats a positive number in letters: a, b, ..., z, aa, ab, ...
fn letters(mut number: i32) -> String {
    let mut text = Vec::new();
    while number > 0 {
        text.push(char::from(b'a' + ((number - 1) % 26) as u8));
        number = (number - 1) / 26;
    }
    text.iter().rev().collect()
}

/// Formats a number from 1 to 3999 in Roman numerals.
fn roman(mut number: i32) -> String {
    const SYMBOLS: [(i32, &str); 13] = [
        (1000, "m"),
        (900, "cm"),
        (500, "d"),
        (400, "cd"),
        (100, "c"),
        (90, "xc"),
        (50, "l"),
        (40, "xl"),
        (10, "x"),
        (9, "ix"),
        (5, "v"),
        (4, "iv"),
        (1, "i"),
    ];
    let mut text = String::new();
    for (value, symbol) in SYMBOLS {
        while number >= value {
            text.push_str(symbol);
            number -= value;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_html_reads_them() {
        for (text, expected) in [
            ("3", Some(3)),
            (" \n+3abc", Some(3)),
            ("-2", Some(-2)),
            ("3.9", Some(3)),
            ("", None),
            ("x3", None),
            ("99999999999", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn letters_and_roman_numbers() {
        let written = |style: Style, numbers: [i32; 4]| numbers.map(|n| style.write(n));
        assert_eq!(written(Style::Letters(false), [1, 26, 27, 0]), ["a", "z", "aa", "0"]);
        assert_eq!(
            written(Style::Roman(true), [4, 1994, 4000, -1]),
            ["IV", "MCMXCIV", "4000", "-1"]
        );
    }
}
