//! Tests of `arithmo demo` as a user calls it: the files it writes, the numbers it prints, the commands it prints, and
//! its assets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use arithmo::model::file_hash::hash_file;
use serde_json::Value;

use crate::calls::arithmo;
use crate::support::{copy, json_file, json_lines};

#[path = "../../examples/demo_assets/main.rs"]
#[allow(dead_code, reason = "the tests do not use the example's `main`")]
mod demo_assets;

const ARITHMO: &str = env!("CARGO_BIN_EXE_arithmo");

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeded(output: Output) -> (String, String) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    (out, err)
}

/// Checks the files, the numbers and the commands of one demo, because running it takes long.
#[test]
fn the_demo_trains_and_its_commands_do_the_same() {
    let parent = tempfile::tempdir().unwrap();
    // This demo is small. `cargo bench --bench demo` measures what a full one gains.
    let small = ["demo", "--problems", "80", "--seed", "7"];
    let (out, err) = succeeded(arithmo(parent.path(), &small));
    let demo = parent.path().join("arithmo-demo");

    // All files that the last table lists exist.
    let listed: Vec<&str> = out
        .lines()
        .skip_while(|line| !line.starts_with("Files, in arithmo-demo"))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .collect();
    assert_eq!(listed.len(), 18, "{out}");
    for name in listed {
        assert!(demo.join(name).exists(), "{name}");
    }
    check_numbers(&demo, &out);
    check_commands(&demo, &err);

    // A second demo is refused and changes nothing.
    let refused = arithmo(parent.path(), &small);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--overwrite"));
    assert!(demo.join("run-own/report/index.html").is_file());
}

/// Runs the commands that the demo printed, in another folder with its input files, and compares their outputs.
fn check_commands(demo: &Path, err: &str) {
    let again = tempfile::tempdir().unwrap();
    for input in [
        "rows.jsonl",
        "prepare.toml",
        "problems.jsonl",
        "problems.held-out.jsonl",
        "run-voted.toml",
        "run-own.toml",
        "model",
    ] {
        copy(&demo.join(input), &again.path().join("arithmo-demo").join(input));
    }
    let commands: Vec<&str> =
        err.lines().filter_map(|line| line.trim().strip_prefix("$ ")).collect();
    assert_eq!(commands.len(), 9, "{err}");
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
        "run-voted/adapter/adapter_model.safetensors",
        "run-own/adapter/adapter_model.safetensors",
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

/// Checks that each run lowered its loss, and that the printed tables agree with the files.
fn check_numbers(demo: &Path, out: &str) {
    let row = |part: &str, name: &str| {
        let words = part.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut words = words.map(|words| words.into_iter().map(String::from).collect::<Vec<_>>());
        let found = words.find(|words| words.join(" ").starts_with(name));
        found.unwrap_or_else(|| panic!("no row {name}: {part}"))
    };
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let (voted, own) = out.split_once("Second run").unwrap();
    for (run, table) in [("run-voted", voted), ("run-own", own)] {
        let metrics = json_lines(&demo.join(run).join("metrics.jsonl"));
        let first = &metrics[0];
        // The first loss is ln 2 plus the cross-entropy of the chosen answers.
        let cross_entropy = number(first, "loss") - std::f64::consts::LN_2;
        assert!(cross_entropy > 0.0, "{first}");
        assert_eq!(number(first, "rewards/margins"), 0.0);
        let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
        let last = number(steps.last().unwrap(), "loss");
        assert!(last < number(first, "loss"), "{run}: loss of the last step: {last}");
        // The table of steps shows the numbers of the file.
        let loss = format!("{:.4}", number(first, "loss"));
        assert_eq!(row(table, &format!("1 {loss}"))[..3], ["1", &loss, "0.0000"]);
        let held_out = metrics.iter().rfind(|line| line.get("eval_loss").is_some());
        assert_eq!(held_out.is_some(), run == "run-voted");
        if let Some(held_out) = held_out {
            assert_eq!(row(table, "held out")[2], format!("{:.4}", number(held_out, "eval_loss")));
        }
    }
    // So does the table of answers.
    for when in ["before", "after"] {
        let results = json_file(&demo.join(when).join("results.json"));
        let right = &results["scorers"]["numeric"]["correct"];
        assert_eq!(row(out, when)[1], right.to_string(), "{results}");
    }
    let pairs = json_lines(&demo.join("own-pairs.jsonl"));
    assert!(pairs.len() > 10, "{} pairs", pairs.len());
}

#[test]
fn a_folder_that_no_demo_made_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("run"), "mine").unwrap();
    for arguments in [&["demo", "--output", "."][..], &["demo", "--output", ".", "--overwrite"]] {
        let output = arithmo(parent.path(), arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("no demo made it"));
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
}

/// Compares the committed files with those that `cargo run --release --example demo_assets` makes.
#[test]
fn the_assets_equal_those_of_their_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let made: BTreeMap<String, Vec<u8>> = demo_assets::files().unwrap().into_iter().collect();
    for (name, bytes) in &made {
        let committed = fs::read(folder.join(name)).unwrap();
        assert!(&committed == bytes, "{name}: run `cargo run --release --example demo_assets`");
    }
    // Training the weights takes minutes, so only their hash in assets/README.md is compared.
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

/// Checks that the demo's rows have some that each rule of `prepare` refuses.
#[test]
fn the_rows_have_examples_for_every_rule() {
    let parent = tempfile::tempdir().unwrap();
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/rows.jsonl");
    let arguments =
        ["prepare", "--quiet", "--output", "pairs.jsonl", "--input", rows.to_str().unwrap()];
    succeeded(arithmo(parent.path(), &arguments));
    let stats = json_file(&parent.path().join("pairs.stats.json"));
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
