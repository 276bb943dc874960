//! Parses the attributes of a start tag.

use std::borrow::Cow;

use super::entities::unescape;

/// Returns the value of the first attribute called `wanted` (in lower case) with character references decoded. It is empty
/// for an attribute without a value. `attributes` is the text between the tag's name and its end.
pub(super) fn attribute<'a>(attributes: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    let space = |c: char| c.is_ascii_whitespace();
    let mut rest = attributes;
    loop {
        rest = rest.trim_start_matches(|c| space(c) || c == '/');
        if rest.is_empty() {
            return None;
        }
        // A name may begin with `=`.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let ends = |c: char| space(c) || matches!(c, '/' | '=');
        let end = rest.get(first..)?.find(ends).map_or(rest.len(), |n| first + n);
        let (name, after) = rest.split_at(end);
        let value;
        (value, rest) = match after.trim_start_matches(space).strip_prefix('=') {
            None => ("", after),
            Some(after) => split_value(after.trim_start_matches(space)),
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(unescape(value));
        }
    }
}

/// Splits text into the attribute value at its start, quoted or not, and the rest.
fn split_value(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some(quoted) = text.strip_prefix(quote) {
            return quoted.split_once(quote).unwrap_or((quoted, ""));
        }
    }
    let end = text.find(|c: char| c.is_ascii_whitespace());
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_every_form() {
        for (attributes, expected) in [
            (" start=\"3\"", Some("3")),
            (" START = '3' x", Some("3")),
            (" a=\"start=9\" start=3/", Some("3/")),
            (" start=3 start=4", Some("3")),
            (" start", Some("")),
            ("/start=&#51;", Some("3")),
            (" restart=9 =start=8 start='3", Some("3")),
            (" x", None),
            ("", None),
        ] {
            let found = attribute(attributes, "start");
            assert_eq!(found.as_deref(), expected, "{attributes}");
        }
    }
}
