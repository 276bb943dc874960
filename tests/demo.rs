//! `arithmo demo` from outside: what it writes, that its numbers move, that the commands it prints do what it did; and
//! the assets it is made of.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use arithmo::train::manifest::hash_file;
use serde_json::Value;

#[path = "../examples/demo_assets/main.rs"]
#[allow(dead_code, reason = "the example's `main` and where it writes to")]
mod demo_assets;

const ARITHMO: &str = env!("CARGO_BIN_EXE_arithmo");

fn arithmo(folder: &Path, arguments: &[&str]) -> Output {
    let backend = ["--backend", "ndarray"];
    let mut command = Command::new(ARITHMO);
    let command = command.current_dir(folder).args(backend).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeded(output: Output) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    (out, err)
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The demo, once, for everything that can be said about it: it is the longest of the tests.
#[test]
fn the_demo_trains_and_its_commands_do_the_same() {
    let parent = tempfile::tempdir().unwrap();
    // Small: 80 problems to learn from. What a full one gains is measured by `cargo bench --bench demo`.
    let small = ["demo", "--problems", "80", "--seed", "7"];
    let (out, err) = succeeded(arithmo(parent.path(), &small));
    let demo = parent.path().join("arithmo-demo");

    // Everything the last table lists is there.
    let listed: Vec<&str> = out
        .lines()
        .skip_while(|line| !line.starts_with("Files, in arithmo-demo"))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .collect();
    assert_eq!(listed.len(), 16, "{out}");
    for name in listed {
        assert!(demo.join(name).exists(), "{name}");
    }
    the_numbers_move(&demo, &out);

    the_commands_do_the_same(&demo, &err);

    // A second time it touches nothing, and says what to do.
    let refused = arithmo(parent.path(), &small);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--overwrite"));
    assert!(demo.join("run/report/index.html").is_file());
}

/// The commands the demo prints, on the files it started from, in a folder of their own.
fn the_commands_do_the_same(demo: &Path, err: &str) {
    let again = tempfile::tempdir().unwrap();
    for input in [
        "rows.jsonl",
        "prepare.toml",
        "problems.jsonl",
        "problems.held-out.jsonl",
        "run.toml",
        "model",
    ] {
        copy(&demo.join(input), &again.path().join("arithmo-demo").join(input));
    }
    let commands: Vec<&str> =
        err.lines().filter_map(|line| line.trim().strip_prefix("$ ")).collect();
    assert_eq!(commands.len(), 8, "{err}");
    let script = format!(
        "arithmo() {{ {ARITHMO} --backend ndarray \"$@\"; }}\nset -e\n{}",
        commands.join("\n")
    );
    let output = Command::new("bash").args(["-c", &script]).current_dir(again.path()).output();
    succeeded(output.unwrap());
    let again = again.path().join("arithmo-demo");
    for name in [
        "pairs.jsonl",
        "pairs.held-out.jsonl",
        "own-pairs.jsonl",
        "own-pairs.stats.json",
        "train.jsonl",
        "run/adapter/adapter_model.safetensors",
        "before/predictions.json",
        "before/results.json",
        "after/predictions.json",
        "after/results.json",
        "comparison/comparison.json",
    ] {
        let (ours, theirs) =
            (fs::read(demo.join(name)).unwrap(), fs::read(again.join(name)).unwrap());
        assert!(ours == theirs, "{name} differs");
    }
}

fn the_numbers_move(demo: &Path, out: &str) {
    let metrics = json_lines(&demo.join("run/metrics.jsonl"));
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let first = &metrics[0];
    // ln 2, and the cross-entropy of the chosen answers.
    let beside = number(first, "loss") - std::f64::consts::LN_2;
    assert!(beside > 0.0, "{first}");
    assert_eq!(number(first, "rewards/margins"), 0.0);
    let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
    let last = number(steps.last().unwrap(), "loss");
    assert!(last < number(first, "loss"), "loss of the last step: {last}");
    let held_out = metrics.iter().rfind(|line| line.get("eval_loss").is_some()).unwrap();
    assert!(number(held_out, "eval_loss").is_finite(), "{held_out}");
    // The table shows the file's numbers.
    let row = |name: &str| {
        let words = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = words.into_iter().find(|words| words.join(" ").starts_with(name));
        found.unwrap_or_else(|| panic!("no row {name}: {out}"))
    };
    let loss = format!("{:.4}", number(first, "loss"));
    let first = row(&format!("1 {loss}"));
    assert_eq!(first[..3], ["1", &loss, "0.0000"]);
    let shown = format!("{:.4}", number(held_out, "eval_loss"));
    assert_eq!(row("held out")[2], shown);
    // So does the one of the answers.
    for when in ["before", "after"] {
        let results = fs::read(demo.join(when).join("results.json")).unwrap();
        let results: Value = serde_json::from_slice(&results).unwrap();
        let right = &results["scorers"]["numeric"]["correct"];
        assert_eq!(row(when)[1], right.to_string(), "{results}");
    }
    let pairs = json_lines(&demo.join("own-pairs.jsonl"));
    assert!(pairs.len() > 10, "{} pairs", pairs.len());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if from.is_file() {
        fs::copy(from, to).unwrap();
        return;
    }
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("run"), "mine").unwrap();
    for arguments in [&["demo", "--output", "."][..], &["demo", "--output", ".", "--overwrite"]] {
        let output = arithmo(parent.path(), arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("no demo made it"));
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
}

/// `cargo run --release --example demo_assets` gives the committed files.
#[test]
fn the_assets_are_what_their_program_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let made: BTreeMap<String, Vec<u8>> = demo_assets::files().unwrap().into_iter().collect();
    for (name, bytes) in &made {
        let committed = fs::read(folder.join(name)).unwrap();
        assert!(&committed == bytes, "{name}: run `cargo run --release --example demo_assets`");
    }
    // The weights take minutes to train: assets/README.md has their hash.
    let weights = fs::read(folder.join("model/model.safetensors")).unwrap();
    assert!(weights.len() < 5_000_000, "{} bytes", weights.len());
    let recipe = fs::read_to_string(folder.join("../README.md")).unwrap();
    let hash = hash_file(&folder.join("model/model.safetensors")).unwrap().sha256;
    assert!(recipe.contains(&hash), "assets/README.md does not name {hash}");
    let committed = ["", "model"].map(|sub| fs::read_dir(folder.join(sub)).unwrap());
    let files =
        committed.into_iter().flatten().filter(|entry| entry.as_ref().unwrap().path().is_file());
    assert_eq!(files.count(), made.len() + 1);
    let bytes: usize = made.values().map(Vec::len).sum();
    assert!(bytes < 900_000, "{bytes} bytes in the program");
}

/// Each rule of `prepare` has something to refuse in the rows.
#[test]
fn the_rows_show_why_rows_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/rows.jsonl");
    let arguments =
        ["prepare", "--quiet", "--output", "pairs.jsonl", "--input", rows.to_str().unwrap()];
    succeeded(arithmo(parent.path(), &arguments));
    let stats = fs::read_to_string(parent.path().join("pairs.stats.json")).unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let lost = |reason: &str| stats["not_kept"][reason]["count"].as_u64().unwrap_or(0);
    for (reason, count) in [
        ("not_matched", 12),
        ("equal_scores", 7),
        ("small_score_gap", 5),
        ("too_few_answers", 3),
        ("identical_answers", 1),
        ("empty_answer", 1),
        ("duplicate", 4),
        ("near_duplicate", 4),
    ] {
        assert_eq!(lost(reason), count, "{reason}: {}", stats["not_kept"]);
    }
    assert_eq!(stats["rows_read"], 200);
}
