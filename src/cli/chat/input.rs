//! Reads the lines of a chat: edited, with history, on a terminal; as they come otherwise.

use std::io::{self, BufRead, ErrorKind, IsTerminal, StdinLock};

use rustyline::error::ReadlineError;
use rustyline::{Behavior, ColorMode, Config, DefaultEditor};

use crate::data::json_lines::{BadLine, Lines};
use crate::data::row_limit;
use crate::error::{Error, Result};
use crate::interrupt::{self, CtrlC};
use crate::message;

const PLACE: &str = "standard input";

/// A line of input, or the event that came instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A line without its line break.
    Line(String),
    /// A line that is not UTF-8.
    NotText,
    /// Ctrl-C at the prompt; the typed text is lost.
    Interrupted,
    /// End of the input: Ctrl-D on a terminal.
    End,
}

/// Reads standard input line by line.
pub(super) enum LineReader {
    /// A terminal that can move its cursor.
    Editor(Box<DefaultEditor>),
    /// A pipe, a file, or a terminal that cannot move its cursor and gets a prompt on standard error.
    Plain { lines: Lines<StdinLock<'static>>, prompts: bool },
}

impl LineReader {
    /// Opens standard input.
    pub(super) fn open() -> Self {
        let prompts = is_terminal();
        let plain = || Self::Plain { lines: Lines::new(io::stdin().lock()), prompts };
        if !prompts || !moves_cursor() {
            return plain();
        }
        match editor() {
            Ok(editor) => Self::Editor(Box::new(editor)),
            Err(_) => plain(),
        }
    }

    /// Shows `prompt` and waits for the next line.
    ///
    /// # Errors
    /// Standard input cannot be read, a line is longer than `--max-row-bytes`, or the program was asked to end.
    pub(super) fn next(&mut self, prompt: &str) -> Result<Input> {
        match self {
            Self::Editor(editor) => {
                let read = interrupt::while_waiting(CtrlC::IsKey, terminal_settings(), || {
                    editor.readline(prompt)
                })?;
                let input = edited(read)?;
                if let Input::Line(line) = &input
                    && !line.trim().is_empty()
                {
                    // A line that the history refuses is answered all the same.
                    let _ = editor.add_history_entry(line.as_str());
                }
                Ok(input)
            }
            Self::Plain { lines, prompts } => {
                if *prompts {
                    message::text(prompt);
                }
                interrupt::while_waiting(CtrlC::EndsProgram, || (), || plain(lines))?
            }
        }
    }
}

/// Returns whether a person types the input.
pub(super) fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Returns whether the terminal can move its cursor; a "dumb" one would show the editor's escape sequences as text.
fn moves_cursor() -> bool {
    std::env::var("TERM").is_ok_and(|kind| !kind.is_empty() && kind != "dumb")
}

/// Creates an editor whose history stays in memory. If standard output goes elsewhere, it shows its line on the
/// terminal itself.
fn editor() -> rustyline::Result<DefaultEditor> {
    let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
    let config = Config::builder().behavior(behavior).color_mode(ColorMode::Disabled).build();
    DefaultEditor::with_config(config)
}

/// Converts a line or event of the editor.
fn edited(read: rustyline::Result<String>) -> Result<Input> {
    match read {
        Ok(line) => Ok(Input::Line(line)),
        Err(ReadlineError::Eof) => Ok(Input::End),
        Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
        Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
            Ok(Input::NotText)
        }
        Err(ReadlineError::Io(error)) => Err(Error::io(PLACE, "read", error)),
        Err(error) => Err(Error::io(PLACE, "read", io::Error::other(error))),
    }
}

/// Reads a line without the editor.
fn plain(lines: &mut Lines<impl BufRead>) -> Result<Input> {
    let mut line = Vec::new();
    match lines.next(&mut line) {
        Ok(0) => Ok(Input::End),
        Ok(_) => Ok(String::from_utf8(line).map_or(Input::NotText, Input::Line)),
        Err(BadLine::Io(error)) => Err(Error::io(PLACE, "read", error)),
        Err(BadLine::TooLong(limit)) => {
            let place = format!("{PLACE}:{}", lines.number);
            let problem = row_limit::problem(limit);
            Err(Error::invalid(place, problem, row_limit::REMEDY))
        }
    }
}

/// Returns a function that restores the terminal's present settings from those of the editor.
#[cfg(unix)]
fn terminal_settings() -> impl Fn() + Send + 'static {
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    let settings = tcgetattr(io::stdin()).ok();
    move || {
        if let Some(settings) = &settings {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, settings);
        }
        if io::stderr().is_terminal() {
            // Leaves the editor's line, and turns bracketed paste off.
            message::text("\x1b[?2004l\n");
        }
    }
}

#[cfg(not(unix))]
fn terminal_settings() -> impl Fn() + Send + 'static {
    || ()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_text_does_not_end_the_input() {
        let mut lines = Lines::new(&b"one\r\ncaf\xe9\n\ntwo"[..]);
        let mut read = || plain(&mut lines).unwrap();
        assert_eq!(read(), Input::Line("one\r\n".into()));
        assert_eq!(read(), Input::NotText);
        assert_eq!(read(), Input::Line("\n".into()));
        assert_eq!(read(), Input::Line("two".into()));
        assert_eq!(read(), Input::End);
    }

    #[test]
    fn events_of_the_editor_are_distinguished() {
        let invalid = || ReadlineError::Io(ErrorKind::InvalidData.into());
        assert_eq!(edited(Ok("x".into())).unwrap(), Input::Line("x".into()));
        assert_eq!(edited(Err(ReadlineError::Eof)).unwrap(), Input::End);
        assert_eq!(edited(Err(ReadlineError::Interrupted)).unwrap(), Input::Interrupted);
        assert_eq!(edited(Err(invalid())).unwrap(), Input::NotText);
        let gone = ReadlineError::Io(ErrorKind::PermissionDenied.into());
        assert!(edited(Err(gone)).is_err());
    }
}
