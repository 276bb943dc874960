//! Tests of `arithmo evaluate` as a user calls it.

use std::fs;

use serde_json::json;

use crate::answers::fixture;
use crate::calls::{check_page, model, predictions, printed, refused, text};
use crate::support::{json_file, json_lines, reference, shared};

#[test]
fn a_model_is_evaluated_from_start_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, output) = (model(), fixture("gsm8k.jsonl"), folder.path().join("out"));
    let args = [
        "evaluate",
        "gsm8k",
        "--model",
        &model,
        "--data",
        text(&data),
        "--output",
        text(&output),
        "--max-new-tokens",
        "9",
    ];
    let table = printed(&args);
    for scorer in ["arithmo", "strict-match", "flexible-extract", "numeric"] {
        assert!(table.contains(scorer), "{table}");
    }
    let predictions = json_file(&output.join("predictions.json"));
    let problems = json_lines(&data);
    assert_eq!(predictions.as_array().unwrap().len(), problems.len());
    for (prediction, problem) in predictions.as_array().unwrap().iter().zip(&problems) {
        assert_eq!(prediction["question"], problem["question"]);
        assert_eq!(prediction["ground_truth"], problem["answer"]);
        let prompt = format!("Question: {}\n\nAnswer:", problem["question"].as_str().unwrap());
        assert!(prediction["prediction"].as_str().unwrap().starts_with(&prompt));
        // The original format has three keys. The others are prompt, completion and finish reason.
        assert_eq!(prediction.as_object().unwrap().len(), 6);
        assert_eq!(prediction["prompt"], json!(prompt));
        let completion = prediction["completion"].as_str().unwrap();
        assert_eq!(prediction["prediction"], json!(prompt + completion));
        let reason = prediction["finish_reason"].as_str().unwrap();
        assert!(["eos", "length"].contains(&reason), "{reason}");
    }
    let results = json_file(&output.join("results.json"));
    assert_eq!((&results["task"], &results["total"]), (&json!("gsm8k"), &json!(5)));
    assert_eq!(results["scorers"]["numeric"]["total"], 5);
    assert_eq!(results["settings"]["max_new_tokens"], 9);
    check_page(&output.join("index.html"));
    assert!(!output.join("answers.partial.jsonl").exists());
    // The same command generates nothing. Other settings are refused by name, and accepted with --overwrite.
    assert_eq!(printed(&args), table);
    let other = [&args[..9], &["7"]].concat();
    let message = refused(&other, 1);
    assert!(
        message.contains("max_new_tokens was 9, is 7") && message.contains("--overwrite"),
        "{message}"
    );
    printed(&[&other[..], &["--overwrite"]].concat());
    assert_eq!(json_file(&output.join("results.json"))["settings"]["max_new_tokens"], 7);
    // Scoring the answers again keeps their settings.
    let file = output.join("predictions.json");
    printed(&["evaluate", "gsm8k", "--predictions", text(&file)]);
    assert_eq!(json_file(&output.join("results.json"))["settings"]["max_new_tokens"], 7);
}

#[test]
fn shots_come_before_the_question() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, solved) =
        (model(), fixture("gsm8k.jsonl"), folder.path().join("solved.jsonl"));
    let rows = [
        json!({"question": "1 + 1?", "answer": "It is 2.\n#### 2"}),
        json!({"question": "2 + 2?", "answer": "#### 4"}),
    ];
    fs::write(&solved, rows.map(|row| format!("{row}\n")).concat()).unwrap();
    let output = folder.path().join("out");
    let args = [
        "evaluate",
        "gsm8k",
        "--model",
        &model,
        "--data",
        text(&data),
        "--limit",
        "2",
        "--max-new-tokens",
        "4",
        "--output",
        text(&output),
        "--shots",
        "1",
        "--shots-from",
    ];
    printed(&[&args[..], &[text(&solved)]].concat());
    let predictions = json_file(&output.join("predictions.json"));
    let whole = predictions[1]["prediction"].as_str().unwrap();
    let start = "Question: 1 + 1?\nAnswer: It is 2.\n#### 2\n\nQuestion: A ticket costs $12.50. What do 80 tickets cost, in dollars?\nAnswer:";
    assert!(whole.starts_with(start), "{whole}");
    // The example's answer is not part of the completion.
    let verdicts = json_lines(&output.join("verdicts.jsonl"));
    assert!(!verdicts[1]["completion"].as_str().unwrap().contains("####"));
    assert_eq!(json_file(&output.join("results.json"))["settings"]["shots"], 1);
    // An example that is one of the problems is refused.
    let message = refused(&[&args[..], &[text(&data)]].concat(), 1);
    assert!(message.contains("solves problem 1"), "{message}");
}

#[test]
fn prompts_without_room_for_an_answer_are_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("long.jsonl");
    let long = json!({"question": "words ".repeat(600), "answer": "#### 1"});
    fs::write(&data, format!("{}\n{long}\n", json!({"question": "1 + 1?", "answer": "#### 2"})))
        .unwrap();
    let output = folder.path().join("out");
    printed(&[
        "evaluate",
        "gsm8k",
        "--model",
        &model(),
        "--data",
        text(&data),
        "--max-new-tokens",
        "3",
        "--output",
        text(&output),
    ]);
    let results = json_file(&output.join("results.json"));
    assert_eq!((&results["total"], &results["prompts_too_long"]), (&json!(2), &json!([2])));
}

#[test]
fn math_is_counted_by_subject_and_level() {
    let folder = tempfile::tempdir().unwrap();
    let answers = [
        " The answer is: $0.50$",
        " $\\boxed{2, -2}$",
        " $\\boxed{\\{2,3\\}}$",
        " $\\boxed{[-2, 2]}$",
    ];
    let (file, data) = (predictions(folder.path(), "math.jsonl", &answers), fixture("math.jsonl"));
    let table = printed(&["evaluate", "math", "--predictions", text(&file), "--data", text(&data)]);
    assert!(
        table.contains("by subject (equivalent)") && table.contains("Number Theory"),
        "{table}"
    );
    let results = json_file(&folder.path().join("results.json"));
    let correct = |path: &str| results.pointer(path).unwrap()["correct"].as_u64().unwrap();
    assert_eq!(correct("/scorers/hendrycks"), 1);
    assert_eq!(correct("/scorers/equivalent"), 3);
    assert_eq!(correct("/by_subject/Algebra/equivalent"), 2);
    assert_eq!(correct("/by_level/Level 5/equivalent"), 0);
    assert_eq!(results["by_level"]["Level 2"]["equivalent"]["total"], 2);
}

/// Evaluates GSM8K's whole test set.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_real_test_set_is_evaluated_with_a_tiny_model() {
    let (Some(data), Some(model)) = (shared("data/gsm8k/test.jsonl"), reference("models/tiny-a"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = text(folder.path());
    printed(&[
        "evaluate",
        "gsm8k",
        "--model",
        text(&model),
        "--data",
        text(&data),
        "--max-new-tokens",
        "4",
        "--batch-size",
        "32",
        "--output",
        out,
    ]);
    let results = json_file(&folder.path().join("results.json"));
    assert_eq!(results["total"], 1319);
    assert_eq!(results["scorers"]["numeric"]["total"], 1319);
}
