//! Compares the text of HTML with that of CPython's html.parser and BeautifulSoup, byte for byte.

use crate::support;
use crate::tiny::fixture;
use std::path::Path;

use arithmo::data::html::{beautiful_soup_text, original_text, readable_text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    html: String,
    text: Option<String>,
    unescaped: Option<String>,
}

/// Compares each line of a golden file, which must have at least `least` lines.
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
    check(&fixture("html/fragments.jsonl"), 600);
}

#[test]
fn golden_fragments_agree_with_beautiful_soup() {
    check(&support::reference("html_golden.jsonl").unwrap(), 62);
}

/// Beginnings of markup, which the next test repeats.
#[rustfmt::skip]
const UNITS: &[&str] = &[
    "<a b=\"", "<a b='", "<a b ", "<a = ", "<a b=", "<a/b=", "<a/", "<a\"", "<a '", "<a", "< a",
    "<", "<a b=\"<a b='", "<a \"b\"c", "<a b==\"", "<!--", "<!-- -- ", "<!-", "<!", "<!a",
    "<!DOCTYPE ", "<?", "<?x ", "<![CDATA[", "<![CDATA[]", "<![if x]", "<![temp[ ] ", "</", "</a",
    "</a ", "</ ", "&", "&a", "&am", "&#", "&#1", "&#x", "&amp", "&lt;", "<script>",
    "<script></script", "<style></", "<b>", "<b></i>", "<b><i></b>", "</b>", "<br>", "<br></p>",
    "<div>", "<p>", "<p></p>", "<ul><li>", "<li>", "<ol reversed>", "<ol reversed><li>",
    "<table><tr><td>", "<pre>", "<pre>x", "<pre></pre>x", "<code>", "<code>x", "<sup>", "<sup>x",
    "<blockquote>", "<blockquote>x<br>", "<math>", "<math><mi>", "<mi>", "<math><msup><mi>x</mi>",
    "$", "$$x ", "\\(", "\\begin{", "a<b", "<x1>", "\n", " ", "\u{a0}", "<a x1=1 ", "<b a=1>",
    "\"", "=", "/", ">",
];

/// Checks that conversion takes linear time, on 250 kB of markup that is repeated, nested or never closed. In quadratic
/// time, each of these inputs would take minutes.
#[test]
fn conversion_takes_linear_time() {
    let check = |html: &str| {
        let _ = original_text(html);
        let text = readable_text(html);
        assert!(text.len() < 20 * html.len() + 100, "{:?}", &html[..20]);
    };
    for unit in UNITS {
        check(&unit.repeat(250_000 / unit.len()));
    }
    // Each element has its own name.
    let names: String = (0..60_000).map(|n| format!("<element-number-{n}>")).collect();
    check(&names);
    // Each end tag searches many open elements.
    for (before, after) in [
        ("<b>", "</i>"),
        ("<b>", "<li></li>"),
        ("<b>", "<ul></ul>"),
        ("<b>", "<p>"),
        ("<br>", "</p>"),
        ("<ul><b>", "<li>"),
    ] {
        check(&(before.repeat(40_000) + &after.repeat(40_000)));
    }
    // Only the last markup is closed.
    for (unit, end) in [
        ("<a b=\"", ">"),
        ("<!--", "-->"),
        ("<a b='", "'>"),
        ("<a ", ">"),
        ("<![CDATA[", "]]>"),
        ("</a", ">"),
    ] {
        check(&(unit.repeat(40_000) + end));
    }
}

/// Checks that conversion to readable text never panics and keeps the words before a fragment.
#[test]
fn readable_text_of_random_fragments_keeps_the_words_before() {
    for line in std::fs::read_to_string(fixture("html/fragments.jsonl")).unwrap().lines() {
        let golden: Golden = serde_json::from_str(line).unwrap();
        let wrapped = format!("<p>before</p>{}", golden.html);
        let text = readable_text(&wrapped);
        assert!(text.starts_with("before"), "{wrapped:?} gave {text:?}");
        assert_eq!(text, text.trim(), "{wrapped:?}");
    }
}
