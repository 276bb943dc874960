//! Signals to a child process.

#![allow(unreachable_pub, dead_code, reason = "every test program uses a part of it")]

use std::process::{Child, Command, Output};

/// Sends the signal `name` (such as `INT`) to the child.
#[track_caller]
pub fn send(name: &str, child: &Child) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.unwrap().success(), "-{name}");
}

/// Sends the signal of Ctrl-C, waits for the child to exit and returns its output.
#[track_caller]
pub fn interrupted(child: Child) -> Output {
    send("INT", &child);
    child.wait_with_output().unwrap()
}
