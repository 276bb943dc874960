//! Functions that call the program, and that write its inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::answers::fixture;
use crate::support::{demo_model, json_lines};

/// Runs the program on the CPU.
pub(crate) fn arithmo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(args)
        .args(["--backend", "ndarray"])
        .output()
        .unwrap()
}

/// Runs the program and returns its standard output. Panics if it fails.
pub(crate) fn printed(args: &[&str]) -> String {
    let output = arithmo(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program and returns its standard error. Panics unless it exits with `status`.
pub(crate) fn refused(args: &[&str], status: i32) -> String {
    let output = arithmo(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    message
}

/// Returns the folder of the model that is built into the program.
pub(crate) fn model() -> String {
    text(&demo_model()).to_string()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes a predictions file with `answers` to the problems of the fixture `data`. Returns its path.
pub(crate) fn predictions(folder: &Path, data: &str, answers: &[&str]) -> PathBuf {
    let rows = json_lines(&fixture(data));
    let entries = rows.iter().zip(answers).map(|(row, answer)| {
        let value =
            |keys: [&str; 2]| keys.iter().find_map(|key| row[*key].as_str()).unwrap().to_string();
        let question = value(["question", "problem"]);
        json!({
            "prediction": format!("Question: {question}\n\nAnswer:{answer}"),
            "question": question,
            "ground_truth": value(["answer", "solution"]),
        })
    });
    let path = folder.join("predictions.json");
    fs::create_dir_all(folder).unwrap();
    fs::write(&path, Value::from(entries.collect::<Vec<_>>()).to_string()).unwrap();
    path
}

/// Reads an HTML page. Panics unless its elements are closed and it needs no other files.
pub(crate) fn check_page(path: &Path) -> String {
    let page = fs::read_to_string(path).unwrap();
    for tag in ["table", "article", "details", "pre", "div", "ul", "section"] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        assert_eq!(page.matches(&open).count(), page.matches(&close).count(), "{tag}");
    }
    assert!(
        !page.contains("<script") && !page.contains("src=") && !page.contains("http"),
        "the page is not self-contained"
    );
    page
}
