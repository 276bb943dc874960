//! Computes TRL's metrics from per-sequence and per-token statistics on the host.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::moments::Moments;

/// The outputs of one pair or example, which are read from the device once per step.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutput {
    /// Loss of the sample.
    pub loss: f64,
    /// Outputs of the policy for each completion: chosen and rejected, or the only one.
    pub policy: Vec<CompletionOutput>,
    /// Log-probabilities of the completions under the reference; empty if there is no reference.
    pub reference: Vec<f64>,
}

/// The outputs of the policy for one completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionOutput {
    /// Log-probability, summed with the weights of `ld_alpha`.
    pub logps: f64,
    /// Statistics of each scored token: log-probability, entropy, argmax match, mean logit.
    pub tokens: Vec<[f64; 4]>,
}

/// A sum over pairs or tokens, and the number of its terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// Sum of the terms.
    pub total: f64,
    /// Number of terms.
    pub count: usize,
}

impl Sum {
    /// Returns the sum of `values`.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        values.fold(Self::default(), |sum, value| Self {
            total: sum.total + value,
            count: sum.count + 1,
        })
    }

    /// Returns the mean of the terms, or 0 if there are none.
    pub fn mean(self) -> f64 {
        self.total / self.count.max(1) as f64
    }

    /// Returns the sum over the terms of both sums.
    fn add(self, other: Self) -> Self {
        Self { total: self.total + other.total, count: self.count + other.count }
    }
}

/// TRL's metrics of one micro-batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MicroBatchMetrics {
    /// Number of samples in the micro-batch.
    pub pairs: usize,
    /// Mean loss.
    pub loss: f64,
    /// The terms of each metric by its key, which is TRL's name. Their mean is the metric's value. A metric that the
    /// micro-batch does not have is absent.
    pub sums: BTreeMap<String, Sum>,
    /// Sums whose means add up to `loss`. Not saved in checkpoints.
    #[serde(skip)]
    pub loss_sums: Vec<Sum>,
    /// Sums over pairs of how many tokens longer the chosen completion is, and of the margin. Not saved in checkpoints.
    #[serde(skip)]
    pub length_margin: Moments,
}

/// Keys of all metrics, as in TRL, in the order in which a line of the log has them.
pub const KEYS: [&str; 14] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "kl",
    "nll_loss",
    "log_odds_ratio",
    "log_odds_chosen",
    "mean_token_accuracy",
    "entropy",
];

impl MicroBatchMetrics {
    /// Computes the metrics of a micro-batch of pairs by TRL 1.x's definitions. Rewards are `beta * (policy - reference)`,
    /// ties count as wrong, `logits/*` are means over the vocabulary and then over completion tokens,
    /// `mean_token_accuracy` is over chosen tokens, and `entropy` over all completion tokens.
    pub fn new(pairs: &[SampleOutput], beta: f64) -> Self {
        let loss = Sum::of(pairs.iter().map(|pair| pair.loss));
        Self::of_pairs(pairs, beta, vec![loss])
    }

    /// Computes the metrics like [`Self::new`], but adds `sft_weight` times the mean cross-entropy of the chosen tokens to
    /// the loss. The losses in `pairs` must be the preference losses alone.
    pub fn with_sft(pairs: &[SampleOutput], beta: f64, sft_weight: f64) -> Self {
        if sft_weight == 0.0 {
            return Self::new(pairs, beta);
        }
        let loss = Sum::of(pairs.iter().map(|pair| pair.loss));
        let tokens = pairs.iter().flat_map(|pair| &pair.policy[0].tokens);
        let cross_entropy = Sum {
            total: tokens.clone().map(|token| -sft_weight * token[0]).sum(),
            count: tokens.count(),
        };
        Self::of_pairs(pairs, beta, vec![loss, cross_entropy])
    }

    /// Creates the metrics of pairs whose loss is the sum of the means of `loss_sums`.
    fn of_pairs(pairs: &[SampleOutput], beta: f64, loss_sums: Vec<Sum>) -> Self {
        let tokens = |pair: &SampleOutput, side: usize| pair.policy[side].tokens.len() as f64;
        let length_margin = Moments::of(pairs.iter().map(|pair| {
            let margin = reward(pair, beta, 0) - reward(pair, beta, 1);
            (tokens(pair, 0) - tokens(pair, 1), margin)
        }));
        let sums = pair_sums(pairs, beta);
        Self { length_margin, ..Self::from_sums(pairs.len(), loss_sums, sums) }
    }

    /// Creates metrics whose loss is the sum of the means of `loss_sums`.
    pub fn from_sums(
        pairs: usize,
        loss_sums: Vec<Sum>,
        sums: impl IntoIterator<Item = (impl Into<String>, Sum)>,
    ) -> Self {
        Self {
            pairs,
            loss: loss_sums.iter().map(|sum| sum.mean()).sum(),
            sums: sums.into_iter().map(|(key, sum)| (key.into(), sum)).collect(),
            loss_sums,
            length_margin: Moments::default(),
        }
    }

