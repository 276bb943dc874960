//! Python programs written by a model, run where they can do no harm.
//!
//! Each program is a process of its own with an empty environment and an empty working folder. Before Python starts, this
//! program, called anew as `arithmo sandbox-exec`, gives up what Python must not have (see `restrict`): limits on CPU
//! time, memory and file size (none); system calls other than those for computing and reading; files other than Python's
//! own. So there is no network, no second process and nothing to write to. A wall clock ends what waits.
//!
//! Linux only: [`Sandbox::open`] tries everything that must fail, and refuses to run anything if one of it works.

#[cfg(all(target_os = "linux", target_endian = "little"))]
mod restrict;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// CPU time, in seconds.
    pub cpu_seconds: u64,
    /// Time on the wall's clock.
    pub wall: Duration,
    /// Address space, in bytes, Python itself included.
    pub memory_bytes: u64,
    /// Bytes of output that are kept; more of it ends the program.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It ended well; this is what it printed.
    Printed {
        /// Standard output.
        output: String,
    },
    /// It did not: an exception, a limit, something forbidden.
    Failed {
        /// Why, in a line.
        reason: String,
    },
}

impl Outcome {
    /// What it printed, if it ended well.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Printed { output } => Some(output),
            Self::Failed { .. } => None,
        }
    }
}

/// A Python interpreter in a box, checked.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// This program, which starts the box.
    launcher: PathBuf,
    /// The interpreter itself, no wrapper.
    python: PathBuf,
    /// The folders it reads its own files from.
    readable: Vec<PathBuf>,
    limits: Limits,
}

/// The longest program: the system passes arguments of up to 128 KiB.
const LONGEST_PROGRAM: usize = 100_000;
/// Printed by the child's own refusals, before Python starts.
const REFUSED: &str = "the sandbox cannot be closed";

impl Sandbox {
    /// Finds the interpreter `python` (a name or a path), and tries that the box holds: `launcher` is this program.
    ///
    /// # Errors
    /// There is no such interpreter, or this system cannot keep a promise of the box: which, is said.
    pub fn open(launcher: &Path, python: &str, limits: Limits) -> Result<Self> {
        if cfg!(not(all(target_os = "linux", target_endian = "little"))) {
            let problem = "running generated programs needs Linux (seccomp and Landlock)";
            return Err(Error::invalid("--allow-code-execution", problem, REMEDY));
        }
        let (python, readable) = interpreter(python)?;
        let sandbox = Self { launcher: launcher.to_path_buf(), python, readable, limits };
        sandbox.check()?;
        Ok(sandbox)
    }

    /// Runs one program.
    ///
    /// # Errors
    /// The process cannot be started at all; how the program itself ends is no error.
    pub fn run(&self, program: &str) -> Result<Outcome> {
        if program.len() > LONGEST_PROGRAM {
            return Ok(failed(format!("a program of {} bytes is too long", program.len())));
        }
        if program.contains('\0') {
            return Ok(failed("holds a zero byte"));
        }
        let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", "make", e))?;
        let mut child = self
            .command(program)
            .current_dir(folder.path())
            .spawn()
            .map_err(|e| Error::io(&self.launcher, "start", e))?;
        let most = self.limits.output_bytes;
        let output = child.stdout.take().map(|pipe| thread::spawn(move || read(pipe, most)));
        let errors = child.stderr.take().map(|pipe| thread::spawn(move || read(pipe, most)));
        let status = wait(&mut child, self.limits.wall)
            .map_err(|e| Error::io(&self.launcher, "wait for", e))?;
        let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let (output, errors) = (text(output), text(errors));
        Ok(self.outcome(status, &output, &String::from_utf8_lossy(&errors)))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.launcher);
        command.args(["sandbox-exec", "--cpu-seconds", &self.limits.cpu_seconds.to_string()]);
        command.args(["--memory-bytes", &self.limits.memory_bytes.to_string()]);
        for folder in &self.readable {
            command.arg("--read").arg(folder);
        }
        // -I: no user's packages, no PYTHON* variables, nothing from the working folder; -B: no bytecode is written.
        command.arg("--").arg(&self.python);
        command.args(["-I", "-B", "-X", "utf8", "-c", PRELUDE, program]);
        command.env_clear().stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        own_group(&mut command);
        command
    }

    /// `status`: `None` if the wall clock ended it.
    fn outcome(&self, status: Option<ExitStatus>, output: &[u8], errors: &str) -> Outcome {
        let Some(status) = status else {
            return failed(format!("stopped after {} s", self.limits.wall.as_secs_f64()));
        };
        if output.len() as u64 > self.limits.output_bytes {
            return failed(format!("printed more than {} bytes", self.limits.output_bytes));
        }
        if !status.success() {
            let refused = errors.lines().find(|line| line.contains(REFUSED));
            let last = refused.or(errors.lines().rfind(|line| !line.trim().is_empty()));
            return failed(last.map_or_else(|| ended_by(status), str::to_string));
        }
        match std::str::from_utf8(output) {
            Ok(output) => Outcome::Printed { output: output.to_string() },
            Err(_) => failed("printed what is not UTF-8"),
        }
    }

    /// Tries in the box what must not work there.
    fn check(&self) -> Result<()> {
        let refuse = |problem: String| {
            Err(Error::run(format!("generated programs are not run: {problem}"), REMEDY))
        };
        match self.run(TRIAL)? {
            Outcome::Printed { output } if output.trim() == "closed" => Ok(()),
            Outcome::Printed { output } => {
                refuse(format!("in the sandbox these still work: {}", output.trim()))
            }
            Outcome::Failed { reason } if reason.contains(REFUSED) => refuse(reason),
            Outcome::Failed { reason } => {
                refuse(format!("{} does not start in the sandbox: {reason}", self.python.display()))
            }
        }
    }
}

