//! Tests of `arithmo inspect`, `completions` and `man` as a user calls them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::support::{demo_model, json_file};

fn arithmo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arithmo")).args(args).output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = arithmo(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = arithmo(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const QUESTION: &str = "Ann has 4 red and 5 blue marbles in her bag. How many has she?";

/// Writes six pairs with one finding of each kind. Returns the path of the file.
fn write_pairs(folder: &Path) -> PathBuf {
    let path = folder.join("pairs.jsonl");
    let rows = [
        json!({"id": "a", "prompt": QUESTION, "chosen": " 4 + 5 = 9", "rejected": " 8"}),
        json!({"id": "again", "prompt": QUESTION, "chosen": " 4 + 5 = 9", "rejected": " 8"}),
        json!({"id": "against", "prompt": QUESTION, "chosen": " 8", "rejected": " 9"}),
        json!({"id": "reversed", "prompt": QUESTION, "chosen": " 8", "rejected": " 4 + 5 = 9"}),
        json!({"id": "same", "prompt": "1 + 1?", "chosen": " 2", "rejected": " 2"}),
        json!({"id": "long", "prompt": "2 + 2?", "chosen": " 4".repeat(100), "rejected": " 5"}),
    ];
    fs::write(&path, rows.map(|row| row.to_string()).join("\n")).unwrap();
    path
}

#[test]
fn every_finding_is_counted_and_listed_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let (pairs, test_set) = (write_pairs(folder.path()), folder.path().join("test.jsonl"));
    fs::write(&test_set, json!({"question": QUESTION, "answer": "#### 9"}).to_string()).unwrap();
    // The demo model's tokenizer has one token per character.
    let (model, output) = (demo_model(), folder.path().join("inspection"));
    let args = [
        "inspect",
        "--data",
        text(&pairs),
        "--model",
        text(&model),
        "--max-length",
        "100",
        "--against",
        text(&test_set),
        "--output",
        text(&output),
    ];
    let table = printed(&args);
    let found = json_file(&output.join("inspection.json"));
    assert_eq!(found["pairs"], 6);
    let duplicates = &found["duplicates"];
    assert_eq!(duplicates["same_pair"], json!(["again"]));
    assert_eq!(duplicates["same_prompt"], json!(["against", "reversed"]));
    assert_eq!(duplicates["contradicting"], json!(["a", "again", "against", "reversed"]));
    assert_eq!(found["overlap"][0]["ids"], json!(["a", "again", "against", "reversed"]));
    assert_eq!(found["encoding"]["chosen_truncated"], json!(["long"]));
    assert_eq!(found["encoding"]["refused"]["identical_sides"], json!(["same"]));
    // The chosen side is longer in a, again and long, shorter in reversed, and equal in against and same.
    let preference = &found["length_preference"];
    assert_eq!(preference["equal"], 2);
    assert_eq!(preference["longer_is_chosen"]["correct"], 3);
    assert_eq!(preference["longer_is_chosen"]["total"], 4);
    let lengths = &found["lengths"];
    let histogram: Vec<u64> =
        serde_json::from_value(lengths["rejected_histogram"].clone()).unwrap();
    assert_eq!(histogram.iter().sum::<u64>(), 6);
    assert!(lengths["chosen"]["max"].as_u64().unwrap() > 100, "lengths are after truncation");
    for part in
        ["1 of 6 pairs train on nothing", "4 of 6 pairs repeat questions of", "skip_untrainable"]
    {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    let page = fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("repeats an earlier pair"), "{page}");

    assert!(refused(&args).contains("--overwrite"));
    assert_eq!(printed(&[&args[..], &["--overwrite"]].concat()), table);
    fs::remove_file(output.join(".arithmo-files.json")).unwrap();
    assert!(refused(&[&args[..], &["--overwrite"]].concat()).contains("no inspection"));
}

#[test]
fn completions_and_manual_pages_are_written() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("arithmo") && script.contains("evaluate"), "{shell}: {script}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    printed(&["man", text(&pages)]);
    let train = fs::read_to_string(pages.join("arithmo-train.1")).unwrap();
    assert!(train.contains("config") && train.contains("resume"), "{train}");
    assert!(refused(&["man", text(&pages)]).contains("--overwrite"));
    printed(&["man", text(&pages), "--overwrite"]);
}
