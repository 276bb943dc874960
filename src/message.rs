//! Messages to the user on stderr. A message that cannot be written is dropped: a run must not end because nobody
//! reads its log.

use std::fmt::Arguments;
use std::io::{Write, stderr};
use std::path::Path;

/// Prints a line on stderr, formatted as by `format!`. Unlike `eprintln!`, it never panics.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::message::line(format_args!($($arguments)*)) };
}

/// Prints `text` and a line break on stderr; see [`say!`].
pub fn line(text: Arguments<'_>) {
    write(&format!("{text}\n"));
}

/// Prints `text` on stderr without a line break.
pub fn text(text: &str) {
    write(text);
}

/// Writes `text` in one call, so that lines of several threads or processes do not mix.
fn write(text: &str) {
    let mut stderr = stderr().lock();
    // The disk may be full, the pipe closed or the terminal gone: the run is worth more than its messages.
    let _ = stderr.write_all(text.as_bytes());
}

/// Quotes a path as a word of a shell command in a message.
pub(crate) fn shell(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// Quotes `text` as a word of a bash command.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_string();
    }
    if !text.contains(char::is_control) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let escaped = text.replace('\\', r"\\").replace('\'', r"\'");
    format!("$'{}'", escaped.replace('\n', r"\n").replace('\t', r"\t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_mean_the_same_to_bash() {
        for text in ["a/b.c", "a b", "it's", "Question: {p}\n\nAnswer:", "", "\\n'\n", "$x"] {
            let script = format!("printf %s {}", quote(text));
            let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text, "{script}");
        }
    }
}
