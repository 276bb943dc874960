//! Errors that a user can act on: each one says where it occurred, what is wrong and how to fix it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of every operation in this crate that can fail because of the user's input.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that a user can act on. [`fmt::Display`] prints `place: problem` and, on a second line, the remedy.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused a file operation.
    Io {
        /// The file or folder of the operation.
        path: PathBuf,
        /// The operation as a verb that completes "cannot", such as `"open"`.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// Input from the user (a file, a key, a flag) is not valid.
    Invalid {
        /// File and position, key, or flag: `run.toml:12: lora.r`, `pairs.jsonl:7`, `--model`.
        place: String,
        /// What is wrong, with the offending value.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// A run reached a state from which it must not continue (a non-finite loss, a failed self-check).
    Run {
        /// What happened.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The user asked to stop (Ctrl-C); everything is saved. The exit status is 130.
    Interrupted {
        /// What was saved and how to continue.
        note: String,
    },
}

impl Error {
    /// Creates an [`Error::Io`] for `path`; `action` is a verb that completes "cannot", such as `"open"`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// Creates an [`Error::Invalid`] at `place`.
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

    /// Creates an [`Error::Invalid`] about the file at `path`.
    pub fn file(path: &Path, problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::invalid(path.display(), problem, remedy)
    }

    /// Replaces the place of the error by `given` if it is `place`. A library function names the flag that most
    /// commands have, but the user may have set a key instead.
    #[must_use]
    pub fn at(self, place: &str, given: &str) -> Self {
        match self {
            Self::Invalid { place: found, problem, remedy } if found == place => {
                Self::invalid(given, problem, remedy)
            }
            other => other,
        }
    }

    /// Puts `prefix` before the place of the error: the table or the file of a key that a library function names alone.
    #[must_use]
    pub fn within(self, prefix: &str) -> Self {
        match self {
            Self::Invalid { place, problem, remedy } => {
                Self::Invalid { place: format!("{prefix}{place}"), problem, remedy }
            }
            other => other,
        }
    }

    /// Creates an [`Error::Run`].
    pub fn run(problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::Run { problem: problem.to_string(), remedy: remedy.to_string() }
    }

    /// Returns the exit status of a process that ends with this error: 130 for an interrupt, 1 otherwise.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}

/// Checks that no GPU runtime has lost work, which it would not report otherwise: see [`arithmo_backends::lost_work`].
///
/// # Errors
/// It has; what the device computed since then may be wrong.
pub fn check_work() -> Result<()> {
    if !arithmo_backends::lost_work() {
        return Ok(());
    }
    Err(Error::run(
        "the GPU's thread failed at a task and went on without its result (its message stands above)",
        "if memory ran out, `arithmo plan` names settings that fit; a training run goes on from its last checkpoint \
         with --resume",
    ))
}

/// Maximum number of list items that an error names; the others are counted.
const NAMED: usize = 3;

/// Joins the first few `items` and the number of the remaining ones, for an error that fits on a screen.
pub fn first_few<T: fmt::Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    let mut items = items.into_iter();
    let mut named: Vec<String> =
        (items.by_ref().take(NAMED + 1)).map(|item| item.to_string()).collect();
    let more = items.count();
    if more > 0 {
        named.truncate(NAMED);
        named.push(format!("and {} more", more + 1));
    }
    named.join(separator)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, action, source } => {
                write!(f, "{}: cannot {action}: {source}", path.display())?;
                match system_remedy(path, source) {
                    Some(remedy) => write!(f, "\n  help: {remedy}"),
                    None => Ok(()),
                }
            }
            Self::Invalid { place, problem, remedy } => {
                write!(f, "{place}: {problem}\n  help: {remedy}")
            }
            Self::Run { problem, remedy } => write!(f, "{problem}\n  help: {remedy}"),
            Self::Interrupted { note } => write!(f, "interrupted: {note}"),
        }
    }
}

/// Returns what can be done about an error of the system at `path`, if that is known.
fn system_remedy(path: &Path, source: &io::Error) -> Option<String> {
    use io::ErrorKind as Kind;
    let remedy = match source.kind() {
        Kind::NotFound if path.is_relative() => {
            let absolute = std::path::absolute(path).ok()?.display().to_string();
            return Some(format!(
                "relative paths start at the working folder, so this is {absolute}"
            ));
        }
        Kind::PermissionDenied => "change its permissions, or choose another place",
        Kind::ReadOnlyFilesystem => "choose a place on a disk that can be written",
        Kind::StorageFull | Kind::QuotaExceeded => {
            "free space on the disk, or choose another place"
        }
        Kind::NotADirectory => "a part of the path is a file: choose another path",
        Kind::InvalidFilename => "choose a shorter name",
        _ => return None,
    };
    Some(remedy.to_string())
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
    fn long_lists_are_cut_and_counted() {
        assert_eq!(first_few([""; 0], ", "), "");
        // The fourth item takes no more space than its count would.
        assert_eq!(first_few(["a", "b", "c", "d"], ", "), "a, b, c, d");
        assert_eq!(first_few(1..=270, "; "), "1; 2; 3; and 267 more");
    }

    #[test]
    fn prints_place_problem_and_remedy() {
        let error = Error::invalid("run.toml:3: lora.r", "must be at least 1, is 0", "set r = 16");
        assert_eq!(
            error.to_string(),
            "run.toml:3: lora.r: must be at least 1, is 0\n  help: set r = 16"
        );
        assert_eq!(error.exit_status(), 1);
        assert_eq!(Error::Interrupted { note: String::new() }.exit_status(), 130);
    }

    #[test]
    fn errors_of_the_system_have_a_remedy() {
        for (kind, part) in [
            (io::ErrorKind::NotFound, "working folder"),
            (io::ErrorKind::PermissionDenied, "permissions"),
            (io::ErrorKind::StorageFull, "free space"),
            (io::ErrorKind::InvalidFilename, "shorter name"),
        ] {
            let text = Error::io("a/b", "write", kind.into()).to_string();
            let help = text.lines().nth(1).unwrap();
            assert!(text.starts_with("a/b: cannot write: ") && help.contains(part), "{text}");
        }
        assert_eq!(
            Error::io("/a", "read", io::ErrorKind::NotFound.into()).to_string().lines().count(),
            1
        );
    }
}
