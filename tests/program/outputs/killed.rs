//! Tests of two processes with one output, of files of killed processes, and of files that are removed during a run.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{TIMEOUT, Workshop, contents, wait};
use crate::signal::send;

/// The command line of a run that does not end by itself.
const LONG: &str = "train --config run.toml --set train.max_steps=100000 --set train.save_steps=0";

/// Waits until `condition` holds. Panics after [`TIMEOUT`].
fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "the condition did not become true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start(workshop: &Workshop, line: &str) -> Running {
    let mut command = workshop.command(line);
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

/// A child process that is killed when dropped.
struct Running(Child);

impl Running {
    /// Pauses the process while `change` runs.
    fn while_paused(&self, change: impl FnOnce()) {
        send("STOP", &self.0);
        change();
        send("CONT", &self.0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line_count(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn a_running_process_locks_its_run_and_a_killed_one_does_not() {
    let workshop = Workshop::new();
    let first = start(&workshop, LONG);
    wait_until(|| line_count(&workshop.at("run/metrics.jsonl")) > 2);
    for flags in ["--resume", "--overwrite", "--overwrite --set seed=8"] {
        let output =
            workshop.command(&format!("train --config run.toml {flags}")).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("process {} is writing there", first.0.id())), "{stderr}");
    }
    assert!(workshop.at("run/manifest.json").is_file());
    // A report does not need the lock.
    workshop.done("report --run run");
    drop(first);
    workshop.done("train --config run.toml --overwrite");
    assert!(!workshop.at("run/.arithmo-lock").exists());
}

/// Checks that the same command removes the unfinished files of a killed process, but no files of others.
#[test]
fn the_next_run_removes_unfinished_files_of_a_killed_one() {
    let workshop = Workshop::new();
    let pairs = fs::read_to_string(workshop.at("pairs.jsonl")).unwrap();
    fs::write(workshop.at("many.jsonl"), pairs.repeat(400)).unwrap();
    let line = "score --model model --batch-size 1 --output scores.jsonl --data";
    let first = start(&workshop, &format!("{line} many.jsonl"));
    let parts = || -> Vec<PathBuf> {
        let all = contents(workshop.0.path()).into_iter().map(|(path, _)| path);
        let part = |path: &PathBuf| path.display().to_string().contains("/.part-scores.jsonl-");
        all.filter(part).collect()
    };
    wait_until(|| parts().len() == 1);
    // The unfinished file of a running process is kept.
    workshop.done(&format!("{line} pairs.jsonl"));
    assert_eq!(parts().len(), 1);
    drop(first);
    fs::write(workshop.at(".part-scores.jsonl-mine"), "mine").unwrap();
    workshop.done(&format!("{line} pairs.jsonl --overwrite"));
    assert_eq!(parts(), [workshop.at(".part-scores.jsonl-mine")]);
}

#[test]
fn missing_lines_of_the_log_are_reported_on_resume() {
    let workshop = Workshop::new();
    workshop.done("train --config run.toml");
    let log = workshop.at("run/metrics.jsonl");
    let whole = fs::read_to_string(&log).unwrap();
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    let cases = [
        (None, "6 of 6 lines up to step 6 are missing, from steps 1 to 6"),
        (Some(""), "6 of 6 lines"),
        (Some(&whole[..ends[3]]), "2 of 6 lines up to step 6 are missing, from steps 5 to 6"),
        (Some(&whole[..ends[4] + 3]), "1 of 6 lines up to step 6 are missing, of step 6"),
        (Some(&whole[ends[0]..]), "1 of 6 lines up to step 6 are missing, of step 1"),
        (Some("garbage"), "6 of 6 lines"),
    ];
    for (text, expected) in cases {
        match text {
            Some(text) => fs::write(&log, text).unwrap(),
            None => fs::remove_file(&log).unwrap(),
        }
        let stderr = workshop.done("train --config run.toml --resume").stderr;
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    fs::write(&log, &whole).unwrap();
    let stderr = workshop.done("train --config run.toml --resume").stderr;
    assert!(!String::from_utf8(stderr).unwrap().contains("missing"));
}

/// Checks that files that are removed during a run are reported and written again.
#[test]
fn files_removed_during_a_run_are_reported() {
    for removed in ["run", "run/manifest.json", "run/metrics.jsonl", "run/runs"] {
        let workshop = Workshop::new();
        let mut child = start(&workshop, &LONG.replace("100000", "120"));
        wait_until(|| line_count(&workshop.at("run/metrics.jsonl")) > 2);
        let path = workshop.at(removed);
        child.while_paused(|| {
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
        });
        let mut stderr = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(wait(&mut child.0), Some(0), "{removed}: {stderr}");
        assert!(stderr.contains("was removed during the run"), "{removed}: {stderr}");
        for name in ["manifest.json", "adapter/adapter_model.safetensors", "metrics.jsonl"] {
            assert!(workshop.at("run").join(name).is_file(), "{removed}: {name}");
        }
    }
}

/// Checks that an adapter is complete if the model is removed during the run. The program reads the model's files that
/// belong to an adapter before training.
#[test]
fn an_adapter_is_complete_if_the_model_is_removed() {
    let workshop = Workshop::new();
    let line = LONG.replace("100000", "120");
    workshop.done(&format!("{line} --set output_dir=expected"));
    let mut child = start(&workshop, &line);
    wait_until(|| line_count(&workshop.at("run/metrics.jsonl")) > 2);
    child.while_paused(|| fs::remove_dir_all(workshop.at("model")).unwrap());
    assert_eq!(wait(&mut child.0), Some(0));
    let adapter = |folder: &str| -> Vec<(PathBuf, Vec<u8>)> {
        let folder = workshop.at(folder).join("adapter");
        let files = contents(&folder).into_iter();
        files
            .map(|(path, bytes)| (path.strip_prefix(&folder).unwrap().to_path_buf(), bytes))
            // The card contains the name and the time of the run.
            .filter(|(path, _)| !path.ends_with("README.md"))
            .collect()
    };
    assert!(workshop.at("run/adapter/README.md").is_file());
    assert!(adapter("run") == adapter("expected"));
}
