//! Functions that run the program on the CPU, and that write its inputs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use arithmo::demo::arithmetic::{Split, problems};
use serde_json::Value;

use crate::support::demo_model;

/// Returns a command that runs the program in `folder`.
pub(crate) fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.current_dir(folder).args(arguments);
    command.args(["--backend", "ndarray"]);
    command
}

pub(crate) fn arithmo(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Returns the standard error of a command.
pub(crate) fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program in `folder` and returns its standard output. Panics if it fails.
pub(crate) fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = arithmo(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", message(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes `count` problems of the demo's arithmetic, with their answers.
pub(crate) fn write_problems(path: &Path, split: Split, count: usize) {
    let lines = problems(split, 3, count);
    let lines = lines.iter().map(|problem| format!("{}\n", problem.known()));
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// Reads the lines of a .jsonl file. A missing file has none.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the folder of the model that is built into the program.
pub(crate) fn model() -> String {
    demo_model().display().to_string()
}
