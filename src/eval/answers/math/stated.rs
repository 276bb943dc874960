//! Finds the answer that a completion states to a MATH problem.

use std::sync::LazyLock;

use regex::Regex;

use crate::eval::answers::correction::{correction, text_after};
use crate::eval::answers::hedge::is_hedged;
use crate::eval::answers::{before_next_problem, last_closed_box};
use crate::eval::pattern;

/// Number of bytes of a sentence that are read. The longest answers of MATH have about 160 characters.
const MAX_SENTENCE_BYTES: usize = 4_000;

/// Maximum number of announcements that are examined, from the last one.
const MAX_ANNOUNCEMENTS: usize = 100;

/// Returns the answer that a completion states: the content of its last box that is closed and not empty, else the sentence
/// after its last "answer is" or "answer:" that is not a guess. Returns `None` if the answer is withdrawn afterwards.
///
/// ```text
/// so we get \boxed{2}. I \boxed it.   2
/// The answer is $2$.\nThis is ...     $2$
/// ```
pub(super) fn stated(completion: &str) -> Option<&str> {
    let text = before_next_problem(completion);
    let answer = last_closed_box(text).or_else(|| announced(text));
    answer.filter(|answer| is_kept(answer, text_after(text, answer)))
}

/// The announcement of an answer: "answer is", "answer:", or "Final Answer" on a line of its own.
static ANNOUNCEMENT: LazyLock<Regex> = LazyLock::new(|| {
    let about = r"(?:\s+(?:to|for)\b[^.:=\n$\\]{0,80}?)?";
    let is = r"\s+(?:is|(?:would|should|must)\s+be)";
    let heading = r"^[#*_> \t]*(?:final[ \t]+)?answer[*_ \t]*\r?$";
    pattern(&format!(r"(?im){heading}|answer(?:[*_]*:|(?P<phrase>{about}{is})(?:[^\w'’]|$))"))
});

/// Returns the sentence after the last announcement of an answer that is neither a guess nor a question.
fn announced(text: &str) -> Option<&str> {
    let found: Vec<_> = ANNOUNCEMENT.captures_iter(text).collect();
    found.iter().rev().take(MAX_ANNOUNCEMENTS).find_map(|found| {
        let mark = found.get(0)?;
        let end = found.name("phrase").unwrap_or(mark).end();
        let answer = trimmed(sentence(&text[end..]));
        let is_guess = is_hedged(&text[..mark.start()]) || is_asked(text_after(text, answer));
        (!answer.is_empty() && !is_guess).then_some(answer)
    })
}

/// Returns whether the sentence that continues with `rest` is a question.
fn is_asked(rest: &str) -> bool {
    let end = rest.find(['.', '!', '?', '\n']);
    end.is_some_and(|end| rest[end..].starts_with('?'))
}

