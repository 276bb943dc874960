//! Finds the content of `\boxed{...}`, which may contain nested braces.

/// Returns the content of the last `\boxed` that is closed, not empty and not a placeholder such as `\boxed{answer}`, or of
/// the last such `\fbox` if there is no such `\boxed`.
///
/// A box without braces, `\boxed 5`, counts if it contains mathematics up to the next `$` or the end of its line. The word
/// `\boxed` mentioned in a sentence does not.
///
/// ```
/// use arithmo::eval::answers::last_closed_box;
/// assert_eq!(last_closed_box(r"\boxed{18}, as \boxed was asked for. Again: \boxed{1"), Some("18"));
/// ```
pub fn last_closed_box(text: &str) -> Option<&str> {
    closed_box(text, "\\boxed").or_else(|| closed_box(text, "\\fbox"))
}

/// Finds the last closed box of `command` in one pass over the text, even if braces are nested deeply.
fn closed_box<'a>(text: &'a str, command: &str) -> Option<&'a str> {
    let mut last: Option<(usize, &str)> = None;
    let mut keep = |start: usize, content: &'a str| {
        if last.is_none_or(|(at, _)| at < start) && !is_placeholder(content) {
            last = Some((start, content.trim()));
        }
    };
    // The start of the content of each open brace, and whether the brace opens a box.
    let mut open: Vec<(usize, bool)> = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find(['\\', '{', '}']) {
        at += found;
        let rest = &text[at..];
        if let Some(after) = rest.strip_prefix(command).filter(|after| ends_name(after)) {
            let inner = after.trim_start();
            at = text.len() - inner.len();
            if inner.starts_with('{') {
                open.push((at + 1, true));
                at += 1;
            } else if let Some(content) = without_braces(inner) {
                keep(at, content);
            }
        } else if rest.starts_with("\\{") || rest.starts_with("\\}") {
            at += 2;
        } else {
            match rest.as_bytes().first() {
                Some(b'{') => open.push((at + 1, false)),
                Some(b'}') => {
                    if let Some((start, true)) = open.pop() {
                        keep(start, &text[start..at]);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
    last.map(|(_, content)| content)
}

/// Returns whether the name of a command ends before `rest`.
fn ends_name(rest: &str) -> bool {
    !rest.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Returns the content of a box without braces, or `None` if words follow and the box is only mentioned.
fn without_braces(inner: &str) -> Option<&str> {
    // One more byte shows whether the content is longer than the limit.
    let inner = &inner[..inner.floor_char_boundary(MAX_BYTES_WITHOUT_BRACES + 1)];
    let end = inner.find(['$', '\n']).unwrap_or(inner.len());
    let content = inner[..end].trim_end();
    let content = content.strip_suffix('.').unwrap_or(content);
    let first = content.chars().next()?;
    let is_mathematics = first.is_ascii_digit() || "-+.(\\".contains(first);
    let mut words = content
        .split(|c: char| !c.is_ascii_alphabetic() && c != '\\')
        .filter(|word| !word.contains('\\') && word.len() > 1);
    (is_mathematics && content.len() <= MAX_BYTES_WITHOUT_BRACES && words.next().is_none())
        .then_some(content)
}

/// Maximum length in bytes of the content of a box without braces.
const MAX_BYTES_WITHOUT_BRACES: usize = 200;

/// Returns whether the content of a box is empty or a placeholder for an answer.
fn is_placeholder(content: &str) -> bool {
    const PLACEHOLDERS: [&str; 9] = [
        "",
        "answer",
        "finalanswer",
        "youranswer",
        "yourfinalanswer",
        "theanswer",
        "result",
        "number",
        "value",
    ];
    // Every placeholder, even in a \text{}, is shorter than 60 bytes. \{\} is the empty set.
    let is_set = content.starts_with("\\{") && content.ends_with("\\}");
    if content.len() > 60 || is_set && !content.contains(char::is_alphabetic) {
        return false;
    }
    let mut content = content.to_string();
    for command in ["\\text", "\\mathrm", "\\ldots", "\\cdots", "\\dots", "\\quad"] {
        content = content.replace(command, "");
    }
    if content.contains(|c: char| c.is_ascii_digit() || "()+-=/^<>".contains(c)) {
        return false;
    }
    let letters: String = content.chars().filter(|c| c.is_alphanumeric()).collect();
    let symbols =
        content.contains(|c: char| !c.is_alphanumeric() && !"{}[]\\,;:!.?_ \t\n*#…".contains(c));
    !symbols && PLACEHOLDERS.contains(&letters.to_lowercase().as_str())
}

/// Returns the content of the last `\boxed{...}` of `text`, or of the last `\fbox{...}` if there is no `\boxed`. Returns
/// `None` if there is no box or the last one is never closed.
///
/// The content of `\boxed 5` is the text up to the next `$` or the end of the line. This is the published rule of MATH;
/// [`last_closed_box`] is stricter.
///
/// ```
/// use arithmo::eval::answers::last_boxed;
/// assert_eq!(last_boxed(r"so \boxed{1} or $\boxed{\frac{1}{2}}$."), Some(r"\frac{1}{2}"));
/// ```
pub fn last_boxed(text: &str) -> Option<&str> {
    let (_, rest) = (text.rsplit_once("\\boxed")).or_else(|| text.rsplit_once("\\fbox"))?;
    let inner = rest.trim_start();
    let Some(inner) = inner.strip_prefix('{') else {
        let end = inner.find(['$', '\n']).unwrap_or(inner.len());
        return Some(inner[..end].trim());
    };
    let mut depth = 1;
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true, // \{ and \} are text
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inner[..at]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_closed_box_with_content_counts() {
        for (text, expected) in [
            ("no box", None),
            (r"\boxed{18}. I used \boxed as asked in step 2.", Some("18")),
            (r"\boxed{18}. Let me check again: \boxed{1", Some("18")),
            (r"\boxed{18} \boxed{} \boxed{ } \boxed{\,}", Some("18")),
            (
                r"\boxed{18}, in the form \boxed{answer} or \boxed{\text{Answer}} or \boxed{\ldots}",
                Some("18"),
            ),
            (r"\boxed{\boxed{18}, \boxed{x", Some("18")),
            (r"\boxed{\frac{1}{2}} } } {", Some(r"\frac{1}{2}")),
            (r"\boxed {18}", Some("18")),
            (r"\\boxed{18}", Some("18")),
            (r"$\boxed 5$ is it", Some("5")),
            (r"\boxed{18}, not \boxed 2 times", Some("18")),
            (r"\boxed \frac12", Some(r"\frac12")),
            (r"\boxedtext{18}", None),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\fbox{7} \boxed{8} \fbox{9}", Some("8")),
            (r"\fbox{9} \boxed{", Some("9")),
            (r"\boxed{\pi}", Some(r"\pi")),
            (r"\boxed{x}", Some("x")),
        ] {
            assert_eq!(last_closed_box(text), expected, "{text}");
        }
    }

    /// With quadratic time, this test would take minutes.
    #[test]
    fn long_texts_of_boxes_take_one_pass() {
        for piece in [r"\boxed{", r"\boxed 5", "{", "}", r"\boxed{1}", r"\boxed "] {
            last_closed_box(&piece.repeat(100_000));
        }
        let nested = format!("{}7{}", r"\boxed{".repeat(100_000), "}".repeat(100_000));
        assert_eq!(last_closed_box(&nested), Some("7"));
    }

    #[test]
    fn braces_nest_and_the_last_box_counts() {
        for (text, expected) in [
            ("no box", None),
            (r"\boxed{7}", Some("7")),
            (r"\boxed{\frac{a^{2}}{b}} \boxed{\sqrt{2}}", Some(r"\sqrt{2}")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{\text{(A)}}, as \fbox{B}", Some(r"\text{(A)}")),
            (r"\fbox{B}", Some("B")),
            (r"$\boxed 5$ is it", Some("5")),
            (r"\boxed{}", Some("")),
            (r"\boxed{1", None),
            (r"\boxed{\}", None),
        ] {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }
}
