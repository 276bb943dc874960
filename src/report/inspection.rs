//! The HTML page of `arithmo inspect`: the length histograms, the counts, and what they mean.

use std::path::Path;

use super::evaluation::{NumberTable, overview};
use super::figures::histogram;
use super::page::{document, escape, settings};
use super::run::Lengths;
use crate::error::Result;
use crate::output::write_whole;

/// The content of the page.
#[derive(Clone, Debug, Default)]
pub struct InspectionPage {
    /// The line below the heading.
    pub subtitle: String,
    /// The few most important numbers.
    pub cards: Vec<(&'static str, String)>,
    /// Sentences that state what the counts mean.
    pub notes: Vec<String>,
    /// The counts.
    pub tables: Vec<NumberTable>,
    /// Token counts per bucket.
    pub histograms: LengthHistograms,
    /// Name and value of every setting.
    pub settings: Vec<[String; 2]>,
    /// Name of the JSON file with the same counts and all ids.
    pub data_file: String,
}

/// Token counts of prompts and completions per bucket.
#[derive(Clone, Debug, Default)]
pub struct LengthHistograms {
    /// Tokens per bucket.
    pub bucket_size: u32,
    /// Prompts.
    pub prompt: Vec<u64>,
    /// Chosen completions.
    pub chosen: Vec<u64>,
    /// Rejected completions.
    pub rejected: Vec<u64>,
}

/// Writes the page to `path`.
///
/// # Errors
/// It cannot be written.
pub fn write_inspection_page(path: &Path, page: &InspectionPage) -> Result<()> {
    let LengthHistograms { bucket_size, prompt, chosen, rejected } = page.histograms.clone();
    let lengths = Lengths {
        bucket_size: bucket_size.max(1),
        prompt,
        chosen,
        rejected,
        completion: Vec::new(),
    };
    let figure = histogram(&lengths, false);
    let note = figure.note.as_deref().map(escape).unwrap_or_default();
    let body = format!(
        "{}<h2>Lengths</h2>\n<div class=\"figures\">\n<figure id=\"lengths\">\n{}<figcaption>{note}</figcaption>\n\
         </figure>\n</div>\n{}",
        overview(&page.cards, &page.notes, &page.tables),
        figure.plot.draw(),
        settings("Settings", &page.settings)
    );
    let html = document("Inspection of preference pairs", &page.subtitle, &body, &page.data_file);
    write_whole(path, html.as_bytes())
}
