//! Checks the page of an evaluation: it lists a bounded number of answers, and their text is escaped.

use serde_json::json;

use crate::calls::{check_page, printed, text};

#[test]
fn the_page_lists_answers_and_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |number: usize| {
        // 70 answers are right, 230 are wrong.
        let answer = if number < 70 { number } else { number + 1 };
        let mark = if number == 3 { "<b>bold</b> & \"quoted\"".repeat(400) } else { String::new() };
        json!({
            "question": format!("What is <i>{number}</i>?\nSay it."),
            "ground_truth": format!("#### {number}"),
            "prediction": format!("Q: x A: #### {answer}\n{mark}"),
            "prompt": "Q: x A:",
            "completion": format!(" #### {answer}\n{mark}"),
            "finish_reason": if number == 0 { "length" } else { "eos" },
        })
    };
    let file = folder.path().join("predictions.json");
    let all: Vec<_> = (0..300).map(entry).collect();
    std::fs::write(&file, json!(all).to_string()).unwrap();
    let table = printed(&["evaluate", "gsm8k", "--predictions", text(&file)]);
    assert!(table.contains("1 of 300 answers were cut off"), "{table}");
    let page = check_page(&folder.path().join("index.html"));
    let count = |class: &str| page.matches(&format!("<article class=\"{class}\">")).count();
    assert_eq!((count("change won"), count("change")), (50, 200));
    assert!(page.contains("wrong (230)") && page.contains("right (70)"));
    assert!(page.contains("href=\"verdicts.jsonl\"") && page.contains("250 of the 300"));
    assert!(
        page.contains("&lt;b&gt;bold&lt;/b&gt; &amp; &quot;quoted&quot;"),
        "answers are escaped"
    );
    assert!(page.contains("What is &lt;i&gt;3&lt;/i&gt;?\nSay it."), "questions keep their lines");
    assert!(!page.contains("<b>") && !page.contains("<i>"));
    assert!(page.contains("[the rest is in verdicts.jsonl]"));
    assert!(page.contains("cut off at the token limit"));
    assert!(page.len() < 400_000, "{} bytes", page.len());
}
