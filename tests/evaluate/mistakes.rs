//! Checks the errors for wrong calls of `arithmo evaluate`.

use std::fs;

use crate::answers::fixture;
use crate::calls::{model, predictions, refused, text};

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_string()
    };
    let (model, data) = (model(), text(&fixture("gsm8k.jsonl")).to_string());
    let answers =
        text(&predictions(&folder.path().join("a"), "gsm8k.jsonl", &["", "", "", "", ""]))
            .to_string();
    let math = text(&fixture("math.jsonl")).to_string();
    let cases: [(&[&str], i32, &[&str]); 23] = [
        (&["gsm8k"], 2, &["--model", "--data"]),
        (&["gsm9k", "--model", &model], 2, &["gsm8k"]),
        (
            &["gsm8k", "--model", &model, "--data", "absent.jsonl"],
            1,
            &["absent.jsonl", "cannot open"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &write("empty.jsonl", "\n")],
            1,
            &["empty.jsonl", "holds no problem"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &write(
                    "keys.jsonl",
                    "{\"question\": \"q\", \"answer\": \"#### 1\"}\n\n{\"question\": \"q\", \"reply\": 1}\n",
                ),
            ],
            1,
            &[
                "keys.jsonl:3",
                "solution or answer or ground_truth: is missing; the row has question, reply",
            ],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &write("json.jsonl", "{\"question\": \"q\", \n"),
            ],
            1,
            &["json.jsonl:1", "is not JSON"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &write("array.json", "[{\"question\": 3, \"answer\": \"4\"}]"),
            ],
            1,
            &["array.json: row 1", "question: is not text but 3"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &write("rows.json", "[1, 2]")],
            1,
            &["rows.json: row 1: is not an object"],
        ),
        (&["gsm8k", "--model", &model, "--data", &data, "--shots", "2"], 2, &["--shots-from"]),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--shots", "9", "--shots-from", &data],
            1,
            &["holds 5 problems, --shots asks for 9"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--max-new-tokens", "0"],
            1,
            &["--max-new-tokens"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--prompt-template", "Q:"],
            1,
            &["{prompt}"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--data", &math],
            1,
            &["predictions.json: is of another data set: prediction 1 answers \"Mia has 3"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--data", &data, "--limit", "3"],
            1,
            &["holds 5 predictions, the data 3 problems"],
        ),
        (
            &["gsm8k", "--predictions", &data],
            1,
            &["gsm8k.jsonl:1", "ground_truth: is missing; the row has question, answer"],
        ),
        (&["gsm8k", "--model", &model, "--data", &data, "--shots-from", &data], 2, &["--shots"]),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--beta", "0.2"],
            2,
            &["unexpected argument '--beta'"],
        ),
        (
            &["gsm8k-pot", "--predictions", &answers, "--shots", "1", "--shots-from", &data],
            2,
            &["--shots"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--scorer", "numeric"],
            2,
            &["unexpected argument '--scorer'"],
        ),
        (&["--compare", &answers, &answers], 2, &["unexpected argument '--compare'"]),
        (
            &["gsm8k", "--predictions", &answers, "--shots-from", &data],
            2,
            &["--shots-from", "cannot be used with", "--predictions"],
        ),
        (
            &["math", "--predictions", &answers, "--allow-code-execution"],
            2,
            &["unexpected argument '--allow-code-execution'"],
        ),
        (&["preference", "--predictions", &answers], 2, &["unexpected argument '--predictions'"]),
    ];
    let output = folder.path().join("out");
    for (args, status, parts) in cases {
        let args = [&["evaluate"], args, &["--output", text(&output)]].concat();
        let message = refused(&args, status);
        for part in parts {
            assert!(message.contains(part), "{args:?}: {part:?} is not in {message}");
        }
    }
    let message = refused(&["compare", &answers, &answers, "--output", text(&output)], 1);
    assert!(
        message.contains("does not say of which task") && message.contains("compare A B --task"),
        "{message}"
    );
    assert!(!output.exists(), "a failed command has written its output");
}
