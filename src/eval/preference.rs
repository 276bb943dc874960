//! Preference evaluation: how often a model prefers chosen to rejected answers, and how well its certainty is calibrated.

use std::collections::{BTreeMap, HashMap};

use arithmo_backends::{LogProbStats, TrainBackend};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answers::Verdict;
use super::judged::{Judged, Rule};
use super::statistics::{Rate, mean_interval};
use super::store::Store;
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedPair;
use crate::data::pair::PreferencePair;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::objective::log_probs::{DeviceBatch, finite_sums, score};
use crate::progress::{Progress, ProgressMode};

/// The rules by which a pair is judged. The first needs an adapter: without one, policy and reference are the same model.
pub const PREFERENCE_RULES: [Rule; 3] = [
    (
        "reward",
        "DPO's implicit reward, beta (log p - log p of the model without its adapter), is larger for chosen (arXiv 2305.18290)",
    ),
    ("likelihood", "chosen is more likely than rejected"),
    ("likelihood-per-token", "chosen is more likely than rejected, per token"),
];

/// The log-probabilities of one pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairScore {
    /// Id of the pair.
    pub id: String,
    /// Summed log-probabilities of chosen and rejected.
    pub policy: [f32; 2],
    /// Summed log-probabilities without the adapter, if there is one.
    pub reference: Option<[f32; 2]>,
    /// Number of completion tokens of chosen and rejected.
    pub tokens: [usize; 2],
}

impl PairScore {
    /// Computes DPO's margin, `beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected))`, or returns `None` if
    /// there is no reference.
    pub fn margin(&self, beta: f64) -> Option<f64> {
        let reference = self.reference?;
        let logratio = |side: usize| f64::from(self.policy[side]) - f64::from(reference[side]);
        Some(beta * (logratio(0) - logratio(1)))
    }

    /// Computes the log-probability of chosen minus that of rejected, each divided by its number of tokens if `per_token`.
    fn likelihood(&self, per_token: bool) -> f64 {
        let side = |side: usize| {
            let tokens = if per_token { self.tokens[side].max(1) } else { 1 };
            f64::from(self.policy[side]) / tokens as f64
        };
        side(0) - side(1)
    }
}

/// Scores the pairs that `store` does not hold yet, with the adapter and, if there is one, also without it.
///
/// # Errors
/// A log-probability is not finite, the store cannot be written, or the user interrupts. Scores that are in the store stay
/// there.
pub fn score_pairs<B: TrainBackend>(
    model: &Decoder<B>,
    has_adapter: bool,
    pairs: &[EncodedPair],
    batch_size: usize,
    store: &mut Store<PairScore>,
    (mode, device): (ProgressMode, &B::Device),
) -> Result<()> {
    let reference = has_adapter.then(|| model.clone().without_adapter());
    let longest = pairs.iter().map(EncodedPair::longest).max().unwrap_or(0);
    let table = model.position_table(longest, device);
    let progress = Progress::new("evaluate", Some(pairs.len() as u64), "pairs", mode);
    let open: Vec<usize> =
        (0..pairs.len()).filter(|index| !store.done().contains_key(index)).collect();
    progress.set_position((pairs.len() - open.len()) as u64);
    for indices in open.chunks(batch_size.max(1)) {
        if interrupt::requested() {
            let note = format!(
                "{} of {} pairs are kept; run the same command again to continue",
                store.done().len(),
                pairs.len()
            );
            return Err(Error::Interrupted { note });
        }
        let some: Vec<&EncodedPair> = indices.iter().map(|index| &pairs[*index]).collect();
        let batch = PackedBatch::new(&some);
        let on_device = DeviceBatch::new(&batch, &table, device);
        let sums = |model: &Decoder<B>| -> Result<Vec<f32>> {
            let scored = score(model, &on_device, LogProbStats::None);
            finite_sums(model, &on_device, scored.sums)
        };
        let (policy, reference) = (sums(model)?, reference.as_ref().map(sums).transpose()?);
        let count = indices.len();
        for (row, index) in indices.iter().enumerate() {
            let both = |sums: &Vec<f32>| [sums[row], sums[count + row]];
            let record = PairScore {
                id: pairs[*index].id.clone(),
                policy: both(&policy),
                reference: reference.as_ref().map(both),
                tokens: [batch.counts[row], batch.counts[count + row]],
            };
            store.put(*index, record)?;
        }
        progress.set_message(accuracy_message(store.done()));
        progress.inc(count as u64);
    }
    progress.finish();
    Ok(())
}

