//! Runs a child process with limits on its time and output, and kills it on Ctrl-C.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::interrupt;

/// How a child process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It exited by itself.
    Exited(ExitStatus),
    /// It was killed because its time was over.
    OutOfTime,
    /// It was killed because the user asked to stop.
    Interrupted,
}

/// The end of a child process, with its output.
#[derive(Debug)]
pub(super) struct ChildResult {
    pub(super) end: End,
    /// Standard output, up to one byte more than the limit.
    pub(super) output: Vec<u8>,
    /// Standard error, up to one byte more than the limit.
    pub(super) errors: Vec<u8>,
}

/// Runs `command` until it ends, for at most `wall`, and returns up to `max_bytes` plus one of each of its outputs.
///
/// # Errors
/// The command cannot be started or waited for.
pub(super) fn supervise(
    command: &mut Command,
    wall: Duration,
    max_bytes: u64,
) -> io::Result<ChildResult> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    own_group(command);
    let mut child = command.spawn()?;
    let output = child.stdout.take().map(|pipe| reader(pipe, max_bytes));
    let errors = child.stderr.take().map(|pipe| reader(pipe, max_bytes));
    let end = wait(&mut child, wall, interrupt::requested);
    if end.is_err() {
        kill(&mut child);
    }
    let bytes = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(ChildResult { output: bytes(output), errors: bytes(errors), end: end? })
}

/// Makes the child the leader of its own process group, so that Ctrl-C reaches only the evaluation, which kills the child.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_command: &mut Command) {}

/// Starts a thread that reads up to `max_bytes` plus one from `pipe` and then closes it, which ends a program that still
/// prints.
fn reader(pipe: impl Read + Send + 'static, max_bytes: u64) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // On an error, the bytes read so far are kept.
        let _ = pipe.take(max_bytes + 1).read_to_end(&mut bytes);
        bytes
    })
}

/// Waits until the child ends. Kills it after `wall`, or as soon as `stop` returns true.
fn wait(child: &mut Child, wall: Duration, stop: impl Fn() -> bool) -> io::Result<End> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(End::Exited(status));
        }
        let end = if stop() {
            End::Interrupted
        } else if begin.elapsed() >= wall {
            End::OutOfTime
        } else {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            continue;
        };
        kill(child);
        return Ok(end);
    }
}

/// Kills the child and its descendants, which would keep its pipes open.
fn kill(child: &mut Child) {
    #[cfg(all(target_os = "linux", target_endian = "little"))]
    {
        use rustix::process::{Pid, Signal, kill_process_group};
        let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    }
    // Both fail only if the child has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_killed_with_its_descendants() {
        // The shell's child also holds the pipe, so the readers would wait for it if it were still alive.
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; sleep 1000 & sleep 1000"]);
        let ended = supervise(&mut command, Duration::from_secs(3), 100).unwrap();
        assert_eq!(ended.end, End::OutOfTime);
        assert_eq!(ended.output, b"begun\n");
    }

    #[test]
    fn a_child_is_killed_when_the_user_asks_to_stop() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let end = wait(&mut child, Duration::from_secs(1000), || true).unwrap();
        assert_eq!(end, End::Interrupted);
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn output_is_kept_up_to_a_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo oops >&2; while :; do echo more; done"]);
        let ended = supervise(&mut command, Duration::from_secs(20), 10).unwrap();
        assert_eq!(ended.output.len(), 11);
        assert_eq!(ended.errors, b"oops\n");
    }
}
