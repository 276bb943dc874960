//! Judges a whole set of answers, and writes the counts to `results.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::{Scorer, Verdict};
use super::predictions::{Prediction, write_json};
use super::problems::{Problem, read_rows};
use super::settings::Settings;
use super::statistics::Rate;
use crate::error::{Error, Result};
use crate::generate::FinishReason;
use crate::output::write_whole;

/// One answer with the verdict of every scorer: a line of `verdicts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Question text.
    pub question: String,
    /// Known solution.
    pub ground_truth: String,
    /// Text that the model wrote after the prompt, unchanged.
    pub completion: String,
    /// Why the completion ended, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// Subject of the problem; see [`Problem::subject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Level of the problem; see [`Problem::level`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Verdicts by the name of the scorer.
    pub verdicts: BTreeMap<String, Verdict>,
}

/// Judges every prediction by every scorer. `problems`, if given, are the answered problems in the same order; subject and
/// level are taken from them.
pub fn judge_all(
    predictions: &[Prediction],
    problems: Option<&[Problem]>,
    scorers: &[Scorer],
) -> Vec<Judged> {
    let one = |(index, prediction): (usize, &Prediction)| {
        let problem = problems.and_then(|problems| problems.get(index));
        let verdict = |scorer: &Scorer| {
            (
                scorer.name.to_string(),
                scorer.judge(&prediction.ground_truth, &prediction.completion),
            )
        };
        Judged {
            question: prediction.question.clone(),
            ground_truth: prediction.ground_truth.clone(),
            completion: prediction.completion.clone(),
            finish_reason: prediction.finish_reason,
            subject: problem.and_then(|problem| problem.subject.clone()),
            level: problem.and_then(|problem| problem.level.clone()),
            verdicts: scorers.iter().map(verdict).collect(),
        }
    };
    predictions.iter().enumerate().map(one).collect()
}

/// Counts the answers by `label`. Returns `None` if an answer has no label.
fn group(
    name: &'static str,
    judged: &[Judged],
    rules: &[Rule],
    label: fn(&Judged) -> Option<&String>,
) -> Option<Group> {
    let mut parts: BTreeMap<&String, Vec<&Judged>> = BTreeMap::new();
    for one in judged {
        parts.entry(label(one)?).or_default().push(one);
    }
    let counted = |(label, part): (&String, Vec<&Judged>)| {
        let counts = rules.iter().map(|rule| count(part.iter().copied(), rule.0));
        (label.clone(), counts.collect())
    };
    let parts = parts.into_iter().map(counted).collect();
    Some(Group { name, parts })
}

/// Counts the answers that reached the token limit. Returns `None` if an answer's finish reason is not known.
fn cut_off(judged: &[Judged]) -> Option<usize> {
    let reasons: Option<Vec<FinishReason>> = judged.iter().map(|one| one.finish_reason).collect();
    let reached = |reason: &FinishReason| *reason == FinishReason::Length;
    reasons.map(|reasons| reasons.into_iter().filter(reached).count())
}

/// The counts of one scorer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScorerCounts {
    /// Correct answers, all answers, accuracy and its interval.
    #[serde(flatten)]
    pub rate: Rate,
    /// Number of answers in which the scorer found nothing to compare. They count as wrong.
    pub unanswered: usize,
}

/// Counts the verdicts of the scorer `name` in `judged`.
pub fn count<'a>(judged: impl IntoIterator<Item = &'a Judged>, name: &str) -> ScorerCounts {
    let verdicts: Vec<&Verdict> =
        judged.into_iter().filter_map(|one| one.verdicts.get(name)).collect();
    ScorerCounts {
        rate: Rate::from_verdicts(verdicts.iter().map(|verdict| verdict.correct)),
        unanswered: verdicts.iter().filter(|verdict| verdict.answer.is_none()).count(),
    }
}

/// A scorer's name and a one-sentence description of its rule.
pub type Rule = (&'static str, &'static str);

/// Counts of the answers grouped by subject or level.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name of the label: `subject` or `level`.
    pub name: &'static str,
    /// Each label with one count per scorer.
    pub parts: Vec<(String, Vec<ScorerCounts>)>,
}

/// The content of `results.json`.
#[derive(Clone, Debug)]
pub struct Results {
    /// Name of the task.
    pub task: String,
    /// Number of problems.
    pub total: usize,
    /// Counts by scorer, in the task's order.
    pub scorers: Vec<(Rule, ScorerCounts)>,
    /// Counts by subject and by level, if the data has them.
    pub groups: Vec<Group>,
    /// Number of answers that reached the token limit, if all finish reasons are known.
    pub cut_off: Option<usize>,
    /// Additional values of the task, by name.
    pub more: Map<String, Value>,
    /// Settings on which the numbers depend.
    pub settings: Settings,
}

