//! `\boxed{...}`, with braces inside.

/// What is in the last `\boxed{...}` of `text`, or the last `\fbox{...}` if there is no `\boxed`. `\boxed 5` holds what
/// stands up to the next `$` or the end of the line. `None` if there is none, or its brace is never closed.
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
