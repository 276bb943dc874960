//! The two scoring rules of `gsm8k`, version 3, in EleutherAI's lm-evaluation-harness.

use std::sync::LazyLock;

use regex::Regex;

use super::{Scorer, Verdict};
use crate::eval::pattern;

/// Strings at which the harness ends a completion.
pub const STOP_STRINGS: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// Compares the number after the first `####`.
pub const STRICT_MATCH: Scorer = Scorer::new(
    "strict-match",
    "the number after the first \"####\" (lm-eval's strict-match)",
    |ground_truth, completion| judge(ground_truth, strict(until(completion, &STOP_STRINGS))),
);

/// Compares the last match of a pattern for numbers.
pub const FLEXIBLE_EXTRACT: Scorer = Scorer::new(
    "flexible-extract",
    "the last number (lm-eval's flexible-extract)",
    |ground_truth, completion| judge(ground_truth, flexible(until(completion, &STOP_STRINGS))),
);

static STRICT: LazyLock<Regex> = LazyLock::new(|| pattern(r"#### (-?[0-9.,]+)"));
static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?[$0-9.,]{2,}|-?[0-9]+"));
/// Text up to the last `#### `.
static SOLUTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s).*#### "));
/// A final full stop. As for `$` in Python, a line feed may follow it.
static FULL_STOP: LazyLock<Regex> = LazyLock::new(|| pattern(r"\.(\n?)\z"));

/// Returns `text` up to the first occurrence of any of `stops`.
pub fn until<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let end = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

fn strict(completion: &str) -> Option<&str> {
    Some(STRICT.captures(completion)?.get(1)?.as_str())
}

/// Returns the last match of the harness's pattern. A match contains only characters of the pattern, so only the last run of
/// these characters that has a match is searched.
fn flexible(completion: &str) -> Option<&str> {
    let mut runs = completion.rsplit(|c: char| !"-$0123456789.,".contains(c));
    let last = runs.find_map(|run| FLEXIBLE.find_iter(run).last())?;
    Some(last.as_str())
}

fn judge(ground_truth: &str, answer: Option<&str>) -> Verdict {
    Verdict {
        answer: answer.map(str::to_string),
        correct: answer.is_some_and(|answer| normalized(answer) == normalized(ground_truth)),
    }
}

/// Normalizes a text as the harness does: removes commas, dollar signs, text up to the last `#### ` and a final full stop,
/// and converts it to lower case.
fn normalized(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = SOLUTION.replace(&text, "");
    FULL_STOP.replace(&text, "$1").to_lowercase()
}
