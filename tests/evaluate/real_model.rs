//! Evaluates a real chat model on GSM8K and compares its answers with those of transformers.

use crate::calls::{printed, text};
use crate::support::{json_file, shared, smollm2};

/// How the first 40 tokens of transformers' greedy answers to the first problems of GSM8K's test set begin and end
/// (5.23, f32, `apply_chat_template` with a generation prompt). The two best logits are at least 1.8e-2 apart.
const ANSWERS: [(&str, &str); 3] = [
    ("Janet’s ducks lay 16 eggs per day, which is", "every morning, so"),
    ("To solve this problem, we need to calculate", "half of that is white fiber, we"),
    ("To find the profit, we need to calculate the", "price after the 150% increase.\n"),
];

#[test]
#[ignore = "evaluates a model that is not in the tree"]
fn a_chat_model_answers_through_its_template_as_in_transformers() {
    let (Some(model), Some(problems)) = (smollm2(), shared("data/gsm8k/test.jsonl")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("gsm8k");
    printed(
        &[
            &["evaluate", "gsm8k", "--model", text(&model), "--dtype", "f32"][..],
            &["--data", text(&problems), "--limit", "3", "--max-new-tokens", "40"],
            &["--output", text(&output)],
        ]
        .concat(),
    );
    let predictions = json_file(&output.join("predictions.json"));
    let predictions = predictions.as_array().unwrap();
    assert_eq!(predictions.len(), ANSWERS.len());
    for (prediction, (begin, end)) in predictions.iter().zip(ANSWERS) {
        let whole = prediction["prediction"].as_str().unwrap();
        // The prompt of the template stands before the answer.
        let (prompt, answer) = whole.split_once("<|im_start|>assistant\n").unwrap();
        assert!(
            prompt.starts_with("<|im_start|>system\nYou are a helpful AI assistant"),
            "{prompt}"
        );
        let question = prediction["question"].as_str().unwrap();
        let turn = format!("<|im_start|>user\n{question}<|im_end|>\n");
        assert!(prompt.ends_with(&turn), "{prompt}");
        assert!(answer.starts_with(begin) && answer.ends_with(end), "{answer}");
    }
}