fn accuracy_message(done: &BTreeMap<usize, PairScore>) -> String {
    let (name, correct): (_, fn(&PairScore) -> bool) = match done.values().next() {
        Some(first) if first.reference.is_some() => {
            ("reward", |one| one.margin(1.0).is_some_and(|margin| margin > 0.0))
        }
        _ => ("likelihood", |one| one.likelihood(false) > 0.0),
    };
    let rate = Rate::from_verdicts(done.values().map(correct));
    format!("{name} {:.1} %", 100.0 * rate.accuracy)
}

/// Judges each scored pair by [`PREFERENCE_RULES`]. Equal scores are wrong, as in TRL. Scores are matched to pairs by id.
pub fn judge_pairs(pairs: &[PreferencePair], scores: &[PairScore], beta: f64) -> Vec<Judged> {
    let by_id: HashMap<&str, &PreferencePair> =
        pairs.iter().map(|pair| (pair.id.as_str(), pair)).collect();
    let one = |score: &PairScore| {
        let margins =
            [score.margin(beta), Some(score.likelihood(false)), Some(score.likelihood(true))];
        let verdicts = PREFERENCE_RULES.iter().zip(margins).filter_map(|(rule, margin)| {
            let margin = margin?;
            let verdict = Verdict { answer: Some(format!("{margin:.4}")), correct: margin > 0.0 };
            Some((rule.0.to_string(), verdict))
        });
        let pair = by_id.get(score.id.as_str());
        let text = |text: fn(&PreferencePair) -> &String| {
            pair.map(|pair| text(pair).clone()).unwrap_or_default()
        };
        Judged {
            question: text(|pair| &pair.prompt),
            ground_truth: text(|pair| &pair.chosen),
            completion: format!("The other answer:\n{}", text(|pair| &pair.rejected)),
            finish_reason: None,
            subject: None,
            level: None,
            verdicts: verdicts.collect(),
        }
    };
    scores.iter().map(one).collect()
}

/// A group of pairs with a common property.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Name of the group.
    pub name: String,
    /// Share of the pairs whose margin is positive.
    #[serde(flatten)]
    pub rate: Rate,
    /// Mean margin.
    pub mean_margin: f64,
    /// Mean of `sigmoid(margin)`, the model's probability that chosen is preferred (Bradley and Terry). In a table by
    /// certainty, mean probability of the side that the model prefers; it equals the accuracy if the model is calibrated.
    pub mean_probability: f64,
}

/// Margins of all pairs, and grouped by vote gap, by length and by the model's certainty.
#[derive(Clone, Debug, Default)]
pub struct Margins {
    /// Quantity whose margin it is: `reward` if there is an adapter, else `likelihood`.
    pub quantity: &'static str,
    /// Mean margin and its 95 % interval.
    pub mean: Option<(f64, [f64; 2])>,
    /// Pairs by `chosen_score - rejected_score`. Empty if the data has no scores.
    pub by_score_gap: Vec<Bucket>,
    /// Pairs by the ratio of the lengths of chosen and rejected, in tokens.
    pub by_length: Vec<Bucket>,
    /// Pairs by the model's probability of the side that it prefers, `sigmoid(|margin|)`.
    pub by_certainty: Vec<Bucket>,
    /// Expected calibration error: mean of `|accuracy - probability|` over `by_certainty`, weighted by pairs.
    pub calibration_error: f64,
}

impl Margins {
    /// Groups the margins of the scored pairs.
    pub fn new(pairs: &[PreferencePair], scores: &[PairScore], beta: f64) -> Self {
        let rewards = scores.iter().all(|score| score.reference.is_some());
        let margin =
            |score: &PairScore| score.margin(beta).unwrap_or_else(|| score.likelihood(false));
        let margins: Vec<f64> = scores.iter().map(margin).collect();
        let gaps: HashMap<&str, Option<i64>> = pairs
            .iter()
            .map(|pair| {
                (pair.id.as_str(), pair.chosen_score.zip(pair.rejected_score).map(|(c, r)| c - r))
            })
            .collect();
        let gap = |score: &PairScore| gaps.get(score.id.as_str()).copied().flatten();
        let by_certainty = buckets(
            &margins,
            |margin| sigmoid(margin.abs()),
            |index| {
                let step = ((sigmoid(margins[index].abs()) * 20.0).floor() as usize).clamp(10, 19);
                Some((step, format!("{} to {} % sure", step * 5, step * 5 + 5)))
            },
        );
        Self {
            quantity: if rewards { "reward" } else { "likelihood" },
            mean: mean_interval(&margins),
            by_score_gap: buckets(&margins, sigmoid, |index| gap(&scores[index]).map(gap_name)),
            by_length: buckets(&margins, sigmoid, |index| Some(length_name(scores[index].tokens))),
            calibration_error: calibration_error(&by_certainty),
            by_certainty,
        }
    }

