//! Decodes the escapes `\n` and `\t` in a prompt template typed on a command line, and leaves LaTeX commands unchanged.
//!
//! Most shells pass `\n` in quotes as a backslash and an `n`. A template for mathematics may contain `\neq` or `\text`,
//! which begin with the same two characters. The letters after the backslash decide the meaning:
//!
//! | letters after the backslash | meaning |
//! |---|---|
//! | `n` or `t` alone, or before a capital letter (`\nAnswer`) | a line end or a tab |
//! | a LaTeX command (`\neq`, `\text`, `\times`) | unchanged |
//! | `n` or `t` and other small letters (`\nanswer`) | an error, because both are possible |
//! | any other letters (`\frac`, `\boxed`) | unchanged |
//!
//! Two backslashes before an `n` or `t` of the first or third kind become one backslash and that letter.

use crate::error::{Error, Result};

/// Commands of LaTeX, AMS-LaTeX and common packages that begin with `n` or `t`, sorted.
const COMMANDS: &[&str] = &[
    "nLeftarrow",
    "nLeftrightarrow",
    "nRightarrow",
    "nVDash",
    "nVdash",
    "nabla",
    "natural",
    "ncong",
    "ne",
    "nearrow",
    "neg",
    "neq",
    "newcommand",
    "newline",
    "newpage",
    "nexists",
    "ngeq",
    "ngeqq",
    "ngeqslant",
    "ngtr",
    "ni",
    "nleftarrow",
    "nleftrightarrow",
    "nleq",
    "nleqq",
    "nleqslant",
    "nless",
    "nmid",
    "nobreak",
    "nobreakspace",
    "nocite",
    "nodata",
    "noindent",
    "nolimits",
    "nolinebreak",
    "nonumber",
    "norm",
    "normal",
    "normalfont",
    "normalsize",
    "not",
    "notag",
    "notin",
    "notni",
    "nparallel",
    "nprec",
    "npreceq",
    "nrightarrow",
    "nshortmid",
    "nshortparallel",
    "nsim",
    "nsubseteq",
    "nsubseteqq",
    "nsucc",
    "nsucceq",
    "nsupseteq",
    "nsupseteqq",
    "ntriangleleft",
    "ntrianglelefteq",
    "ntriangleright",
    "ntrianglerighteq",
    "nu",
    "num",
    "numberline",
    "numberwithin",
    "nvDash",
    "nvdash",
    "nwarrow",
    "tabcolsep",
    "tableofcontents",
    "tabularnewline",
    "tag",
    "tan",
    "tanh",
    "tau",
    "tbinom",
    "text",
    "textasciicircum",
    "textasciitilde",
    "textbackslash",
    "textbf",
    "textbullet",
    "textcircled",
    "textcolor",
    "textdegree",
    "textdollar",
    "texteuro",
    "textit",
    "textmd",
    "textnormal",
    "textpercent",
    "textrm",
    "textsc",
    "textsf",
    "textsl",
    "textstyle",
    "textsubscript",
    "textsuperscript",
    "texttt",
    "textunderscore",
    "textup",
    "tfrac",
    "tg",
    "thanks",
    "the",
    "therefore",
    "theta",
    "thickapprox",
    "thicksim",
    "thickspace",
    "thinspace",
    "thispagestyle",
    "tilde",
    "times",
    "tiny",
    "title",
    "to",
    "top",
    "tr",
    "triangle",
    "triangledown",
    "triangleleft",
    "trianglelefteq",
    "triangleq",
    "triangleright",
    "trianglerighteq",
    "tt",
    "twoheadleftarrow",
    "twoheadrightarrow",
];

/// Meaning of a backslash and the letters after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// `\n` or `\t`.
    Control(char),
    /// A LaTeX command that begins with `n` or `t`.
    Command,
    /// Either an escape or an unknown command.
    Ambiguous(char),
    /// A backslash without `n` or `t` after it.
    Other,
}