const REMEDY: &str = "use Linux 5.13 or newer, in a container one that allows seccomp and Landlock; or score the answers elsewhere";

/// Runs the program that is its argument, without the files that whoever started the evaluation left open.
const PRELUDE: &str = r#"
import os, sys
os.closerange(3, 1 << 20)
exec(compile(sys.argv[1], "<program>", "exec"), {"__name__": "__main__"})
"#;

/// Each attempt must raise; the names of those that do not are printed.
const TRIAL: &str = r#"
import os, socket
def environment():
    if not set(os.environ) - {"LC_CTYPE"}: raise OSError  # Python itself sets that one
def open_files():
    for fd in range(3, 64):
        try: return os.fstat(fd)
        except OSError: pass
    raise OSError
def folder():
    if not os.listdir("."): raise OSError
attempts = {
    "writing a file": lambda: open("file", "w"),
    "writing outside": lambda: open(f"../arithmo-{os.getpid()}", "w"),
    "making a folder": lambda: os.mkdir("folder"),
    "reading other files": lambda: open("/etc/passwd").read(),
    "looking at processes": lambda: os.listdir("/proc"),
    "the network": lambda: socket.socket(),
    "a second process": lambda: os.fork() or os._exit(0),
    "signals to others": lambda: os.kill(os.getppid(), 0),
    "files others opened": open_files,
    "the environment": environment,
    "a working folder that is not empty": folder,
}
works = []
for name, attempt in attempts.items():
    try:
        attempt()
        works.append(name)
    except OSError:
        pass
if "writing outside" in works: os.remove(f"../arithmo-{os.getpid()}")
print(", ".join(works) or "closed")
"#;

fn failed(reason: impl Into<String>) -> Outcome {
    Outcome::Failed { reason: reason.into() }
}

/// Ctrl-C is for the evaluation, not for its programs: those would count as failed.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_command: &mut Command) {}

/// Reads at most one byte more than `most`; closing the pipe then ends a program that prints on.
fn read(pipe: impl Read, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is what there is.
    let _ = pipe.take(most + 1).read_to_end(&mut bytes);
    bytes
}

/// Waits for the end, at most `wall`: `None` if the child had to be killed.
fn wait(child: &mut Child, wall: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() >= wall {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
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

/// The real path of an interpreter and the folders it reads. Asked outside of the box: it may be a wrapper's name.
fn interpreter(python: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    let ask = "import sys; print(*dict.fromkeys([sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]), sep='\\n')";
    let wrong = |problem: String| {
        Error::invalid("--python", problem, "name a Python 3 interpreter, or install python3")
    };
    let answer = Command::new(python)
        .args(["-I", "-B", "-c", ask])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| wrong(format!("{python} cannot be started: {e}")))?;
    if !answer.status.success() {
        return Err(wrong(format!("{python} ended with {}", answer.status)));
    }
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let mut paths = text.lines().map(PathBuf::from).filter(|path| path.is_absolute());
    let python = paths.next().ok_or_else(|| wrong(format!("{python} does not say where it is")))?;
    Ok((python, paths.filter(|path| path.exists()).collect()))
}

/// Gives up, for good, what a generated program must not have, and becomes `command` (a program and its arguments). It
/// returns only if that fails: then nothing was run.
pub fn become_restricted(
    cpu_seconds: u64,
    memory_bytes: u64,
    readable: &[PathBuf],
    command: &[String],
) -> Error {
    let reason = start(cpu_seconds, memory_bytes, readable, command);
    Error::run(format!("{REFUSED}: {reason}"), REMEDY)
}

#[cfg(all(target_os = "linux", target_endian = "little"))]
fn start(cpu_seconds: u64, memory_bytes: u64, readable: &[PathBuf], command: &[String]) -> String {
    use std::os::unix::process::CommandExt;
    let Some((program, arguments)) = command.split_first() else {
        return "there is no program to run".to_string();
    };
    match restrict::restrict(cpu_seconds, memory_bytes, readable, Path::new(program)) {
        Ok(()) => Command::new(program).args(arguments).env_clear().exec().to_string(),
        Err(problem) => problem,
    }
}

#[cfg(not(all(target_os = "linux", target_endian = "little")))]
fn start(_: u64, _: u64, _: &[PathBuf], _: &[String]) -> String {
    "this needs Linux".to_string()
}
