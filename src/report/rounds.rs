//! The HTML page over all rounds of `iterate`: the training data and the results of each, and links
//! to its own pages.

use std::path::Path;

use super::page::{card_list, document, escape, settings};
use crate::error::Result;
use crate::output::write_whole;

/// The content of the page.
#[derive(Clone, Debug, Default)]
pub struct RoundsPage {
    /// Heading.
    pub title: String,
    /// The line below the heading.
    pub subtitle: String,
    /// The few most important numbers.
    pub cards: Vec<(&'static str, String)>,
    /// The rounds so far, the measurement before the first one included.
    pub rounds: Vec<RoundRow>,
    /// Number of each round that was sampled, with name and value of every setting of its sampling: they may change from
    /// round to round.
    pub samplings: Vec<(usize, Vec<[String; 2]>)>,
    /// Name and value of every setting that is the same for all rounds.
    pub settings: Vec<[String; 2]>,
}

/// One round.
#[derive(Clone, Debug, Default)]
pub struct RoundRow {
    /// Its number; 0 for the measurement before the first round.
    pub round: usize,
    /// Number of pairs in training.
    pub pairs: String,
    /// Right samples out of all samples.
    pub right_samples: String,
    /// Accuracy on the held-out problems.
    pub accuracy: String,
    /// Its 95 % interval.
    pub interval: String,
    /// Names and addresses of the round's files, relative to the page's folder.
    pub links: Vec<(&'static str, String)>,
}

/// Writes the page to `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write_rounds_page(path: &Path, page: &RoundsPage) -> Result<()> {
    let head = ["round", "pairs", "right samples", "accuracy", "95\u{a0}% interval", "files"];
    let head: String = head.iter().map(|name| format!("<th>{name}</th>")).collect();
    let rows: String = page.rounds.iter().map(row).collect();
    let body = format!(
        "{}<h2>Rounds</h2>\n{}{}{}",
        card_list(page.cards.iter().cloned()),
        table(&head, &rows),
        samplings(&page.samplings),
        settings("Configuration", &page.settings)
    );
    let html = document(&page.title, &page.subtitle, &body, "round-N/");
    write_whole(path, html.as_bytes())
}

fn table(head: &str, rows: &str) -> String {
    format!(
        "<div class=\"scroll\"><table class=\"numbers\">\n<tr>{head}</tr>\n{rows}</table></div>\n"
    )
}

/// Returns the HTML table of the settings of each round's sampling, one row per round; empty if no round was sampled.
fn samplings(rounds: &[(usize, Vec<[String; 2]>)]) -> String {
    let Some((_, first)) = rounds.first() else {
        return String::new();
    };
    let names = first.iter().map(|[name, _]| format!("<th>{}</th>", escape(name)));
    let head = format!("<th>round</th>{}", names.collect::<String>());
    let row = |(round, settings): &(usize, Vec<[String; 2]>)| {
        let cells = settings.iter().map(|[_, value]| format!("<td>{}</td>", escape(value)));
        format!("<tr><td>{round}</td>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = rounds.iter().map(row).collect();
    format!("<h2>Sampling</h2>\n{}", table(&head, &rows))
}

/// Returns a round as a row of the HTML table.
fn row(row: &RoundRow) -> String {
    let links = row.links.iter().map(|(name, address)| {
        let (name, address) = (escape(name), escape(address));
        format!("<a href=\"{address}\">{name}</a>")
    });
    let links = links.collect::<Vec<_>>().join(" ");
    let cells =
        [&row.round.to_string(), &row.pairs, &row.right_samples, &row.accuracy, &row.interval];
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    format!("<tr>{cells}<td>{links}</td></tr>\n")
}
