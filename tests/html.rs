//! HTML to text, byte for byte as CPython's html.parser and BeautifulSoup have it.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::path::Path;

use arithmo::data::html::{beautiful_soup_text, original_text, readable_text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    html: String,
    text: Option<String>,
    unescaped: Option<String>,
}

fn check(path: &Path, least: usize) {
    let lines = std::fs::read_to_string(path).unwrap();
    let mut checked = 0;
    for (i, line) in lines.lines().enumerate() {
        let golden: Golden = serde_json::from_str(line).unwrap();
        let place = format!("{}:{}: {:?}", path.display(), i + 1, golden.html);
        assert_eq!(beautiful_soup_text(&golden.html).ok(), golden.text, "{place}");
        assert_eq!(original_text(&golden.html).ok(), golden.unescaped, "{place}");
        checked += 1;
    }
    assert!(checked >= least, "only {checked} lines in {}", path.display());
}

#[test]
fn random_fragments_agree_with_beautiful_soup() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/html/fragments.jsonl"), 600);
}

#[test]
fn the_reference_data_agree() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/html_golden.jsonl");
    if path.exists() {
        check(&path, 62);
    } else {
        eprintln!("skipped: {} is not there", path.display());
    }
}

/// Whatever it is fed, the readable form neither panics nor loses the words outside tags.
#[test]
fn the_readable_form_survives_random_fragments() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/html/fragments.jsonl");
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let golden: Golden = serde_json::from_str(line).unwrap();
        let wrapped = format!("<p>before</p>{}", golden.html);
        let text = readable_text(&wrapped);
        assert!(text.starts_with("before"), "{wrapped:?} gave {text:?}");
        assert_eq!(text, text.trim(), "{wrapped:?}");
    }
}
