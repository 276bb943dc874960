//! Decodes HTML character references by the rules of HTML5 and of CPython's `html.unescape`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use memchr::memchr;

/// Length of the longest name including its semicolon, in characters (`CounterClockwiseContourIntegral;`).
const LONGEST_NAME: usize = 32;

/// Maps a name without `&`, with its semicolon if it has one, to its character or characters.
static HTML5: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    let entry = |e: &entities::Entity| (e.entity.trim_start_matches('&'), e.characters);
    entities::ENTITIES.iter().map(entry).collect()
});

/// Code points of the Windows-1252 characters 0x80 to 0x9F. An entry is 0 if there is no character, in which case HTML5
/// keeps the code point.
const WINDOWS_1252: [u32; 32] = [
    0x20ac, 0, 0x201a, 0x192, 0x201e, 0x2026, 0x2020, 0x2021, 0x2c6, 0x2030, 0x160, 0x2039, 0x152,
    0, 0x17d, 0, 0, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x2dc, 0x2122, 0x161,
    0x203a, 0x153, 0, 0x17e, 0x178,
];

/// Returns the characters of a named reference by its name without `&` and `;`.
pub(super) fn named(name: &str) -> Option<&'static str> {
    if name.len() >= LONGEST_NAME {
        return None;
    }
    let mut buffer = [0u8; LONGEST_NAME];
    buffer[..name.len()].copy_from_slice(name.as_bytes());
    buffer[name.len()] = b';';
    let with_semicolon = std::str::from_utf8(&buffer[..=name.len()]).ok()?;
    HTML5.get(with_semicolon).copied()
}

/// Returns the character of a numeric reference: Windows-1252 for 0x80 to 0x9F, and U+FFFD for NUL, surrogates and numbers
/// beyond Unicode. `None` means that the number did not fit a `u32`.
pub(super) fn numbered(number: Option<u32>) -> char {
    let mapped = match number {
        Some(n @ 0x80..=0x9f) => match WINDOWS_1252[(n - 0x80) as usize] {
            0 => n,
            mapped => mapped,
        },
        Some(0) | None => return char::REPLACEMENT_CHARACTER,
        Some(n) => n,
    };
    char::from_u32(mapped).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Returns whether `html.unescape` drops references to this code point, as it does for controls and noncharacters.
fn is_dropped(number: u32) -> bool {
    matches!(number, 0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef)
        || (number & 0xfffe == 0xfffe && number <= 0x10_ffff)
}

/// Replaces every character reference like CPython's `html.unescape`. Names need no semicolon where HTML5 allows it, an
/// unknown name is replaced up to the longest known name at its start, and other text is unchanged.
///
/// One known difference: CPython raises an error for a decimal number of more than 4300 digits, which becomes U+FFFD here.
pub fn unescape(text: &str) -> Cow<'_, str> {
    let Some(first) = memchr(b'&', text.as_bytes()) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut next = Some(first);
    while let Some(ampersand) = next {
        out.push_str(&rest[..ampersand]);
        rest = reference(&rest[ampersand + 1..], &mut out);
        next = memchr(b'&', rest.as_bytes());
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Decodes the reference at the start of `rest`, the text after an `&`, into `out`. Returns the text after the reference.
fn reference<'a>(rest: &'a str, out: &mut String) -> &'a str {
    let bytes = rest.as_bytes();
    if bytes.first() == Some(&b'#') {
        let hexadecimal = matches!(bytes.get(1), Some(b'x' | b'X'));
        let (start, radix) = if hexadecimal { (2, 16) } else { (1, 10) };
        let digits = count(&bytes[start..], |b| (b as char).is_digit(radix));
        if digits == 0 {
            out.push('&');
            return rest;
        }
        let end = start + digits;
        let number = u32::from_str_radix(&rest[start..end], radix).ok();
        if !number.is_some_and(is_dropped) {
            out.push(numbered(number));
        }
        return rest[end..].strip_prefix(';').unwrap_or(&rest[end..]);
    }
    let end = rest
        .char_indices()
        .take(LONGEST_NAME)
        .take_while(|(_, c)| !matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';'))
        .last()
        .map_or(0, |(at, c)| at + c.len_utf8());
    let with_semicolon = end + usize::from(end > 0 && bytes.get(end) == Some(&b';'));
    let name = &rest[..with_semicolon];
    if let Some(characters) = HTML5.get(name) {
        out.push_str(characters);
        return &rest[with_semicolon..];
    }
    // The known name must be shorter than this name and have at least two characters. Known names are ASCII.
    let longest = count(name.as_bytes(), |b| b.is_ascii_alphanumeric());
    let known = (2..=longest)
        .rev()
        .filter(|&end| end < name.len())
        .find_map(|end| Some((end, HTML5.get(&name[..end])?)));
    match known {
        Some((end, characters)) => {
            out.push_str(characters);
            out.push_str(&name[end..]);
        }
        None => {
            out.push('&');
            out.push_str(name);
        }
    }
    &rest[with_semicolon..]
}

/// Counts the bytes at the start of `bytes` that are `wanted`.
fn count(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|&&b| wanted(b)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_html5_rules_for_names() {
        // Expected values from CPython 3.11.7, html.unescape.
        for (text, expected) in [
            ("a &lt; b &amp;amp; c", "a < b &amp; c"),
            ("&notanentity; &copy2024", "¬anentity; ©2024"),
            ("&notit; &notin; &ngE;", "¬it; ∉ ≧̸"),
            ("&am &a &;", "&am &a &;"),
            ("&CounterClockwiseContourIntegral;", "∳"),
            ("&ltééé;", "<ééé;"),
            ("& & &\t&", "& & &\t&"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn follows_the_html5_rules_for_numbers() {
        for (text, expected) in [
            ("&#0;&#x80;&#128&#x81;", "\u{fffd}€€\u{81}"),
            ("&#xD800;&#1114112;&#99999999999999;", "\u{fffd}\u{fffd}\u{fffd}"),
            ("a&#1;b&#xFFFE;c&#x1FFFF;d&#11;e&#13;f", "abcde\rf"),
            ("&#; &#x; &#xg", "&#; &#x; &#xg"),
            ("&#65 &#x41x", "A Ax"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn borrows_when_there_is_nothing_to_do() {
        assert!(matches!(unescape("plain"), Cow::Borrowed(_)));
        assert_eq!(HTML5.len(), 2231);
    }
}
