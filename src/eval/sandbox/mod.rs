//! Runs Python programs written by a model in a sandbox where they can do no harm.
//!
//! Each program runs in its own process with an empty environment and an empty working folder. Before Python starts, this
//! program, started again as `arithmo sandbox-exec`, restricts itself (`restrict`): it limits CPU time, memory and open
//! files, and gives up access to files other than Python's own (`interpreter`), signals to other processes, and all system
//! calls and arguments except those for computing and reading (`syscalls`). So there is no network, no second process and
//! no file to write to. A program that waits is killed after a time limit (`child`).
//!
//! The sandbox works on Linux only. [`Sandbox::open`] runs a program that tries everything that must fail (`trial`), and
//! returns an error if one attempt succeeds. `docs/sandbox.md` lists what a program can still learn.

mod child;
mod interpreter;
#[cfg(all(target_os = "linux", target_endian = "little"))]
mod restrict;
#[cfg(all(target_os = "linux", target_endian = "little"))]
mod syscalls;
mod trial;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::child::{ChildResult, End, supervise};
use self::interpreter::Interpreter;
use crate::error::{Error, Result};

/// The resource limits of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// CPU time, in seconds.
    pub cpu_seconds: u64,
    /// Wall-clock time.
    pub wall: Duration,
    /// Address space in bytes, including Python itself.
    pub memory_bytes: u64,
    /// Size of the output in bytes. More output ends the program.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_seconds: 10,
            wall: Duration::from_secs(20),
            memory_bytes: 512 << 20,
            output_bytes: 64 << 10,
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It ended successfully.
    Printed {
        /// Standard output.
        output: String,
    },
    /// It failed: an exception, a limit, or a forbidden operation.
    Failed {
        /// Reason, in one line.
        reason: String,
    },
}

impl Outcome {
    /// Returns the standard output if the program ended successfully.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Printed { output } => Some(output),
            Self::Failed { .. } => None,
        }
    }
}

/// System paths of the shared libraries that every program needs, and of the time zones. All users may read them.
const LIBRARIES: [&str; 7] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
];

/// A Python interpreter in a sandbox that has passed the trial.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Path of this program, which restricts itself and then becomes the interpreter.
    launcher: PathBuf,
    interpreter: Interpreter,
    limits: Limits,
}

/// Maximum size of a program in bytes. The system passes arguments of up to 128 KiB.
const MAX_PROGRAM_BYTES: usize = 100_000;
/// Maximum length of a failure's reason in characters. The reason is the program's own last line, so it can be long.
const MAX_REASON_CHARS: usize = 300;
/// Start of the message printed if the restrictions cannot be applied before Python starts.
const REFUSED: &str = "the sandbox cannot be closed";
const REMEDY: &str = "use Linux 5.13 or newer (a container must allow seccomp and Landlock), or score the answers elsewhere";

impl Sandbox {
    /// Finds the interpreter `python` (a name or a path) and checks the sandbox with the trial. `launcher` is the path of
    /// this program.
    ///
    /// # Errors
    /// There is no such interpreter, this system cannot enforce a restriction (the error names it), or the user interrupts.
    pub fn open(launcher: &Path, python: &str, limits: Limits) -> Result<Self> {
        if cfg!(not(all(target_os = "linux", target_endian = "little"))) {
            let problem = "running generated programs needs Linux (seccomp and Landlock)";
            return Err(Error::invalid("--allow-code-execution", problem, REMEDY));
        }
        let sandbox = Self {
            launcher: launcher.to_path_buf(),
            interpreter: Interpreter::find(python)?,
            limits,
        };
        sandbox.check()?;
        Ok(sandbox)
    }

    /// Describes the limits and the interpreter, on which the outcome of a program depends.
    pub fn conditions(&self) -> String {
        format!("{:?} {}", self.limits, self.interpreter.program.display())
    }

    /// Runs one program. A program that fails is an [`Outcome::Failed`], not an error.
    ///
    /// # Errors
    /// The process cannot be started, or the user interrupts, which kills the program at once.
    pub fn run(&self, program: &str) -> Result<Outcome> {
        if program.len() > MAX_PROGRAM_BYTES {
            return Ok(failed(&format!("a program of {} bytes is too long", program.len())));
        }
        if program.contains('\0') {
            return Ok(failed("contains a zero byte"));
        }
        let folder = tempfile::tempdir();
        let folder =
            folder.map_err(|e| Error::io(std::env::temp_dir(), "make a temporary folder in", e))?;
        let mut command = self.command(program);
        command.current_dir(folder.path());
        let ChildResult { end, output, errors } =
            supervise(&mut command, self.limits.wall, self.limits.output_bytes)
                .map_err(|e| Error::io(&self.launcher, "start", e))?;
        match end {
            End::Exited(status) => {
                Ok(self.outcome(status, &output, &String::from_utf8_lossy(&errors)))
            }
            End::OutOfTime => {
                let seconds = self.limits.wall.as_secs_f64();
                Ok(failed(&format!("stopped after {seconds} s")))
            }
            End::Interrupted => Err(interrupted()),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.launcher);
        command.args(["sandbox-exec", "--cpu-seconds", &self.limits.cpu_seconds.to_string()]);
        command.args(["--memory-bytes", &self.limits.memory_bytes.to_string()]);
        command.args(["--parent", &std::process::id().to_string()]);
        for path in &self.interpreter.readable {
            command.arg("--read").arg(path);
        }
        // -I ignores the user's packages, PYTHON* variables and the working folder; -B writes no bytecode.
        command.arg("--").arg(&self.interpreter.program);
        command.args(["-I", "-B", "-X", "utf8", "-c"]);
        command.args([include_str!("prelude.py"), program]);
        command.env_clear().stdin(Stdio::null());
        command
    }

