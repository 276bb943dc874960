//! Cuts off the part of a completion after its own answer: a next problem, or a next turn of a chat.

use std::sync::LazyLock;

use regex::{Captures, Match, Regex};

use crate::eval::pattern;

/// Returns the part of a completion that answers its own problem: the text after a closed `<think>` block, up to the head
/// of a next problem (`Question:`, `Problem:`, `Q:`, `### Instruction:`, `Human:`, `User:`, ...) or a mark of a chat
/// template. A mark at the beginning, where the model restates its problem, does not end the answer.
///
/// ```
/// use arithmo::eval::answers::before_next_problem;
/// assert_eq!(before_next_problem("It is 18.\n\nProblem: 1 + 1?\nIt is 2."), "It is 18.\n\n");
/// assert_eq!(before_next_problem("Problem: 9 + 9?\nIt is 18."), "Problem: 9 + 9?\nIt is 18.");
/// ```
pub fn before_next_problem(completion: &str) -> &str {
    let text = after_thinking(completion);
    // The end of the previous mark, that mark, and whether the head of a restated problem before has a number.
    let (mut start, mut previous, mut restated) = (0, "", None);
    for found in MARK.captures_iter(text) {
        let Some((mark, is_turn)) = mark(&found) else {
            continue;
        };
        let before = &text[start..mark.start()];
        let numbered = found.name("number").is_some();
        let ends = if is_turn {
            !opens_turn(before, previous, mark.as_str())
        } else {
            has_worked(before, restated.is_some()) && !(numbered && restated == Some(true))
        };
        if ends {
            return &text[..mark.start()];
        }
        if !is_turn {
            restated = Some(numbered);
        }
        (start, previous) = (mark.end(), mark.as_str());
    }
    text
}

/// A mark of a chat template, or the head of a problem. A head is at the start of a line, after Markdown, or directly after
/// the end of a sentence; "the answer to the Question:" does not contain one.
static MARK: LazyLock<Regex> = LazyLock::new(|| {
    let turn = r"</?s>|<\|[a-z_]{1,24}\|>|<｜[^｜<>\n]{1,24}｜>|<(?:start|end)_of_turn>|<[eb]os>|\[/?INST\]|^(?:user|assistant|system|human)[ \t]*$";
    let place = r#"(?:^[ \t>*_#\-]*|[0-9.!?)\]}>$*"][ \t*_]*)"#;
    let which = r"(?:(?:Here(?: is|'s) (?:another|a new|the next)|Next|New|Another|Follow-?up|Similar|User|Second|Bonus|Practice|Given|Original)[ \t]+)?";
    let noun = r"(?:Question|QUESTION|Problem|PROBLEM|Exercise|question|problem)(?:[ \t]+[Ss]tatement)?(?:[ \t]*\([^()\n]{0,30}\))?";
    let number = r"(?P<number>[ \t]*\#?[0-9]{1,3})";
    let colon = r"[*_]*[ \t]*[:：]";
    let person = r"(?:Q|Human|User|HUMAN|USER|Instruction|Task|TASK|Frage|Aufgabe|Problème|Exercice|Pregunta|Problema|Domanda|问题|問題|题目|題目)";
    let section = r"(?:\#{2,}|^\#)[ \t]*\**(?:Instruction|Input|Response|Question|Problem|Exercise|User|Human)(?:[ \t]*\#?[0-9]{1,3})?[*_]*[ \t]*(?:[:：]|$)|^\[(?:Question|Problem|Instruction)\]";
    let head = format!(
        r"{which}{noun}(?:{colon}|{number}(?:{colon}|[.)]))|{person}{colon}|Example[ \t]*\#?[0-9]{{1,3}}{colon}"
    );
    // If its special tokens are removed, a turn of Llama 3's template ends in "18.assistant".
    let bare = r#"[0-9.!?)\]}$*"](?P<bare>(?:assistant|user)[ \t]*$)"#;
    pattern(&format!(r"(?m)(?P<turn>{turn})|(?P<section>{section})|{place}(?P<head>{head})|{bare}"))
});

/// Returns the matched mark, and whether it is a mark of a chat template.
fn mark<'a>(found: &Captures<'a>) -> Option<(Match<'a>, bool)> {
    let head = || found.name("section").or_else(|| found.name("head"));
    let turn = found.name("turn").or_else(|| found.name("bare")).map(|mark| (mark, true));
    turn.or_else(|| head().map(|mark| (mark, false)))
}

/// Returns whether a mark of a chat template opens the turn of the answer: the text before it is empty, the name of a role,
/// or the restated turn of the user.
fn opens_turn(before: &str, previous: &str, mark: &str) -> bool {
    let before = before.trim();
    let role = before.split_whitespace().next().unwrap_or_default();
    let restated = previous == "[INST]" && mark == "[/INST]"
        || !previous.is_empty() && ["user", "system"].contains(&role);
    restated || ["", "assistant", "model", "user", "system"].contains(&before)
}

