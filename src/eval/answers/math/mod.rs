//! Scores answers to MATH problems, which are formulas in `\boxed{}`.

mod equivalent;
mod hendrycks;
mod stated;

pub use equivalent::equivalent;
pub use hendrycks::{normalized, same_when_normalized};

use super::{Scorer, Verdict, last_boxed, stated_answer, until};
use stated::stated;

/// The scorers of MATH.
pub const MATH_SCORERS: [Scorer; 3] = [
    Scorer::new(
        "arithmo",
        "the text after the last \"The answer is\", equal when normalized (Arithmo's published rule)",
        |known, completion| verdict(known, stated_answer(completion), same_when_normalized),
    ),
    Scorer::new(
        "hendrycks",
        "the last \\boxed answer, equal when normalized (Hendrycks et al. 2021)",
        |known, completion| {
            verdict(known, last_boxed(first_problem(completion)), same_when_normalized)
        },
    ),
    Scorer::new(
        "equivalent",
        "the stated answer (boxed, or after \"answer is\"), equal in value: 0.5 = 1/2 = 50%, {1, 2} = {2, 1}, x+1 = 1+x",
        |known, completion| verdict(known, stated(completion), equivalent),
    ),
];

/// Returns the known answer in a MATH solution: the content of its last `\boxed{}`, or the whole text if there is none.
pub fn math_answer(solution: &str) -> &str {
    last_boxed(solution).unwrap_or(solution).trim()
}

fn verdict(known: &str, answer: Option<&str>, same: fn(&str, &str) -> bool) -> Verdict {
    Verdict {
        answer: answer.map(str::to_string),
        correct: answer.is_some_and(|answer| same(math_answer(known), answer)),
    }
}

/// Returns the completion up to a next problem. A head of a problem at its beginning is its own problem, restated.
fn first_problem(completion: &str) -> &str {
    const HEADS: [&str; 2] = ["Question:", "Problem:"];
    let text = completion.trim_start_matches(|c: char| c.is_whitespace() || "*#_>".contains(c));
    let head = HEADS.iter().find(|head| text.starts_with(**head));
    let start = completion.len() - text.len() + head.map_or(0, |head| head.len());
    &completion[..start + until(&completion[start..], &HEADS).len()]
}
