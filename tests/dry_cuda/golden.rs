//! Tables that a test compares itself with.

use std::fs;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cuda").join(name)
}

/// Compares `text` with the golden file `name`, or writes it if `UPDATE_GOLDEN` is set.
pub(crate) fn compare(name: &str, text: &str) {
    let path = path(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    assert_same(&path, &fs::read_to_string(&path).unwrap_or_default(), text);
}

/// Compares `text`, whose last column has the header `column`, with the same column of the golden file `name`.
pub(crate) fn compare_column(name: &str, text: &str, column: &str) {
    let path = path(name);
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let cells = |line: &str| line.split(" |").map(str::to_string).collect::<Vec<_>>();
    let header = golden.lines().next().map(cells).unwrap_or_default();
    let place = header.iter().position(|cell| cell.trim() == column);
    let place = place.unwrap_or_else(|| panic!("{} has no column {column}", path.display()));
    let first = header.iter().position(|cell| cell.trim().starts_with("sm_")).unwrap();
    let reduced: Vec<String> = golden
        .lines()
        .map(cells)
        .filter(|cells| !cells[place].trim().is_empty())
        .map(|cells| format!("{} |{}", cells[..first].join(" |"), cells[place]))
        .collect();
    assert_same(&path, &(reduced.join("\n") + "\n"), text);
}

fn assert_same(path: &Path, golden: &str, text: &str) {
    let (lines, expected): (Vec<_>, Vec<_>) = (text.lines().collect(), golden.lines().collect());
    let differences: Vec<String> = (0..lines.len().max(expected.len()))
        .filter(|at| lines.get(*at) != expected.get(*at))
        .map(|at| {
            let line = |lines: &[&str]| lines.get(at).unwrap_or(&"").to_string();
            format!("line {}:\n  golden: {}\n  now:    {}", at + 1, line(&expected), line(&lines))
        })
        .take(12)
        .collect();
    let remedy = "if the change is meant, write it with UPDATE_GOLDEN=1 and say why in the commit";
    let differences = differences.join("\n");
    assert!(differences.is_empty(), "{}: {remedy}\n{differences}", path.display());
}
