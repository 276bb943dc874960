//! Compares the scores of the same pairs before and after training.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::axis::number;
use super::run::{bad_line, read_if_exists};
use crate::error::Result;

/// One line of `scores.jsonl`; log-probabilities are natural logarithms, summed over the
/// completion.
#[derive(Clone, Debug, Deserialize)]
struct Score {
    id: Value,
    #[serde(rename = "logps/chosen")]
    chosen: Option<f64>,
    #[serde(rename = "logps/rejected")]
    rejected: Option<f64>,
    #[serde(rename = "tokens/chosen")]
    tokens_chosen: f64,
    #[serde(rename = "tokens/rejected")]
    tokens_rejected: f64,
}

/// Sums over the pairs of one score file.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    chosen: f64,
    rejected: f64,
    tokens_chosen: f64,
    tokens_rejected: f64,
    preferred: f64,
    preferred_per_token: f64,
}

/// The comparison of pairs that both files score.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    /// Number of pairs.
    pub(super) pairs: usize,
    /// Number of pairs whose `log p(chosen) - log p(rejected)` is larger after training than
    /// before: the preference accuracy of DPO's implicit reward if the model before training is the
    /// reference (Rafailov et al. 2023, equation 5).
    pub(super) margin_grew: usize,
    before: Totals,
    after: Totals,
}

impl Comparison {
    /// Reads `scores-before.jsonl` and `scores-after.jsonl` of `run_dir`; `None` unless both exist.
    ///
    /// # Errors
    /// A line is not a score.
    pub(super) fn read(run_dir: &Path, warnings: &mut Vec<String>) -> Result<Option<Self>> {
        let (before, after) = ("scores-before.jsonl", "scores-after.jsonl");
        let (Some(before), Some(after)) =
            (read_scores(&run_dir.join(before))?, read_scores(&run_dir.join(after))?)
        else {
            return Ok(None);
        };
        let total = before.len().max(after.len());
        let by_id: HashMap<_, _> = before.iter().map(|s| (s.id.to_string(), s)).collect();
        let matched = after.iter().filter_map(|s| Some((*by_id.get(&s.id.to_string())?, s)));
        let comparison = Self::of(matched);
        if comparison.pairs < total {
            warnings.push(format!(
                "The scores before and after have {} pairs in common, of {total}: the others (in one file only, or not finite) are left out.",
                comparison.pairs
            ));
        }
        Ok((comparison.pairs > 0).then_some(comparison))
    }

    /// Compares matched scores.
    fn of<'a>(matched: impl Iterator<Item = (&'a Score, &'a Score)>) -> Self {
        let mut comparison =
            Self { pairs: 0, margin_grew: 0, before: Totals::default(), after: Totals::default() };
        for (before, after) in matched {
            let (Some(margin_before), Some(margin_after)) = (before.margin(), after.margin())
            else {
                continue;
            };
            comparison.pairs += 1;
            comparison.margin_grew += usize::from(margin_after > margin_before);
            comparison.before.add(before);
            comparison.after.add(after);
        }
        comparison
    }

    /// Returns the rows of the table: description, before, after, change.
    pub(super) fn rows(&self) -> Vec<[String; 4]> {
        let pairs = self.pairs as f64;
        let mean = |name: &str, value: fn(&Totals) -> f64| {
            let (before, after) = (value(&self.before) / pairs, value(&self.after) / pairs);
            row(name, [before, after, after - before], "")
        };
        let ratio = |name: &str, value: fn(&Totals) -> f64| {
            let (before, after) = (value(&self.before), value(&self.after));
            row(name, [before, after, after - before], "")
        };
        let percent = |name: &str, value: fn(&Totals) -> f64| {
            let share = |totals: &Totals| 100.0 * value(totals) / pairs;
            let (before, after) = (share(&self.before), share(&self.after));
            row(name, [before, after, after - before], " %")
        };
        vec![
            mean("log p(chosen), mean of the pairs", |t| t.chosen),
            mean("log p(rejected), mean of the pairs", |t| t.rejected),
            mean("log p(chosen) \u{2212} log p(rejected)", |t| t.chosen - t.rejected),
            ratio("log p(chosen) per token", |t| t.chosen / t.tokens_chosen),
            ratio("log p(rejected) per token", |t| t.rejected / t.tokens_rejected),
            percent("chosen more likely than rejected", |t| t.preferred),
            percent("the same, per token", |t| t.preferred_per_token),
        ]
    }
}

