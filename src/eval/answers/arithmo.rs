//! The rule that Arithmo-Mistral-7B was published with.

use super::{Scorer, Verdict, gsm8k_answer};

/// Exact text after the last `The answer is`; commas are removed in the known answer only.
pub const ARITHMO: Scorer = Scorer::new(
    "arithmo",
    "the text after the last \"The answer is\", letter for letter (Arithmo's published rule)",
    judge,
);

/// What follows the last `The answer is:`, or else the last `The answer is `, trimmed.
pub fn stated_answer(completion: &str) -> Option<&str> {
    ["The answer is:", "The answer is "]
        .iter()
        .find_map(|mark| completion.rsplit_once(mark))
        .map(|(_, answer)| answer.trim())
}

fn judge(ground_truth: &str, completion: &str) -> Verdict {
    let answer = stated_answer(completion);
    Verdict {
        answer: answer.map(str::to_string),
        correct: answer == Some(gsm8k_answer(ground_truth).as_str()),
    }
}