    /// Returns the members for `results.json`.
    pub fn json(&self) -> Map<String, Value> {
        let value = json!({
            "margin": {
                "of": self.quantity,
                "mean": self.mean.map(|(mean, _)| mean),
                "interval_95": self.mean.map(|(_, interval)| interval),
            },
            "by_score_gap": self.by_score_gap,
            "by_length": self.by_length,
            "by_certainty": self.by_certainty,
            "expected_calibration_error": self.calibration_error,
        });
        value.as_object().cloned().unwrap_or_default()
    }

    /// Returns the tables with their headings.
    pub fn tables(&self) -> [(&'static str, &[Bucket]); 3] {
        [
            ("By the gap of the votes (chosen score minus rejected score)", &self.by_score_gap),
            ("By length (tokens of chosen relative to rejected)", &self.by_length),
            ("By the model's certainty", &self.by_certainty),
        ]
    }
}

fn gap_name(gap: i64) -> (usize, String) {
    match gap {
        ..1 => (0, "0 or less".to_string()),
        1..5 => (gap as usize, gap.to_string()),
        _ => (5, "5 or more".to_string()),
    }
}

fn length_name([chosen, rejected]: [usize; 2]) -> (usize, String) {
    let ratio = chosen as f64 / rejected.max(1) as f64;
    let names = [
        (0.5, "at most half as long"),
        (0.9, "shorter"),
        (1.1, "about as long (10 %)"),
        (2.0, "longer"),
    ];
    let position = names.iter().position(|(max_ratio, _)| ratio <= *max_ratio);
    let name = position.map_or("more than twice as long", |position| names[position].1);
    (position.unwrap_or(names.len()), name.to_string())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Groups the pairs by `name`, which returns a sort key and a name, or `None` for a pair in no group. `probability` maps a
/// margin to a probability.
fn buckets(
    margins: &[f64],
    probability: fn(f64) -> f64,
    name: impl Fn(usize) -> Option<(usize, String)>,
) -> Vec<Bucket> {
    let mut groups: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    for (index, margin) in margins.iter().enumerate() {
        if let Some(key) = name(index) {
            groups.entry(key).or_default().push(*margin);
        }
    }
    let mean = |values: &[f64], map: fn(f64) -> f64| {
        values.iter().map(|value| map(*value)).sum::<f64>() / values.len() as f64
    };
    let bucket = |((_, name), margins): ((usize, String), Vec<f64>)| Bucket {
        name,
        rate: Rate::from_verdicts(margins.iter().map(|margin| *margin > 0.0)),
        mean_margin: mean(&margins, |margin| margin),
        mean_probability: mean(&margins, probability),
    };
    groups.into_iter().map(bucket).collect()
}

fn calibration_error(buckets: &[Bucket]) -> f64 {
    let pairs: usize = buckets.iter().map(|bucket| bucket.rate.total).sum();
    let distance = |bucket: &Bucket| {
        (bucket.rate.accuracy - bucket.mean_probability).abs() * bucket.rate.total as f64
    };
    buckets.iter().map(distance).sum::<f64>() / pairs.max(1) as f64
}

/// Formats the margins for the terminal.
pub fn margin_lines(margins: &Margins) -> String {
    let mut lines = Vec::new();
    if let Some((mean, [low, high])) = margins.mean {
        lines.push(format!(
            "\nmean margin of the {}: {mean:.4} (95 %: {low:.4} to {high:.4})",
            margins.quantity
        ));
    }
    lines.push(format!("expected calibration error: {:.4}", margins.calibration_error));
    for (title, buckets) in margins.tables().into_iter().filter(|(_, buckets)| !buckets.is_empty())
    {
        lines.push(format!(
            "\n{title}\n{:<26}{:>8}{:>8}{:>11}{:>10}{:>13}",
            "", "correct", "of", "accuracy", "margin", "probability"
        ));
        for Bucket { name, rate, mean_margin, mean_probability } in buckets {
            lines.push(format!(
                "{name:<26}{:>8}{:>8}{:>9.2} %{mean_margin:>10.3}{:>11.2} %",
                rate.correct,
                rate.total,
                100.0 * rate.accuracy,
                100.0 * mean_probability
            ));
        }
    }
    lines.join("\n")
}
