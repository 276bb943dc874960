//! Calls of the program, and what is made for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::answers::fixture;

/// Calls the program.
pub(crate) fn arithmo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(args)
        .args(["--backend", "ndarray"])
        .output()
        .unwrap()
}

/// What it prints, if all is well.
pub(crate) fn printed(args: &[&str]) -> String {
    let output = arithmo(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its message, if it refuses.
pub(crate) fn refused(args: &[&str], status: i32) -> String {
    let output = arithmo(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    message
}

pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The model built into the program.
pub(crate) fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model");
    path.to_str().unwrap().to_string()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes answers to the problems of a fixture as a predictions file.
pub(crate) fn predictions(folder: &Path, data: &str, answers: &[&str]) -> PathBuf {
    let rows = crate::answers::json_lines(&fixture(data));
    let entries = rows.iter().zip(answers).map(|(row, answer)| {
        let of =
            |keys: [&str; 2]| keys.iter().find_map(|key| row[*key].as_str()).unwrap().to_string();
        let question = of(["question", "problem"]);
        json!({
            "prediction": format!("Question: {question}\n\nAnswer:{answer}"),
            "question": question,
            "ground_truth": of(["answer", "solution"]),
        })
    });
    let path = folder.join("predictions.json");
    fs::create_dir_all(folder).unwrap();
    fs::write(&path, Value::from(entries.collect::<Vec<_>>()).to_string()).unwrap();
    path
}

pub(crate) fn check_page(path: &Path) -> String {
    let page = fs::read_to_string(path).unwrap();
    for tag in ["table", "article", "details", "pre", "div", "ul"] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        assert_eq!(page.matches(&open).count(), page.matches(&close).count(), "{tag}");
    }
    assert!(
        !page.contains("<script") && !page.contains("src=") && !page.contains("http"),
        "self-contained"
    );
    page
}
