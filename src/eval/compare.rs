//! Compares two evaluations of the same problems: which problems only one of them solves, and whether the difference may
//! be chance.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::judged::Judged;
use super::predictions::write_json;
use super::problems::shortened;
use super::settings::Settings;
use super::statistics::{McNemar, Rate, paired_difference};
use crate::error::{Error, Result};

/// The comparison of two evaluations by one scorer.
#[derive(Clone, Debug)]
pub struct ScorerComparison {
    /// Name of the scorer.
    pub scorer: String,
    /// Accuracies of the first and of the second evaluation.
    pub rates: [Rate; 2],
    /// Second accuracy minus the first, and its 95 % interval.
    pub difference: (f64, [f64; 2]),
    /// McNemar's test of the difference.
    pub test: McNemar,
    /// Numbers (from 1) of the problems that only the second evaluation solves.
    pub won: Vec<usize>,
    /// Numbers (from 1) of the problems that only the first evaluation solves.
    pub lost: Vec<usize>,
}

/// Compares two evaluations by every scorer that both have, in alphabetical order.
///
/// # Errors
/// The evaluations answer different problems or have no scorer in common. The error calls them by `names`.
pub fn compare(
    first: &[Judged],
    second: &[Judged],
    names: [&str; 2],
) -> Result<Vec<ScorerComparison>> {
    check_same(first, second, names)?;
    let scorers = first.first().map(|one| one.verdicts.keys()).into_iter().flatten();
    let both: Vec<ScorerComparison> = scorers
        .filter(|scorer| second.iter().all(|one| one.verdicts.contains_key(*scorer)))
        .map(|scorer| compare_by(first, second, scorer))
        .collect();
    if both.is_empty() {
        let problem = format!("{} and {} have no scorer in common", names[0], names[1]);
        return Err(Error::invalid("compare", problem, "compare evaluations of the same task"));
    }
    Ok(both)
}

/// A setting that two evaluations do not share.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingDifference {
    /// Name of the setting.
    pub name: String,
    /// Value in the first and in the second evaluation, or null if it is not set.
    pub values: [Value; 2],
}

impl SettingDifference {
    /// Formats the two values.
    pub fn texts(&self) -> [String; 2] {
        self.values.clone().map(|value| match value {
            Value::Null => "not set".to_string(),
            Value::String(text) => text,
            value => value.to_string(),
        })
    }
}

/// Returns the settings in which two evaluations differ: model, adapter, shots, template, limits. A hash is listed only
/// if no other setting shows that the content differs.
pub fn setting_differences(first: &Settings, second: &Settings) -> Vec<SettingDifference> {
    let differs = |name: &str| first.0.get(name) != second.0.get(name);
    let same_rows = !differs("problems_sha256") && !differs("pairs_sha256");
    // Two predictions files always have different paths, and files with different paths may have equal rows.
    let is_relevant =
        |name: &&str| !name.starts_with("predictions") && (*name != "data" || !same_rows);
    let names = first.all_names(second).into_iter();
    let names = names.filter(is_relevant).filter(|name| differs(name));
    let shown = names.filter_map(|name| {
        let values = [first, second].map(|side| side.0.get(name).cloned().unwrap_or_default());
        let (name, values) = match name.strip_suffix("_sha256") {
            // A model identity is an object of hashes.
            None if values.iter().any(Value::is_object) => {
                (name.to_string(), differing_members(&values)?)
            }
            None => (name.to_string(), values),
            // The number of rows differs and is listed instead.
            Some(rows) if differs(rows) => return None,
            Some(rows) => {
                (format!("content of the {rows}"), values.map(|hash| shortened_hash(&hash)))
            }
        };
        Some(SettingDifference { name, values })
    });
    shown.collect()
}

/// Lists the members in which two objects of hashes differ, with shortened hashes. Returns `None` if they are equal.
fn differing_members(values: &[Value; 2]) -> Option<[Value; 2]> {
    let [first, second] = values.each_ref().map(Value::as_object);
    let (empty, none) = (Map::new(), Value::Null);
    let sides = [first.unwrap_or(&empty), second.unwrap_or(&empty)];
    let names = sides.iter().flat_map(|side| side.keys());
    let mut names: Vec<&String> =
        names.filter(|name| sides[0].get(*name) != sides[1].get(*name)).collect();
    names.sort();
    names.dedup();
    let listed = |side: &Map<String, Value>| {
        let members = names.iter().map(|name| {
            let hash = shortened_hash(side.get(*name).unwrap_or(&none));
            let hash = hash.as_str().unwrap_or("absent").to_string();
            format!("{name} {hash}")
        });
        Value::from(members.collect::<Vec<_>>().join(", "))
    };
    (!names.is_empty()).then(|| sides.map(listed))
}