impl Escape {
    /// Classifies a backslash by `letters`, all letters that follow it.
    fn classify(letters: &str) -> Self {
        let mut chars = letters.chars();
        let control = match chars.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            _ => return Self::Other,
        };
        match chars.next() {
            _ if COMMANDS.contains(&letters) => Self::Command,
            None => Self::Control(control),
            Some(next) if next.is_uppercase() => Self::Control(control),
            Some(_) => Self::Ambiguous(control),
        }
    }
}

/// Returns the letters at the start of `text`, which TeX reads as the name of a command.
fn leading_letters(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphabetic());
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

/// Decodes the escapes of a template typed on a command line. Errors name `place`, the flag it came from.
///
/// # Errors
/// A backslash and the letters after it could be either an escape or a LaTeX command.
pub fn unescape(typed: &str, place: &str) -> Result<String> {
    let mut text = String::with_capacity(typed.len());
    let mut rest = typed;
    while let Some(start) = rest.find('\\') {
        let (before, from) = rest.split_at(start);
        text.push_str(before);
        let after = from.trim_start_matches('\\');
        let backslashes = from.len() - after.len();
        let name = leading_letters(after);
        rest = after;
        match (backslashes, Escape::classify(name)) {
            (1, Escape::Control(control)) => {
                text.push(control);
                rest = after.get(1..).unwrap_or_default();
            }
            (2, Escape::Control(_) | Escape::Ambiguous(_)) => text.push('\\'),
            (2, Escape::Command) => return Err(line_break_or_command(name, place)),
            (1, Escape::Ambiguous(_)) => return Err(ambiguous_escape(name, place)),
            (_, Escape::Control(_) | Escape::Ambiguous(_)) => {
                return Err(too_many_backslashes(backslashes, name, place));
            }
            (count, Escape::Command | Escape::Other) => {
                text.extend(std::iter::repeat_n('\\', count));
            }
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// Returns the first escape in `text` that is still a backslash and a letter, as in a template file whose text was copied
/// from a command line.
pub fn literal_escape(text: &str) -> Option<&'static str> {
    text.match_indices('\\').find_map(|(at, _)| {
        let escaped = at > 0 && text.as_bytes().get(at - 1) == Some(&b'\\');
        match Escape::classify(leading_letters(text.get(at + 1..).unwrap_or_default())) {
            Escape::Control('\n') if !escaped => Some("\\n"),
            Escape::Control(_) if !escaped => Some("\\t"),
            _ => None,
        }
    })
}

/// Returns `text` on one line for messages and pages, with line ends and tabs written as `\n` and `\t`.
pub fn one_line(text: &str) -> String {
    text.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

/// Returns the part of a remedy that says where the text can be written without escapes: in run.toml for a key of `--set`,
/// in the shell for a stop text, and otherwise in a template file.
fn escape_free_place(place: &str) -> &'static str {
    if place.starts_with("--set") {
        "or write the template into the run.toml, in triple quotes (\"\"\") with line ends as they are"
    } else if place.starts_with("--stop") {
        "or write --stop $'...', in which bash reads the escapes itself"
    } else {
        "or put the template into a file, with line ends as they are, and give --prompt-template-file"
    }
}

fn ambiguous_escape(name: &str, place: &str) -> Error {
    let (letter, tail) = name.split_at(1.min(name.len()));
    Error::invalid(
        place,
        format!("`\\{name}` could be `\\{letter}` before `{tail}`, or a command of LaTeX"),
        format!(
            "for a backslash write `\\\\{name}`; for a line end or tab type the character itself, {}",
            escape_free_place(place)
        ),
    )
}

fn line_break_or_command(name: &str, place: &str) -> Error {
    Error::invalid(
        place,
        format!(
            "`\\\\{name}` could be LaTeX's line break before `{name}`, or its command `\\{name}`"
        ),
        format!("for the command write `\\{name}`, for the line break `\\\\ {name}`"),
    )
}

fn too_many_backslashes(count: usize, name: &str, place: &str) -> Error {
    Error::invalid(
        place,
        format!("{count} backslashes before `{name}` could mean several things"),
        format!(
            "write `\\n` for a line end, `\\\\n` for a backslash and an n, {}",
            escape_free_place(place)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn read(typed: &str) -> String {
        unescape(typed, "--prompt-template").unwrap()
    }

    #[test]
    fn line_ends_and_tabs_are_read() {
        assert_eq!(read(r"Question: {prompt}\n\nAnswer:"), "Question: {prompt}\n\nAnswer:");
        assert_eq!(read(r"{prompt}\n"), "{prompt}\n");
        assert_eq!(read(r"a\t: {prompt}"), "a\t: {prompt}");
        assert_eq!(read(r"\n1. {prompt}\n- \tA"), "\n1. {prompt}\n- \tA");
        assert_eq!(read(r"<|im_end|>\n<|im_start|>"), "<|im_end|>\n<|im_start|>");
        assert_eq!(read("already\nthere\t"), "already\nthere\t");
        assert_eq!(read("\\nÄ"), "\nÄ");
        assert_eq!(read(""), "");
    }

    #[test]
    fn latex_stays_as_it_stands() {
        for text in [
            r"Put the answer in \boxed{}: {prompt}",
            r"$\neq \nu \nabla \ne \not\in \notin \neg$ {prompt}",
            r"$\text{a} \times \theta \tau \tan x \to \tfrac12 \textbf{b}$",
            r"\frac{1}{2} \alpha \ \, \{ \}",
            r"a \\ b \\[2pt] \\",
            r"\begin{matrix}1 & 2\\3 & 4\end{matrix}",
            r"\\\alpha",
            r"\nRightarrow",
            "ends in \\",
        ] {
            assert_eq!(read(text), text);
        }
    }

    #[test]
    fn two_backslashes_are_one_before_an_escape() {
        assert_eq!(read(r"{prompt}\\n"), r"{prompt}\n");
        assert_eq!(read(r"{prompt}\\t\\nA"), r"{prompt}\t\nA");
        assert_eq!(read(r"\\nanswer"), r"\nanswer");
    }

    #[test]
    fn ambiguous_escapes_are_refused() {
        for (typed, said) in [
            (r"{prompt}\nanswer:", r"`\nanswer`"),
            (r"{prompt}\tso", r"`\tso`"),
            (r"{prompt}\\text{a}", r"`\\text`"),
            (r"{prompt}\\\n", "3 backslashes"),
        ] {
            let error = unescape(typed, "--prompt-template").unwrap_err().to_string();
            assert!(error.starts_with("--prompt-template: "), "{error}");
            assert!(error.contains(said), "{error}");
        }
        // `train --set` has no flag for a file with the template.
        let key = unescape(r"{prompt}\nanswer:", "--set data.prompt_template").unwrap_err();
        assert!(!key.to_string().contains("-file"), "{key}");
        // Nor has a stop text.
        for typed in [r"\nope", r"\\\n"] {
            let stop = unescape(typed, "--stop").unwrap_err().to_string();
            assert!(stop.starts_with("--stop: ") && stop.contains("--stop $'...'"), "{stop}");
            assert!(!stop.contains("template"), "{stop}");
        }
    }

    #[test]
    fn the_list_of_commands_is_sorted_and_needed() {
        assert!(COMMANDS.is_sorted(), "{COMMANDS:?}");
        assert!(COMMANDS.iter().all(|name| name.starts_with(['n', 't']) && name.len() > 1));
    }

    #[test]
    fn a_literal_escape_is_found_and_latex_is_not() {
        assert_eq!(literal_escape(r"{prompt}\n\nAnswer:"), Some("\\n"));
        assert_eq!(literal_escape(r"{prompt}\tA"), Some("\\t"));
        assert_eq!(literal_escape(r"$\neq$ \text{a} \\n \boxed{}"), None);
        assert_eq!(literal_escape("Question: {prompt}\n\nAnswer:"), None);
    }
}
