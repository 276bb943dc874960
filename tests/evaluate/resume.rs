//! Checks that a stopped evaluation continues where it was.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use arithmo::eval::folder::Folder;
use serde_json::json;

use crate::answers::fixture;
use crate::calls::{arithmo, model, printed, text};
use crate::signal::interrupted;
use crate::support::json_file;

#[test]
#[cfg(unix)]
fn an_interrupted_evaluation_ends_as_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("many.jsonl");
    let rows = (0..120).map(|n| format!("{}\n", json!({"question": format!("What is {n} plus {}?", 7 * n), "answer": format!("#### {}", 8 * n)})));
    fs::write(&data, rows.collect::<String>()).unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let model = model();
    let args = |output| {
        [
            "evaluate",
            "gsm8k",
            "--model",
            &model,
            "--data",
            text(&data),
            "--max-new-tokens",
            "150",
            "--batch-size",
            "4",
            "--output",
            output,
        ]
        .map(str::to_string)
    };
    let partial = stopped.join("answers.partial.jsonl");
    let mut child = Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(args(text(&stopped)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(&partial).map_or(0, |text| text.lines().count());
    while lines() < 6 && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(5));
    }
    let output = interrupted(child);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("run the same command again to continue"), "{message}");
    let kept = lines();
    assert!((6..=120).contains(&kept) && !stopped.join("predictions.json").exists());
    // An incomplete last line, as after a crash, is done again.
    let mut torn = fs::read_to_string(&partial).unwrap();
    torn.truncate(torn.len() - 3);
    fs::write(&partial, torn).unwrap();
    let other = [&args(text(&stopped))[..], &["--limit".to_string(), "100".to_string()]].concat();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    let refused = arithmo(&other);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("problems was 120, is 100"));
    for output in [&whole, &stopped] {
        let args = args(text(output));
        printed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(
        json_file(&whole.join("predictions.json")),
        json_file(&stopped.join("predictions.json"))
    );
    assert_eq!(json_file(&whole.join("results.json")), json_file(&stopped.join("results.json")));
    assert!(!partial.exists());
    // Damage before the last line is an error.
    fs::write(&partial, "{\"settings\": {}}\nno JSON\n").unwrap();
    fs::remove_file(stopped.join("results.json")).unwrap();
    let again = args(text(&stopped));
    let damaged = arithmo(&again.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(damaged.status.code(), Some(1));
}

/// Checks the files of a process that was killed right after it wrote the results, or while `--overwrite` removed
/// files.
#[test]
fn the_same_command_accepts_the_files_of_a_killed_one() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("out");
    let (data, model) = (fixture("gsm8k.jsonl"), model());
    let args = ["evaluate", "gsm8k", "--model", &model, "--data", text(&data), "--limit", "2"];
    let args = [&args[..], &["--max-new-tokens", "4", "--output", text(&folder)]].concat();
    let overwrite = [&args[..], &["--overwrite"]].concat();
    let expected = printed(&args);
    let partial = folder.join("answers.partial.jsonl");
    let line = json!({"form": 1, "settings": json_file(&folder.join("results.json"))["settings"]});
    fs::write(&partial, format!("{line}\n")).unwrap();
    assert_eq!(printed(&args), expected);
    assert!(!partial.exists());
    for removed in 1..=Folder::FILES.len() {
        for name in &Folder::FILES[..removed] {
            let _ = fs::remove_file(folder.join(name));
        }
        assert_eq!(printed(&overwrite), expected, "{removed} removed");
    }
}
