//! Checks that commands have the same results if their messages cannot be written, because the disk is full or the
//! reader has closed the pipe.

#![cfg(target_os = "linux")]

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::tiny;
use crate::tiny::fixture;

/// Arguments of a command, and output files to compare. Paths are relative to the folder it runs in.
struct Case {
    arguments: &'static [&'static str],
    files: &'static [&'static str],
}

const CASES: [Case; 13] = [
    Case {
        arguments: &["prepare", "--input", "rows.jsonl", "--output", "new.jsonl"],
        files: &["new.jsonl"],
    },
    Case { arguments: &["train", "--config", "run.toml", "--dry-run", "--no-timing"], files: &[] },
    Case {
        arguments: &["train", "--config", "run.toml"],
        files: &[
            "run/adapter/adapter_model.safetensors",
            "run/checkpoints/step-4/optimizer.safetensors",
        ],
    },
    // A second start fails. Without stderr, only its exit status shows that.
    Case {
        arguments: &["train", "--config", "run.toml"],
        files: &["run/adapter/adapter_model.safetensors"],
    },
    Case {
        arguments: &["train", "--config", "run.toml", "--resume"],
        files: &["run/adapter/adapter_model.safetensors"],
    },
    Case { arguments: &["report", "--run", "run"], files: &[] },
    Case {
        arguments: &[
            "score",
            "--model",
            "model",
            "--data",
            "pairs.jsonl",
            "--output",
            "scores.jsonl",
        ],
        files: &["scores.jsonl"],
    },
    Case {
        arguments: &["generate", "--model", "model", "--prompt", "hi", "--max-new-tokens", "4"],
        files: &[],
    },
    Case {
        arguments: &["merge", "--model", "model", "--adapter", "run/adapter", "--output", "merged"],
        files: &["merged/model.safetensors", "merged/config.json"],
    },
    Case { arguments: &["chat", "--model", "model", "--max-new-tokens", "3"], files: &[] },
    Case {
        arguments: &[
            "evaluate",
            "gsm8k",
            "--model",
            "model",
            "--data",
            "gsm8k.jsonl",
            "--output",
            "evaluation",
            "--max-new-tokens",
            "3",
        ],
        files: &["evaluation/predictions.json", "evaluation/verdicts.jsonl"],
    },
    Case {
        arguments: &[
            "evaluate",
            "gsm8k",
            "--predictions",
            "evaluation/predictions.json",
            "--output",
            "again",
        ],
        files: &["again/verdicts.jsonl"],
    },
    // Wrong usage.
    Case { arguments: &["generate", "--model"], files: &[] },
];

/// Creates a folder with the inputs of all commands.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    tiny::write_model(&at("model"), &tiny::config(), 5);
    fs::copy(fixture("tiny/pairs.jsonl"), at("pairs.jsonl")).unwrap();
    fs::copy(fixture("stack_exchange/rows.jsonl"), at("rows.jsonl")).unwrap();
    fs::copy(fixture("evaluate/gsm8k.jsonl"), at("gsm8k.jsonl")).unwrap();
    let toml = "output_dir = \"run\"\n\
                [model]\nmodel_name_or_path = \"model\"\n\
                [data]\ntrain_file = \"pairs.jsonl\"\nmax_length = 128\n\
                [train]\nper_device_train_batch_size = 4\nmax_steps = 4\nsave_steps = 2\nlogging_steps = 1\n";
    fs::write(at("run.toml"), toml).unwrap();
    folder
}

fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.current_dir(folder).args(arguments);
    command
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn closed_pipe() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

/// Results of a command.
struct Outcome {
    name: String,
    status: Option<i32>,
    stdout: Vec<u8>,
    files: Vec<Vec<u8>>,
}

/// Runs all commands in order, each with a new `stderr`, and returns their results.
fn outcomes(stderr: fn() -> Stdio) -> Vec<Outcome> {
    let folder = workshop();
    fs::write(folder.path().join("questions"), "hello\nagain\n").unwrap();
    let run = |case: &Case| {
        let mut command = program(folder.path(), case.arguments);
        command.stdin(File::open(folder.path().join("questions")).unwrap());
        command.stdout(Stdio::piped()).stderr(stderr());
        let ended: Output = command.spawn().unwrap().wait_with_output().unwrap();
        let files = case.files.iter();
        let files = files.map(|name| fs::read(folder.path().join(name)).unwrap_or_default());
        Outcome {
            name: case.arguments.join(" "),
            status: ended.status.code(),
            files: files.collect(),
            stdout: ended.stdout,
        }
    };
    CASES.iter().map(run).collect()
}

#[test]
fn a_log_that_cannot_be_written_changes_nothing() {
    let expected = outcomes(Stdio::null);
    let statuses: Vec<_> = expected.iter().map(|one| one.status).collect();
    let mut wanted = [Some(0); CASES.len()];
    (wanted[3], wanted[12]) = (Some(1), Some(2));
    assert_eq!(statuses, wanted);
    for outcome in &expected {
        assert!(outcome.files.iter().all(|file| !file.is_empty()), "{}", outcome.name);
    }
    for (what, stderr) in [("full", full as fn() -> Stdio), ("closed", closed_pipe)] {
        for (found, expected) in outcomes(stderr).iter().zip(&expected) {
            let name = format!("{}: stderr {what}", expected.name);
            assert_eq!(found.status, expected.status, "{name}");
            assert!(found.files == expected.files, "{name}");
            // A plan prints the free memory, which changes.
            let is_plan = name.contains("--dry-run") && !found.stdout.is_empty();
            assert!(is_plan || found.stdout == expected.stdout, "{name}");
        }
    }
}

/// Checks that it is an error if stdout cannot be written, except if its reader has closed the pipe, as `head` does.
#[test]
fn help_and_version_need_a_stdout_that_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let status = |argument: &str, stdout: Stdio| {
        let mut command = program(folder.path(), &[argument]);
        let command = command.stdin(Stdio::null()).stdout(stdout);
        command.stderr(Stdio::null()).status().unwrap().code()
    };
    for argument in ["--help", "--version", "devices"] {
        assert_eq!(status(argument, Stdio::null()), Some(0), "{argument}");
        assert_eq!(status(argument, full()), Some(1), "{argument}");
        assert_eq!(status(argument, closed_pipe()), Some(0), "{argument}");
    }
}
