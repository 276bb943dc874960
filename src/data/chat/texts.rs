//! Implements the methods of Python's `str`: splitting, searching, padding and changing the case of texts.

use minijinja::Error;
use minijinja::value::Value;

use super::arguments::{bind, number, text, width};
use super::python::{invalid, is_space};

/// Returns `s` with its first character in upper case and the others in lower case.
pub(super) fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// Returns `s` with the first letter of each run of letters in upper case, as `str.title` does.
pub(super) fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut in_word = false;
    for c in s.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// Removes characters from the ends of `s`: those in `chars`, or white space.
pub(super) fn strip<'a>(s: &'a str, chars: Option<&str>, method: &str) -> &'a str {
    let stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    match method {
        "lstrip" => s.trim_start_matches(stripped),
        "rstrip" => s.trim_end_matches(stripped),
        _ => s.trim_matches(stripped),
    }
}

pub(super) fn split_text(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator, limit] = bind(args, ["sep", "maxsplit"])?;
    let separator = separator.filter(|separator| !separator.is_none());
    let separator = separator.map(|separator| text("sep", Some(&separator))).transpose()?;
    let limit = number("maxsplit", limit.as_ref(), -1)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let from_right = method == "rsplit";
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = s.rsplitn(limit.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => s.splitn(limit.saturating_add(1), separator).collect(),
        None => split_words(s, limit, from_right),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits `s` at runs of white space, at most `limit` times.
fn split_words(s: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = s.trim_matches(is_space);
    while !rest.is_empty() {
        let at = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at.filter(|_| parts.len() < limit) else {
            parts.push(rest);
            break;
        };
        let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
        let (part, remaining) =
            if from_right { (&rest[after..], &rest[..at]) } else { (&rest[..at], &rest[after..]) };
        parts.push(part);
        rest = if from_right {
            remaining.trim_end_matches(is_space)
        } else {
            remaining.trim_start_matches(is_space)
        };
    }
    // Python keeps the white space at the far end of a rest that the limit left whole.
    if parts.len() > limit
        && let Some(last) = parts.last_mut()
    {
        let at = last.as_ptr() as usize - s.as_ptr() as usize;
        *last = if from_right { &s[..at + last.len()] } else { &s[at..] };
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Splits `s` at the line ends that Python knows.
pub(super) fn split_lines(s: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") {
            at + 2
        } else {
            at + rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Counts or finds a text in `s`. Indices are in characters.
pub(super) fn search(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted] = bind(args, ["sub"])?;
    let wanted = text("sub", wanted.as_ref())?;
    if method == "count" {
        return Ok(Value::from(s.matches(&*wanted).count()));
    }
    let at = if method.starts_with('r') { s.rfind(&*wanted) } else { s.find(&*wanted) };
    match at {
        Some(at) => Ok(Value::from(s[..at].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("substring not found")),
    }
}

/// Splits `s` at the first or last `separator`.
pub(super) fn partition<'a>(s: &'a str, separator: &'a str, method: &str) -> [&'a str; 3] {
    if method == "partition" {
        s.split_once(separator).map_or([s, "", ""], |(a, b)| [a, separator, b])
    } else {
        s.rsplit_once(separator).map_or(["", "", s], |(a, b)| [a, separator, b])
    }
}

pub(super) fn pad(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [to, fill] = bind(args, ["width", "fillchar"])?;
    let to = width(to.as_ref(), 0)?;
    let fill = fill.map_or(Ok(" ".to_string()), |fill| text("fillchar", Some(&fill)))?;
    let missing = to.saturating_sub(s.chars().count());
    Ok(Value::from(match method {
        "zfill" => {
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            [sign, &"0".repeat(missing), digits].concat()
        }
        "ljust" => [s, &fill.repeat(missing)].concat(),
        "rjust" => [&fill.repeat(missing), s].concat(),
        _ => center(s, to, &fill),
    }))
}

/// Returns `s` in the middle of `to` characters, as `str.center` does.
pub(super) fn center(s: &str, to: usize, fill: &str) -> String {
    let missing = to.saturating_sub(s.chars().count());
    let left = missing / 2 + (missing & to & 1);
    [&fill.repeat(left), s, &fill.repeat(missing - left)].concat()
}

/// Maximum size in bytes of a text that a method makes.
const MAX_SIZE: usize = 64 << 20;

/// Refuses a text of `size` bytes that is too large, before it is made.
pub(super) fn check_size(size: usize) -> Result<(), Error> {
    if size > MAX_SIZE {
        return Err(invalid(format!("a text of {size} bytes is larger than {MAX_SIZE}")));
    }
    Ok(())
}
