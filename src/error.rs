//! What can go wrong for a user: each error says where, what, and how to mend it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate that a user's input can make fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error a user can act on. [`fmt::Display`] prints `place: problem` and, on a second line, the remedy.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was being done, as in `"reading"`.
        action: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// Input the user gave (a file, a key, a flag) is not what it must be.
    Invalid {
        /// File and position, key, or flag: `run.toml:12: lora.r`, `pairs.jsonl:7`, `--model`.
        place: String,
        /// What is wrong, with the offending value.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A run met a state it must not go on from (a non-finite loss, a failed self-check).
    Run {
        /// What happened.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The user asked to stop (Ctrl-C); everything is saved. Exit status 130.
    Interrupted {
        /// What was saved and how to go on.
        note: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`; `action` reads as in "cannot open" without the "cannot": `"open"`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// An [`Error::Invalid`] at `place`.
    pub fn invalid(
        place: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self::Invalid {
            place: place.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }

    /// An [`Error::Invalid`] about the file at `path`.
    pub fn file(path: &Path, problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::invalid(path.display(), problem, remedy)
    }

    /// An [`Error::Run`].
    pub fn run(problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::Run { problem: problem.to_string(), remedy: remedy.to_string() }
    }

    /// The process exit status this error ends with: 130 for an interrupt, 1 otherwise.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, action, source } => {
                write!(f, "{}: cannot {action}: {source}", path.display())
            }
            Self::Invalid { place, problem, remedy } => {
                write!(f, "{place}: {problem}\n  help: {remedy}")
            }
            Self::Run { problem, remedy } => write!(f, "{problem}\n  help: {remedy}"),
            Self::Interrupted { note } => write!(f, "interrupted: {note}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_place_problem_and_remedy() {
        let error = Error::invalid("run.toml:3: lora.r", "must be at least 1, is 0", "set r = 16");
        assert_eq!(
            error.to_string(),
            "run.toml:3: lora.r: must be at least 1, is 0\n  help: set r = 16"
        );
        assert_eq!(error.exit_status(), 1);
        assert_eq!(Error::Interrupted { note: String::new() }.exit_status(), 130);
    }
}
