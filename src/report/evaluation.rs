//! The HTML page of an evaluation, or of two compared: tables first, then the answers that changed, side by side.

use std::path::Path;

use super::page::{card_list, document, escape, settings, table};
use crate::error::Result;
use crate::output::write_whole;

/// What the page shows.
#[derive(Clone, Debug, Default)]
pub struct EvaluationPage {
    /// Heading.
    pub title: String,
    /// Below it.
    pub subtitle: String,
    /// The few numbers to look at first.
    pub cards: Vec<(&'static str, String)>,
    /// What the numbers say in words, and what they mean.
    pub notes: Vec<String>,
    /// Numbers.
    pub tables: Vec<NumberTable>,
    /// Name and value of what was measured, and how.
    pub settings: Vec<[String; 2]>,
    /// Answers that one side got right and the other did not.
    pub changes: Vec<Change>,
}

/// A table; its first column holds names, the others numbers.
#[derive(Clone, Debug, Default)]
pub struct NumberTable {
    /// Heading.
    pub title: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// As many cells each as `head` has.
    pub rows: Vec<Vec<String>>,
}

/// A problem that only one of two models solves.
#[derive(Clone, Debug)]
pub struct Change {
    /// The problem's number, from 1.
    pub number: usize,
    /// Whether it is the second that solves it.
    pub won: bool,
    /// What is asked.
    pub question: String,
    /// The known solution.
    pub known: String,
    /// First and second model's answer.
    pub sides: [Side; 2],
}

/// One model's answer to a problem.
#[derive(Clone, Debug)]
pub struct Side {
    /// The model, in short.
    pub name: String,
    /// What it wrote.
    pub text: String,
    /// The answer found in it.
    pub answer: Option<String>,
    /// Whether that is right.
    pub correct: bool,
}

/// Writes the page to `path`.
///
/// # Errors
/// It cannot be written.
pub fn write_evaluation_page(path: &Path, page: &EvaluationPage) -> Result<()> {
    let mut body = card_list(page.cards.iter().cloned());
    if !page.notes.is_empty() {
        let notes = page.notes.iter().map(|note| format!("<li>{}</li>\n", escape(note)));
        body += &format!("<ul class=\"notes\">\n{}</ul>\n", notes.collect::<String>());
    }
    for NumberTable { title, head, rows } in &page.tables {
        let rows = table("numbers", Some(head), rows.iter().map(Vec::as_slice));
        body += &format!("<h2>{}</h2>\n{rows}", escape(title));
    }
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
    let html = document(&page.title, &page.subtitle, &body, "verdicts.jsonl");
    write_whole(path, html.as_bytes())
}

fn change(change: &Change) -> String {
    let class = if change.won { "change won" } else { "change" };
    let sides: String = change.sides.iter().map(side).collect();
    format!(
        "<article class=\"{class}\">\n<h3>Problem {}</h3>\n<p>{}</p>\n\
         <details><summary>Known solution</summary><pre>{}</pre></details>\n<div class=\"sides\">\n{sides}</div>\n</article>\n",
        change.number,
        escape(&change.question),
        escape(&change.known)
    )
}

fn side(side: &Side) -> String {
    let (class, verdict) = match side.correct {
        true => ("right", "right"),
        false => ("wrong", "wrong"),
    };
    let answer = side.answer.as_deref().unwrap_or("no answer found");
    format!(
        "<div><p>{}: <span class=\"{class}\">{verdict}, {}</span></p><pre>{}</pre></div>\n",
        escape(&side.name),
        escape(answer),
        escape(&side.text)
    )
}