/// Returns whether an answer is still valid after the text `after` that follows it: there is no correction, or the
/// correction repeats the answer or contains no mathematics.
fn is_kept(answer: &str, after: &str) -> bool {
    let Some(correction) = correction(after) else {
        return true;
    };
    let is_mathematics = |c: char| c.is_ascii_digit() || "$\\".contains(c);
    if !correction.text.contains(is_mathematics) {
        return !correction.is_denial;
    }
    let compact = |text: &str| text.replace(|c: char| c.is_whitespace() || c == '$', "");
    let (text, answer) = (compact(correction.text), compact(answer));
    let mut occurrences = text.match_indices(&answer);
    // The 1 in 15 or 0.1 is not the answer 1.
    occurrences.any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + answer.len()..]);
        let is_apart = !before.ends_with(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
        is_apart && !after.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Returns the first sentence of `text`: up to the end of its line or a full stop before a space, but not inside a formula.
fn sentence(text: &str) -> &str {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '*');
    let mut end = text.len().min(MAX_SENTENCE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text[..end];
    let mut at = 0;
    while let Some(found) = text[at..].find(['$', '\\', '.', '\n']) {
        at += found;
        let rest = &text[at..];
        let ends = match rest.as_bytes()[0] {
            b'\n' => true,
            b'.' => rest[1..].chars().next().is_none_or(char::is_whitespace),
            _ => false,
        };
        if ends {
            return &text[..at];
        }
        at += formula_length(rest);
    }
    text
}

/// Returns the length in bytes of the formula at the start of `text`, or of one character (two for `\$`) if there is none.
fn formula_length(text: &str) -> usize {
    for (open, close) in [("$$", "$$"), ("$", "$"), ("\\[", "\\]"), ("\\(", "\\)")] {
        if let Some(inner) = text.strip_prefix(open) {
            let end = inner.find(close).filter(|end| *end > 0);
            return end.map_or(open.len(), |end| open.len() + end + close.len());
        }
    }
    // An escaped dollar sign does not open a formula.
    if text.starts_with("\\$") { 2 } else { 1 }
}

/// Removes from a sentence everything around its answer: emphasis, filler words, reasons, a remark after a formula.
fn trimmed(sentence: &str) -> &str {
    let around = |c: char| c.is_whitespace() || "*_`,;:".contains(c);
    let reasons = [
        ", since ",
        ", because ",
        " because ",
        " since ",
        ", as ",
        ", not ",
        ", and not ",
        " (since ",
        " (because ",
        " (as ",
    ];
    let reason = reasons.iter().filter_map(|reason| sentence.find(reason)).min();
    let sentence = &sentence[..reason.unwrap_or(sentence.len())];
    let sentence = without_fillers(sentence.trim_matches(around));
    let sentence = sentence.trim_matches(around).trim_end_matches('.');
    if sentence.starts_with(['$', '\\']) {
        let (answer, remark) = sentence.split_at(formula_length(sentence));
        let is_remark = remark.trim_start().starts_with([',', ';', '('])
            || remark.trim_start().starts_with("because");
        if is_remark && !remark.contains(|c: char| c.is_ascii_digit() || "$\\".contains(c)) {
            return answer;
        }
    }
    sentence
}

/// Removes filler words before the answer from a sentence: "therefore", "equal to".
fn without_fillers(mut sentence: &str) -> &str {
    const FILLERS: [&str; 12] = [
        "therefore",
        "thus",
        "hence",
        "simply",
        "just",
        "then",
        "now",
        "indeed",
        "exactly",
        "equal to",
        "given by",
        "of course",
    ];
    for _ in 0..3 {
        let rest = FILLERS.iter().find_map(|filler| sentence.strip_prefix(filler));
        match rest.and_then(|rest| rest.strip_prefix([' ', ','])) {
            Some(rest) => sentence = rest.trim_start(),
            None => break,
        }
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stated_answers_are_found() {
        for (completion, answer) in [
            (r"\boxed{18}. I used \boxed as asked.", "18"),
            (r"\boxed{18}. Let me check again: \boxed{1", "18"),
            (r"\boxed{18} and \boxed{}", "18"),
            (r"**Problem:** What is 9+9?\n\n**Solution:** \boxed{18}", "18"),
            ("The answer is 2. Let me know if you need more.", "2"),
            ("The answer is $2$.\nThis is because 1+1=2.", "$2$"),
            ("The answer is: $\\frac{1}{2}$.\nNext we check it.", r"$\frac{1}{2}$"),
            ("The answer is 2.5.", "2.5"),
            ("The answer is:\n\n$$\nx = 2.\n$$\nDone.", "$$\nx = 2.\n$$"),
            ("The answer is\n\\[\n\\frac12\n\\]\nas 1.", "\\[\n\\frac12\n\\]"),
            (r"The answer is \(x\), as we saw.", r"\(x\)"),
            ("The final answer is $3$ or $4$. I hope it is correct.", "$3$ or $4$"),
            ("The answer is \\$5.00. It is $3 less.", "\\$5.00"),
            ("The answer is $(1, 2)$, where x comes first.", "$(1, 2)$"),
            ("**Answer:** 7\n", "7"),
            ("The answer is **7**.", "7"),
            ("THE ANSWER IS 7", "7"),
            ("The answer is 7.\n\nProblem: 2 + 2?\nThe answer is 4.", "7"),
        ] {
            assert_eq!(stated(completion), Some(answer), "{completion}");
        }
        for completion in ["It is 7.", "The answer is", r"\boxed{7", "the answer is .", ""] {
            assert_eq!(stated(completion), None, "{completion}");
        }
    }

    #[test]
    fn odd_text_is_searched_in_one_pass() {
        for piece in ["\\[", "$", "$$a", "\\(", "answer is ", "answer is $", "é.", "\\boxed{"] {
            let text = format!("The answer is {}", piece.repeat(200_000));
            stated(&text);
        }
    }
}
