//! Reads numbers written with digits: thousands separated in any way, decimals, powers of ten.

use num_bigint::BigInt;
use num_rational::BigRational;

/// A number written with digits and separators.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numeral {
    /// Value, or `None` if it is ambiguous (`3,5`, `1.2.3`) or has too many digits.
    pub(super) value: Option<BigRational>,
    /// Value of an amount in euros: in `12,50` cents follow the comma, and `1.000`, which may be a thousand, has no value.
    pub(super) in_euros: Option<BigRational>,
    /// Whether it is written with digits only.
    pub(super) is_integer: bool,
}

/// Maximum number of digits of a number. Longer ones are not answers, and are not computed with.
pub(super) const MAX_DIGITS: usize = 400;
/// Maximum number of groups of digits in a number. More groups are a list.
const MAX_GROUPS: usize = 40;

/// A kind of separator of thousands. All separators of a number are of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Separator {
    Comma,
    Space,
    Apostrophe,
    Underscore,
    Point,
}

/// All written forms of the separators.
const SEPARATORS: [(&str, Separator); 25] = [
    (",\\!", Separator::Comma),
    ("{,}\\!", Separator::Comma),
    ("{,}", Separator::Comma),
    (",", Separator::Comma),
    ("\\,", Separator::Space),
    ("{\\,}", Separator::Space),
    ("\\;", Separator::Space),
    ("{\\;}", Separator::Space),
    ("\\:", Separator::Space),
    ("\\>", Separator::Space),
    ("\\ ", Separator::Space),
    ("{\\ }", Separator::Space),
    ("{ }", Separator::Space),
    ("\\!", Separator::Space),
    ("\\thinspace ", Separator::Space),
    ("~", Separator::Space),
    (" ", Separator::Space),
    ("\u{a0}", Separator::Space),
    ("\u{202f}", Separator::Space),
    ("\u{2007}", Separator::Space),
    ("\u{2009}", Separator::Space),
    ("'", Separator::Apostrophe),
    ("\u{2019}", Separator::Apostrophe),
    ("_", Separator::Underscore),
    (".", Separator::Point),
];

/// Reads the number at the start of `text`, which must begin with a digit or with a point and a digit. Returns the number
/// and its length in bytes.
pub(super) fn read(text: &str) -> (Numeral, usize) {
    let first = digits(text);
    let groups = groups(text, first);
    let mut at = groups.end;
    let mut written: String = text[..at].chars().filter(char::is_ascii_digit).collect();
    // Digits after the decimal point or comma.
    let mut decimals = 0;
    let mut has_euro_value = !groups.is_invalid;
    let mut has_value = !groups.is_invalid;
    if let Some(mark) = decimal_mark(&text[at..], groups.separator) {
        decimals = digits(&text[at + 1..]);
        written.push_str(&text[at + 1..at + 1 + decimals]);
        at += 1 + decimals;
        match (mark, groups.separator) {
            // 12,50 may be two numbers; 1.000 may be a thousand.
            (',', None) => {
                has_value = false;
                has_euro_value = decimals <= 2;
            }
            (',', _) => has_value &= decimals != 3,
            (_, None) if decimals == 3 && first <= 3 => has_euro_value = false,
            _ => {}
        }
    }
    let is_integer = at == first;
    // With a second point or comma it is a version, a date or a list.
    let rest = text[at..].trim_start_matches(|c: char| c.is_ascii_digit() || ".,".contains(c));
    let more = &text[at..text.len() - rest.len()];
    if more.contains(|c: char| c.is_ascii_digit()) {
        at += more.trim_end_matches(['.', ',']).len();
        (has_value, has_euro_value) = (false, false);
    }
    let (power, length) = power_of_ten(&text[at..]);
    at += length;
    let number = power.and_then(|power| decimal(&written, decimals, power));
    let numeral = Numeral {
        value: number.clone().filter(|_| has_value),
        in_euros: number.filter(|_| has_euro_value),
        is_integer,
    };
    (numeral, at)
}

