//! Filters and tests of Jinja that minijinja lacks, or that differ from it.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error};

use super::arguments::{Passed, bind, number, text, width};
use super::methods::format_filter;
use super::python::{JsonStyle, invalid, items, pairs, repr, str};
use super::texts::{capitalize, center, strip};

/// Adds the filters and tests to `env`.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("string", |value: Value| {
        if value.as_str().is_some() { Ok(value) } else { str(&value).map(Value::from) }
    });
    env.add_filter("int", int);
    env.add_filter("float", |value: Value, args: Passed| {
        let [default] = bind(&args.into_values(), ["default"])?;
        let default = default.unwrap_or_else(|| Value::from(0.0));
        Ok::<_, Error>(real(&value).map_or(default, Value::from))
    });
    env.add_filter("pprint", |value: Value| repr(&value));
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_filter("forceescape", |value: Value| {
        str(&value).map(|text| Value::from_safe_string(escaped(&text)))
    });
    env.add_filter("attr", |_value: Value, _name: Value| Value::UNDEFINED);
    env.add_filter("trim", trim);
    env.add_filter("indent", indent);
    env.add_filter("capitalize", |value: Value| str(&value).map(|text| capitalize(&text)));
    env.add_filter("wordcount", |value: Value| str(&value).map(|text| word_count(&text)));
    env.add_filter("center", |value: Value, args: Passed| {
        let [to] = bind(&args.into_values(), ["width"])?;
        Ok::<_, Error>(center(&str(&value)?, width(to.as_ref(), 80)?, " "))
    });
    env.add_filter("truncate", truncate);
    env.add_filter("wordwrap", word_wrap);
    env.add_filter("filesizeformat", file_size);
    env.add_filter("striptags", |value: Value| str(&value).map(|text| strip_tags(&text)));
    env.add_filter("urlencode", url_encode);
    env.add_filter("format", |value: Value, args: Passed| {
        format_filter(&str(&value)?, &args.into_values())
    });
    env.add_test("iterable", |value: Value| {
        !matches!(
            value.kind(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain
        )
    });
    env.add_test("sequence", |value: Value| {
        !matches!(
            value.kind(),
            ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain
        )
    });
    env.add_test("callable", |value: Value| value.kind() == ValueKind::Plain);
}

/// Implements `tojson` as transformers does: `json.dumps` with `ensure_ascii=False`.
fn tojson(value: Value, args: Passed) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = bind(&args.into_values(), names)?;
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(width(Some(&indent), 0)?.min(100)),
        }),
    };
    let mut style = JsonStyle {
        ensure_ascii: is_set(ensure_ascii),
        item_separator: if indent.is_some() { "," } else { ", " }.to_string(),
        key_separator: ": ".to_string(),
        indent,
        sort_keys: is_set(sort_keys),
    };
    if let Some(separators) = separators.filter(|separators| !separators.is_none()) {
        let texts = items(&separators)?;
        let [item, key] = &texts[..] else {
            return Err(invalid("separators must be two texts"));
        };
        style.item_separator = text("separators", Some(item))?;
        style.key_separator = text("separators", Some(key))?;
    }
    style.dumps(&value)
}

/// Returns a number, or the number that a text states as Python's `float` reads it.
fn real(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// Implements `int`: the whole part of a number, or of the number that a text states, or else `default`.
fn int(value: Value, args: Passed) -> Result<Value, Error> {
    let [default, base] = bind(&args.into_values(), ["default", "base"])?;
    let base = u32::try_from(number("base", base.as_ref(), 10)?).unwrap_or(10);
    let whole = match value.as_str() {
        Some(text) => {
            let (digits, negative) = match text.trim().strip_prefix('-') {
                Some(digits) => (digits, true),
                None => (text.trim().trim_start_matches('+'), false),
            };
            let lower = digits.to_lowercase();
            let prefix = match base {
                2 => "0b",
                8 => "0o",
                16 => "0x",
                _ => "",
            };
            let digits = lower.strip_prefix(prefix).unwrap_or(&lower).replace('_', "");
            let parsed = (2..=36).contains(&base).then(|| i64::from_str_radix(&digits, base).ok());
            parsed.flatten().map(|number| if negative { -number } else { number })
        }
        None if value.is_integer() => return Ok(value),
        None => None,
    };
    let truncated = || real(&value).filter(|number| number.is_finite()).map(|number| number as i64);
    Ok(match whole.or_else(truncated) {
        Some(number) => Value::from(number),
        None => default.unwrap_or_else(|| Value::from(0)),
    })
}

fn default(value: Value, args: Passed) -> Result<Value, Error> {
    let [default, boolean] = bind(&args.into_values(), ["default_value", "boolean"])?;
    let falsy = boolean.is_some_and(|flag| flag.is_true()) && !value.is_true();
    Ok(if value.is_undefined() || falsy {
        default.unwrap_or_else(|| Value::from(""))
    } else {
        value
    })
}

fn trim(value: Value, args: Passed) -> Result<Value, Error> {
    let [chars] = bind(&args.into_values(), ["chars"])?;
    let chars = chars.filter(|chars| !chars.is_none());
    let chars = chars.map(|chars| text("chars", Some(&chars))).transpose()?;
    Ok(keep_safety(&value, strip(&str(&value)?, chars.as_deref(), "strip").to_string()))
}

/// Returns `text`, marked as escaped if `value` is.
fn keep_safety(value: &Value, text: String) -> Value {
    if value.is_safe() { Value::from_safe_string(text) } else { Value::from(text) }
}

/// Implements `escape`, with the entities of Python's markupsafe.
fn escape(value: Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value);
    }
    Ok(Value::from_safe_string(escaped(&str(&value)?)))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn indent(value: Value, args: Passed) -> Result<Value, Error> {
    let [by, first, blank] = bind(&args.into_values(), ["width", "first", "blank"])?;
    let by = match by.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_string(),
        None => " ".repeat(width(by.as_ref(), 4)?),
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let source = str(&value)?;
    let size =
        source.len().saturating_add(by.len().saturating_mul(source.matches('\n').count() + 1));
    if size > 64 << 20 {
        return Err(invalid(format!("an indented text of {size} bytes is too large")));
    }
    let mut out = String::with_capacity(size);
    // Like Jinja, a line end at the end of the text begins one more line.
    for (index, line) in source.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let indented = if index == 0 { first } else { blank || !line.is_empty() };
        if indented {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(keep_safety(&value, out))
}

/// Counts the runs of letters, digits and underscores.
fn word_count(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

fn truncate(value: Value, args: Passed) -> Result<String, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = bind(&args.into_values(), names)?;
    let source = str(&value)?;
    let length = width(length.as_ref(), 255)?;
    let leeway = width(leeway.filter(|leeway| !leeway.is_none()).as_ref(), 5)?;
    let end = end.map_or(Ok("...".to_string()), |end| text("end", Some(&end)))?;
    if source.chars().count() <= length + leeway {
        return Ok(source);
    }
    let kept: String = source.chars().take(length.saturating_sub(end.chars().count())).collect();
    if kill_words.is_some_and(|flag| flag.is_true()) {
        return Ok(kept + &end);
    }
    Ok(kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words).to_string() + &end)
}

