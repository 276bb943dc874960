//! The methods of Python's `str`, `dict` and `list` that templates call.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::arguments::{bind, number, split, text};
use super::python::{invalid, is_space, items, pairs};
use super::texts::{
    capitalize, check_size, pad, partition, search, split_lines, split_text, strip, title,
};

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
        "startswith" | "endswith" => has_affix(s, method, args)?,
        "replace" => replace(s, args)?,
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
        "removeprefix" | "removesuffix" => {
            let [affix] = bind(args, ["affix"])?;
            let affix = text("affix", affix.as_ref())?;
            let removed = match method {
                "removeprefix" => s.strip_prefix(&*affix),
                _ => s.strip_suffix(&*affix),
            };
            Value::from(removed.unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let [separator] = bind(args, ["sep"])?;
            let separator = text("sep", separator.as_ref())?;
            Value::from(Tuple::from(partition(s, &separator, method).map(Value::from)))
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(s, method, args)?,
        "format" => {
            check_widths(
                s.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default()),
            )?;
            Value::from(format(FormatStyle::StrFormat, s, args)?)
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// Returns whether `s`, or the part of it that is named by indices of characters, begins or ends with a text or one of a
/// tuple's.
fn has_affix(s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [affix, start, end] = bind(args, ["prefix", "start", "end"])?;
    let affix = affix.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let affixes = if affix.is_tuple() { items(&affix)? } else { vec![affix] };
    let affixes: Vec<String> =
        affixes.iter().map(|affix| text("prefix", Some(affix))).collect::<Result<_, _>>()?;
    let s = part(s, start.as_ref(), end.as_ref())?;
    let matches = |affix: &String| match method {
        "startswith" => s.starts_with(affix),
        _ => s.ends_with(affix),
    };
    Ok(Value::from(affixes.iter().any(matches)))
}

/// Returns the characters of `s` from `start` to `end`, which count from its end if they are negative.
fn part<'a>(s: &'a str, start: Option<&Value>, end: Option<&Value>) -> Result<&'a str, Error> {
    let length = s.chars().count() as i64;
    let given = |value: Option<&'_ Value>| value.filter(|value| !value.is_none()).cloned();
    let at = |name: &str, value: Option<Value>, default: i64| {
        let index = number(name, value.as_ref(), default)?;
        Ok::<_, Error>(if index < 0 { (length + index).max(0) } else { index.min(length) })
    };
    let (start, end) = (at("start", given(start), 0)?, at("end", given(end), length)?);
    let byte = |index: i64| s.char_indices().nth(index as usize).map_or(s.len(), |(at, _)| at);
    Ok(s.get(byte(start)..byte(end)).unwrap_or_default())
}

fn replace(s: &str, args: &[Value]) -> Result<Value, Error> {
    let [old, new, count] = bind(args, ["old", "new", "count"])?;
    let (old, new) = (text("old", old.as_ref())?, text("new", new.as_ref())?);
    let count = usize::try_from(number("count", count.as_ref(), -1)?).unwrap_or(usize::MAX);
    let replaced = (s.len() / old.len().max(1) + 1).min(count);
    check_size(s.len().saturating_add(replaced.saturating_mul(new.len())))?;
    Ok(Value::from(s.replacen(&old, &new, count)))
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

/// Refuses a width or a precision of a million or more. Each of `specifications` begins with what says how to format one
/// value.
fn check_widths<'a>(mut specifications: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let is_wide = |specification: &str| {
        let end = specification.find(|c: char| !"-+ #0123456789.:<>^={},_".contains(c));
        let numbers = &specification[..end.unwrap_or(specification.len())];
        numbers.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 6)
    };
    if specifications.any(is_wide) {
        return Err(invalid("a width of a million or more is too large"));
    }
    Ok(())
}

/// Implements the operator `%` of a text.
pub(super) fn percent(format_text: &str, args: Value) -> Result<String, Error> {
    check_widths(format_text.split('%').skip(1))?;
    let args = if args.is_tuple() { items(&args)? } else { vec![args] };
    format(FormatStyle::Printf, format_text, &args)
}

/// Implements `"%s"|format(...)`.
pub(super) fn format_filter(format_text: &str, args: &[Value]) -> Result<String, Error> {
    check_widths(format_text.split('%').skip(1))?;
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
