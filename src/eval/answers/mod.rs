//! Final answers in generated text: found and compared, by several rules side by side.
//!
//! A [`Scorer`] is a pure function of a known solution and a completion. Published numbers differ by their rule as much
//! as by their model, so every rule is applied to every answer.

mod arithmo;
mod boxed;
mod lm_eval;
mod math;
mod numeric;

pub use arithmo::{ARITHMO, stated_answer};
pub use boxed::last_boxed;
pub use lm_eval::{FLEXIBLE_EXTRACT, STOP_STRINGS, STRICT_MATCH, until};
pub use math::{MATH_SCORERS, equivalent, math_answer, normalized, same_when_normalized};
pub use numeric::{NUMERIC, final_number, parse_number};

use serde::{Deserialize, Serialize};

/// What a scorer says of one completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The answer found in the completion, as the scorer compares it; `None`: it found none.
    pub answer: Option<String>,
    /// Whether it is the known one. Without an answer it is not.
    pub correct: bool,
}

/// A rule that finds the final answer of a completion and compares it with the known one.
#[derive(Clone, Copy, Debug)]
pub struct Scorer {
    /// Its name in `results.json`.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// The rule: known solution (whole, as in the data), completion (without the prompt).
    rule: fn(&str, &str) -> Verdict,
}

impl Scorer {
    /// A scorer that applies `rule` to the known solution and a completion.
    pub const fn new(
        name: &'static str,
        about: &'static str,
        rule: fn(&str, &str) -> Verdict,
    ) -> Self {
        Self { name, about, rule }
    }

    /// Judges `completion` (what the model wrote after the prompt) by `ground_truth` (the whole known solution).
    pub fn judge(&self, ground_truth: &str, completion: &str) -> Verdict {
        (self.rule)(ground_truth, completion)
    }
}

/// The scorers of word problems whose answer is a number, GSM8K's.
pub const GSM8K_SCORERS: [Scorer; 4] = [ARITHMO, STRICT_MATCH, FLEXIBLE_EXTRACT, NUMERIC];

/// What stands after `####` in a GSM8K solution, commas removed; the whole text where there is no `####`.
pub fn gsm8k_answer(ground_truth: &str) -> String {
    let after = ground_truth.rsplit("####").next().unwrap_or_default();
    after.trim().replace(',', "")
}

/// The completion in `prediction`, which is the whole decoded text: what follows the question and the next `Answer:`.
/// Without the question in it, all of `prediction`.
///
/// ```
/// use arithmo::eval::answers::completion_of;
/// assert_eq!(completion_of("2 + 2?", "Question: 2 + 2?\n\nAnswer: 4"), " 4");
/// ```
pub fn completion_of<'a>(question: &str, prediction: &'a str) -> &'a str {
    let question = question.trim();
    let Some(start) = prediction.find(question).filter(|_| !question.is_empty()) else {
        return prediction;
    };
    let rest = &prediction[start + question.len()..];
    // The mark follows the question at once, but for a sentence of the template.
    match rest.find("Answer:") {
        Some(mark) => &rest[mark + "Answer:".len()..],
        None => rest,
    }
}
