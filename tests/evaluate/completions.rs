//! Checks that the whole completion is judged, and no text of the prompt.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::calls::{model, printed, refused, text};
use crate::support::{json_file, json_lines, shared};

const QUESTION: &str = "Ruth buys 8 packs of 7 photos. How many photos is that?";

/// Writes a file of one problem with the answer 56 to `folder`. Returns its path.
fn problem(folder: &Path, task: &str) -> String {
    let row = match task {
        "math" => json!({"problem": QUESTION, "solution": "\\boxed{56}"}),
        _ => json!({"question": QUESTION, "answer": "#### 56"}),
    };
    let path = folder.join(format!("{task}.jsonl"));
    fs::write(&path, format!("{row}\n")).unwrap();
    text(&path).to_string()
}

/// Templates that contain an answer, the question, the marker of an answer, or special tokens.
const TEMPLATES: [&str; 8] = [
    "Question: {prompt}\nEnd with the number after four signs, for example #### 56\nSolution:",
    "Question: {prompt}\nPut the result in a box, for example \\boxed{56}.\nSolution:",
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    "[INST] {prompt} [/INST]",
    "{prompt}",
    "Question: Ruth buys 8 packs of 7 photos. How many photos is that?\n\nAnswer: The answer is: 56\n\nQuestion: {prompt}\n\nAnswer:",
    "Question: {prompt} Question: Ruth buys 8 packs of 7 photos. How many photos is that? The answer is 56. #### 56\n\nAnswer:",
    "Question: {prompt}\n\nAnswer: The answer is: 56, is it not?\n\nAnswer:",
];

#[test]
fn judged_completions_equal_generated_ones() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    for task in ["gsm8k", "math"] {
        let data = problem(folder.path(), task);
        for (number, template) in TEMPLATES.iter().enumerate() {
            let generated = folder.path().join(format!("{task}-{number}.jsonl"));
            let prompts = folder.path().join("prompts.jsonl");
            fs::write(&prompts, json!({"prompt": QUESTION}).to_string()).unwrap();
            let settings = ["--max-new-tokens", "60", "--prompt-template", template];
            let files = ["--prompts", text(&prompts), "--output", text(&generated)];
            printed(&[&["generate", "--model", &model][..], &files, &settings].concat());
            let written = json_lines(&generated)[0].clone();

            let output = folder.path().join(format!("{task}-{number}"));
            let files = ["--data", &data, "--output", text(&output)];
            printed(&[&["evaluate", task, "--model", &model][..], &files, &settings].concat());
            let verdict = json_lines(&output.join("verdicts.jsonl"))[0].clone();
            let prediction = json_file(&output.join("predictions.json"))[0].clone();
            for found in [&verdict, &prediction] {
                assert_eq!(found["completion"], written["completion"], "{template}");
                assert_eq!(found["finish_reason"], written["finish_reason"]);
            }
            let prompt = template.replace("{prompt}", QUESTION);
            assert_eq!(prediction["prompt"], json!(prompt));
            let completion = written["completion"].as_str().unwrap();
            assert_eq!(prediction["prediction"], json!(prompt + completion));
            // Some prompts contain 56. If the completion does not, it must not be correct.
            if !completion.contains("56") {
                for (rule, one) in verdict["verdicts"].as_object().unwrap() {
                    assert_eq!(one["correct"], json!(false), "{rule}: {template} {completion}");
                }
            }
            // Scoring the written file gives the same verdict.
            printed(&["evaluate", task, "--predictions", text(&output.join("predictions.json"))]);
            assert_eq!(json_lines(&output.join("verdicts.jsonl"))[0], verdict);
        }
    }
}

