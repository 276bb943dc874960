//! The final output of the demo: the course of training, the held-out problems before and after, and the list of
//! files.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use super::folder::{CONTENTS, DemoFolder, Training};
use crate::error::{Error, Result};
use crate::eval::compare::{
    ScorerComparison, compare, p_text, setting_differences, write_comparison,
};
use crate::eval::folder::Folder;
use crate::eval::judged::Judged;
use crate::eval::task::Task;
use crate::input_file;
use crate::report::evaluation::{Change, EvaluationPage, NumberTable, Side, write_evaluation_page};

/// Number of groups of steps that the table shows after the first step.
const GROUPS: usize = 4;

/// The table's columns: title and key in metrics.jsonl.
const COLUMNS: [(&str, &str); 5] = [
    ("loss", "loss"),
    ("margin", "rewards/margins"),
    ("accuracy", "rewards/accuracies"),
    ("reward chosen", "rewards/chosen"),
    ("reward rejected", "rewards/rejected"),
];

/// The results of a demo; [`fmt::Display`] formats them for the terminal.
#[derive(Clone, Debug)]
pub struct DemoSummary {
    folder: PathBuf,
    /// One table per training run.
    tables: [Table; Training::ALL.len()],
    /// Comparison by the numeric scorer.
    compared: ScorerComparison,
    /// Problems that only one of the two evaluations solves, those won first.
    changes: Vec<Change>,
}

/// The course of a training run: the first column, and the mean of each of [`COLUMNS`] over those steps.
type Table = Vec<(String, [f64; COLUMNS.len()])>;

/// Maximum number of changed answers that are printed.
const SHOWN: usize = 5;

impl DemoSummary {
    /// Reads the files of the finished demo.
    ///
    /// # Errors
    /// A file of the run is missing or not valid.
    pub(super) fn read(folder: &DemoFolder, sides: [&[Judged]; 2]) -> Result<Self> {
        let [voted, own] = Training::ALL.map(|training| read_table(folder, training));
        let tables = [voted?, own?];
        let names = ["before", "after"].map(|when| folder.evaluation(when).display().to_string());
        let names = [names[0].as_str(), names[1].as_str()];
        let all = compare(sides[0], sides[1], names)?;
        let comparison = folder.comparison();
        let [before, after] = ["before", "after"].map(|when| {
            let settings = Folder(folder.evaluation(when)).settings();
            settings.map(Option::unwrap_or_default)
        });
        let differences = setting_differences(&before?, &after?);
        write_comparison(&comparison.join("comparison.json"), &all, names, &differences)?;
        let numeric = Task::Gsm8k.main_rule();
        let compared = all.into_iter().find(|one| one.scorer == numeric);
        let compared = compared.ok_or_else(|| {
            Error::run("no answer was judged", "run the demo again with --overwrite")
        })?;
        let summary = Self {
            folder: folder.path().to_path_buf(),
            tables,
            changes: changes(&compared, sides),
            compared,
        };
        write_evaluation_page(&comparison.join("index.html"), &summary.page())?;
        Ok(summary)
    }

    /// Returns the accuracies on the held-out problems before and after, and McNemar's exact p-value.
    pub fn accuracies(&self) -> ([f64; 2], f64) {
        let rates = self.compared.rates;
        (rates.map(|rate| rate.accuracy), self.compared.test.p_value)
    }
}

const HELD_OUT: &str = "held out";

/// Reads the metrics of a training run.
fn read_table(folder: &DemoFolder, training: Training) -> Result<Table> {
    let path = folder.run(training).join("metrics.jsonl");
    let text = input_file::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let lines: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::file(&path, e, "run the demo again with --overwrite"))?;
    Ok(table(&lines))
}

/// Builds the table's rows: the first step, groups of the other steps, and the last evaluation.
fn table(lines: &[Value]) -> Table {
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
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
        let name = if begin + 1 == end { end.to_string() } else { format!("{}-{end}", begin + 1) };
        rows.push((name, means(part, "")));
        begin = end;
    }
    if let Some(last) = lines.iter().rfind(|line| line.get("eval_loss").is_some()) {
        rows.push((HELD_OUT.to_string(), means(&[last], "eval_")));
    }
    rows
}

/// Returns the mean of each column over `lines`; `prefix` precedes the keys.
fn means(lines: &[&Value], prefix: &str) -> [f64; COLUMNS.len()] {
    COLUMNS.map(|(_, key)| {
        let value = |line: &&Value| line.get(format!("{prefix}{key}")).and_then(Value::as_f64);
        let sum: f64 = lines.iter().filter_map(value).sum();
        sum / lines.len() as f64
    })
}

/// Returns the title of a run's table.
fn heading(training: Training) -> &'static str {
    match training {
        Training::Voted => "First run: DPO on the pairs from votes, step by step.",
        Training::Own => {
            "Second run: DPO on pairs of its own answers, from the first run's adapter."
        }
    }
}

