//! Tables that a test compares itself with.

use std::fs;
use std::path::Path;

/// Compares `text` with the file `name` in `tests/golden/cuda` line by line, or writes it if `UPDATE_GOLDEN` is set. `fits` says of a
/// golden line and one of now whether they are the same.
pub(crate) fn compare(name: &str, text: &str, fits: impl Fn(&str, &str) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cuda");
    let path = folder.join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let (lines, expected): (Vec<_>, Vec<_>) = (text.lines().collect(), golden.lines().collect());
    let differences: Vec<String> = (0..lines.len().max(expected.len()))
        .filter(|at| !expected.get(*at).zip(lines.get(*at)).is_some_and(|(a, b)| fits(a, b)))
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