/// The groups of digits of the integer part of a number.
struct Groups {
    /// End of the integer part.
    end: usize,
    /// Separator of the groups, if there are several.
    separator: Option<Separator>,
    /// Whether the groups do not form one number.
    is_invalid: bool,
}

/// Reads the integer part of a number, whose first group has `first` digits.
fn groups(text: &str, first: usize) -> Groups {
    let alone = Groups { end: first, separator: None, is_invalid: false };
    if !(1..=3).contains(&first) {
        return alone;
    }
    let Some((separator, _)) = separator(&text[first..]) else {
        return alone;
    };
    let lengths = group_lengths(&text[first..], separator);
    let end = first + lengths.iter().map(|(_, length)| length).sum::<usize>();
    let leading_zero = text.starts_with('0');
    let are_thousands = !lengths.is_empty() && lengths.iter().all(|(digits, _)| *digits == 3);
    let groups = |is_invalid| Groups { end, separator: Some(separator), is_invalid };
    match separator {
        // In Indian notation, groups of two digits come before the last three digits.
        Separator::Comma => match lengths.split_last() {
            Some(((3, _), before)) if before.iter().all(|(digits, _)| [2, 3].contains(digits)) => {
                groups(leading_zero)
            }
            Some(_) if lengths.len() > 1 => groups(true),
            // This is a decimal comma, or a list.
            _ => alone,
        },
        // A single group of three digits may be decimals, unless a decimal comma follows.
        Separator::Point => {
            let has_comma = decimal_mark(&text[end..], Some(separator)).is_some();
            if are_thousands && !leading_zero && (lengths.len() > 1 || has_comma) {
                groups(false)
            } else {
                alone
            }
        }
        _ if are_thousands && !leading_zero && !is_list(&text[end..]) => groups(false),
        _ => alone,
    }
}

/// Returns the groups of digits that follow with this separator: the number of digits of each, and its length with the
/// separator.
fn group_lengths(text: &str, kind: Separator) -> Vec<(usize, usize)> {
    let mut lengths = Vec::new();
    let mut at = 0;
    while let Some((found, length)) = separator(&text[at..]) {
        let digits = digits(&text[at + length..]);
        if found != kind || digits == 0 {
            break;
        }
        lengths.push((digits, length + digits));
        at += length + digits;
        // Only with commas and points, groups of other lengths matter. With other separators they are a list of numbers.
        let is_list = !matches!(kind, Separator::Comma | Separator::Point) && digits != 3;
        if is_list || lengths.len() == MAX_GROUPS {
            break;
        }
    }
    lengths
}

/// Returns whether the text after groups of thousands shows that they are a list of numbers: `3 100-dollar bills`.
fn is_list(rest: &str) -> bool {
    let mut rest = rest.chars();
    rest.next() == Some('-') && rest.next().is_some_and(char::is_alphabetic)
}

fn separator(text: &str) -> Option<(Separator, usize)> {
    let found = SEPARATORS.iter().find(|(form, _)| text.starts_with(form));
    found.map(|(form, separator)| (*separator, form.len()))
}

/// Returns the decimal point or comma at the start of `text`, if a digit follows it and it is not the separator of the
/// groups before it.
fn decimal_mark(text: &str, separator: Option<Separator>) -> Option<char> {
    let mark = text.chars().next()?;
    let is_mark = match mark {
        '.' => separator != Some(Separator::Point),
        ',' => separator != Some(Separator::Comma),
        _ => false,
    };
    (is_mark && digits(&text[1..]) > 0).then_some(mark)
}

/// Returns the number of digits at the start of `text`.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Reads the exponent in `e3` or `E-5` and its length in bytes. The exponent is 0 if there is none, and `None` if it is too
/// large.
fn power_of_ten(text: &str) -> (Option<i32>, usize) {
    let Some(rest) = text.strip_prefix(['e', 'E']) else {
        return (Some(0), 0);
    };
    let sign = usize::from(rest.starts_with(['+', '-']));
    let digits = digits(&rest[sign..]);
    let end = sign + digits;
    if digits == 0 || rest[end..].starts_with(char::is_alphabetic) {
        return (Some(0), 0);
    }
    let power = rest[..end].parse().ok();
    let bounded = power.filter(|power: &i32| power.unsigned_abs() as usize <= MAX_DIGITS);
    (bounded, 1 + end)
}

