//! Tests of the numeric scorer on answers to word problems as models write them.

use std::fs;

use arithmo::eval::answers::{GSM8K_SCORERS, NUMERIC, final_number, gsm8k_answer, parse_number};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::answers::fixture;
use crate::support::{json_lines, shared};

/// Compares verdicts with those of a careful person. About half of the answers are wrong but look right, because a
/// wrong answer that is judged right would become the chosen completion of a pair.
#[test]
fn answers_are_judged_as_a_careful_person_does() {
    let rows = json_lines(&fixture("word-problems.jsonl"));
    let right = rows.iter().filter(|row| row["numeric"] == true).count();
    assert!(right >= 300 && rows.len() - right >= 250, "{right} of {}", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap();
        let verdict = NUMERIC.judge(text("ground_truth"), text("completion"));
        if row["numeric"] != verdict.correct {
            wrong.push(format!("{:?} of {row}", verdict.answer));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Checks that the answer of every GSM8K solution is found in GSM8K's form, in a sentence and in a box.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn real_solutions_state_their_answers_in_every_form() {
    let Some(folder) = shared("data/gsm8k") else {
        return;
    };
    let mut judged = 0;
    for file in ["train.jsonl", "test.jsonl"] {
        for row in json_lines(&folder.join(file)) {
            let known = row["answer"].as_str().unwrap();
            let (body, _) = known.split_once("####").unwrap();
            let answer = gsm8k_answer(known);
            let value = parse_number(&answer);
            assert!(value.is_some(), "{known}");
            for completion in [
                known.to_string(),
                format!("{body}\nThe answer is: {answer}"),
                format!("{body} The answer is ${answer}.00."),
                format!("{body}\n\\boxed{{{answer}}}"),
            ] {
                assert_eq!(final_number(&completion), value, "{completion}");
            }
            let other = format!("{body}\nThe answer is: {answer}1");
            assert!(!NUMERIC.judge(known, &other).correct, "{other}");
            judged += 1;
        }
    }
    assert_eq!(judged, 7473 + 1319);
}

/// Judges the outputs of Arithmo's published programs by the numeric scorer.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn published_program_outputs_keep_their_count() {
    let Some(path) = shared("data/arithmo/gsm8k_zero_shot_PoT_results.txt") else {
        return;
    };
    let text = fs::read_to_string(path).unwrap();
    let records = text.split("=========\n").filter(|record| !record.trim().is_empty());
    let (mut right, mut judged) = (0, 0);
    for record in records {
        let (printed, known) =
            record.trim_end().rsplit_once('\n').unwrap_or(("", record.trim_end()));
        right += usize::from(NUMERIC.judge(&format!("#### {known}"), printed).correct);
        judged += 1;
    }
    // Each of the 1,308 records follows a line of `=`.
    assert_eq!((right, judged), (932, 1308));
}

/// Checks texts that would take many minutes in quadratic time.
#[test]
fn long_answers_are_judged_in_linear_time() {
    for piece in [
        "1 ",
        "1 000 ",
        "a",
        "9",
        "1,",
        "1.",
        "\\boxed{",
        "}",
        "\\boxed 5",
        "####1",
        "#### 1\n\nab\n",
        "answer is ",
        "answer: 1 ",
        "Question:",
        "1\nQuestion 2: ",
        "<|im_end|>",
        "((1",
        "\\frac{",
        "\\sqrt[",
        "1**",
        "½",
        "<<",
        "1 or ",
        "twenty ",
        "1-",
        "$",
        "two thirds ",
        "3 times as many ",
        "18? ",
        "It is 20. ",
        "One might think that the answer is 18. ",
        "However, ",
        "#### 2 apples cost\n2 = 2\n",
        "Ann 5, ",
        "plus 1 ",
    ] {
        let long = piece.repeat(200_000 / piece.len());
        for scorer in GSM8K_SCORERS {
            scorer.judge("#### 7", &long);
            scorer.judge("#### 7", &format!("The answer is {long}"));
        }
    }
    let digits = format!("The answer is {}", "9".repeat(100_000));
    assert_eq!(final_number(&digits), None);
    // An answer at the end of a long text is found.
    let late = format!("{}\nThe answer is 18.", "1 ".repeat(5_000_000));
    assert_eq!(final_number(&late), parse_number("18"));
}

#[test]
fn random_text_does_not_make_the_scorer_panic() {
    let pieces = [
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "\\boxed{",
        "(",
        ")",
        "1",
        ",",
        ".",
        "-",
        "/",
        "%",
        "\\text{",
        "#### ",
        "é",
        "\u{2212}",
        "The answer is: ",
        "= ",
        "Question:",
        " ",
        "\n",
        "$",
        "10^",
        "9e",
        "½",
        "³",
        "√",
        "x",
        "_{",
        "**",
        "*",
        "<<",
        ">>",
        "<",
        "|",
        "–",
        "’",
        "and ",
        "or ",
        "half",
        "a ",
        "dozen",
        "one ",
        "twenty-",
        "°",
        "€",
        "\u{202f}",
        "000",
        "１",
        "是",
        "Answer\n",
        "\"answer\": ",
        "</think>",
        "<|a|>",
        "!",
        ";",
        ":",
        "\\",
        "\\,",
        "{,}",
        "k",
        "\u{301}",
        "😊",
        "to ",
        "of ",
        "- ",
    ];
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for length in 0..40_000 {
        let text: String =
            (0..length % 20).map(|_| pieces[random.next_u32() as usize % pieces.len()]).collect();
        NUMERIC.judge(&text, &text);
        parse_number(&text);
    }
}