/// Checks that the completion is found in predictions of other programs, which are one text, and that a given template
/// decides where it begins.
#[test]
fn completions_are_found_in_predictions_of_other_programs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("foreign.json");
    let question = "How many eggs are 9 + 9?";
    let write = |texts: &[&str]| {
        let entry = |text: &&str| json!({"question": question, "ground_truth": "#### 18", "prediction": text});
        let entries: Vec<Value> = texts.iter().map(entry).collect();
        fs::write(&file, Value::from(entries).to_string()).unwrap();
    };
    let correct = |more: &[&str]| {
        let output = folder.path().join("out");
        let args = [
            "evaluate",
            "gsm8k",
            "--predictions",
            text(&file),
            "--output",
            text(&output),
            "--overwrite",
        ];
        printed(&[&args[..], more].concat());
        let results = json_file(&output.join("results.json"));
        let count = |scorer: &str| results["scorers"][scorer]["correct"].as_u64().unwrap();
        [count("strict-match"), count("numeric")]
    };
    write(&[
        "[INST] How many eggs are 9 + 9? [/INST] 9 + 9 = 18.\n#### 18\nAnswer: eighteen, so she can bake 3 cakes",
        "[INST] How many eggs are 9 + 9? [/INST] #### 18\n\nQuestion: How many legs has a cat?\n\nAnswer: The answer is: 4",
        "### Instruction:\nHow many eggs are 9 + 9?\n\n### Response:\n#### 18\n\nQuestion: x?\n\nAnswer: The answer is: 4",
        "Question: Are 9 + 9 18? How many eggs are 9 + 9?\nAnswer: #### 38\n\nQuestion: How many eggs are 9 + 9?\nAnswer: #### 18",
    ]);
    assert_eq!(correct(&[]), [4, 4]);
    write(&["Q: How many eggs are 9 + 9?\nSay #### 18.\nA: #### 4"]);
    assert_eq!(correct(&["--prompt-template", "Q: {prompt}\nSay #### 18.\nA:"]), [0, 0]);
    // A template that does not match the file is refused.
    let args = ["evaluate", "gsm8k", "--predictions", text(&file)];
    let message = refused(&[&args[..], &["--prompt-template", "{prompt} A:"]].concat(), 1);
    assert!(
        message.contains("foreign.json: row 1: prediction")
            && message.contains("--prompt-template"),
        "{message}"
    );
    // A stated completion is used, unless it contradicts the prediction.
    let entry = |prediction: &str| json!([{"question": question, "ground_truth": "#### 18", "prediction": prediction, "completion": " 18"}]);
    fs::write(&file, entry("#### 4 is not 18").to_string()).unwrap();
    assert_eq!(correct(&[]), [0, 1]);
    fs::write(&file, entry("#### 18 eggs").to_string()).unwrap();
    let message = refused(&args, 1);
    assert!(message.contains("is not the prompt followed by the completion"), "{message}");
}

/// Checks that an older predictions file of this program, which has no completions, is cut at the template that its
/// results name.
#[test]
fn old_predictions_are_cut_at_the_template_of_their_results() {
    let folder = tempfile::tempdir().unwrap();
    let template = "Q: {prompt}\nSay #### 18.\nA:";
    let prediction = json!([{"question": "9 + 9?", "ground_truth": "#### 18", "prediction": "Q: 9 + 9?\nSay #### 18.\nA: #### 4"}]);
    let results =
        json!({"task": "gsm8k", "settings": {"prompt_template": template, "model_bytes": 3}});
    let sides = ["a", "b"].map(|name| folder.path().join(name));
    for side in &sides {
        fs::create_dir(side).unwrap();
        fs::write(side.join("predictions.json"), prediction.to_string()).unwrap();
        fs::write(side.join("results.json"), results.to_string()).unwrap();
        // Verdicts of an older version are not reused.
        let verdicts = json!({"strict-match": {"answer": "18", "correct": true}});
        let verdict = json!({"question": "9 + 9?", "ground_truth": "#### 18", "completion": "", "verdicts": verdicts});
        fs::write(side.join("verdicts.jsonl"), format!("{verdict}\n")).unwrap();
    }
    let output = folder.path().join("compared");
    printed(&["compare", text(&sides[0]), text(&sides[1]), "--output", text(&output)]);
    let comparison = json_file(&output.join("comparison.json"));
    assert_eq!(comparison["scorers"]["strict-match"]["first"]["correct"], 0);
}

/// Compares the judged completions of a real chat model with those of `generate`, under a ChatML template.
#[test]
#[ignore = "needs a real model: ARITHMO_CHAT_MODEL=FOLDER, and GSM8K beside the project"]
fn completions_of_a_chat_model_are_judged_whole() {
    let Ok(model) = std::env::var("ARITHMO_CHAT_MODEL") else {
        return;
    };
    let data = shared("data/gsm8k/test.jsonl").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let template = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n";
    let settings = ["--max-new-tokens", "64", "--prompt-template", template];
    let problems = json_lines(&data);
    let prompts = problems[..8].iter();
    let prompts = prompts.map(|row| format!("{}\n", json!({"prompt": row["question"]})));
    let file = folder.path().join("prompts.jsonl");
    fs::write(&file, prompts.collect::<String>()).unwrap();
    let generated = folder.path().join("generated.jsonl");
    let files = ["--prompts", text(&file), "--output", text(&generated)];
    printed(&[&["generate", "--model", &model][..], &files, &settings].concat());
    let output = folder.path().join("out");
    let files = ["--data", text(&data), "--limit", "8", "--output", text(&output)];
    printed(&[&["evaluate", "gsm8k", "--model", &model][..], &files, &settings].concat());
    let verdicts = json_lines(&output.join("verdicts.jsonl"));
    assert_eq!(verdicts.len(), 8);
    for (verdict, written) in verdicts.iter().zip(json_lines(&generated)) {
        assert_eq!(verdict["completion"], written["completion"]);
    }
    let answered = |verdict: &&Value| !verdict["verdicts"]["flexible-extract"]["answer"].is_null();
    let answered = verdicts.iter().filter(answered).count();
    assert!(answered >= 6, "{answered} of 8 have a number");
}