impl Results {
    /// Counts the verdicts in `judged` by each of `rules`.
    pub fn new(task: &str, judged: &[Judged], rules: &[Rule], settings: Settings) -> Self {
        let groups = [
            group("subject", judged, rules, |one| one.subject.as_ref()),
            group("level", judged, rules, |one| one.level.as_ref()),
        ];
        Self {
            task: task.to_string(),
            total: judged.len(),
            scorers: rules.iter().map(|rule| (*rule, count(judged, rule.0))).collect(),
            groups: groups.into_iter().flatten().collect(),
            cut_off: cut_off(judged),
            more: Map::new(),
            settings,
        }
    }

    /// Writes `results.json` and `verdicts.jsonl`, one line per answer, to `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path, judged: &[Judged]) -> Result<()> {
        let path = folder.join("verdicts.jsonl");
        let mut lines = Vec::new();
        for one in judged {
            serde_json::to_writer(&mut lines, one)
                .map_err(|e| Error::io(&path, "write", e.into()))?;
            lines.push(b'\n');
        }
        write_whole(&path, &lines)?;
        write_json(&folder.join("results.json"), &self.json())
    }

    fn json(&self) -> Value {
        let scorers: Map<String, Value> = self
            .scorers
            .iter()
            .map(|((name, about), counted)| {
                let mut value = json!(counted);
                value["rule"] = (*about).into();
                (name.to_string(), value)
            })
            .collect();
        let mut value = json!({"task": self.task, "total": self.total, "scorers": scorers});
        for Group { name, parts } in &self.groups {
            let by_scorer = |counts: &[ScorerCounts]| {
                let pairs = self.scorers.iter().zip(counts);
                pairs
                    .map(|((rule, _), count)| (rule.0.to_string(), json!(count)))
                    .collect::<Map<_, _>>()
            };
            let groups =
                parts.iter().map(|(label, counts)| (label.clone(), by_scorer(counts).into()));
            value[format!("by_{name}")] = groups.collect::<Map<_, _>>().into();
        }
        if let Some(cut_off) = self.cut_off {
            value["cut_off"] = cut_off.into();
        }
        for (name, more) in &self.more {
            value[name] = more.clone();
        }
        value["settings"] = json!(self.settings);
        value["arithmo"] = env!("CARGO_PKG_VERSION").into();
        value
    }

    /// Formats the results as a table for the terminal.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<22}{:>9}{:>8}{:>11}   {:<19}{:>10}",
            self.task, "correct", "of", "accuracy", "95 % interval", "no answer"
        )];
        for ((name, _), counted) in &self.scorers {
            lines.push(row(name, counted) + &format!("{:>10}", counted.unanswered));
        }
        if let Some(cut_off @ 1..) = self.cut_off {
            lines.push(format!(
                "\n{cut_off} of {} answers were cut off at max_new_tokens",
                self.total
            ));
        }
        for Group { name, parts } in &self.groups {
            // Groups show one rule only, the last, which is the fairest of each task.
            if let Some(((scorer, _), _)) = self.scorers.last() {
                lines.push(format!("\nby {name} ({scorer})"));
            }
            for (label, counts) in parts {
                lines.extend(counts.last().map(|counted| row(label, counted)));
            }
        }
        lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
    }
}

fn row(name: &str, counted: &ScorerCounts) -> String {
    let Rate { correct, total, accuracy, interval_95: [low, high] } = counted.rate;
    let interval = format!("{:.2} to {:.2} %", 100.0 * low, 100.0 * high);
    format!("{name:<22}{correct:>9}{total:>8}{:>9.2} %   {interval:<19}", 100.0 * accuracy)
}

/// Reads a `verdicts.jsonl` file.
///
/// # Errors
/// The file cannot be read, or a line is not a verdict.
pub fn read_judged(path: &Path) -> Result<Vec<Judged>> {
    const FORM: &str = "evaluate writes this file; run it again";
    let one = |(place, row): (String, Value)| {
        serde_json::from_value(row)
            .map_err(|e| Error::invalid(place, format!("is not a verdict: {e}"), FORM))
    };
    read_rows(path, FORM)?.into_iter().map(one).collect()
}
