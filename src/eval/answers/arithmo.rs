//! The scoring rule with which Arithmo-Mistral-7B was published.

use super::{Scorer, Verdict, gsm8k_answer};

/// Compares the text after the last `The answer is` exactly. Commas are removed in the known answer only.
pub const ARITHMO: Scorer = Scorer::new(
    "arithmo",
    "the text after the last \"The answer is\", compared exactly (Arithmo's published rule)",
    judge,
);

/// Returns the trimmed text after the last `The answer is:`, or, if there is none, after the last `The answer is `.
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
