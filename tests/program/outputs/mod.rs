//! Tests of output files and folders: what commands replace, refuse, write in place, remove and lock.

#![cfg(target_os = "linux")]

mod files;
mod folders;
mod killed;
mod links;
mod lost;
mod one_core;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::tiny;
use crate::tiny::fixture;
use tempfile::TempDir;

/// Longest time that a command may take.
const TIMEOUT: Duration = Duration::from_secs(240);

/// The command line that trains an adapter.
const TRAIN: &str = "train --config run.toml";

/// A temporary folder with a model, data and a configuration. Commands run in it, so that their paths are short.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        tiny::write_model(&workshop.at("model"), &tiny::config(), 5);
        for (from, to) in [
            ("tiny/pairs.jsonl", "pairs.jsonl"),
            ("stack_exchange/rows.jsonl", "rows.jsonl"),
            ("evaluate/gsm8k.jsonl", "gsm8k.jsonl"),
        ] {
            fs::copy(fixture(from), workshop.at(to)).unwrap();
        }
        let toml = "output_dir = \"run\"\n\
                    [model]\nmodel_name_or_path = \"model\"\n\
                    [data]\ntrain_file = \"pairs.jsonl\"\nmax_length = 128\n\
                    [train]\nper_device_train_batch_size = 2\nmax_steps = 6\nsave_steps = 2\n";
        fs::write(workshop.at("run.toml"), toml).unwrap();
        workshop
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command.args(["--backend", "ndarray"]);
        command.args(line.split_whitespace());
        command
    }

    /// Runs a command line and returns its output. Panics if it fails.
    #[track_caller]
    fn done(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        output
    }

    /// Runs a command line. Panics unless it fails with each of `parts` in its message and changes no file.
    #[track_caller]
    fn refused(&self, line: &str, parts: &[&str]) {
        let before = contents(self.0.path());
        let output = self.command(line).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{line}: no {part:?} in {stderr}");
        }
        let after = contents(self.0.path());
        let names = |all: &[(PathBuf, Vec<u8>)]| -> Vec<PathBuf> {
            all.iter().map(|(path, _)| path.clone()).collect()
        };
        assert_eq!(names(&after), names(&before), "{line}");
        assert!(after == before, "{line} changed a file");
    }
}

/// Returns the paths and bytes of all regular files in `folder`, sorted.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            found.extend(contents(&path));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

/// Waits for a child and returns its exit status. Panics after [`TIMEOUT`].
fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > TIMEOUT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the command did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