/// Returns the value of `digits`, of which the last `decimals` are after the decimal point, times ten to the power `power`.
fn decimal(digits: &str, decimals: usize, power: i32) -> Option<BigRational> {
    if digits.len() > MAX_DIGITS {
        return None;
    }
    let power = power - i32::try_from(decimals).ok()?;
    let scale = BigInt::from(10).pow(power.unsigned_abs());
    let digits: BigInt = digits.parse().ok()?;
    Some(if power < 0 {
        BigRational::new(digits, scale)
    } else {
        BigRational::from(digits * scale)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: Option<&BigRational>) -> String {
        value.map_or("-".to_string(), ToString::to_string)
    }

    #[test]
    fn numbers_are_read_with_their_separators() {
        for (text, value, in_euros, rest) in [
            ("18 eggs", "18", "18", " eggs"),
            ("18.", "18", "18", "."),
            ("18.5.", "37/2", "37/2", "."),
            (".5", "1/2", "1/2", ""),
            ("1,000", "1000", "1000", ""),
            ("1,234,567.5", "2469135/2", "2469135/2", ""),
            ("14,50,000", "1450000", "1450000", ""),
            ("1,000,", "1000", "1000", ","),
            ("1,00", "-", "1", ""),
            ("3,5", "-", "7/2", ""),
            ("3, 5", "3", "3", ", 5"),
            ("1,0000", "-", "-", ""),
            ("0,500", "-", "-", ""),
            ("12,50", "-", "25/2", ""),
            ("10 000.", "10000", "10000", "."),
            ("10\u{a0}000", "10000", "10000", ""),
            ("10\u{202f}000,5", "20001/2", "20001/2", ""),
            ("10\\;000", "10000", "10000", ""),
            ("10\\ 000", "10000", "10000", ""),
            ("10~000", "10000", "10000", ""),
            ("10\\,000\\,000", "10000000", "10000000", ""),
            ("1{,}000", "1000", "1000", ""),
            ("1,\\!000", "1000", "1000", ""),
            ("10'000.50", "20001/2", "20001/2", ""),
            ("10\u{2019}000", "10000", "10000", ""),
            ("10_000", "10000", "10000", ""),
            ("10  000", "10", "10", "  000"),
            ("10 00", "10", "10", " 00"),
            ("10 0000", "10", "10", " 0000"),
            ("0 500", "0", "0", " 500"),
            ("5000 000", "5000", "5000", " 000"),
            ("1 2 3", "1", "1", " 2 3"),
            ("3 100-dollar bills", "3", "3", " 100-dollar bills"),
            ("1.000,50", "2001/2", "2001/2", ""),
            ("1.000.000", "1000000", "1000000", ""),
            ("1.000", "1", "-", ""),
            ("3.14159", "314159/100000", "314159/100000", ""),
            ("3.4.5", "-", "-", ""),
            ("1,234,5", "-", "-", ""),
            ("1.5e3", "1500", "1500", ""),
            ("2e-1", "1/5", "1/5", ""),
            ("18eggs", "18", "18", "eggs"),
            ("1e999999999", "-", "-", ""),
            ("1e999", "-", "-", ""),
        ] {
            let (numeral, end) = read(text);
            let (plain, euros) = (numeral.value.as_ref(), numeral.in_euros.as_ref());
            let read = [&shown(plain), &shown(euros), &text[end..]].map(str::to_string);
            assert_eq!(read, [value, in_euros, rest], "{text}");
        }
    }

    #[test]
    fn long_numbers_have_no_value() {
        for long in ["9".repeat(100_000), "1,".repeat(100_000), "1.000".repeat(100_000)] {
            assert_eq!(read(&long).0.value, None);
        }
    }
}
