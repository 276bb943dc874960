//! When two formulas are written alike: the normalisation of Hendrycks et al. 2021 (arXiv 2103.03874), which results on
//! MATH are published with. Its oddities are kept, they are part of the number.

/// Whether both are the same text when normalised; as they stand where one of them cannot be.
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

/// Removed, or replaced, in this order, wherever they stand.
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
    // The unit is cut off below; it begins with this.
    ("\\text{ ", UNIT),
];
const UNIT: &str = "\u{0}";

/// The normal form; `None` where the rules do not know what to do (two units, `\frac` or `\sqrt` at the end).
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

/// Puts braces around the one or two single characters that follow `command` without them.
fn with_braces(text: &str, command: &str, arguments: usize) -> Option<String> {
    let mut parts = text.split(command);
    let mut done = parts.next()?.to_string();
    for part in parts {
        done.push_str(command);
        let mut rest = part.chars();
        let first = rest.next()?;
        if first == '{' {
            done.push_str(part);
            continue;
        }
        done.push_str(&format!("{{{first}}}"));
        if arguments == 2 {
            // One argument alone: the text stays as it is.
            let Some(second) = rest.next() else {
                return Some(text.to_string());
            };
            match second {
                '{' => done.push('{'),
                second => done.push_str(&format!("{{{second}}}")),
            }
        }
        done.push_str(rest.as_str());
    }
    Some(done)
}

/// `a/b` of two whole numbers as a `\frac`.
fn whole_fraction(text: &str) -> Option<String> {
    let (above, below) = text.split_once('/')?;
    let whole = |text: &str| text.parse::<i128>().is_ok_and(|number| number.to_string() == text);
    (whole(above) && whole(below)).then(|| format!("\\frac{{{above}}}{{{below}}}"))
}
