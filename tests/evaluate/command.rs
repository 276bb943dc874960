//! `arithmo evaluate` as a user calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::answers::{fixture, shared};
use crate::programs::python_is_there;

/// Calls the program.
pub(crate) fn arithmo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arithmo"))
        .args(args)
        .args(["--backend", "ndarray"])
        .output()
        .unwrap()
}

/// What it prints, if all is well.
pub(crate) fn printed(args: &[&str]) -> String {
    let output = arithmo(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its message, if it refuses.
fn refused(args: &[&str], status: i32) -> String {
    let output = arithmo(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    message
}

pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The model built into the program.
pub(crate) fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model");
    path.to_str().unwrap().to_string()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes answers to the problems of a fixture as a predictions file.
fn predictions(folder: &Path, data: &str, answers: &[&str]) -> PathBuf {
    let rows = crate::answers::json_lines(&fixture(data));
    let entries = rows.iter().zip(answers).map(|(row, answer)| {
        let of = |keys: [&str; 2]| {
            keys.iter()
                .find_map(|key| row[*key].as_str())
                .unwrap()
                .to_string()
        };
        let question = of(["question", "problem"]);
        json!({
            "prediction": format!("Question: {question}\n\nAnswer:{answer}"),
            "question": question,
            "ground_truth": of(["answer", "solution"]),
        })
    });
    let path = folder.join("predictions.json");
    fs::create_dir_all(folder).unwrap();
    fs::write(&path, Value::from(entries.collect::<Vec<_>>()).to_string()).unwrap();
    path
}

fn check_page(path: &Path) -> String {
    let page = fs::read_to_string(path).unwrap();
    for tag in ["table", "article", "details", "pre", "div", "ul"] {
        let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
        assert_eq!(
            page.matches(&open).count(),
            page.matches(&close).count(),
            "{tag}"
        );
    }
    assert!(
        !page.contains("<script") && !page.contains("src=") && !page.contains("http"),
        "self-contained"
    );
    page
}

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
    let problems = crate::answers::json_lines(&data);
    assert_eq!(predictions.as_array().unwrap().len(), problems.len());
    for (prediction, problem) in predictions.as_array().unwrap().iter().zip(&problems) {
        assert_eq!(prediction["question"], problem["question"]);
        assert_eq!(prediction["ground_truth"], problem["answer"]);
        let prompt = format!(
            "Question: {}\n\nAnswer:",
            problem["question"].as_str().unwrap()
        );
        assert!(
            prediction["prediction"]
                .as_str()
                .unwrap()
                .starts_with(&prompt)
        );
        assert_eq!(prediction.as_object().unwrap().len(), 3);
    }
    let results = json_file(&output.join("results.json"));
    assert_eq!(
        (&results["task"], &results["total"]),
        (&json!("gsm8k"), &json!(5))
    );
    assert_eq!(results["scorers"]["numeric"]["total"], 5);
    assert_eq!(results["settings"]["max_new_tokens"], 9);
    check_page(&output.join("index.html"));
    assert!(!output.join("answers.partial.jsonl").exists());
    // Once more: nothing is generated. With other settings: refused, by name. With --overwrite: begun anew.
    assert_eq!(printed(&args), table);
    let other = [&args[..9], &["7"]].concat();
    let message = refused(&other, 1);
    assert!(
        message.contains("max_new_tokens was 9, is 7") && message.contains("--overwrite"),
        "{message}"
    );
    printed(&[&other[..], &["--overwrite"]].concat());
    assert_eq!(
        json_file(&output.join("results.json"))["settings"]["max_new_tokens"],
        7
    );
    // Scoring its answers again keeps what is known of them.
    let file = output.join("predictions.json");
    printed(&["evaluate", "gsm8k", "--predictions", text(&file)]);
    assert_eq!(
        json_file(&output.join("results.json"))["settings"]["max_new_tokens"],
        7
    );
}

#[test]
fn examples_stand_before_the_question() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, solved) = (
        model(),
        fixture("gsm8k.jsonl"),
        folder.path().join("solved.jsonl"),
    );
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
    // The example's answer is not taken for the model's.
    let verdicts = crate::answers::json_lines(&output.join("verdicts.jsonl"));
    assert!(!verdicts[1]["completion"].as_str().unwrap().contains("####"));
    assert_eq!(
        json_file(&output.join("results.json"))["settings"]["shots"],
        1
    );
    // An example that gives an answer away is refused.
    let message = refused(&[&args[..], &[text(&data)]].concat(), 1);
    assert!(message.contains("solves problem 1"), "{message}");
}

#[test]
fn prompts_without_room_for_an_answer_are_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("long.jsonl");
    let long = json!({"question": "words ".repeat(600), "answer": "#### 1"});
    fs::write(
        &data,
        format!(
            "{}\n{long}\n",
            json!({"question": "1 + 1?", "answer": "#### 2"})
        ),
    )
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
    assert_eq!(
        (&results["total"], &results["prompts_too_long"]),
        (&json!(2), &json!([2]))
    );
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
    let (file, data) = (
        predictions(folder.path(), "math.jsonl", &answers),
        fixture("math.jsonl"),
    );
    let table = printed(&[
        "evaluate",
        "math",
        "--predictions",
        text(&file),
        "--data",
        text(&data),
    ]);
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

