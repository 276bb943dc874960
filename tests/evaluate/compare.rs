//! Tests of `arithmo compare` as a user calls it.

use serde_json::json;

use crate::calls::{check_page, predictions, printed, refused, text};
use crate::support::json_file;

#[test]
fn two_evaluations_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let sides = ["first", "second"].map(|name| folder.path().join(name));
    // The first has problems 1, 2 and 5 right, the second 1, 3 and 4. So the second wins two and loses two.
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
        "compare",
        text(&files[0]),
        text(&files[1]),
        "--task",
        "gsm8k",
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
    // The folders of evaluations name their task.
    printed(&[
        "compare",
        text(&sides[0]),
        text(&sides[1]),
        "--output",
        text(&output),
        "--overwrite",
    ]);
    let comparison = json_file(&output.join("comparison.json"));
    let numeric = &comparison["scorers"]["numeric"];
    assert_eq!((&numeric["won"], &numeric["lost"]), (&json!([3, 4]), &json!([2, 5])));
    assert_eq!((&numeric["wins"], &numeric["p_value"]), (&json!(2), &json!(1.0)));
    assert_eq!(
        (&numeric["first"]["correct"], &numeric["second"]["correct"]),
        (&json!(3), &json!(3))
    );
    // By strict-match, the second loses problem 5.
    assert_eq!(comparison["scorers"]["strict-match"]["lost"], json!([5]));
    let page = check_page(&output.join("index.html"));
    assert_eq!(page.matches("<article").count(), 4);
    assert!(
        page.contains("Is 1 &lt; 2 &amp; &quot;7&quot; &gt; &lt;b&gt;3&lt;/b&gt;?"),
        "questions are escaped"
    );
    assert!(
        page.contains("&lt;b&gt;12&lt;/b&gt; &amp; more") && !page.contains("<b>"),
        "answers are escaped"
    );
    assert!(page.contains("width=device-width") && page.contains("prefers-color-scheme: dark"));
    let args = [
        "compare",
        text(&sides[0]),
        text(&sides[1]),
        "--output",
        text(&output),
        "--overwrite",
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

/// Checks that different settings are in every form of the result, and that equal results have an interval of some
/// width.
#[test]
fn different_settings_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let [before, after, output] =
        ["before", "after", "compared"].map(|name| folder.path().join(name));
    let settings = [
        json!({"model": "m", "prompt_template": "Q: {prompt}\n\nA:", "problems": 1}),
        json!({"model": "m", "adapter": "run/adapter", "shots": 4, "shots_sha256": "ab", "problems": 1}),
    ];
    for (side, settings) in [&before, &after].into_iter().zip(settings) {
        predictions(side, "gsm8k.jsonl", &[" #### 18", " 1", " 1", " 1", " 1"]);
        let results = json!({"task": "gsm8k", "settings": settings});
        std::fs::write(side.join("results.json"), results.to_string()).unwrap();
    }
    let args = ["compare", text(&before), text(&after), "--output", text(&output)];
    let table = printed(&args);
    assert_eq!(printed(&[&args[..], &["--overwrite"]].concat()), table);
    for part in ["differs: shots\n  A  not set\n  B  4", "adapter", "Q: {prompt}\\n\\nA:"] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    assert!(!table.contains("differs: model"), "{table}");
    // A process that is killed between its two files leaves the first, which does not hinder the same command.
    std::fs::remove_file(output.join("index.html")).unwrap();
    assert_eq!(printed(&args), table);
    assert!(refused(&args, 1).contains("exists already"));
    let comparison = json_file(&output.join("comparison.json"));
    assert_eq!(comparison["differences"]["shots"], json!({"first": null, "second": 4}));
    let interval = &comparison["scorers"]["numeric"]["difference_interval_95"];
    // This is z^2 / (n + z^2) for 5 problems.
    let high = interval[1].as_f64().unwrap();
    assert!((high - 0.43449).abs() < 1e-4, "{interval}");
    let page = check_page(&output.join("index.html"));
    for part in ["A and B differ in", "shots (A: not set; B: 4)", "B: adapter", "run/adapter"] {
        assert!(page.contains(part), "{part:?} is not on the page");
    }

    let nothing = folder.path().join("nothing");
    let message = refused(&["compare", text(&before), text(&nothing)], 1);
    assert!(message.contains("nothing: there is no such folder or file"), "{message}");
    std::fs::create_dir(&nothing).unwrap();
    let message = refused(&["compare", text(&before), text(&nothing)], 1);
    assert!(message.contains("nothing: holds no evaluation"), "{message}");
}
