//! Requests to stop: Ctrl-C, SIGTERM and SIGHUP. Long jobs check [`requested`] between steps, save their work, and
//! return [`Error::Interrupted`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
#[cfg(unix)]
use crate::input_file;

/// Exit status of a program that a signal ends at once.
const STATUS: i32 = 130;

/// Whether a signal has asked the program to stop.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGTERM or SIGHUP, which must not be taken back, has asked the program to stop.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// Set while the program only waits for input.
static WAITING: Mutex<Option<Waiting>> = Mutex::new(None);

/// How signals are handled while the program waits for input.
struct Waiting {
    /// Effect of Ctrl-C.
    ctrl_c: CtrlC,
    /// Called before the program ends at once.
    restore: Box<dyn Fn() + Send>,
}

/// The effect of Ctrl-C on a program that waits for input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtrlC {
    /// Ends the program.
    EndsProgram,
    /// Is a key for the line editor, which receives the terminal's signals as keys. It arrives as a signal only
    /// before the editor starts and after it has its line, and then stops the work on that line.
    IsKey,
}

/// Installs handlers for Ctrl-C, SIGTERM and SIGHUP that request a stop; a second signal ends the program with status
/// 130.
///
/// If no handler can be installed, the signals end the program as they do by default.
pub fn install() {
    listen();
}

/// Starts the thread that handles signals.
#[cfg(unix)]
fn listen() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut handled = vec![SIGINT, SIGTERM];
    if !ignores_hangup() {
        handled.push(SIGHUP);
    }
    let Ok(mut signals) = signal_hook::iterator::Signals::new(handled) else {
        return;
    };
    let thread = std::thread::Builder::new().name("signals".into());
    let _ = thread.spawn(move || {
        for signal in signals.forever() {
            received(signal != SIGINT);
        }
    });
}

/// Returns whether SIGHUP is ignored because the program was started to outlive its terminal, as by `nohup`.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    // Bit 0 stands for signal 1. Systems other than Linux do not provide this file.
    let status = input_file::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(not(unix))]
fn listen() {
    let _ = ctrlc::set_handler(|| received(false));
}

/// Records a signal. Ends the program at once if it is the second one, or if the program only waits.
fn received(terminates: bool) {
    if let Some(waiting) = waiting().as_ref()
        && (terminates || waiting.ctrl_c == CtrlC::EndsProgram)
    {
        (waiting.restore)();
        std::process::exit(STATUS);
    }
    if terminates {
        TERMINATED.store(true, Ordering::SeqCst);
    }
    if REQUESTED.swap(true, Ordering::SeqCst) {
        std::process::exit(STATUS);
    }
}

/// Locks the state of waiting for input.
fn waiting() -> MutexGuard<'static, Option<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the user has asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Withdraws a request made by Ctrl-C, so that the next one counts as the first. Returns whether the program may
/// continue: requests by SIGTERM and SIGHUP stay.
pub fn clear_request() -> bool {
    if TERMINATED.load(Ordering::SeqCst) {
        return false;
    }
    REQUESTED.store(false, Ordering::SeqCst);
    true
}

/// Calls `read`, which waits for input. Meanwhile SIGTERM, SIGHUP, and Ctrl-C with [`CtrlC::EndsProgram`] call
/// `restore` and end the program at once, because nothing checks [`requested`] during the wait.
///
/// # Errors
/// SIGTERM or SIGHUP arrived before; `read` is not called.
pub fn while_waiting<T>(
    ctrl_c: CtrlC,
    restore: impl Fn() + Send + 'static,
    read: impl FnOnce() -> T,
) -> Result<T> {
    let restore = Box::new(restore);
    *waiting() = Some(Waiting { ctrl_c, restore });
    let result = if TERMINATED.load(Ordering::SeqCst) {
        let note = "no further input is read".into();
        Err(Error::Interrupted { note })
    } else {
        Ok(read())
    };
    *waiting() = None;
    result
}
