//! Messages to the user on stderr. A message that cannot be written is dropped: a run must not end because nobody
//! reads its log.

use std::fmt::Arguments;
use std::io::{Write, stderr};

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
