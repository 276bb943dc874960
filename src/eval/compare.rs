//! Two evaluations of the same problems: what the second gets right that the first does not, and whether that is chance.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::judged::Judged;
use super::predictions::write_json;
use super::problems::shortened;
use super::statistics::{McNemar, Rate, paired_difference};
use crate::error::{Error, Result};

/// One scorer's comparison.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The scorer.
    pub scorer: String,
    /// Accuracy of the first and of the second.
    pub rates: [Rate; 2],
    /// Second less first, with its 95 % interval.
    pub difference: (f64, [f64; 2]),
    /// Whether the difference can be chance.
    pub test: McNemar,
    /// Numbers (from 1) of the problems only the second solves.
    pub won: Vec<usize>,
    /// Numbers of those only the first solves.
    pub lost: Vec<usize>,
}

/// Compares by every scorer that both have, in alphabetical order.
///
/// # Errors
/// They answer different problems; `names` says whose they are.
pub fn compare(first: &[Judged], second: &[Judged], names: [&str; 2]) -> Result<Vec<Compared>> {
    check_same(first, second, names)?;
    let scorers = first.first().map(|one| one.verdicts.keys()).into_iter().flatten();
    let both: Vec<Compared> = scorers
        .filter(|scorer| second.iter().all(|one| one.verdicts.contains_key(*scorer)))
        .map(|scorer| compare_by(first, second, scorer))
        .collect();
    if both.is_empty() {
        let problem = format!("{} and {} have no scorer in common", names[0], names[1]);
        return Err(Error::invalid("--compare", problem, "compare evaluations of one task"));
    }
    Ok(both)
}

fn check_same(first: &[Judged], second: &[Judged], names: [&str; 2]) -> Result<()> {
    let remedy = "compare evaluations of one data file, with the same --limit";
    let parted = first.iter().zip(second).position(|(a, b)| a.question != b.question);
    let problem = match parted {
        Some(at) => format!(
            "problem {} is {:?} in {} and {:?} in {}",
            at + 1,
            shortened(&first[at].question),
            names[0],
            shortened(&second[at].question),
            names[1]
        ),
        None if first.len() != second.len() => {
            format!("{} has {} problems, {} has {}", names[0], first.len(), names[1], second.len())
        }
        None => return Ok(()),
    };
    Err(Error::invalid("--compare", problem, remedy))
}

fn compare_by(first: &[Judged], second: &[Judged], scorer: &str) -> Compared {
    let right = |one: &Judged| one.verdicts.get(scorer).is_some_and(|verdict| verdict.correct);
    let changed = |to: bool| {
        let pairs = first.iter().zip(second).zip(1..);
        let changed = pairs.filter(|((a, b), _)| right(a) != to && right(b) == to);
        changed.map(|(_, number)| number).collect::<Vec<usize>>()
    };
    let (won, lost) = (changed(true), changed(false));
    Compared {
        scorer: scorer.to_string(),
        rates: [first, second].map(|all| Rate::of(all.iter().map(right))),
        difference: paired_difference(won.len(), lost.len(), first.len()),
        test: McNemar::new(won.len(), lost.len()),
        won,
        lost,
    }
}

/// Writes `comparison.json`.
///
/// # Errors
/// The disk is full.
pub fn write_comparison(path: &Path, compared: &[Compared], names: [&str; 2]) -> Result<()> {
    let scorers = compared.iter().map(|one| {
        let [first, second] = &one.rates;
        let mut value = json!(one.test);
        value["first"] = json!(first);
        value["second"] = json!(second);
        value["difference"] = one.difference.0.into();
        value["difference_interval_95"] = json!(one.difference.1);
        value["won"] = json!(one.won);
        value["lost"] = json!(one.lost);
        (one.scorer.clone(), value)
    });
    let scorers: Map<String, Value> = scorers.collect();
    write_json(path, &json!({"first": names[0], "second": names[1], "scorers": scorers}))
}

/// The table a person reads, and the problems that changed by `shown`.
pub fn comparison_table(compared: &[Compared], shown: &Compared, names: [&str; 2]) -> String {
    let mut lines = vec![
        format!("A  {}\nB  {}\n", names[0], names[1]),
        format!(
            "{:<22}{:>9}{:>9}{:>10}   {:<19}{:>6}{:>7}{:>10}",
            "scorer", "A", "B", "B - A", "95 % interval", "wins", "losses", "McNemar p"
        ),
    ];
    for one in compared {
        let [first, second] = one.rates.map(|rate| 100.0 * rate.accuracy);
        let (difference, [low, high]) = one.difference;
        let interval = format!("{:+.2} to {:+.2}", 100.0 * low, 100.0 * high);
        lines.push(format!(
            "{:<22}{first:>7.2} %{second:>7.2} %{:>10.2}   {interval:<19}{:>6}{:>7}{:>10}",
            one.scorer,
            100.0 * difference,
            one.test.wins,
            one.test.losses,
            p_text(one.test.p_value)
        ));
    }
    for (what, numbers) in [("won by B", &shown.won), ("lost by B", &shown.lost)] {
        lines.push(format!("\n{}, {what}: {}", shown.scorer, listed(numbers)));
    }
    lines.join("\n")
}

/// A p-value as people write it.
pub fn p_text(p: f64) -> String {
    match p < 1e-4 {
        true => format!("{p:.1e}"),
        false => format!("{p:.4}"),
    }
}

fn listed(numbers: &[usize]) -> String {
    const MOST: usize = 40;
    let mut texts: Vec<String> = numbers.iter().take(MOST).map(usize::to_string).collect();
    if numbers.len() > MOST {
        texts.push(format!("and {} more", numbers.len() - MOST));
    }
    match texts.is_empty() {
        true => "none".to_string(),
        false => texts.join(", "),
    }
}