/// Implements `wordwrap`: lines of at most `width` characters, and longer words broken.
fn word_wrap(value: Value, args: Passed) -> Result<String, Error> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [to, break_long, with, _] = bind(&args.into_values(), names)?;
    let to = width(to.as_ref(), 79)?.max(1);
    let break_long = break_long.is_none_or(|flag| flag.is_true());
    let with = with.map_or(Ok("\n".to_string()), |with| text("wrapstring", Some(&with)))?;
    let source = str(&value)?;
    let mut lines = Vec::new();
    for line in source.lines() {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            let room = |current: &String| {
                to.saturating_sub(current.chars().count() + usize::from(!current.is_empty()))
            };
            if word.len() > room(&current) && !current.is_empty() {
                lines.push(std::mem::take(&mut current));
            }
            while break_long && word.len() > to {
                lines.push(word.drain(..to).collect());
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.extend(word);
        }
        lines.push(current);
    }
    Ok(lines.join(&with))
}

/// Implements `filesizeformat`.
fn file_size(value: Value, args: Passed) -> Result<String, Error> {
    let [binary] = bind(&args.into_values(), ["binary"])?;
    let binary = binary.is_some_and(|flag| flag.is_true());
    let bytes = f64::try_from(value)?;
    let (base, suffix) = if binary { (1024.0, "iB") } else { (1000.0, "B") };
    if bytes == 1.0 {
        return Ok("1 Byte".to_string());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes as i64));
    }
    let mut size = bytes / base;
    let mut prefixes = (if binary { "KMGTPEZY" } else { "kMGTPEZY" }).chars();
    let mut prefix = prefixes.next().unwrap_or('k');
    for next in prefixes {
        if size < base {
            break;
        }
        size /= base;
        prefix = next;
    }
    Ok(format!("{size:.1} {prefix}{suffix}"))
}

/// Removes tags and comments, and joins white space.
fn strip_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        let end = if rest[at..].starts_with("<!--") { "-->" } else { ">" };
        let Some(length) = rest[at..].find(end) else {
            rest = &rest[at..];
            break;
        };
        rest = &rest[at + length + end.len()..];
    }
    out.push_str(rest);
    let words: Vec<&str> = out.split_whitespace().collect();
    let mut joined = words.join(" ");
    for (entity, c) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ] {
        joined = joined.replace(entity, c);
    }
    joined
}

/// Implements `urlencode` for a text, a mapping or a list of pairs.
fn url_encode(value: Value) -> Result<String, Error> {
    let entries = match value.kind() {
        ValueKind::Map => pairs(&value)?,
        ValueKind::Seq | ValueKind::Iterable => {
            let pair = |item: &Value| match &items(item)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                other => Err(invalid(format!("a pair has {} items", other.len()))),
            };
            items(&value)?.iter().map(pair).collect::<Result<_, _>>()?
        }
        _ => return Ok(quoted(&str(&value)?, "/")),
    };
    let quote = |value: &Value| str(value).map(|text| quoted(&text, "").replace("%20", "+"));
    let entry = |(key, value): &(Value, Value)| Ok(format!("{}={}", quote(key)?, quote(value)?));
    Ok(entries.iter().map(entry).collect::<Result<Vec<_>, Error>>()?.join("&"))
}

/// Returns `text` with all bytes as `%XX` but letters, digits, `_.-~` and those in `safe`.
fn quoted(text: &str, safe: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || (byte < 128 && safe.contains(c)) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
