//! The HTML page of an evaluation, or of two that are compared: tables first, then the answers, or
//! those that changed, side by side.

use std::path::Path;

use super::page::{card_list, document, escape, settings, table};
use crate::error::Result;
use crate::output::write_whole;

/// The content of the page.
#[derive(Clone, Debug, Default)]
pub struct EvaluationPage {
    /// Heading.
    pub title: String,
    /// The line below the heading.
    pub subtitle: String,
    /// The few most important numbers.
    pub cards: Vec<(&'static str, String)>,
    /// Sentences that state the results and what they mean.
    pub notes: Vec<String>,
    /// Tables of numbers.
    pub tables: Vec<NumberTable>,
    /// Name and value of what was measured, and how.
    pub settings: Vec<[String; 2]>,
    /// Problems that only one of the two models solved.
    pub changes: Vec<Change>,
    /// Answers with their verdicts.
    pub answers: Option<AnswerList>,
}

/// Some of the answers of an evaluation, in the order of the problems.
#[derive(Clone, Debug, Default)]
pub struct AnswerList {
    /// The rule that decides whether an answer is right.
    pub rule: String,
    /// Number of right answers in total.
    pub right: usize,
    /// Number of wrong answers in total.
    pub wrong: usize,
    /// The answers that are shown.
    pub shown: Vec<JudgedAnswer>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct JudgedAnswer {
    /// The problem's number, from 1.
    pub number: usize,
    /// Whether it is right according to the list's rule.
    pub right: bool,
    /// The question.
    pub question: String,
    /// The known solution.
    pub known: String,
    /// The model's completion.
    pub text: String,
    /// Whether it reached the token limit.
    pub cut_off: bool,
    /// The verdict of each rule.
    pub verdicts: Vec<RuleVerdict>,
}

/// The verdict of one rule on an answer.
#[derive(Clone, Debug)]
pub struct RuleVerdict {
    /// The rule.
    pub rule: String,
    /// The answer it found.
    pub answer: Option<String>,
    /// Whether that answer is right.
    pub correct: bool,
}

/// A table whose first column holds names and whose other columns hold numbers.
#[derive(Clone, Debug, Default)]
pub struct NumberTable {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows, with as many cells as `head`.
    pub rows: Vec<Vec<String>>,
}

/// A problem that only one of two models solved.
#[derive(Clone, Debug)]
pub struct Change {
    /// The problem's number, from 1.
    pub number: usize,
    /// Whether the second model solved it.
    pub won: bool,
    /// The question.
    pub question: String,
    /// The known solution.
    pub known: String,
    /// The answers of the first and the second model.
    pub sides: [Side; 2],
}

/// One model's answer to a problem.
#[derive(Clone, Debug)]
pub struct Side {
    /// A short name of the model.
    pub name: String,
    /// The model's completion.
    pub text: String,
    /// The answer found in the completion.
    pub answer: Option<String>,
    /// Whether that answer is right.
    pub correct: bool,
}

/// Writes the page to `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write_evaluation_page(path: &Path, page: &EvaluationPage) -> Result<()> {
    let mut body = overview(&page.cards, &page.notes, &page.tables);
    body += &settings("What was measured", &page.settings);
    for (won, title) in
        [(true, "Won: wrong in A, right in B"), (false, "Lost: right in A, wrong in B")]
    {
        let changes: Vec<&Change> =
            page.changes.iter().filter(|change| change.won == won).collect();
        if !changes.is_empty() {
            body += &format!("<h2>{title} ({})</h2>\n", changes.len());
            body.extend(changes.into_iter().map(change));
        }
    }
    body.extend(page.answers.as_ref().map(answer_list));
    let html = document(&page.title, &page.subtitle, &body, "verdicts.jsonl");
    write_whole(path, html.as_bytes())
}

/// Returns the first part of a page as HTML: cards, notes and tables.
pub(super) fn overview(
    cards: &[(&str, String)],
    notes: &[String],
    tables: &[NumberTable],
) -> String {
    let mut body = card_list(cards.iter().cloned());
    if !notes.is_empty() {
        let notes = notes.iter().map(|note| format!("<li>{}</li>\n", escape(note)));
        body += &format!("<ul class=\"notes\">\n{}</ul>\n", notes.collect::<String>());
    }
    for NumberTable { title, head, rows } in tables {
        let rows = table("numbers", Some(head), rows.iter().map(Vec::as_slice));
        body += &format!("<h2>{}</h2>\n{rows}", escape(title));
    }
    body
}

/// The largest number of characters of a text on the page.
const MAX_CHARACTERS: usize = 4_000;

/// Returns the beginning of a text as HTML, with a note on where the rest is.
fn truncated_html(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => {
            let beginning = escape(text.get(..end).unwrap_or(text));
            format!("{beginning}\u{2026}\n[the rest is in verdicts.jsonl]")
        }
        None => escape(text),
    }
}

