//! Tests of the scorers on hand-made answers, and on real ones if their data are present.

use std::path::PathBuf;

use arithmo::eval::answers::{
    GSM8K_SCORERS, MATH_SCORERS, NUMERIC, equivalent, final_number, find_completion, gsm8k_answer,
    parse_number, same_when_normalized,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::support::{json_lines, shared};

/// Returns the path of a file in `tests/fixtures/evaluate`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluate").join(name)
}

#[test]
fn every_scorer_judges_answers_as_the_table_says() {
    let rows = json_lines(&fixture("answers.jsonl"));
    assert!(rows.len() >= 150, "{}", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap();
        for scorer in GSM8K_SCORERS {
            let verdict = scorer.judge(text("ground_truth"), text("completion"));
            if row[scorer.name] != verdict.correct {
                wrong.push(format!("{}: {verdict:?} of {row}", scorer.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn different_notations_of_a_number_are_equal() {
    for (same, different) in [
        (vec!["1000", "1,000", "1000.0", "$1,000.00", "1e3", "10^3 = 1000"], "100"),
        (vec!["-0.5", "-1/2", "$-.5", r"-\frac{1}{2}", r"-\dfrac12", "\u{2212}0.50"], "0.5"),
        (vec!["3.25", "3 1/4", r"3\frac{1}{4}", r"$3\tfrac14$ cups", "13/4", "325 / 100"], "3/4"),
    ] {
        let values: Vec<_> = same.iter().map(|text| parse_number(text)).collect();
        assert!(values[0].is_some(), "{same:?}");
        assert!(values.iter().all(|value| *value == values[0]), "{same:?}: {values:?}");
        assert_ne!(parse_number(different), values[0]);
    }
    for none in ["", "twelve", "3:30", "2-3", "2 * 3", "1/0", "3!", "x3", "1, 2", "1.2.3"] {
        assert_eq!(parse_number(none), None, "{none}");
    }
    // Such numbers are too long to be answers and would take hours to compute.
    assert_eq!(parse_number("1e999999999"), None);
    assert_eq!(parse_number(&"9".repeat(100_000)), None);
}

#[test]
fn completions_begin_after_the_prompt() {
    for (question, prediction, completion) in [
        ("2 + 2?", "Question: 2 + 2?\n\nAnswer: 4", " 4"),
        (
            "2 + 2?",
            "Question: 1?\nAnswer: 1\n\nQuestion: 2 + 2?\nAnswer: 4\nAnswer: 5",
            " 4\nAnswer: 5",
        ),
        (
            "2 + 2?",
            "Question: 2 + 2?. Write a Python program to solve this.\n\nAnswer: print(4)",
            " print(4)",
        ),
        (" 2 + 2?\n", "Question: 2 + 2?\n\nAnswer:", ""),
        ("2 + 2?", " only the answer, 4", " only the answer, 4"),
        ("", "Question: \n\nAnswer: 4", "Question: \n\nAnswer: 4"),
    ] {
        assert_eq!(find_completion(question, prediction), completion, "{prediction:?}");
    }
}

/// Compares verdicts with the labels that GSM8K's authors gave four sampled solutions of each of 1,319 problems.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn real_solutions_are_judged_as_their_labels_say() {
    let Some(path) = shared("data/gsm8k/example_model_solutions.jsonl") else {
        return;
    };
    let mut judged = 0;
    for row in json_lines(&path) {
        let known = row["ground_truth"].as_str().unwrap();
        for model in ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"] {
            let solution = row[model]["solution"].as_str().unwrap();
            let verdict = NUMERIC.judge(known, solution);
            assert_eq!(
                Value::from(verdict.correct),
                row[model]["is_correct"],
                "{known:?} {solution:?}"
            );
            judged += 1;
        }
    }
    assert_eq!(judged, 4 * 1319);
}

/// Checks that every known answer of GSM8K's test set is parsed, and that the same amount in dollars is correct.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn known_answers_of_the_real_test_set_are_parsed() {
    let Some(path) = shared("data/gsm8k/test.jsonl") else {
        return;
    };
    let rows = json_lines(&path);
    for row in &rows {
        let known = row["answer"].as_str().unwrap();
        let answer = gsm8k_answer(known);
        let value = final_number(known).unwrap();
        assert_eq!(value.to_string(), answer);
        let text = format!("It is ${answer}.00 a day.");
        assert!(NUMERIC.judge(known, &text).correct, "{text}");
    }
    assert_eq!(rows.len(), 1319);
}

#[test]
fn formulas_are_compared_as_the_table_says() {
    let mut wrong = Vec::new();
    for row in json_lines(&fixture("formulas.jsonl")) {
        let (known, answer) = (row["known"].as_str().unwrap(), row["answer"].as_str().unwrap());
        for (rule, same) in [
            ("hendrycks", same_when_normalized as fn(&str, &str) -> bool),
            ("equivalent", equivalent),
        ] {
            for (one, other) in [(known, answer), (answer, known)] {
                if row[rule] != same(one, other) {
                    wrong.push(format!("{rule}: {row}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn answers_to_math_problems_are_found() {
    let known = r"So $x = 2$, and the sum is $\boxed{\frac{1}{4}}$.";
    for (completion, expected) in [
        (r" It is $\boxed{\frac14}$.", [false, true, true]),
        (r" It is $\boxed{0.25}$. The answer is: \frac{1}{4}", [true, false, true]),
        (r" The answer is: $0.25$", [false, false, true]),
        (
            r" Final Answer: The final answer is $\frac{1}{4}$. I hope it is correct.",
            [false, false, true],
        ),
        (r" \boxed{\frac{1}{4}}. Problem: 1 + 1? \boxed{2}", [false, true, true]),
        (r" It is a quarter, \frac{1}{4}.", [false, false, false]),
        (r" \boxed{\frac{1}{4}", [false, false, false]),
    ] {
        let verdicts = MATH_SCORERS.map(|scorer| scorer.judge(known, completion).correct);
        assert_eq!(verdicts, expected, "{completion}");
    }
}

/// Checks that scorers neither panic on random text nor take long on repeated text.
#[test]
fn odd_text_does_not_make_a_scorer_panic() {
    let pieces = [
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "\\boxed",
        "\\boxed{",
        "(",
        "]",
        "1",
        ",",
        ".",
        "-",
        "/",
        "%",
        "\\text{ ",
        "#### ",
        "é",
        "\u{2212}",
        "\0",
        "The answer is: ",
        "= ",
        "\\{",
        "\\cup",
        "Question:",
        " ",
        "\n",
        "$",
        "10^",
        "9e",
    ];
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for length in 0..3000 {
        let text: String =
            (0..length % 24).map(|_| pieces[random.next_u32() as usize % pieces.len()]).collect();
        for scorer in GSM8K_SCORERS.iter().chain(&MATH_SCORERS) {
            scorer.judge("#### 5", &text);
            scorer.judge(&text, &text);
        }
    }
    for long in ["(".repeat(5000), "\\boxed{".repeat(1000), "1/".repeat(2500), "1,".repeat(2500)] {
        assert!(!MATH_SCORERS[2].judge("7", &format!("{long} answer is {long}")).correct);
        assert!(!NUMERIC.judge("7", &long).correct);
    }
}
