//! What the demo prints at the end: the course of training, held-out pairs before and after, where everything is.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::folder::{CONTENTS, DemoFolder};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::report::{ScoreChanges, score_changes};

/// Groups of steps the table shows after the first step.
const GROUPS: usize = 4;

/// The columns: title, key in metrics.jsonl, digits.
const COLUMNS: [(&str, &str); 5] = [
    ("loss", "loss"),
    ("margin", "rewards/margins"),
    ("accuracy", "rewards/accuracies"),
    ("reward chosen", "rewards/chosen"),
    ("reward rejected", "rewards/rejected"),
];

/// The results of a demo; [`fmt::Display`] is the text for people.
#[derive(Clone, Debug)]
pub struct DemoSummary {
    folder: PathBuf,
    beta: f64,
    /// First column of the table, and the mean of each of [`COLUMNS`] over those steps.
    rows: Vec<(String, [f64; COLUMNS.len()])>,
    scores: ScoreChanges,
}

impl DemoSummary {
    /// Reads the finished demo's files.
    ///
    /// # Errors
    /// A file of the run is missing or not what a run writes.
    pub(super) fn read(folder: &DemoFolder, config: &RunConfig) -> Result<Self> {
        let path = folder.run().join("metrics.jsonl");
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let lines: Vec<Value> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::file(&path, e, "run the demo again with --overwrite"))?;
        let scores = score_changes(&folder.run())?.ok_or_else(|| {
            let problem = "holds no scores of pairs before and after training";
            Error::file(
                &folder.run(),
                problem,
                "run the demo again with --overwrite",
            )
        })?;
        Ok(Self {
            folder: folder.path().to_path_buf(),
            beta: config.dpo.beta,
            rows: table(&lines),
            scores,
        })
    }

    /// Mean loss of the first step and of the last group of steps.
    pub fn losses(&self) -> Option<(f64, f64)> {
        let training = |(name, values): &(String, [f64; COLUMNS.len()])| {
            (name != HELD_OUT).then_some(values[0])
        };
        let mut losses = self.rows.iter().filter_map(training);
        Some((losses.next()?, losses.next_back()?))
    }
}

const HELD_OUT: &str = "held out";

/// Rows of the first step, of groups of the others, and of the last evaluation.
fn table(lines: &[Value]) -> Vec<(String, [f64; COLUMNS.len()])> {
    let steps: Vec<&Value> = lines
        .iter()
        .filter(|line| line.get("loss").is_some())
        .collect();
    let mut rows = Vec::new();
    let mut begin = 0;
    for group in 0..=GROUPS {
        let end = match group {
            0 => 1.min(steps.len()),
            group => steps.len() * group / GROUPS,
        };
        let Some(part) = steps.get(begin..end).filter(|part| !part.is_empty()) else {
            continue;
        };
        let name = match begin + 1 == end {
            true => end.to_string(),
            false => format!("{}-{end}", begin + 1),
        };
        rows.push((name, means(part, "")));
        begin = end;
    }
    if let Some(last) = lines.iter().rfind(|line| line.get("eval_loss").is_some()) {
        rows.push((HELD_OUT.to_string(), means(&[last], "eval_")));
    }
    rows
}

fn means(lines: &[&Value], prefix: &str) -> [f64; COLUMNS.len()] {
    COLUMNS.map(|(_, key)| {
        let value = |line: &&Value| line.get(format!("{prefix}{key}")).and_then(Value::as_f64);
        let sum: f64 = lines.iter().filter_map(value).sum();
        sum / lines.len() as f64
    })
}

impl fmt::Display for DemoSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beta = self.beta;
        writeln!(
            f,
            "DPO, step by step. A reward is {beta} x (log p - log p of the model as it was).\n"
        )?;
        write!(f, "{:>10}", "step")?;
        for (title, _) in COLUMNS {
            write!(f, "  {title:>15}")?;
        }
        writeln!(f)?;
        for (name, [loss, margin, accuracy, chosen, rejected]) in &self.rows {
            let accuracy = format!("{:.0} %", 100.0 * accuracy);
            writeln!(
                f,
                "{name:>10}  {loss:>15.4}  {margin:>15.4}  {accuracy:>15}  {chosen:>15.4}  {rejected:>15.4}"
            )?;
        }
        writeln!(
            f,
            "\nStep 1 comes before the first update: the loss is ln 2, every margin 0, and a tie counts as wrong.\n"
        )?;
        self.fmt_scores(f)?;
        writeln!(f, "\nFiles, in {}:\n", self.folder.display())?;
        for (name, what) in CONTENTS {
            writeln!(f, "  {name:<24}{what}")?;
        }
        let page = self.folder.join("run/report/index.html");
        write!(
            f,
            "\nOpen {} in a browser. Every command above can be run again;\nprepare and train then need --overwrite.",
            page.display()
        )
    }
}

impl DemoSummary {
    fn fmt_scores(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores = &self.scores;
        writeln!(
            f,
            "{:<42}{:>12}{:>12}",
            format!("The {} held-out pairs", scores.pairs),
            "before",
            "after"
        )?;
        for [name, before, after, _] in &scores.rows {
            writeln!(f, "  {name:<40}{before:>12}{after:>12}")?;
        }
        let (grew, pairs) = (scores.margin_grew, scores.pairs);
        writeln!(
            f,
            "\nThe margin between chosen and rejected grew in {grew} of {pairs} pairs. The model is tiny and its weights are\n\
             random: it learns which wording gets the votes, not arithmetic."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_cover_every_step_once() {
        let line = |step: usize| {
            json!({"step": step, "loss": step, "rewards/margins": 0.5, "rewards/accuracies": 1.0,
                   "rewards/chosen": 2.0, "rewards/rejected": -1.0})
        };
        let mut lines: Vec<Value> = (1..=10).map(line).collect();
        lines.insert(7, json!({"step": 7, "eval_loss": 9.0}));
        lines.push(json!({"step": 10, "eval_loss": 0.25, "eval_rewards/margins": 3.0}));
        let rows = table(&lines);
        let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["1", "2", "3-5", "6-7", "8-10", "held out"]);
        let losses: Vec<f64> = rows.iter().map(|(_, values)| values[0]).collect();
        assert_eq!(losses, [1.0, 2.0, 4.0, 6.5, 9.0, 0.25]);
        assert_eq!(rows[2].1[1..], [0.5, 1.0, 2.0, -1.0]);
        assert_eq!(rows[5].1[1], 3.0);
        let few: Vec<String> = table(&lines[..2])
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(few, ["1", "2"]);
        assert!(table(&[]).is_empty());
    }
}