/// Returns one row of the table.
fn row(name: &str, [before, after, change]: [f64; 3], unit: &str) -> [String; 4] {
    let plus = if change > 0.0 { "+" } else { "" };
    let (digits, points) = if unit.is_empty() { (4, "") } else { (3, " points") };
    let cell = |value| format!("{}{unit}", number(value, digits));
    let change = format!("{plus}{}{points}", number(change, 3));
    [name.to_string(), cell(before), cell(after), change]
}

impl Score {
    /// Returns `log p(chosen) - log p(rejected)`, if both are finite.
    fn margin(&self) -> Option<f64> {
        Some(self.chosen? - self.rejected?).filter(|margin| margin.is_finite())
    }
}

impl Totals {
    /// Adds the score of one pair.
    fn add(&mut self, score: &Score) {
        let (chosen, rejected) = (score.chosen.unwrap_or(0.0), score.rejected.unwrap_or(0.0));
        self.chosen += chosen;
        self.rejected += rejected;
        self.tokens_chosen += score.tokens_chosen;
        self.tokens_rejected += score.tokens_rejected;
        self.preferred += f64::from(chosen > rejected);
        let per_token = (chosen / score.tokens_chosen, rejected / score.tokens_rejected);
        self.preferred_per_token += f64::from(per_token.0 > per_token.1);
    }
}

/// Reads a score file; `None` if it does not exist.
fn read_scores(path: &Path) -> Result<Option<Vec<Score>>> {
    let Some(text) = read_if_exists(path)? else {
        return Ok(None);
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(index, line)| {
        serde_json::from_str(line)
            .map_err(|e| bad_line(path, index, &format!("not a line of a scores file: {e}")))
    };
    lines.map(parse).collect::<Result<_>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn line(id: &str, chosen: &str, rejected: &str, tokens: (u32, u32)) -> String {
        let (a, b) = tokens;
        format!(
            "{{\"id\":{id},\"logps/chosen\":{chosen},\"logps/rejected\":{rejected},\"tokens/chosen\":{a},\"tokens/rejected\":{b}}}\n"
        )
    }

    #[test]
    fn compares_pairs_by_id_and_counts_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let before = [
            line("\"a\"", "-10.0", "-8.0", (5, 2)),
            line("7", "-6", "-9.0", (3, 3)),
            line("\"gone\"", "-1.0", "-2.0", (1, 1)),
            line("\"nan\"", "null", "-2.0", (1, 1)),
        ];
        let after = [
            line("7", "-7.0", "-9.5", (3, 3)),
            line("\"nan\"", "-1.0", "-2.0", (1, 1)),
            line("\"a\"", "-8.0", "-9.0", (5, 2)),
        ];
        fs::write(dir.path().join("scores-before.jsonl"), before.concat()).unwrap();
        let mut warnings = Vec::new();
        assert!(Comparison::read(dir.path(), &mut warnings).unwrap().is_none());
        fs::write(dir.path().join("scores-after.jsonl"), after.concat()).unwrap();
        let comparison = Comparison::read(dir.path(), &mut warnings).unwrap().unwrap();
        // Margins: a from -2 to 1, 7 from 3 to 2.5.
        assert_eq!((comparison.pairs, comparison.margin_grew), (2, 1));
        assert!(warnings[0].contains("2 pairs in common, of 4"), "{warnings:?}");
        let rows = comparison.rows();
        assert_eq!(rows[0][1..], ["\u{2212}8", "\u{2212}7.500", "+0.500"]);
        assert_eq!(rows[2][1..], ["0.5000", "1.750", "+1.25"]);
        assert_eq!(rows[3][1..], ["\u{2212}2", "\u{2212}1.875", "+0.125"]); // 16 / 8, 15 / 8
        assert_eq!(rows[5][1..], ["50 %", "100 %", "+50 points"]);
        // Per token, a: -2 against -4 before, -1.6 against -4.5 after; 7: -2 against -3, -2.33 against -3.17.
        assert_eq!(rows[6][1..], ["100 %", "100 %", "0 points"]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let good = line("1", "-1.0", "-2.0", (1, 1));
        fs::write(dir.path().join("scores-before.jsonl"), &good).unwrap();
        fs::write(dir.path().join("scores-after.jsonl"), format!("{good}{{\"id\":2}}\n")).unwrap();
        let error = Comparison::read(dir.path(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("scores-after.jsonl:2"), "{error}");
    }
}
