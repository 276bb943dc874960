//! Checks that `tests/README.md`, which says what each test file covers, names all test files.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_test_file_is_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/README.md")).unwrap();
    let mut missing = Vec::new();
    for (folder, prefix) in [("tests", ""), ("backends/tests", "backends/tests/")] {
        for pattern in ["*.rs", "*/*.rs", "*/*/*.rs"] {
            let pattern = root.join(folder).join(pattern).display().to_string();
            for path in glob::glob(&pattern).unwrap() {
                let path = path.unwrap();
                let name = path.strip_prefix(root.join(folder)).unwrap().display().to_string();
                if !name.starts_with("fixtures/") && !table.contains(&format!("`{prefix}{name}`")) {
                    missing.push(format!("{folder}/{name}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in tests/README.md: {missing:?}");
    let named = table.split('`').filter(|text| text.ends_with(".rs"));
    for name in named {
        let path: PathBuf =
            if name.starts_with("backends/") { name.into() } else { Path::new("tests").join(name) };
        assert!(
            root.join(&path).is_file(),
            "{} is in tests/README.md and not in the tree",
            path.display()
        );
    }
}
