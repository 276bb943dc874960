//! Ctrl-C: long jobs ask [`requested`] between steps, save, and end with [`Error::Interrupted`](crate::Error).

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C (and SIGTERM) ask for a stop; a second one ends the program at once with status 130.
///
/// Fails only if a handler is already installed, which is harmless.
pub fn install() {
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// Whether the user has asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
