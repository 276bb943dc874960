//! Compares formulas as text after the normalization of Hendrycks et al. 2021 (arXiv 2103.03874), with which results on
//! MATH are published. Its oddities are kept because they affect the published numbers.

/// Returns whether two formulas are the same text after normalization, or without it if one cannot be normalized.
///
/// ```
/// use arithmo::eval::answers::same_when_normalized;
/// assert!(same_when_normalized(r"\frac12", r"\dfrac{1}{2}"));
/// assert!(!same_when_normalized(r"0.25", r"\frac{1}{4}"));
/// ```
pub fn same_when_normalized(one: &str, other: &str) -> bool {
    match (normalized(one), normalized(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Replacements made everywhere in a formula, in this order.
const REPLACED: [(&str, &str); 11] = [
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
    // This begins a unit, which `normalized` removes.
    ("\\text{ ", UNIT),
];
const UNIT: &str = "\u{0}";

/// Returns the normalized formula, or `None` if the rules fail (two units, `\frac` or `\sqrt` at the end).
pub fn normalized(text: &str) -> Option<String> {
    let mut text = text.to_string();
    for (from, to) in REPLACED {
        text = text.replace(from, to);
    }
    let mut parts = text.split(UNIT);
    let (number, _unit, another) = (parts.next()?, parts.next(), parts.next());
    if another.is_some() {
        return None;
    }
    let mut text = number.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // "x = 5" is 5.
    if let [name, value] = text.split('=').collect::<Vec<_>>()[..]
        && name.chars().count() <= 2
    {
        text = value.to_string();
    }
    let text = with_braces(&text, "\\sqrt", 1)?.replace(' ', "");
    let text = with_braces(&text, "\\frac", 2)?;
    Some(match text.as_str() {
        "0.5" => "\\frac{1}{2}".to_string(),
        _ => whole_fraction(&text).unwrap_or(text),
    })
}

/// Adds braces around arguments of `command` that are single characters without braces.
fn with_braces(text: &str, command: &str, arguments: usize) -> Option<String> {
    let mut parts = text.split(command);
    let mut result = parts.next()?.to_string();
    for part in parts {
        result.push_str(command);
        let mut rest = part.chars();
        let first = rest.next()?;
        if first == '{' {
            result.push_str(part);
            continue;
        }
        result.push_str(&format!("{{{first}}}"));
        if arguments == 2 {
            // If the second argument is missing, the text is left unchanged.
            let Some(second) = rest.next() else {
                return Some(text.to_string());
            };
            match second {
                '{' => result.push('{'),
                second => result.push_str(&format!("{{{second}}}")),
            }
        }
        result.push_str(rest.as_str());
    }
    Some(result)
}

/// Converts `a/b` of two integers to a `\frac`.
fn whole_fraction(text: &str) -> Option<String> {
    let (numerator, denominator) = text.split_once('/')?;
    let whole = |text: &str| text.parse::<i128>().is_ok_and(|number| number.to_string() == text);
    (whole(numerator) && whole(denominator))
        .then(|| format!("\\frac{{{numerator}}}{{{denominator}}}"))
}
