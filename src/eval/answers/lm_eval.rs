//! The two rules of `gsm8k` in EleutherAI's lm-evaluation-harness, version 3 of the task.

use std::sync::LazyLock;

use regex::Regex;

use super::{Scorer, Verdict};
use crate::eval::pattern;

/// Where the harness ends a completion.
pub const STOP_STRINGS: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// The first `#### number`.
pub const STRICT_MATCH: Scorer = Scorer::new(
    "strict-match",
    "the number after the first \"####\" (lm-eval's strict-match)",
    |ground_truth, completion| judge(ground_truth, strict(until(completion, &STOP_STRINGS))),
);

/// The last thing that looks like a number.
pub const FLEXIBLE_EXTRACT: Scorer = Scorer::new(
    "flexible-extract",
    "the last number (lm-eval's flexible-extract)",
    |ground_truth, completion| judge(ground_truth, flexible(until(completion, &STOP_STRINGS))),
);

static STRICT: LazyLock<Regex> = LazyLock::new(|| pattern(r"#### (-?[0-9.,]+)"));
static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?[$0-9.,]{2,}|-?[0-9]+"));
/// Everything up to the last `#### `.
static SOLUTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s).*#### "));
/// A final full stop; as in Python, a line end may follow it.
static FULL_STOP: LazyLock<Regex> = LazyLock::new(|| pattern(r"\.(\n?)\z"));

/// `text` up to the first of `stops`.
pub fn until<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let end = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

fn strict(completion: &str) -> Option<&str> {
    Some(STRICT.captures(completion)?.get(1)?.as_str())
}

fn flexible(completion: &str) -> Option<&str> {
    Some(FLEXIBLE.find_iter(completion).last()?.as_str())
}

fn judge(ground_truth: &str, answer: Option<&str>) -> Verdict {
    Verdict {
        answer: answer.map(str::to_string),
        correct: answer.is_some_and(|answer| compared(answer) == compared(ground_truth)),
    }
}

/// What the harness compares: without commas, dollar signs, the way to the answer, a final full stop, and case.
fn compared(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = SOLUTION.replace(&text, "");
    FULL_STOP.replace(&text, "$1").to_lowercase()
}