/// Returns a completion as HTML.
fn completion(text: &str) -> String {
    if text.trim().is_empty() {
        "<p class=\"dim\">The model wrote nothing.</p>".to_string()
    } else {
        format!("<pre>{}</pre>", truncated_html(text))
    }
}

/// Returns the answers as HTML, with a selection of all, wrong or right ones that needs no script.
fn answer_list(list: &AnswerList) -> String {
    let choices = [
        ("all", "all".to_string(), " checked"),
        ("wrong", format!("wrong ({})", list.wrong), ""),
        ("right", format!("right ({})", list.right), ""),
    ];
    let choice = |(id, name, checked): &(&str, String, &str)| {
        format!(
            "<input type=\"radio\" name=\"shown\" id=\"show-{id}\"{checked}><label for=\"show-{id}\">{name}</label>\n"
        )
    };
    let choices: String = choices.iter().map(choice).collect();
    let all = list.right + list.wrong;
    let count = match list.shown.len() {
        shown if shown < all => format!("{shown} of the {all} answers are here; all are in"),
        _ => "The same answers, as data, are in".to_string(),
    };
    let answers: String = list.shown.iter().map(answer).collect();
    format!(
        "<h2>Answers</h2>\n<p>Right and wrong by {}. {count} <a href=\"verdicts.jsonl\">verdicts.jsonl</a>.</p>\n\
         <section class=\"answers\">\n{choices}<div class=\"list\">\n{answers}</div>\n</section>\n",
        escape(&list.rule)
    )
}

/// Returns an answer as HTML.
fn answer(answer: &JudgedAnswer) -> String {
    let class = if answer.right { "change won" } else { "change" };
    let verdict = verdict_text(answer.right);
    let cut_off = if answer.cut_off { " \u{b7} cut off at the token limit" } else { "" };
    let rules = answer.verdicts.iter().map(|verdict| {
        let word = verdict_text(verdict.correct);
        let found = verdict.answer.as_deref().unwrap_or("no answer found");
        format!(
            "<li>{}: <span class=\"{word}\">{word}</span>, {}</li>\n",
            escape(&verdict.rule),
            truncated_html(found)
        )
    });
    format!(
        "<article class=\"{class}\">\n<h3>Problem {}: <span class=\"{verdict}\">{verdict}</span>{cut_off}</h3>\n\
         <p class=\"text\">{}</p>\n{}\n<ul class=\"verdicts\">\n{}</ul>\n\
         <details><summary>Known solution</summary><pre>{}</pre></details>\n</article>\n",
        answer.number,
        truncated_html(&answer.question),
        completion(&answer.text),
        rules.collect::<String>(),
        truncated_html(&answer.known)
    )
}

/// Returns the word for a verdict.
fn verdict_text(correct: bool) -> &'static str {
    if correct { "right" } else { "wrong" }
}

/// Returns a changed answer as HTML.
fn change(change: &Change) -> String {
    let class = if change.won { "change won" } else { "change" };
    let sides: String = change.sides.iter().map(side).collect();
    format!(
        "<article class=\"{class}\">\n<h3>Problem {}</h3>\n<p class=\"text\">{}</p>\n\
         <details><summary>Known solution</summary><pre>{}</pre></details>\n<div class=\"sides\">\n{sides}</div>\n</article>\n",
        change.number,
        truncated_html(&change.question),
        truncated_html(&change.known)
    )
}

/// Returns one model's answer as HTML.
fn side(side: &Side) -> String {
    let verdict = verdict_text(side.correct);
    let answer = side.answer.as_deref().unwrap_or("no answer found");
    format!(
        "<div><p>{}: <span class=\"{verdict}\">{verdict}, {}</span></p>{}</div>\n",
        escape(&side.name),
        truncated_html(answer),
        completion(&side.text)
    )
}
