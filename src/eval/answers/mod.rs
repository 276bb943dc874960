//! Finds final answers in generated text and compares them with known ones, by several rules.
//!
//! A [`Scorer`] is a pure function of a known solution and a completion. Published accuracies depend on the rule as much as
//! on the model, so every rule of a task is applied to every answer.

mod arithmo;
mod boxed;
mod completion;
mod correction;
mod expression;
mod fraction;
mod hedge;
mod lm_eval;
mod math;
mod numeric;
mod run_on;

use serde::{Deserialize, Serialize};

pub use arithmo::{ARITHMO, stated_answer};
pub use boxed::{last_boxed, last_closed_box};
pub use completion::{ForeignPrompt, find_completion};
pub use expression::rational_value;
pub use lm_eval::{FLEXIBLE_EXTRACT, STOP_STRINGS, STRICT_MATCH, until};
pub use math::{MATH_SCORERS, equivalent, math_answer, normalized, same_when_normalized};
pub use numeric::{NUMERIC, final_number, parse_number};
pub use run_on::before_next_problem;

/// A scorer's verdict on one completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Answer found in the completion, as the scorer compares it, or `None` if it found none.
    pub answer: Option<String>,
    /// Whether the answer equals the known one. False if there is no answer.
    pub correct: bool,
}

/// A rule that finds the final answer of a completion and compares it with the known one.
#[derive(Clone, Copy, Debug)]
pub struct Scorer {
    /// Name in `results.json`.
    pub name: &'static str,
    /// One-sentence description of the rule.
    pub about: &'static str,
    /// Function of the whole known solution, as in the data, and the completion without the prompt.
    rule: fn(&str, &str) -> Verdict,
}

impl Scorer {
    /// Creates a scorer that applies `rule` to the known solution and a completion.
    pub const fn new(
        name: &'static str,
        about: &'static str,
        rule: fn(&str, &str) -> Verdict,
    ) -> Self {
        Self { name, about, rule }
    }

    /// Judges `completion`, the text that the model wrote after the prompt, by `ground_truth`, the whole known solution.
    pub fn judge(&self, ground_truth: &str, completion: &str) -> Verdict {
        (self.rule)(ground_truth, completion)
    }
}

/// The scorers of GSM8K: word problems whose answer is a number.
pub const GSM8K_SCORERS: [Scorer; 4] = [ARITHMO, STRICT_MATCH, FLEXIBLE_EXTRACT, NUMERIC];

/// Returns the text after the last `####` of a GSM8K solution without commas, or the whole text if there is no `####`.
pub fn gsm8k_answer(ground_truth: &str) -> String {
    let after = ground_truth.rsplit("####").next().unwrap_or_default();
    after.trim().replace(',', "")
}
