//! Runs the commands of the pages in `docs/guide/`.
//!
//! Each page starts in a folder with the inputs and pairs of `arithmo demo`. Its blocks are processed in order: a
//! `toml` block is written to the file that its first line names, and an `sh` block is run. Other blocks need a large
//! model, a GPU or a person, and are not run.

#![cfg(unix)]
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use arithmo::demo::{DemoFolder, DemoSize};
use tempfile::TempDir;

use crate::pages::{blocks, pages_below, read};

/// Names of the pages. Each has a test below.
const PAGES: [&str; 11] = [
    "conversations",
    "devices-and-doctor",
    "evaluate",
    "export",
    "generate",
    "iterate",
    "merge",
    "plan",
    "prepare",
    "quantization",
    "train",
];

/// Number of problems, fewer than in the demo.
const PROBLEMS: usize = 80;

/// Number of training pairs, fewer than in the demo, because results do not matter here.
const TRAIN_PAIRS: usize = 24;

/// Number of held-out pairs.
const HELD_OUT_PAIRS: usize = 8;

/// Shell function that runs the program on the CPU, unless a command names a backend.
const PROGRAM: &str = r#"
arithmo() {
  case " $* " in
    *" --backend "*) command arithmo "$@" ;;
    *) command arithmo --backend ndarray "$@" ;;
  esac
}
"#;

/// Runs a script in `folder`. Panics if it fails.
fn run(folder: &Path, script: &str) {
    let program = Path::new(env!("CARGO_BIN_EXE_arithmo"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &format!("{PROGRAM}{script}")]);
    bash.current_dir(folder).env("PATH", path).env("XDG_CACHE_HOME", folder.join("cache"));
    // A page must not download anything.
    let output = bash.env("HF_HUB_OFFLINE", "1").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{stderr}");
}

/// Creates the folder in which a page starts.
fn start() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let size = DemoSize { problems: PROBLEMS, seed: 42 };
    DemoFolder::create(&folder.path().join("arithmo-demo"), size, false).unwrap();
    let prepare = "arithmo prepare --quiet --input arithmo-demo/rows.jsonl --config arithmo-demo/prepare.toml \
                   --output arithmo-demo/pairs.jsonl";
    run(folder.path(), prepare);
    for (file, count) in [("pairs.jsonl", TRAIN_PAIRS), ("pairs.held-out.jsonl", HELD_OUT_PAIRS)] {
        shorten(&folder.path().join("arithmo-demo").join(file), count);
    }
    folder
}

/// Keeps the first `count` lines of a file.
fn shorten(file: &Path, count: usize) {
    let text = fs::read_to_string(file).unwrap();
    let kept = text.lines().take(count).map(|line| format!("{line}\n"));
    fs::write(file, kept.collect::<String>()).unwrap();
}

/// Runs the blocks of a page in order. Returns the folder.
fn run_page(name: &str) -> TempDir {
    let folder = start();
    let page = format!("docs/guide/{name}.md");
    let mut commands = 0;
    for block in blocks(&read(&page)) {
        match block.language.as_str() {
            "toml" => {
                let file = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
                let file =
                    file.unwrap_or_else(|| panic!("{page}: a block names no file: {block:?}"));
                fs::write(folder.path().join(file), &block.text).unwrap();
            }
            "sh" => {
                run(folder.path(), &block.text);
                commands += 1;
            }
            "text" | "json" => {}
            other => panic!("{page}: unknown language {other:?} of a block"),
        }
    }
    assert!(commands > 0, "{page}: no command is run");
    folder
}

/// Returns the file names in the first column of the tables under "What it writes".
fn documented_files(name: &str) -> Vec<String> {
    let page = read(&format!("docs/guide/{name}.md"));
    let section = page.split("\n## ").find(|part| part.starts_with("What it writes"));
    let rows = section.unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap().to_string());
    cells.map(|cell| cell.split('`').nth(1).unwrap().to_string()).collect()
}

/// Returns the paths of all files and folders in `folder`, relative to it. Folders end with a slash.
fn paths(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_string();
            found.insert(if path.is_dir() { format!("{name}/") } else { name });
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// Runs a page and checks that every file it documents is written, except `skipped` ones.
fn check_page(name: &str, skipped: &[&str]) {
    let folder = run_page(name);
    let paths = paths(folder.path());
    for file in documented_files(name).iter().filter(|file| !skipped.contains(&file.as_str())) {
        // `N` in a documented name stands for the number of a round or checkpoint.
        let numbers = (0..10).map(|number| file.replace('N', &number.to_string()));
        let mut names = numbers.map(|name| format!("/{name}"));
        let written =
            names.any(|name| paths.iter().any(|path| format!("/{path}").ends_with(&name)));
        assert!(written, "{name}: {file} was not written: {paths:?}");
    }
}

#[test]
fn every_page_has_a_test() {
    let pages: BTreeSet<String> = pages_below("docs/guide").into_iter().collect();
    let listed = PAGES.map(|name| format!("docs/guide/{name}.md"));
    assert_eq!(pages, listed.into());
}

#[test]
fn devices_and_doctor() {
    check_page("devices-and-doctor", &[]);
}

#[test]
fn conversations() {
    check_page("conversations", &[]);
}

#[test]
fn evaluate() {
    check_page("evaluate", &["programs.json"]);
}

#[test]
fn export() {
    check_page("export", &[]);
}

#[test]
fn generate() {
    check_page("generate", &[]);
}

#[test]
fn iterate() {
    check_page("iterate", &[]);
}

#[test]
fn merge() {
    check_page("merge", &[]);
}

#[test]
fn plan() {
    check_page("plan", &[]);
}

#[test]
fn prepare() {
    check_page("prepare", &[]);
}

#[test]
fn quantization() {
    check_page("quantization", &[]);
}

#[test]
fn train() {
    check_page("train", &[]);
}