    /// Returns the value of the metric `key`; `None` if the micro-batch does not have it.
    pub fn value(&self, key: &str) -> Option<f64> {
        self.sums.get(key).map(|sum| sum.mean())
    }

    /// Returns the value of every metric by its key.
    pub fn values(&self) -> BTreeMap<String, f64> {
        self.sums.iter().map(|(key, sum)| (key.clone(), sum.mean())).collect()
    }

    /// Computes the metrics over all pairs of `batches`. The sums are added before they are divided, so that the result does
    /// not depend on how the pairs are divided into batches.
    pub fn pooled(batches: &[Self]) -> Self {
        let total = |sums: &mut dyn Iterator<Item = Sum>| sums.fold(Sum::default(), Sum::add);
        let losses = batches.first().map_or(0, |batch| batch.loss_sums.len());
        let loss_sums = (0..losses)
            .map(|index| total(&mut batches.iter().filter_map(|b| b.loss_sums.get(index).copied())))
            .collect();
        let sums = keys(batches)
            .into_iter()
            .map(|key| (key, total(&mut batches.iter().filter_map(|b| b.sums.get(key).copied()))));
        Self {
            length_margin: Self::length_margins(batches),
            ..Self::from_sums(batches.iter().map(|batch| batch.pairs).sum(), loss_sums, sums)
        }
    }

    /// Returns the sums of `length_margin` over all pairs of `batches`.
    pub fn length_margins(batches: &[Self]) -> Moments {
        let moments = batches.iter().map(|batch| batch.length_margin);
        moments.fold(Moments::default(), Moments::plus)
    }

    /// Returns the unweighted means of the loss and of each metric over micro-batches, as TRL computes them: a metric's mean is
    /// over the micro-batches that have it.
    pub fn mean(batches: &[Self]) -> (f64, BTreeMap<String, f64>) {
        Self::mean_weighted(batches, |_| 1.0)
    }

    /// Returns the means of the loss and of each metric over micro-batches, weighted by their numbers of pairs. They equal
    /// TRL's if all micro-batches have the same size, and are means over pairs if the last one of an epoch is smaller.
    pub fn mean_by_pairs(batches: &[Self]) -> (f64, BTreeMap<String, f64>) {
        Self::mean_weighted(batches, |batch| batch.pairs as f64)
    }

    fn mean_weighted(
        batches: &[Self],
        weight: impl Fn(&Self) -> f64,
    ) -> (f64, BTreeMap<String, f64>) {
        let mean = |value: &dyn Fn(&Self) -> Option<f64>| {
            let (mut sum, mut total) = (0.0, 0.0);
            for batch in batches {
                if let Some(value) = value(batch) {
                    sum += weight(batch) * value;
                    total += weight(batch);
                }
            }
            if total > 0.0 { sum / total } else { 0.0 }
        };
        let values = keys(batches).into_iter();
        let values = values.map(|key| (key.to_string(), mean(&|batch| batch.value(key))));
        (mean(&|batch| Some(batch.loss)), values.collect())
    }

    /// Returns the mean loss weighted by numbers of pairs, as the Trainer's evaluation reports it.
    pub fn loss_by_pairs(batches: &[Self]) -> f64 {
        Self::mean_by_pairs(batches).0
    }
}

/// Returns the reward of a completion of a pair: 0 for chosen, 1 for rejected.
fn reward(pair: &SampleOutput, beta: f64, side: usize) -> f64 {
    beta * (pair.policy[side].logps - pair.reference[side])
}

/// Returns the keys of the metrics that any of `batches` has.
fn keys(batches: &[MicroBatchMetrics]) -> BTreeSet<&str> {
    batches.iter().flat_map(|batch| batch.sums.keys()).map(String::as_str).collect()
}

