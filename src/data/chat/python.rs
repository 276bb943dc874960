//! Values printed as Python prints them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::data::python_json::push_json_string;

/// Maximum depth of nested lists and mappings that are printed.
const MAX_DEPTH: usize = 200;

/// Returns `value` as Python's `str` prints it.
///
/// # Errors
/// The value is nested too deeply.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_string()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// Returns `value` as Python's `repr` prints it.
///
/// # Errors
/// The value is nested too deeply.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    push_repr(&mut out, value, 0)?;
    Ok(out)
}

fn push_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => push_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            for (index, (key, item)) in pairs(value)?.into_iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                push_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                push_repr(out, &item, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let items = items(value)?;
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                push_repr(out, item, depth + 1)?;
            }
            out.push_str(if value.is_tuple() && items.len() == 1 { "," } else { "" });
            out.push(close);
        }
        _ => out.push_str(&scalar(value)),
    }
    Ok(())
}

/// Returns a number, a boolean or `None` as Python prints it.
fn scalar(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        _ => value.to_string(),
    }
}

/// Returns the shortest decimal form of `number` that reads back as the same number, written as Python writes it.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_string();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    // Rust's debug format switches to exponents at the same sizes as Python, but writes 1e16 for 1e+16.
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, size) = match exponent.strip_prefix('-') {
                Some(size) => ('-', size),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{size:0>2}")
        }
    }
}

/// Appends `text` in quotes, as `repr` does: in single ones, unless only double ones need no backslash.
fn push_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => push_escape(out, c),
        }
    }
    out.push(quote);
}

/// Appends the escape of a character that is not printable.
fn push_escape(out: &mut String, c: char) {
    let code = u32::from(c);
    let written = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
    debug_assert!(written.is_ok(), "writing to a String does not fail");
}

/// Returns whether Python's `str.isprintable` holds for `c`. Unassigned characters count as printable here.
fn is_printable(c: char) -> bool {
    let format = matches!(u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e
        | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe0001 | 0xe0020..=0xe007f);
    let private = matches!(u32::from(c), 0xe000..=0xf8ff | 0xf0000..=0x0010_ffff);
    c == ' ' || !(c.is_control() || c.is_whitespace() || format || private)
}

/// Returns whether Python's `str.isspace` holds for `c`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Settings of `json.dumps`.
#[derive(Clone, Debug)]
pub(super) struct JsonStyle {
    /// Whether characters beyond ASCII are escaped.
    pub ensure_ascii: bool,
    /// Text by which each level is indented; on one line if absent.
    pub indent: Option<String>,
    /// Text between two items.
    pub item_separator: String,
    /// Text between a key and its value.
    pub key_separator: String,
    /// Whether the keys of a mapping are sorted.
    pub sort_keys: bool,
}

impl JsonStyle {
    /// Returns `value` as `json.dumps` writes it.
    ///
    /// # Errors
    /// The value, or one in it, has no form in JSON.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.push(&mut out, value, 0)?;
        Ok(out)
    }

    fn push(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::String => {
                push_json_string(out, value.as_str().unwrap_or_default(), self.ensure_ascii);
            }
            ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                out.push_str(&json_scalar(value));
            }
            ValueKind::Map => self.push_map(out, value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items = items(value)?;
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.push_separator(out, index, depth + 1);
                    self.push(out, item, depth + 1)?;
                }
                self.push_end(out, items.is_empty(), depth);
                out.push(']');
            }
            kind => return Err(invalid(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn push_map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for (key, item) in pairs(value)? {
            let key = match key.kind() {
                ValueKind::String => key.to_string(),
                ValueKind::Bool | ValueKind::None | ValueKind::Number => json_scalar(&key),
                kind => return Err(invalid(format!("keys of JSON must be text, not {kind}"))),
            };
            entries.push((key, item));
        }
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        out.push('{');
        for (index, (key, item)) in entries.iter().enumerate() {
            self.push_separator(out, index, depth + 1);
            push_json_string(out, key, self.ensure_ascii);
            out.push_str(&self.key_separator);
            self.push(out, item, depth + 1)?;
        }
        self.push_end(out, entries.is_empty(), depth);
        out.push('}');
        Ok(())
    }

    /// Appends what comes before the item `index` of a list or a mapping.
    fn push_separator(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            out.push_str(&self.item_separator);
        }
        self.push_line(out, depth);
    }

    /// Appends what comes before the closing bracket.
    fn push_end(&self, out: &mut String, is_empty: bool, depth: usize) {
        if !is_empty {
            self.push_line(out, depth);
        }
    }

    fn push_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}

/// Returns a number, a boolean or `None` as `json.dumps` writes it.
fn json_scalar(value: &Value) -> String {
    match scalar(value).as_str() {
        "None" => "null",
        "True" => "true",
        "False" => "false",
        "nan" => "NaN",
        "inf" => "Infinity",
        "-inf" => "-Infinity",
        number => return number.to_string(),
    }
    .to_string()
}

/// Returns the items of a list, in order.
///
/// # Errors
/// The value is not a list, or computing an item fails.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_none() {
        return Err(invalid("None is not iterable"));
    }
    value.try_iter()?.checked().collect()
}

/// Returns the keys and values of a mapping, in order.
///
/// # Errors
/// Computing an entry fails.
pub(super) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let keys = items(value)?;
    keys.into_iter().map(|key| value.get_item(&key).map(|item| (key, item))).collect()
}

/// Creates the error of an operation that its values do not allow.
pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("a value is nested more than {MAX_DEPTH} levels deep")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_in_python() {
        for (number, text) in [
            (1e20, "1e+20"),
            (1e-7, "1e-07"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1.5e-300, "1.5e-300"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn texts_are_quoted_as_in_python() {
        let quoted = |text: &str| repr(&Value::from(text)).unwrap();
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted("it's \"q\""), "'it\\'s \"q\"'");
        assert_eq!(quoted("é\n\u{a0}\u{2028}\u{7f}\u{e000}🙂"), "'é\\n\\xa0\\u2028\\x7f\\ue000🙂'");
    }

    #[test]
    fn a_deeply_nested_value_is_refused() {
        let mut value = Value::from(Vec::<Value>::new());
        for _ in 0..MAX_DEPTH + 1 {
            value = Value::from(vec![value]);
        }
        assert!(repr(&value).unwrap_err().to_string().contains("levels deep"));
    }
}
