//! Tests of `arithmo evaluate gsm8k-pot`, whose answers are programs, as a user calls it.

use crate::calls::{predictions, printed, refused, text};
use crate::programs::python_is_there;
use crate::support::json_file;

#[test]
fn programs_run_only_if_allowed_and_failing_ones_count() {
    let folder = tempfile::tempdir().unwrap();
    let answers = [
        " print(3 * 6)",
        "\n```python\nx = 80 * 12.5\nprint(x)\n```",
        " print(30)\nimport os\nos.fork()",
        " while True: pass",
        " print('13'",
    ];
    let file = predictions(folder.path(), "gsm8k.jsonl", &answers);
    let args = ["evaluate", "gsm8k-pot", "--predictions", text(&file)];
    let message = refused(&args, 1);
    assert!(message.contains("--allow-code-execution"), "{message}");
    if !python_is_there() {
        return;
    }
    printed(&[&args[..], &["--allow-code-execution", "--program-seconds", "1"]].concat());
    let results = json_file(&folder.path().join("results.json"));
    for scorer in ["arithmo", "numeric"] {
        assert_eq!(results["scorers"][scorer]["correct"], 2, "{results}");
        assert_eq!(results["scorers"][scorer]["total"], 5);
    }
    assert_eq!(results["programs_failed"], 3);
    let programs = json_file(&folder.path().join("programs.json"));
    let outcomes: Vec<_> =
        programs.as_array().unwrap().iter().map(|one| one["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["printed", "printed", "failed", "failed", "failed"]);
    assert!(
        ["CPU time", "stopped after"]
            .iter()
            .any(|end| programs[3]["reason"].as_str().unwrap().contains(end)),
        "{programs}"
    );
    assert!(
        programs[2]["reason"].as_str().unwrap().contains("Operation not permitted"),
        "{programs}"
    );
}

/// Checks that a program does not inherit a descriptor that the calling shell left open.
#[test]
#[cfg(unix)]
fn programs_get_no_open_files() {
    if !python_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = " import os\nos.fstat(9)\nprint(18)";
    let file = predictions(folder.path(), "gsm8k.jsonl", &[program, " print(1000)"]);
    let script = "exec 9</dev/zero; exec \"$@\"";
    let status = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_arithmo"), "evaluate", "gsm8k-pot"])
        .args(["--allow-code-execution", "--predictions", text(&file)])
        .output()
        .unwrap();
    assert!(status.status.success());
    let programs = json_file(&folder.path().join("programs.json"));
    assert!(programs[0]["reason"].as_str().unwrap().contains("Bad file descriptor"), "{programs}");
    assert_eq!(programs[1]["output"], "1000\n");
}
