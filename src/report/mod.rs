//! Plots and the HTML page of a run.
//!
//! [`write_report`] reads the folder of a run and writes `report/index.html`, one self-contained
//! page, and each of its plots as `.svg`. It reads `metrics.jsonl` and, if they exist,
//! `manifest.json` (`config`, `data`, and `data.lengths` = `{"bucket_size": 64, "prompt": [..],
//! "chosen": [..], "rejected": [..]}`, sequences per bucket of tokens), `scores-before.jsonl` and
//! `scores-after.jsonl`.

mod axis;
pub mod evaluation;
mod figures;
pub mod inspection;
mod page;
pub mod rounds;
mod run;
mod scores;
mod series;
mod svg;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::input_file;
use crate::output::folder::refuse_foreign_among;
use crate::output::list::listed_files;
use crate::output::{FileList, remove, write_whole};

use figures::{NAMES, figures};
use run::Run;
use scores::Comparison;

/// The paths of a written report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportPaths {
    /// The page.
    pub index: PathBuf,
    /// The plots, as SVG, in the order of the page.
    pub plots: Vec<PathBuf>,
}

/// Writes the report of the run in `run_dir` to `run_dir/report/`, replacing an older one.
///
/// A run that has not ended can be reported too.
///
/// # Errors
/// `run_dir` has no `metrics.jsonl` or no metric in it; a file is malformed (the error names its
/// line); the report cannot be written.
pub fn write_report(run_dir: &Path) -> Result<ReportPaths> {
    let run = Run::read(run_dir)?;
    let folder = run_dir.join("report");
    claim(&folder)?;
    let mut plots = Vec::new();
    let mut drawn = Vec::new();
    for figure in figures(&run) {
        let svg = figure.plot.draw();
        let path = folder.join(svg_name(figure.name));
        write_whole(&path, svg.as_bytes())?;
        plots.push(path);
        drawn.push((figure, svg));
    }
    for path in listed_files(&folder).iter().filter(|path| is_plot(path)) {
        if !plots.contains(path) {
            remove(path)?; // of an older report with more figures, or with pictures beside them
        }
    }
    let index = folder.join("index.html");
    write_whole(&index, page::page(&run, &drawn).as_bytes())?;
    Ok(ReportPaths { index, plots })
}

/// Compares the scores of the same pairs before and after training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreChanges {
    /// Pairs scored in both files.
    pub pairs: usize,
    /// Pairs whose `log p(chosen) - log p(rejected)` is larger after training than before, which
    /// DPO's implicit reward ranks correctly.
    pub margin_grew: usize,
    /// Rows of a table: description, before, after, change.
    pub rows: Vec<[String; 4]>,
}

/// Compares `scores-before.jsonl` and `scores-after.jsonl` of `run_dir`; `None` unless both exist.
///
/// # Errors
/// A line of these files is not a score.
pub fn score_changes(run_dir: &Path) -> Result<Option<ScoreChanges>> {
    let comparison = Comparison::read(run_dir, &mut Vec::new())?;
    Ok(comparison.map(|comparison| ScoreChanges {
        pairs: comparison.pairs,
        margin_grew: comparison.margin_grew,
        rows: comparison.rows(),
    }))
}

/// Adds the files of a report to the list in `folder`; refuses if one of them exists and was not
/// written by a report.
fn claim(folder: &Path) -> Result<()> {
    let index = "index.html";
    let mut names = vec![index.to_string()];
    names.extend(NAMES.iter().map(|name| svg_name(name)));
    let text = input_file::read_to_string(folder.join(index)).unwrap_or_default();
    // Older reports did not list their files.
    if FileList::read(folder).is_some() || !text.contains(page::MARK) {
        refuse_foreign_among(folder, names.iter().map(String::as_str))?;
    }
    FileList::add(folder, names)
}

fn svg_name(figure: &str) -> String {
    format!("{figure}.svg")
}

/// Returns whether `path` has the name of a plot (`.svg`), or of the picture that older versions wrote beside it (`.png`).
fn is_plot(path: &Path) -> bool {
    let is_picture =
        path.extension().is_some_and(|extension| extension == "svg" || extension == "png");
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    is_picture && NAMES.contains(&name)
}