fn shortened_hash(value: &Value) -> Value {
    let hash = value.as_str().map(|hash| hash.chars().take(8).collect::<String>());
    hash.map_or(Value::Null, Value::from)
}

fn check_same(first: &[Judged], second: &[Judged], names: [&str; 2]) -> Result<()> {
    let remedy = "compare evaluations of the same data file and --limit";
    let differing = first.iter().zip(second).position(|(a, b)| a.question != b.question);
    let problem = match differing {
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
    Err(Error::invalid("compare", problem, remedy))
}

fn compare_by(first: &[Judged], second: &[Judged], scorer: &str) -> ScorerComparison {
    let correct = |one: &Judged| one.verdicts.get(scorer).is_some_and(|verdict| verdict.correct);
    let changed = |to: bool| {
        let pairs = first.iter().zip(second).zip(1..);
        let changed = pairs.filter(|((a, b), _)| correct(a) != to && correct(b) == to);
        changed.map(|(_, number)| number).collect::<Vec<usize>>()
    };
    let (won, lost) = (changed(true), changed(false));
    ScorerComparison {
        scorer: scorer.to_string(),
        rates: [first, second].map(|all| Rate::from_verdicts(all.iter().map(correct))),
        difference: paired_difference(won.len(), lost.len(), first.len()),
        test: McNemar::new(won.len(), lost.len()),
        won,
        lost,
    }
}

/// Writes `comparison.json`.
///
/// # Errors
/// The file cannot be written.
pub fn write_comparison(
    path: &Path,
    compared: &[ScorerComparison],
    names: [&str; 2],
    differences: &[SettingDifference],
) -> Result<()> {
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
    let differences = differences.iter().map(|one| {
        let [first, second] = &one.values;
        (one.name.clone(), json!({"first": first, "second": second}))
    });
    let differences: Map<String, Value> = differences.collect();
    let comparison = json!({
        "first": names[0],
        "second": names[1],
        "differences": differences,
        "scorers": scorers,
    });
    write_json(path, &comparison)
}

/// Formats a comparison for the terminal: the differing settings, the table of scorers, and the problems that changed by
/// the scorer of `shown`.
pub fn comparison_table(
    compared: &[ScorerComparison],
    shown: &ScorerComparison,
    names: [&str; 2],
    differences: &[SettingDifference],
) -> String {
    let mut lines = vec![format!("A  {}\nB  {}\n", names[0], names[1])];
    for one in differences {
        // Line feeds in a template are shown as `\n`.
        let [a, b] = one.texts().map(|text| text.escape_debug().to_string());
        lines.push(format!("differs: {}\n  A  {a}\n  B  {b}", one.name));
    }
    if !differences.is_empty() {
        lines.push(String::new());
    }
    lines.push(format!(
        "{:<22}{:>9}{:>9}{:>10}   {:<19}{:>6}{:>7}{:>10}",
        "scorer", "A", "B", "B - A", "95 % interval", "wins", "losses", "McNemar p"
    ));
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

/// Formats a p-value with four decimals, or in scientific notation if it is below 0.0001.
pub fn p_text(p: f64) -> String {
    if p < 1e-4 { format!("{p:.1e}") } else { format!("{p:.4}") }
}

fn listed(numbers: &[usize]) -> String {
    const MAX_LISTED: usize = 40;
    let mut texts: Vec<String> = numbers.iter().take(MAX_LISTED).map(usize::to_string).collect();
    if numbers.len() > MAX_LISTED {
        texts.push(format!("and {} more", numbers.len() - MAX_LISTED));
    }
    if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_settings_are_listed_once() {
        let hashes = |weights: &str| json!({"weights": weights, "config.json": "ab"});
        let first = Settings::default()
            .with("model", "m")
            .with("model_identity", hashes("0123456789"))
            .with("prompt_template", "{prompt}\n")
            .with("problems_sha256", "aa");
        let second = Settings::default()
            .with("model", "m")
            .with("model_identity", hashes("9876543210"))
            .with("shots", 4)
            .with("shots_sha256", "bb")
            .with("problems_sha256", "cc");
        let found = setting_differences(&first, &second);
        let found: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.texts())).collect();
        let texts = |a: &str, b: &str| [a.to_string(), b.to_string()];
        let expected = [
            ("model_identity", texts("weights 01234567", "weights 98765432")),
            ("prompt_template", texts("{prompt}\n", "not set")),
            ("content of the problems", texts("aa", "cc")),
            ("shots", texts("not set", "4")),
        ];
        assert_eq!(found, expected);
        assert!(setting_differences(&first, &first).is_empty());
    }
}