/// Returns whether the text before the head of a problem is work on an earlier problem: it has numbers and, after a restated
/// problem, also a sign of work.
fn has_worked(before: &str, restated: bool) -> bool {
    let work = ["=", "olution", "nswer", "####", "\\boxed"];
    let has_digit = before.contains(|c: char| c.is_ascii_digit());
    has_digit && (!restated || work.iter().any(|sign| before.contains(sign)))
}

/// Returns the text after the last mark that ends a model's thinking, or all of `text` if there is no text after one.
fn after_thinking(text: &str) -> &str {
    const ENDS: [&str; 3] = ["</think>", "</thinking>", "<|channel|>final<|message|>"];
    let rest = |end: &str| text.rsplit_once(end).map(|(_, rest)| rest);
    let has_text = |rest: &&str| rest.contains(char::is_alphanumeric);
    let mut answers = ENDS.iter().filter_map(|end| rest(end));
    answers.find(has_text).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_problems_and_turns_end_a_completion() {
        for (kept, dropped) in [
            ("It is 18.\n\n", "Problem: Ann has 4 cats.\nSolution: 4"),
            (" 18\n", "Question: 7 apples"),
            ("18", "Question: 7 apples"),
            ("It is 18. ", "Question: 7 apples"),
            ("It is 18.\n**", "Problem 2:** 7 apples"),
            ("It is 18.\n", "## Problem 2: 7 apples"),
            ("It is 18.\n", "### Problem 2\n7 apples"),
            ("18\n", "### Instruction:\n7"),
            ("18", "### Instruction:\n7"),
            ("18\n\n", "Q: 7 apples\nA: 7"),
            ("18\n", "Human: 7?"),
            ("18\n\n", "User: 7?"),
            ("18\n", "Next question: 7?"),
            ("18", "<|im_end|>\n<|im_start|>user\n7?"),
            ("18\n", "<|im_start|>user\n7?"),
            ("18", "</s>7"),
            ("I do not know.", "</s>18"),
            ("18 ", "[INST] 7 [/INST]"),
            ("18", "<end_of_turn>\n7"),
            ("18", "<|eot_id|>7"),
            ("18\n", "user\n7?"),
            ("It is 18.", "assistant\n\nIt is 7."),
            ("18", "user\n\n7?"),
            ("18\n\n", "Problem 3. Ann has 7 cats."),
            ("18\n\n", "Here is another problem: 7"),
            ("18\n\n", "Follow-up question: 7"),
            ("18\n\n", "Example 2: 7"),
            ("18\n\n", "[Question]\n7"),
            ("[INST] 9 + 9? [/INST] 18", "</s>7"),
            ("<|im_start|>user\n9 + 9?<|im_end|>\n<|im_start|>assistant\n18", "<|im_end|>"),
            ("18", "<｜end▁of▁sentence｜>7"),
            // A restated problem does not end the completion, but the one after its answer does.
            ("Problem: 9 + 9?\nSolution: 18\n\n", "Problem: 1 + 1?"),
            ("Question: 9 + 9?\nAnswer: 18\n", "Question: 1 + 1?"),
            ("<|im_start|>assistant\n18", "<|im_end|>7"),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n18", "<|eot_id|>7"),
        ] {
            let text = format!("{kept}{dropped}");
            assert_eq!(before_next_problem(&text), kept, "{text:?}");
        }
    }

    #[test]
    fn restated_problems_and_other_text_do_not_end_a_completion() {
        for text in [
            "Problem: 9 + 9?\nSolution: 18",
            "**Problem:** What is 9 + 9?\n\n**Solution:** 18",
            "Let us see.\n\nQuestion: 9 + 9?\nThe answer is 18.",
            "Problem: Ann has 9 eggs and gets 9.\nQuestion: How many has she?\nAnswer: 18",
            "1. **Understand the Problem:** 9 + 9\n2. It is 18.",
            "18 is the answer to the Question: 9 + 9",
            "Given problem: 9 eggs.\nQuestion: how many?\nSolution: 9 * 2 = 18",
            "Question 1: 9 + 9?\nAnswer 1: 18\nQuestion 2: 18 * 2?\nAnswer 2: 36",
            "### Problem Breakdown\n9 + 9\n### Response time\n18",
            "Step 1\n### Solution:\n18",
            "18 < 20 and 2 > 1 [5]",
        ] {
            assert_eq!(before_next_problem(text), text, "{text:?}");
        }
    }

    #[test]
    fn thinking_is_removed() {
        for (text, answer) in [
            ("<think>So it is 20?</think>\nIt is 18.", "\nIt is 18."),
            ("So it is 20?</think>18", "18"),
            ("<think>The answer is 18.</think>", "<think>The answer is 18.</think>"),
            (
                "<|channel|>analysis<|message|>20?<|end|><|start|>assistant<|channel|>final<|message|>18<|return|>",
                "18",
            ),
        ] {
            assert_eq!(before_next_problem(text), answer);
        }
    }
}
