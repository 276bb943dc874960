//! Verdicts on a whole set of answers, and what `results.json` says of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::{Scorer, Verdict, completion_of};
use super::predictions::{Prediction, write_json};
use super::problems::{Problem, read_rows};
use super::statistics::Rate;
use super::store::Settings;
use crate::error::{Error, Result};
use crate::output::write_whole;

/// One answer with the verdict of every scorer: a line of `verdicts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// What was asked.
    pub question: String,
    /// The known solution.
    pub ground_truth: String,
    /// What the model wrote after the prompt.
    pub completion: String,
    /// As [`Problem::subject`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// As [`Problem::level`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// By the scorer's name.
    pub verdicts: BTreeMap<String, Verdict>,
}

/// Judges every prediction by every scorer. `problems`, if given, are those answered, in order: they know subject and level.
pub fn judge_all(
    predictions: &[Prediction],
    problems: Option<&[Problem]>,
    scorers: &[Scorer],
) -> Vec<Judged> {
    let one = |(index, prediction): (usize, &Prediction)| {
        let completion = completion_of(&prediction.question, &prediction.prediction);
        let problem = problems.and_then(|problems| problems.get(index));
        let verdict = |scorer: &Scorer| {
            (scorer.name.to_string(), scorer.judge(&prediction.ground_truth, completion))
        };
        Judged {
            question: prediction.question.clone(),
            ground_truth: prediction.ground_truth.clone(),
            completion: completion.trim().to_string(),
            subject: problem.and_then(|problem| problem.subject.clone()),
            level: problem.and_then(|problem| problem.level.clone()),
            verdicts: scorers.iter().map(verdict).collect(),
        }
    };
    predictions.iter().enumerate().map(one).collect()
}

/// Counts by `label`; `None` if an answer has none.
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

/// What one scorer counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    /// Right ones, all, accuracy, interval.
    #[serde(flatten)]
    pub rate: Rate,
    /// Answers in which it found nothing to compare; they count as wrong.
    pub unanswered: usize,
}

/// The count of the scorer `name` over `judged`.
pub fn count<'a>(judged: impl IntoIterator<Item = &'a Judged>, name: &str) -> Counted {
    let verdicts: Vec<&Verdict> =
        judged.into_iter().filter_map(|one| one.verdicts.get(name)).collect();
    Counted {
        rate: Rate::of(verdicts.iter().map(|verdict| verdict.correct)),
        unanswered: verdicts.iter().filter(|verdict| verdict.answer.is_none()).count(),
    }
}

/// A scorer's name, and what it does in a sentence.
pub type Rule = (&'static str, &'static str);

/// Counts of the parts of a set.
#[derive(Clone, Debug)]
pub struct Group {
    /// What parts them: `subject` or `level`.
    pub name: &'static str,
    /// Each part's label, and one count a scorer.
    pub parts: Vec<(String, Vec<Counted>)>,
}

/// What `results.json` holds.
#[derive(Clone, Debug)]
pub struct Results {
    /// The task's name.
    pub task: String,
    /// Number of problems.
    pub total: usize,
    /// By scorer, in the task's order.
    pub scorers: Vec<(Rule, Counted)>,
    /// By subject and by level, where the data has them.
    pub groups: Vec<Group>,
    /// More that a task says, by name.
    pub more: Map<String, Value>,
    /// What the numbers depend on.
    pub settings: Settings,
}

impl Results {
    /// Counts.
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
            more: Map::new(),
            settings,
        }
    }

    /// Writes `results.json` to `folder`, and `verdicts.jsonl`, a line an answer.
    ///
    /// # Errors
    /// The disk is full.
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
            let by_scorer = |counts: &[Counted]| {
                let pairs = self.scorers.iter().zip(counts);
                pairs
                    .map(|((rule, _), count)| (rule.0.to_string(), json!(count)))
                    .collect::<Map<_, _>>()
            };
            let groups =
                parts.iter().map(|(label, counts)| (label.clone(), by_scorer(counts).into()));
            value[format!("by_{name}")] = groups.collect::<Map<_, _>>().into();
        }
        for (name, more) in &self.more {
            value[name] = more.clone();
        }
        value["settings"] = json!(self.settings);
        value["arithmo"] = env!("CARGO_PKG_VERSION").into();
        value
    }

    /// The table a person reads.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<22}{:>9}{:>8}{:>11}   {:<19}{:>10}",
            self.task, "correct", "of", "accuracy", "95 % interval", "no answer"
        )];
        for ((name, _), counted) in &self.scorers {
            lines.push(row(name, counted) + &format!("{:>10}", counted.unanswered));
        }
        for Group { name, parts } in &self.groups {
            // One rule is enough to see where a model is weak: the last is the fairest of each task.
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

fn row(name: &str, counted: &Counted) -> String {
    let Rate { correct, total, accuracy, interval_95: [low, high] } = counted.rate;
    let interval = format!("{:.2} to {:.2} %", 100.0 * low, 100.0 * high);
    format!("{name:<22}{correct:>9}{total:>8}{:>9.2} %   {interval:<19}", 100.0 * accuracy)
}

/// Reads a `verdicts.jsonl`.
///
/// # Errors
/// It cannot be read, or a line is not a verdict.
pub fn read_judged(path: &Path) -> Result<Vec<Judged>> {
    const FORM: &str = "evaluate writes this file; run it again";
    let one = |(place, row): (String, Value)| {
        serde_json::from_value(row)
            .map_err(|e| Error::invalid(place, format!("is no verdict: {e}"), FORM))
    };
    read_rows(path, FORM)?.into_iter().map(one).collect()
}
