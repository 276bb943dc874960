//! Mistakes in calling `arithmo evaluate`, each named.

use std::fs;

use crate::answers::fixture;
use crate::calls::{model, predictions, refused, text};

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_string()
    };
    let (model, data) = (model(), text(&fixture("gsm8k.jsonl")).to_string());
    let answers =
        text(&predictions(&folder.path().join("a"), "gsm8k.jsonl", &["", "", "", "", ""]))
            .to_string();
    let math = text(&fixture("math.jsonl")).to_string();
    let cases: [(&[&str], i32, &[&str]); 24] = [
        (&["gsm8k"], 2, &["--model", "--data"]),
        (&["gsm9k", "--model", &model], 2, &["gsm8k"]),
        (
            &["gsm8k", "--model", &model, "--data", "absent.jsonl"],
            1,
            &["absent.jsonl", "cannot read"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &put("empty.jsonl", "\n")],
            1,
            &["empty.jsonl", "holds no problem"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &put(
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
            &["gsm8k", "--model", &model, "--data", &put("json.jsonl", "{\"question\": \"q\", \n")],
            1,
            &["json.jsonl:1", "is not JSON"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &put("array.json", "[{\"question\": 3, \"answer\": \"4\"}]"),
            ],
            1,
            &["array.json: row 1", "question: is no text but 3"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &put("rows.json", "[1, 2]")],
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
            1,
            &["--beta: means nothing to gsm8k", "preference"],
        ),
        (
            &["gsm8k-pot", "--predictions", &answers, "--shots", "1", "--shots-from", &data],
            2,
            &["--shots"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--scorer", "numeric"],
            2,
            &["--scorer", "cannot be used with", "--predictions"],
        ),
        (
            &["--compare", &answers, &answers, "--beta", "0.2"],
            2,
            &["--beta", "cannot be used with", "--compare"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--shots-from", &data],
            2,
            &["--shots-from", "cannot be used with", "--predictions"],
        ),
        (
            &["math", "--predictions", &answers, "--allow-code-execution"],
            1,
            &["--allow-code-execution: means nothing to math"],
        ),
        (&["preference", "--predictions", &answers], 1, &["log-probabilities"]),
        (
            &["--compare", &answers, &answers],
            1,
            &["does not say of which task", "evaluate gsm8k --compare"],
        ),
    ];
    let output = folder.path().join("out");
    for (args, status, said) in cases {
        let args = [&["evaluate"], args, &["--output", text(&output)]].concat();
        let message = refused(&args, status);
        for said in said {
            assert!(message.contains(said), "{args:?}: {said:?} is not in {message}");
        }
    }
    assert!(!output.exists(), "nothing is written of a mistake");
}