    fn outcome(&self, status: ExitStatus, output: &[u8], errors: &str) -> Outcome {
        if output.len() as u64 > self.limits.output_bytes {
            return failed(&format!("printed more than {} bytes", self.limits.output_bytes));
        }
        if !status.success() {
            let refused = errors.lines().find(|line| line.contains(REFUSED));
            let last = refused.or(errors.lines().rfind(|line| !line.trim().is_empty()));
            return failed(&last.map_or_else(|| ended_by(status), str::to_string));
        }
        match std::str::from_utf8(output) {
            Ok(output) => Outcome::Printed { output: output.to_string() },
            Err(_) => failed("printed output that is not UTF-8"),
        }
    }

    /// Runs the trial: a program that tries in the sandbox everything that must not work there.
    fn check(&self) -> Result<()> {
        let refuse = |problem: String| {
            Err(Error::run(format!("generated programs are not run: {problem}"), REMEDY))
        };
        // The trial has the default CPU limit and a long time limit, so that it ends on a busy machine too.
        let patient = Self {
            limits: Limits {
                memory_bytes: self.limits.memory_bytes,
                wall: Duration::from_secs(60),
                ..Limits::default()
            },
            ..self.clone()
        };
        match patient.run(&trial::trial(&self.interpreter.readable))? {
            // A package's .pth file may print something first, so only the last line is read.
            Outcome::Printed { output } if output.lines().next_back() == Some("closed") => Ok(()),
            Outcome::Printed { output } => {
                refuse(format!("the sandbox does not prevent: {}", output.trim()))
            }
            Outcome::Failed { reason } if reason.contains(REFUSED) => refuse(reason),
            Outcome::Failed { reason } => refuse(format!(
                "{} does not start in the sandbox: {reason}",
                self.interpreter.program.display()
            )),
        }
    }
}

/// Returns a failure with this reason, shortened to a line that a page can show.
fn failed(reason: &str) -> Outcome {
    let reason = reason.replace(char::is_control, " ");
    Outcome::Failed { reason: cut(&reason, MAX_REASON_CHARS) }
}

/// Returns the first `max_chars` characters of `text`, with an ellipsis if there are more.
pub(super) fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

fn interrupted() -> Error {
    Error::Interrupted {
        note: "programs were stopped; run the same command again to continue".into(),
    }
}

#[cfg(unix)]
fn ended_by(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(24) => "used up its CPU time".to_string(), // SIGXCPU
        Some(signal) => format!("was ended by signal {signal}"),
        None => status.to_string(),
    }
}

#[cfg(not(unix))]
fn ended_by(status: ExitStatus) -> String {
    status.to_string()
}

/// The restrictions that `arithmo sandbox-exec` applies to itself.
#[derive(Clone, Debug)]
pub struct Restriction<'a> {
    /// CPU time, in seconds.
    pub cpu_seconds: u64,
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Files and folders that may be read.
    pub readable: &'a [PathBuf],
    /// Process that started this one. If it ends, this one is killed.
    pub parent: u32,
}

/// Restricts this process permanently and replaces it by `command` (a program and its arguments). It returns only if that
/// fails, and then nothing was run.
pub fn become_restricted(restriction: &Restriction, command: &[String]) -> Error {
    let reason = start(restriction, command);
    Error::run(format!("{REFUSED}: {reason}"), REMEDY)
}

#[cfg(all(target_os = "linux", target_endian = "little"))]
fn start(restriction: &Restriction, command: &[String]) -> String {
    use std::os::unix::process::CommandExt;
    let Some((program, arguments)) = command.split_first() else {
        return "no program to run is given".to_string();
    };
    match restrict::apply(restriction, Path::new(program)) {
        Ok(()) => Command::new(program).args(arguments).env_clear().exec().to_string(),
        Err(problem) => problem,
    }
}

#[cfg(not(all(target_os = "linux", target_endian = "little")))]
fn start(_: &Restriction, _: &[String]) -> String {
    "the sandbox needs Linux".to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short_lines() {
        let reason = |text: &str| match failed(text) {
            Outcome::Failed { reason } => reason,
            Outcome::Printed { output } => panic!("{output}"),
        };
        assert_eq!(reason("NameError: x"), "NameError: x");
        assert_eq!(reason("a\u{1b}[2Jb"), "a [2Jb");
        let long = reason(&"é".repeat(65_536));
        assert_eq!(long.chars().count(), MAX_REASON_CHARS + 1);
        assert!(long.ends_with("é…"));
    }
}
