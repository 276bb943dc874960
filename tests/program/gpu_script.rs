//! Tests of `scripts/gpu.sh run`, which measures on a machine with an NVIDIA GPU, with a script in the program's place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pages::root;

/// A program whose `doctor` fails, whose training on `cuda` ends with other losses than on `ndarray`, whose bench of nf4 never
/// ends, and whose other benches print a line of JSON.
const PROGRAM: &str = r#"#!/usr/bin/env bash
case "$*" in
  doctor*) echo "no device" >&2; exit 1 ;;
  prepare*) ;;
  train*)
    loss=0.5
    if [[ $* == *cuda* ]]; then loss=0.6; fi
    for last; do if [[ $last == output_dir=* ]]; then folder=${last#output_dir=}; fi; done
    mkdir -p "$folder"
    echo "{\"loss\": $loss, \"grad_norm\": 1, \"logps/chosen\": -1, \"logps/rejected\": -2, \"rewards/margins\": 0}" \
      >"$folder/metrics.jsonl" ;;
  *nf4*) sleep 600 ;;
  *) echo "a line of text"; echo "{\"command\": \"bench\"}" ;;
esac
"#;

/// Starts the script with results in `folder/out`.
fn start(folder: &Path, deadline: &str) -> Child {
    let program = folder.join("arithmo");
    fs::write(&program, PROGRAM).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("bash");
    command.arg(root().join("scripts/gpu.sh")).arg("run").arg(folder.join("out"));
    command.env("PROGRAM", &program).env("DEADLINE", deadline);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join("out").join(name)).unwrap()
}

#[test]
fn failing_and_hanging_parts_stop_no_other_part() {
    let folder = tempfile::tempdir().unwrap();
    let output = finish(start(folder.path(), "20"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary = read(folder.path(), "summary.txt");
    let line = |name: &str| {
        let start = format!("{name}: ");
        summary.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or(&summary)
    };
    assert!(line("doctor").starts_with("FAILED with status 1"), "{summary}");
    assert!(line("gemms").starts_with("done in"), "{summary}");
    assert!(line("all-linear").starts_with("done in"), "{summary}");
    // Losses of 0.5 and 0.6.
    assert!(line("parity").starts_with("FAILED with status 1"), "{summary}");
    assert!(line("nf4").starts_with("stopped after"), "{summary}");
    assert!(line("kernels").starts_with("skipped: the deadline of 20 s"), "{summary}");
    let results = read(folder.path(), "results.jsonl");
    assert!(results.lines().count() >= 4, "{results}");
    assert!(results.lines().all(|line| line.starts_with('{')), "{results}");
    let archive = folder.path().join("out/results.tar.gz");
    let listed = Command::new("tar").arg("-tzf").arg(archive).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for file in ["./summary.txt", "./results.jsonl", "./parity.log", "./nf4.log"] {
        assert!(listed.lines().any(|line| line == file), "{file}: {listed}");
    }
}

#[test]
fn a_stopped_call_leaves_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let child = start(folder.path(), "600");
    let begin = Instant::now();
    let hangs = || {
        let summary = fs::read_to_string(folder.path().join("out/summary.txt"));
        summary.is_ok_and(|summary| summary.contains("\nall-linear: "))
    };
    while !hangs() {
        assert!(begin.elapsed() < Duration::from_secs(300), "the parts before nf4 did not end");
        sleep(Duration::from_millis(100));
    }
    let stopped = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    assert_eq!(finish(child).status.code(), Some(143));
    assert!(read(folder.path(), "summary.txt").contains("gemms: done"));
    assert!(read(folder.path(), "results.jsonl").contains("bench"));
    assert!(folder.path().join("out/results.tar.gz").exists());
}

#[test]
fn a_missing_archive_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("scripts");
    fs::create_dir(&copy).unwrap();
    fs::copy(root().join("scripts/gpu.sh"), copy.join("gpu.sh")).unwrap();
    let mut command = Command::new("bash");
    command.arg(copy.join("gpu.sh")).arg("run").arg(folder.path().join("out"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary = read(folder.path(), "summary.txt");
    assert!(summary.contains("run scripts/gpu.sh build first"), "{summary}");
}