/// Computes the metrics of the rewards of pairs, each that of the chosen and of the rejected completion. Ties count as wrong.
pub(super) fn reward_sums(rewards: &[[f64; 2]]) -> [(&'static str, Sum); 4] {
    let side = |side: usize| Sum::of(rewards.iter().map(move |rewards| rewards[side]));
    let margins = || rewards.iter().map(|[chosen, rejected]| chosen - rejected);
    [
        ("rewards/chosen", side(0)),
        ("rewards/rejected", side(1)),
        ("rewards/accuracies", Sum::of(margins().map(|margin| f64::from(margin > 0.0)))),
        ("rewards/margins", Sum::of(margins())),
    ]
}

/// Computes the metrics of pairs.
fn pair_sums(pairs: &[SampleOutput], beta: f64) -> [(&'static str, Sum); 10] {
    let rewards: Vec<[f64; 2]> =
        pairs.iter().map(|pair| [reward(pair, beta, 0), reward(pair, beta, 1)]).collect();
    let [chosen, rejected, accuracies, margins] = reward_sums(&rewards);
    let logps = |side: usize| Sum::of(pairs.iter().map(move |pair| pair.policy[side].logps));
    let tokens = |side: usize| pairs.iter().flat_map(move |pair| &pair.policy[side].tokens);
    [
        chosen,
        rejected,
        accuracies,
        margins,
        ("logps/chosen", logps(0)),
        ("logps/rejected", logps(1)),
        ("logits/chosen", Sum::of(tokens(0).map(|token| token[3]))),
        ("logits/rejected", Sum::of(tokens(1).map(|token| token[3]))),
        ("mean_token_accuracy", Sum::of(tokens(0).map(|token| token[2]))),
        ("entropy", Sum::of(tokens(0).chain(tokens(1)).map(|token| token[1]))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a pair whose chosen completion has `chosen` tokens, of which `right` match the argmax.
    fn pair(loss: f64, margin: f64, chosen: usize, right: usize) -> SampleOutput {
        let side = |logps: f64, count: usize| CompletionOutput {
            logps,
            tokens: (0..count)
                .map(|index| [logps / count as f64, 1.0, f64::from(index < right), 2.0])
                .collect(),
        };
        SampleOutput {
            loss,
            policy: vec![side(margin, chosen), side(0.0, 1)],
            reference: vec![0.0, 0.0],
        }
    }

    /// Six of twelve pairs are right: 3 of the first eight and 3 of the last four. The mean of these two batch means is
    /// 0.5625, which is not a fraction of 12.
    #[test]
    fn pooled_means_do_not_depend_on_the_batches() {
        let margins = [1, 1, 1, -1, -1, -1, -1, -1, 1, 1, 1, -1];
        let pairs: Vec<SampleOutput> = (margins.iter().enumerate())
            .map(|(i, m)| pair(i as f64, f64::from(*m), 1 + i, i.min(3)))
            .collect();
        let whole = MicroBatchMetrics::new(&pairs, 1.0);
        assert_eq!(whole.value("rewards/accuracies"), Some(0.5));
        assert_eq!(whole.loss, 5.5);
        // Tokens: 1 + 2 + .. + 12 = 78, of which 0 + 1 + 2 + 9 * 3 = 30 are right.
        assert_eq!(whole.value("mean_token_accuracy"), Some(30.0 / 78.0));
        // The chosen side is 0, 1, .., 11 tokens longer, with mean 5.5 and sum of squares 143; the margins have mean 0 and sum
        // of squares 12. The sum of products is 0 + 1 + 2 - 3 - 4 - 5 - 6 - 7 + 8 + 9 + 10 - 11 = -6.
        let correlation = whole.length_margin.correlation().unwrap();
        assert!((correlation + 6.0 / (143.0_f64 * 12.0).sqrt()).abs() < 1e-12, "{correlation}");
        for size in 1..=12 {
            let batches = pairs.chunks(size);
            let batches: Vec<_> = batches.map(|c| MicroBatchMetrics::new(c, 1.0)).collect();
            assert_eq!(MicroBatchMetrics::pooled(&batches), whole, "batches of {size}");
        }
        let batches: Vec<_> = pairs.chunks(8).map(|c| MicroBatchMetrics::new(c, 1.0)).collect();
        assert_eq!(MicroBatchMetrics::mean(&batches).1["rewards/accuracies"], 0.5625);
        assert_eq!(MicroBatchMetrics::mean_by_pairs(&batches).1["rewards/accuracies"], 0.5);
        assert_eq!(MicroBatchMetrics::loss_by_pairs(&batches), 5.5);
    }

    /// A metric that only some batches have is averaged over these.
    #[test]
    fn metrics_may_be_absent() {
        let batch = |pairs, sums: &[(&'static str, f64)]| {
            let sums = sums.iter().map(|(key, total)| (*key, Sum { total: *total, count: 2 }));
            MicroBatchMetrics::from_sums(pairs, vec![Sum { total: 1.0, count: 1 }], sums)
        };
        let batches = [batch(3, &[("a", 2.0), ("b", 4.0)]), batch(1, &[("a", 6.0)]), batch(4, &[])];
        assert_eq!(batches[1].value("b"), None);
        let expected = |a, b| BTreeMap::from([("a".to_string(), a), ("b".to_string(), b)]);
        assert_eq!(MicroBatchMetrics::mean(&batches), (1.0, expected(2.0, 2.0)));
        assert_eq!(MicroBatchMetrics::mean_by_pairs(&batches), (1.0, expected(1.5, 2.0)));
        assert_eq!(MicroBatchMetrics::pooled(&batches).values(), expected(2.0, 2.0));
    }

    /// The cross-entropy is a mean over tokens, 0.125 * (3 + 6) / (2 + 6), even if the two pairs are in separate batches.
    #[test]
    fn the_sft_loss_is_pooled_over_tokens() {
        let pairs = [pair(1.0, -3.0, 2, 0), pair(2.0, -6.0, 6, 0)];
        let batch = |pairs: &[SampleOutput]| MicroBatchMetrics::with_sft(pairs, 1.0, 0.125);
        let pooled = MicroBatchMetrics::pooled(&[batch(&pairs[..1]), batch(&pairs[1..])]);
        assert_eq!(pooled.loss, 1.5 + 0.125 * 9.0 / 8.0);
        assert_eq!(pooled, batch(&pairs));
        assert_eq!(batch(&pairs[..1]).loss, 1.0 + 0.125 * 3.0 / 2.0);
    }
}