#[test]
fn programs_run_only_if_allowed_and_failing_ones_count() {
    let folder = tempfile::tempdir().unwrap();
    let answers = [
        " print(3 * 6)",
        "\n```python\nx = 80 * 12.5\nprint(x)\n```",
        " print(30)\nimport os\nos.fork()",
        " while True: pass",
        " print('13'",
    ];
    let file = predictions(folder.path(), "gsm8k.jsonl", &answers);
    let args = ["evaluate", "gsm8k-pot", "--predictions", text(&file)];
    let message = refused(&args, 1);
    assert!(message.contains("--allow-code-execution"), "{message}");
    if !python_is_there() {
        return;
    }
    printed(
        &[
            &args[..],
            &["--allow-code-execution", "--program-seconds", "1"],
        ]
        .concat(),
    );
    let results = json_file(&folder.path().join("results.json"));
    for scorer in ["arithmo", "numeric"] {
        assert_eq!(results["scorers"][scorer]["correct"], 2, "{results}");
        assert_eq!(results["scorers"][scorer]["total"], 5);
    }
    assert_eq!(results["programs_failed"], 3);
    let programs = json_file(&folder.path().join("programs.json"));
    let outcomes: Vec<_> = programs
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(
        outcomes,
        ["printed", "printed", "failed", "failed", "failed"]
    );
    assert!(
        ["CPU time", "stopped after"]
            .iter()
            .any(|end| programs[3]["reason"].as_str().unwrap().contains(end)),
        "{programs}"
    );
    assert!(
        programs[2]["reason"]
            .as_str()
            .unwrap()
            .contains("Operation not permitted"),
        "{programs}"
    );
}

/// What a shell leaves open does not reach a program.
#[test]
#[cfg(unix)]
fn programs_get_no_open_files() {
    if !python_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = " import os\nos.fstat(9)\nprint(18)";
    let file = predictions(folder.path(), "gsm8k.jsonl", &[program, " print(1000)"]);
    let script = "exec 9</dev/zero; exec \"$@\"";
    let status = Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_arithmo"),
            "evaluate",
            "gsm8k-pot",
        ])
        .args(["--allow-code-execution", "--predictions", text(&file)])
        .output()
        .unwrap();
    assert!(status.status.success());
    let programs = json_file(&folder.path().join("programs.json"));
    assert!(
        programs[0]["reason"]
            .as_str()
            .unwrap()
            .contains("Bad file descriptor"),
        "{programs}"
    );
    assert_eq!(programs[1]["output"], "1000\n");
}

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
            &[
                " #### 18",
                " 100",
                " #### 30 birds",
                " -5 degrees",
                " <b>12</b> & more",
            ],
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
    assert_eq!(
        (&numeric["won"], &numeric["lost"]),
        (&json!([3, 4]), &json!([2, 5]))
    );
    assert_eq!(
        (&numeric["wins"], &numeric["p_value"]),
        (&json!(2), &json!(1.0))
    );
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

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_string()
    };
    let (model, data) = (model(), text(&fixture("gsm8k.jsonl")).to_string());
    let answers = text(&predictions(
        &folder.path().join("a"),
        "gsm8k.jsonl",
        &["", "", "", "", ""],
    ))
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
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &put("empty.jsonl", "\n"),
            ],
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
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &put("json.jsonl", "{\"question\": \"q\", \n"),
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
                &put("array.json", "[{\"question\": 3, \"answer\": \"4\"}]"),
            ],
            1,
            &["array.json: row 1", "question: is no text but 3"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &put("rows.json", "[1, 2]"),
            ],
            1,
            &["rows.json: row 1: is not an object"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--shots", "2"],
            2,
            &["--shots-from"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &data,
                "--shots",
                "9",
                "--shots-from",
                &data,
            ],
            1,
            &["holds 5 problems, --shots asks for 9"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &data,
                "--max-new-tokens",
                "0",
            ],
            1,
            &["--max-new-tokens"],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &data,
                "--prompt-template",
                "Q:",
            ],
            1,
            &["{prompt}"],
        ),
        (
            &["gsm8k", "--predictions", &answers, "--data", &math],
            1,
            &["predictions.json: is of another data set: prediction 1 answers \"Mia has 3"],
        ),
        (
            &[
                "gsm8k",
                "--predictions",
                &answers,
                "--data",
                &data,
                "--limit",
                "3",
            ],
            1,
            &["holds 5 predictions, the data 3 problems"],
        ),
        (
            &["gsm8k", "--predictions", &data],
            1,
            &[
                "gsm8k.jsonl:1",
                "ground_truth: is missing; the row has question, answer",
            ],
        ),
        (
            &[
                "gsm8k",
                "--model",
                &model,
                "--data",
                &data,
                "--shots-from",
                &data,
            ],
            2,
            &["--shots"],
        ),
        (
            &["gsm8k", "--model", &model, "--data", &data, "--beta", "0.2"],
            1,
            &["--beta: means nothing to gsm8k", "preference"],
        ),
        (
            &[
                "gsm8k-pot",
                "--predictions",
                &answers,
                "--shots",
                "1",
                "--shots-from",
                &data,
            ],
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
        (
            &["preference", "--predictions", &answers],
            1,
            &["log-probabilities"],
        ),
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
            assert!(
                message.contains(said),
                "{args:?}: {said:?} is not in {message}"
            );
        }
    }
    assert!(!output.exists(), "nothing is written of a mistake");
}

/// The whole real test set, from prompts to results.
#[test]
fn the_real_test_set_is_evaluated_with_a_tiny_model() {
    let (Some(data), Some(model)) = (
        shared("data/gsm8k/test.jsonl"),
        shared("reference/models/tiny-a"),
    ) else {
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
