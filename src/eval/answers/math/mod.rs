//! Answers of MATH problems: formulas in `\boxed{}`.

mod equivalent;
mod hendrycks;

pub use equivalent::equivalent;
pub use hendrycks::{normalized, same_when_normalized};

use super::{Scorer, Verdict, last_boxed, stated_answer, until};

/// The scorers of MATH.
pub const MATH_SCORERS: [Scorer; 3] = [
    Scorer::new(
        "arithmo",
        "the text after the last \"The answer is\", equal when normalised (Arithmo's published rule)",
        |known, completion| verdict(known, stated_answer(completion), same_when_normalized),
    ),
    Scorer::new(
        "hendrycks",
        "the last \\boxed answer, equal when normalised (Hendrycks et al. 2021)",
        |known, completion| {
            verdict(known, last_boxed(first_problem(completion)), same_when_normalized)
        },
    ),
    Scorer::new(
        "equivalent",
        "the stated answer (boxed, or after \"answer is\"), equal when normalised or in value: 0.5 = 1/2 = 50%, {1, 2} = {2, 1}",
        |known, completion| verdict(known, stated(completion), equivalent),
    ),
];

/// The known answer of a MATH solution: its last `\boxed{}`; the whole text where there is none.
pub fn math_answer(solution: &str) -> &str {
    last_boxed(solution).unwrap_or(solution).trim()
}

fn verdict(known: &str, answer: Option<&str>, same: fn(&str, &str) -> bool) -> Verdict {
    Verdict {
        answer: answer.map(str::to_string),
        correct: answer.is_some_and(|answer| same(math_answer(known), answer)),
    }
}

/// What a completion states before it makes up a next problem.
fn first_problem(completion: &str) -> &str {
    until(completion, &["Question:", "Problem:"])
}

fn stated(completion: &str) -> Option<&str> {
    let text = first_problem(completion);
    last_boxed(text).or_else(|| {
        let (_, answer) =
            ["answer is:", "answer is"].iter().find_map(|mark| text.rsplit_once(mark))?;
        // The end of the sentence of the few-shot prompt of Minerva (arXiv 2206.14858).
        let answer = until(answer, &["I hope it is correct", "\n\n"]).trim();
        let answer = answer.strip_suffix('.').unwrap_or(answer);
        (!answer.is_empty()).then_some(answer)
    })
}
