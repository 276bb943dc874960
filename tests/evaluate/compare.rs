//! `arithmo evaluate --compare` as a user calls it.

use serde_json::json;

use crate::calls::{check_page, json_file, predictions, printed, refused, text};

#[test]
fn two_evaluations_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let sides = ["first", "second"].map(|name| folder.path().join(name));
    // Right: 1, 2, 5 and then 1, 3, 4: two won, two lost.
    let files = [
        predictions(
            &sides[0],
            "gsm8k.jsonl",
            &[" #### 18", " The answer is: 1000", " 3", " 5", " #### 13"],
        ),
        predictions(
            &sides[1],
            "gsm8k.jsonl",
            &[" #### 18", " 100", " #### 30 birds", " -5 degrees", " <b>12</b> & more"],
        ),
    ];
    let output = folder.path().join("compared");
    let by_file = printed(&[
        "evaluate",
        "gsm8k",
        "--compare",
        text(&files[0]),
        text(&files[1]),
        "--output",
        text(&output),
    ]);
    assert!(
        by_file.contains("numeric, won by B: 3, 4") && by_file.contains("numeric, lost by B: 2, 5"),
        "{by_file}"
    );
    for file in &files {
        printed(&["evaluate", "gsm8k", "--predictions", text(file)]);
    }
    // Evaluated folders say of which task they are.
    printed(&[
        "evaluate",
        "--compare",
        text(&sides[0]),
        text(&sides[1]),
        "--output",
        text(&output),
    ]);
    let comparison = json_file(&output.join("comparison.json"));
    let numeric = &comparison["scorers"]["numeric"];
    assert_eq!((&numeric["won"], &numeric["lost"]), (&json!([3, 4]), &json!([2, 5])));
    assert_eq!((&numeric["wins"], &numeric["p_value"]), (&json!(2), &json!(1.0)));
    assert_eq!(
        (&numeric["first"]["correct"], &numeric["second"]["correct"]),
        (&json!(3), &json!(3))
    );
    // By strict-match the second loses 5 and wins 3.
    assert_eq!(comparison["scorers"]["strict-match"]["lost"], json!([5]));
    let page = check_page(&output.join("index.html"));
    assert_eq!(page.matches("<article").count(), 4);
    assert!(
        page.contains("Is 1 &lt; 2 &amp; &quot;7&quot; &gt; &lt;b&gt;3&lt;/b&gt;?"),
        "questions are text"
    );
    assert!(
        page.contains("&lt;b&gt;12&lt;/b&gt; &amp; more") && !page.contains("<b>"),
        "answers are text"
    );
    assert!(page.contains("width=device-width") && page.contains("prefers-color-scheme: dark"));
    let args = [
        "evaluate",
        "--compare",
        text(&sides[0]),
        text(&sides[1]),
        "--output",
        text(&output),
        "--scorer",
    ];
    assert!(
        printed(&[&args[..], &["strict-match"]].concat()).contains("strict-match, lost by B: 5")
    );
    assert!(
        refused(&[&args[..], &["exact"]].concat(), 1)
            .contains("none of arithmo, flexible-extract, numeric, strict-match")
    );
}
