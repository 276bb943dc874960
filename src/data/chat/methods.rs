//! The methods of Python's `str`, `dict` and `list` that templates call.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::arguments::{bind, number, split, text, width};
use super::python::{invalid, is_space, items, pairs};

/// Calls a method that minijinja does not know itself.
///
/// # Errors
/// There is no such method, it would change the value (the sandbox of transformers refuses that), or its arguments are not
/// valid.
pub(super) fn call(
    _state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => mapping(value, method, args),
        ValueKind::Seq | ValueKind::Iterable => list(value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn mapping(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let [key, default] = bind(args, ["key", "default"])?;
            let key = key.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "keys" => {
            let [] = bind(args, [])?;
            Ok(Value::from(items(value)?))
        }
        "values" => {
            let [] = bind(args, [])?;
            Ok(pairs(value)?.into_iter().map(|(_, value)| value).collect())
        }
        "items" => {
            let [] = bind(args, [])?;
            let tuple = |(key, value)| Value::from(Tuple::from([key, value]));
            Ok(pairs(value)?.into_iter().map(tuple).collect())
        }
        "copy" => {
            let [] = bind(args, [])?;
            Ok(Value::from_pairs(pairs(value)?))
        }
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(unsafe_method(method, "dict")),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn list(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "index" | "count" => {
            let [wanted] = bind(args, ["value"])?;
            let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let items = items(value)?;
            if method == "count" {
                return Ok(Value::from(items.iter().filter(|item| **item == wanted).count()));
            }
            let index = items.iter().position(|item| *item == wanted);
            index.map(Value::from).ok_or_else(|| invalid(format!("{wanted} is not in list")))
        }
        "copy" => {
            let [] = bind(args, [])?;
            Ok(Value::from(items(value)?))
        }
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            Err(unsafe_method(method, "list"))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Returns the error for a method that changes its value.
fn unsafe_method(method: &str, kind: &str) -> Error {
    invalid(format!("access to attribute '{method}' of '{kind}' object is unsafe."))
}

fn string(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(value) = string_without_arguments(s, method) {
        let [] = bind(args, [])?;
        return Ok(value);
    }
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(args, ["chars"])?;
            let chars = chars.filter(|chars| !chars.is_none());
            let chars = chars.map(|chars| text("chars", Some(&chars))).transpose()?;
            Value::from(strip(s, chars.as_deref(), method))
        }
        "split" | "rsplit" => split_text(s, method, args)?,
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            let lines = split_lines(s, keep.is_some_and(|keep| keep.is_true()));
            lines.into_iter().map(Value::from).collect()
        }
        "startswith" | "endswith" => {
            let [affix] = bind(args, ["prefix"])?;
            let affix = affix.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let affixes = if affix.is_tuple() { items(&affix)? } else { vec![affix] };
            let affixes: Vec<String> = affixes
                .iter()
                .map(|affix| text("prefix", Some(affix)))
                .collect::<Result<_, _>>()?;
            let starts = method == "startswith";
            let matches =
                |affix: &String| if starts { s.starts_with(affix) } else { s.ends_with(affix) };
            Value::from(affixes.iter().any(matches))
        }
        "replace" => {
            let [old, new, count] = bind(args, ["old", "new", "count"])?;
            let (old, new) = (text("old", old.as_ref())?, text("new", new.as_ref())?);
            let count = number("count", count.as_ref(), -1)?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            check_size(s.len().saturating_add(
                (s.len() / old.len().max(1) + 1).min(count).saturating_mul(new.len()),
            ))?;
            Value::from(s.replacen(&old, &new, count))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(s, method, args)?,
        "join" => {
            let [list] = bind(args, ["iterable"])?;
            let list = list.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let list = items(&list)?;
            check_size(list.len().saturating_mul(s.len()))?;
            let item = |item: &Value| text("each item to join", Some(item));
            let texts: Vec<String> = list.iter().map(item).collect::<Result<_, _>>()?;
            Value::from(texts.join(s))
        }
        "removeprefix" => {
            let [affix] = bind(args, ["prefix"])?;
            let affix = text("prefix", affix.as_ref())?;
            Value::from(s.strip_prefix(&*affix).unwrap_or(s))
        }
        "removesuffix" => {
            let [affix] = bind(args, ["suffix"])?;
            let affix = text("suffix", affix.as_ref())?;
            Value::from(s.strip_suffix(&*affix).unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(args, ["sep"])?;
            let separator = text("sep", separator.as_ref())?;
            Value::from(Tuple::from(partition(s, &separator, method).map(Value::from)))
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(s, method, args)?,
        "format" => Value::from(format(FormatStyle::StrFormat, s, args)?),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// Calls a method of `str` that takes no arguments, or returns `None` if there is none of this name.
fn string_without_arguments(s: &str, method: &str) -> Option<Value> {
    let every = |holds: fn(char) -> bool| !s.is_empty() && s.chars().all(holds);
    Some(match method {
        "upper" => Value::from(s.to_uppercase()),
        "lower" | "casefold" => Value::from(s.to_lowercase()),
        "title" => Value::from(title(s)),
        "capitalize" => Value::from(capitalize(s)),
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            Value::from(s.chars().map(swap).collect::<String>())
        }
        "isalpha" => Value::from(every(char::is_alphabetic)),
        "isalnum" => Value::from(every(char::is_alphanumeric)),
        "isdigit" | "isdecimal" | "isnumeric" => Value::from(every(char::is_numeric)),
        "isspace" => Value::from(every(is_space)),
        "isascii" => Value::from(s.is_ascii()),
        "isupper" => {
            Value::from(s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase))
        }
        "islower" => {
            Value::from(s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase))
        }
        "istitle" => Value::from(s.chars().any(char::is_alphabetic) && title(s) == s),
        _ => return None,
    })
}

/// Returns `s` with its first character in upper case and the others in lower case.
pub(super) fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// Returns `s` with the first letter of each run of letters in upper case, as `str.title` does.
fn title(s: &str) -> String {
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

fn split_text(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
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
fn split_lines(s: &str, keep_ends: bool) -> Vec<&str> {
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
fn search(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
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
fn partition<'a>(s: &'a str, separator: &'a str, method: &str) -> [&'a str; 3] {
    if method == "partition" {
        s.split_once(separator).map_or([s, "", ""], |(a, b)| [a, separator, b])
    } else {
        s.rsplit_once(separator).map_or(["", "", s], |(a, b)| [a, separator, b])
    }
}

fn pad(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
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
fn check_size(size: usize) -> Result<(), Error> {
    if size > MAX_SIZE {
        return Err(invalid(format!("a text of {size} bytes is larger than {MAX_SIZE}")));
    }
    Ok(())
}

/// Implements the operator `%` of a text.
pub(super) fn percent(format_text: &str, args: Value) -> Result<String, Error> {
    let args = if args.is_tuple() { items(&args)? } else { vec![args] };
    format(FormatStyle::Printf, format_text, &args)
}

/// Implements `"%s"|format(...)`.
pub(super) fn format_filter(format_text: &str, args: &[Value]) -> Result<String, Error> {
    let (positional, keywords) = split(args)?;
    if keywords.is_empty() {
        format(FormatStyle::Printf, format_text, positional)
    } else {
        format(FormatStyle::Printf, format_text, &[Value::from_pairs(keywords)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(s: &str, method: &str, args: &[Value]) -> String {
        super::super::python::repr(&string(s, method, args).unwrap()).unwrap()
    }

    /// The expected values were computed with Python.
    #[test]
    fn texts_are_split_as_in_python() {
        let none = Value::from(());
        let limit = |n: i64| [none.clone(), Value::from(n)];
        assert_eq!(called("  a  b c ", "split", &[]), "['a', 'b', 'c']");
        assert_eq!(called("  a  b c ", "split", &limit(1)), "['a', 'b c ']");
        assert_eq!(called("  a  b c ", "rsplit", &limit(1)), "['  a  b', 'c']");
        assert_eq!(called("  a ", "split", &limit(0)), "['a ']");
        assert_eq!(called("", "split", &[]), "[]");
        assert_eq!(called("", "split", &[Value::from(",")]), "['']");
        assert_eq!(called("a\r\nb\u{2028}\nc", "splitlines", &[]), "['a', 'b', '', 'c']");
        assert_eq!(called("a-b-c", "partition", &[Value::from("-")]), "('a', '-', 'b-c')");
        assert_eq!(called("abc", "rpartition", &[Value::from("-")]), "('', '', 'abc')");
    }

    #[test]
    fn texts_are_padded_and_cased_as_in_python() {
        let to = |n: i64| [Value::from(n)];
        assert_eq!(called("ab", "center", &to(5)), "'  ab '");
        assert_eq!(called("abc", "center", &to(6)), "' abc  '");
        assert_eq!(called("-7", "zfill", &to(4)), "'-007'");
        assert_eq!(called("they're bill's", "title", &[]), "\"They'Re Bill'S\"");
        assert!(string("a", "center", &to(10_000_000)).is_err());
        assert!(string("a", "upper", &to(1)).is_err());
    }
}
