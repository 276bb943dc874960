//! Finds and reads the data of tests. A part of the golden data is committed in `tests/golden`, the full set lies
//! beside the checkout.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the golden file or folder `path`, from the tree or else from the full set. If neither has it, prints a note
/// and returns `None`.
pub(crate) fn reference(path: &str) -> Option<PathBuf> {
    let in_tree = root().join("tests/golden").join(path);
    if in_tree.exists() {
        return Some(in_tree);
    }
    shared(&format!("reference/{path}"))
}

/// Returns the golden folder `path` of the full set, or else the committed part of it.
pub(crate) fn whole_reference(path: &str) -> PathBuf {
    let whole = root().join("../shared/reference").join(path);
    if whole.exists() { whole } else { root().join("tests/golden").join(path) }
}

/// Returns the file or folder `path` of the data beside the checkout. If it is absent, prints a note and returns
/// `None`.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is absent, nothing was compared with it", path.display());
    None
}

/// Returns the folder of the real model SmolLM2-135M-Instruct: the one that `SMOLLM2_FOLDER` names, or else
/// `models/smollm2` beside the checkout. If it is absent, prints a note and returns `None`.
pub(crate) fn smollm2() -> Option<PathBuf> {
    match std::env::var_os("SMOLLM2_FOLDER") {
        Some(folder) => Some(PathBuf::from(folder)),
        None => shared("../models/smollm2"),
    }
}

/// Returns the folder of the model that is built into the program.
pub(crate) fn demo_model() -> PathBuf {
    root().join("assets/demo/model")
}

/// Reads a JSON file.
pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Reads the lines of a .jsonl file.
pub(crate) fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the sorted names of the files and folders in `folder`.
pub(crate) fn file_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Copies a file, or a folder with everything in it. Creates the folders above `to`.
pub(crate) fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}