impl fmt::Display for DemoSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (training, rows) in Training::ALL.into_iter().zip(&self.tables) {
            writeln!(f, "{}\n", heading(training))?;
            write!(f, "{:>10}", "step")?;
            for (title, _) in COLUMNS {
                write!(f, "  {title:>15}")?;
            }
            writeln!(f)?;
            for (name, [loss, margin, accuracy, chosen, rejected]) in rows {
                let accuracy = format!("{:.0} %", 100.0 * accuracy);
                writeln!(
                    f,
                    "{name:>10}  {loss:>15.4}  {margin:>15.4}  {accuracy:>15}  {chosen:>15.4}  {rejected:>15.4}"
                )?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "A reward is beta x (log p - log p before the run). Step 1 comes before the first update: the loss is ln 2 plus the\n\
             cross-entropy of the chosen answers, every margin is 0, and a tie counts as wrong. The held-out pairs are voted pairs.\n"
        )?;
        self.fmt_answers(f)?;
        writeln!(f, "\nFiles, in {}:\n", self.folder.display())?;
        for (name, what) in CONTENTS {
            writeln!(f, "  {name:<29}{what}")?;
        }
        let report = |training: Training| format!("{}/report/index.html", training.name());
        let [voted, own] = Training::ALL.map(|training| self.folder.join(report(training)));
        let changed = self.folder.join("comparison/index.html");
        write!(
            f,
            "\nOpen {}, {} and {} in a browser.\nEvery command above can be run again; prepare, sample-pairs and train then need \
             --overwrite.",
            changed.display(),
            voted.display(),
            own.display()
        )
    }
}

impl DemoSummary {
    /// Writes the accuracies, the test and some changed answers.
    fn fmt_answers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = &self.compared.rates;
        let total = before.total;
        writeln!(
            f,
            "{:<32}{:>9}{:>9}   95 % interval",
            format!("The {total} held-out problems"),
            "right",
            "accuracy"
        )?;
        for (name, rate) in [("before", before), ("after", after)] {
            let [low, high] = rate.interval_95.map(|bound| 100.0 * bound);
            writeln!(
                f,
                "  {name:<30}{:>9}{:>7.1} %   {low:.1} to {high:.1} %",
                rate.correct,
                100.0 * rate.accuracy
            )?;
        }
        let (difference, [low, high]) = self.compared.difference;
        let test = &self.compared.test;
        writeln!(
            f,
            "\nThe difference is {:+.1} points (95 % interval {:+.1} to {:+.1}): {} problems won, {} lost. If that were chance,\n\
             a split this uneven would have the probability {} (McNemar's exact test).\n",
            100.0 * difference,
            100.0 * low,
            100.0 * high,
            test.wins,
            test.losses,
            p_text(test.p_value)
        )?;
        for change in self.changes.iter().take(SHOWN) {
            let [before, after] = &change.sides;
            writeln!(f, "  {}", change.question)?;
            writeln!(f, "    before: {}", before.text.trim())?;
            writeln!(f, "    after:  {}\n", after.text.trim())?;
        }
        write!(
            f,
            "The model is small and learned from pupils, mistakes included (assets/README.md): it often knows better than it\n\
             writes at first, and such training can bring that out.\n"
        )
    }

    /// Builds the page that compares the evaluations before and after.
    fn page(&self) -> EvaluationPage {
        let [before, after] = self.compared.rates;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let row = |(name, rate): (&str, crate::eval::statistics::Rate)| {
            let [low, high] = rate.interval_95;
            let interval = format!("{} to {}", percent(low), percent(high));
            let numbers = [rate.correct.to_string(), percent(rate.accuracy), interval];
            [vec![name.to_string()], numbers.to_vec()].concat()
        };
        let p = p_text(self.compared.test.p_value);
        EvaluationPage {
            title: "Before and after".into(),
            subtitle: format!("{} held-out problems", before.total),
            cards: vec![
                ("before", percent(before.accuracy)),
                ("after", percent(after.accuracy)),
                ("McNemar p", p),
            ],
            notes: Vec::new(),
            tables: vec![NumberTable {
                title: "Right answers".into(),
                head: ["", "right", "accuracy", "95 % interval"].map(String::from).into(),
                rows: [("before", before), ("after", after)].map(row).into(),
            }],
            settings: Vec::new(),
            changes: self.changes.clone(),
            answers: None,
        }
    }
}

/// Lists the problems that only one of the two evaluations solves, won ones first.
fn changes(compared: &ScorerComparison, sides: [&[Judged]; 2]) -> Vec<Change> {
    let side = |name: &str, judged: &Judged| {
        let verdict = judged.verdicts.get(&compared.scorer);
        Side {
            name: name.to_string(),
            text: judged.completion.clone(),
            answer: verdict.and_then(|verdict| verdict.answer.clone()),
            correct: verdict.is_some_and(|verdict| verdict.correct),
        }
    };
    let won = compared.won.iter().map(|number| (*number, true));
    let lost = compared.lost.iter().map(|number| (*number, false));
    let change = |(number, won): (usize, bool)| {
        let before = sides[0].get(number - 1)?;
        let after = sides[1].get(number - 1)?;
        Some(Change {
            number,
            won,
            question: before.question.clone(),
            known: before.ground_truth.clone(),
            sides: [side("before", before), side("after", after)],
        })
    };
    won.chain(lost).filter_map(change).collect()
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
        let few: Vec<String> = table(&lines[..2]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(few, ["1", "2"]);
        assert!(table(&[]).is_empty());
    }
}
