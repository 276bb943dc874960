//! Tests of `arithmo train` and `arithmo score` on a model of a few thousand weights.

mod card;
mod combinations;
mod control;
mod golden;
mod longer;
mod methods;
mod named;
mod packed;
mod reference_cache;
mod refusals;
mod resume;
mod runs;
mod strategies;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::tiny;

/// Number of optimizer steps in the configuration below.
const STEPS: usize = 14;

/// A temporary folder with `model/`, `pairs.jsonl`, `held-out.jsonl` and `run.toml`. Runs are written to `run/`.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        tiny::write_model(&workshop.path("model"), &tiny::config(), 5);
        for name in ["pairs.jsonl", "held-out.jsonl"] {
            fs::copy(tiny::fixture("tiny").join(name), workshop.path(name)).unwrap();
        }
        let at = |name: &str| workshop.path(name).display().to_string();
        // 14 pairs in batches of 2 and 3 batches per step: the third step of an epoch has only one batch.
        let toml = format!(
            r#"output_dir = "{}"
[model]
model_name_or_path = "{}"
[data]
train_file = "{}"
max_length = 128
[lora]
r = 3
lora_alpha = 6
[train]
per_device_train_batch_size = 2
gradient_accumulation_steps = 3
learning_rate = 5e-3
warmup_steps = 2
max_steps = {STEPS}
"#,
            at("run"),
            at("model"),
            at("pairs.jsonl")
        );
        fs::write(workshop.path("run.toml"), toml).unwrap();
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Returns the command `arithmo train --config run.toml <flags> --set <settings>`, not started.
    fn command(&self, settings: &[&str], flags: &[&str]) -> Command {
        let mut command = program();
        command.arg("train").arg("--config").arg(self.path("run.toml"));
        command.args(flags);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
    }

    fn train(&self, settings: &[&str], flags: &[&str]) -> ProcessOutput {
        ProcessOutput::new(self.command(settings, flags).output().unwrap())
    }

    /// Trains. Panics if the command fails.
    fn trained(&self, settings: &[&str], flags: &[&str]) -> ProcessOutput {
        let ended = self.train(settings, flags);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        ended
    }

    /// Reads the results of a run that must not depend on interruptions.
    fn result(&self) -> RunResult {
        let run = self.path("run");
        let last = run.join(format!("checkpoints/step-{STEPS}"));
        let bytes =
            |path: PathBuf| fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        RunResult {
            adapter: bytes(run.join("adapter/adapter_model.safetensors")),
            optimizer: bytes(last.join("optimizer.safetensors")),
            metrics: metrics(&run),
        }
    }

    /// Returns the names of unfinished files and folders in the workshop, at any depth.
    fn unfinished_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.starts_with(".part") || name.ends_with(".tmp") {
                    found.push(name);
                }
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }
}

#[derive(Debug, PartialEq)]
struct RunResult {
    adapter: Vec<u8>,
    optimizer: Vec<u8>,
    metrics: Vec<Map<String, Value>>,
}

/// Exit status and output of a process. The status is `None` if a signal ended it.
#[derive(Debug)]
struct ProcessOutput {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl ProcessOutput {
    fn new(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Panics unless the process failed with status 1, an error that has each of `parts`, and no standard output.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        assert_eq!(self.status, Some(1), "{self:?}");
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in ["error: ", "help: "].iter().chain(parts) {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.args(["--backend", "ndarray"]).stdin(Stdio::null());
    command
}

fn json_lines(path: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Reads `metrics.jsonl` without the values that depend on time and machine.
fn metrics(run: &Path) -> Vec<Map<String, Value>> {
    let mut lines = json_lines(&run.join("metrics.jsonl"));
    for line in &mut lines {
        for key in ["seconds", "tokens_per_second", "peak_memory_bytes"] {
            line.remove(key);
        }
    }
    lines
}

fn number(line: &Map<String, Value>, key: &str) -> f64 {
    line.get(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {line:?}"))
}
