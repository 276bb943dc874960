//! Plots and the HTML page of a run.
//!
//! [`write_report`] reads what a run left in its folder and writes `report/index.html`, one self-contained page, and each
//! of its plots as `.svg` and `.png`. It reads `metrics.jsonl`, and, where they are there, `manifest.json` (`config`,
//! `data`, and `data.lengths` = `{"bucket_size": 64, "prompt": [..], "chosen": [..], "rejected": [..]}`, sequences per
//! bucket of tokens), `scores-before.jsonl` and `scores-after.jsonl`.

mod axis;
pub mod evaluation;
mod figures;
mod page;
mod png;
mod run;
mod scores;
mod series;
mod svg;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::output::{remove, write_whole};

use figures::{NAMES, figures};
use png::PngWriter;
use run::Run;
use scores::Comparison;

/// Where a report was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportPaths {
    /// The page.
    pub index: PathBuf,
    /// The plots, each as SVG and PNG, in the order of the page.
    pub plots: Vec<PathBuf>,
}

/// Writes the report of the run in `run_dir` to `run_dir/report/`, replacing an older one.
///
/// A run that is still going on can be reported too.
///
/// # Errors
/// `run_dir` has no `metrics.jsonl` or no metric in it; a file is not what it must be (named with its line); the report
/// cannot be written.
pub fn write_report(run_dir: &Path) -> Result<ReportPaths> {
    let run = Run::read(run_dir)?;
    let folder = run_dir.join("report");
    let png_writer = PngWriter::new();
    let mut plots = Vec::new();
    let mut drawn = Vec::new();
    for figure in figures(&run) {
        let svg = figure.plot.draw();
        let [svg_path, png_path] = files_of(&folder, figure.name);
        write_whole(&svg_path, svg.as_bytes())?;
        write_whole(&png_path, &png_writer.encode(&svg)?)?;
        plots.extend([svg_path, png_path]);
        drawn.push((figure, svg));
    }
    for path in NAMES.iter().flat_map(|name| files_of(&folder, name)) {
        if !plots.contains(&path) {
            remove(&path)?; // of an older report with more figures
        }
    }
    let index = folder.join("index.html");
    write_whole(&index, page::page(&run, &drawn).as_bytes())?;
    Ok(ReportPaths { index, plots })
}

/// Scores of the same pairs before and after training, compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreChanges {
    /// Pairs scored in both files.
    pub pairs: usize,
    /// Those whose `log p(chosen) - log p(rejected)` is larger after than before: the pairs DPO's reward ranks right.
    pub margin_grew: usize,
    /// A table in words: what, before, after, change.
    pub rows: Vec<[String; 4]>,
}

/// Compares `scores-before.jsonl` and `scores-after.jsonl` of `run_dir`; `None` unless both are there.
///
/// # Errors
/// A line of them is not a score.
pub fn score_changes(run_dir: &Path) -> Result<Option<ScoreChanges>> {
    let comparison = Comparison::read(run_dir, &mut Vec::new())?;
    Ok(comparison.map(|comparison| ScoreChanges {
        pairs: comparison.pairs,
        margin_grew: comparison.margin_grew,
        rows: comparison.rows(),
    }))
}

fn files_of(folder: &Path, name: &str) -> [PathBuf; 2] {
    ["svg", "png"].map(|extension| folder.join(format!("{name}.{extension}")))
}
