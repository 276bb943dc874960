//! Token counts of the pairs, and how well length predicts the preference.

use serde::Serialize;

use crate::data::encode::{EncodedPair, EncodedSequence};
use crate::data::lengths::histogram;
use crate::eval::statistics::Rate;

/// Tokens per bucket of the histograms.
const BUCKET: usize = 64;

/// The distribution of one kind of length, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Smallest length.
    pub min: usize,
    /// Half of the lengths are at most this.
    pub median: usize,
    /// Mean length.
    pub mean: f64,
    /// Nine tenths of the lengths are at most this.
    pub p90: usize,
    /// 99 % of the lengths are at most this.
    pub p99: usize,
    /// Largest length.
    pub max: usize,
}

impl Summary {
    /// Summarizes `lengths`, in any order; all zeros if there are none.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable();
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        // The nearest-rank definition: the smallest length that at least this share does not exceed.
        let percentile = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        Self {
            min: *min,
            median: percentile(50),
            mean: sorted.iter().sum::<usize>() as f64 / sorted.len() as f64,
            p90: percentile(90),
            p99: percentile(99),
            max: *max,
        }
    }
}

/// Lengths before truncation, in tokens, as the trainer counts them (BOS and EOS included).
#[derive(Clone, Debug, Serialize)]
pub struct Lengths {
    /// Prompts.
    pub prompt: Summary,
    /// Chosen completions.
    pub chosen: Summary,
    /// Rejected completions.
    pub rejected: Summary,
    /// Prompt and longer completion together: what `max_length` is compared with.
    pub sequence: Summary,
    /// Tokens per bucket of the histograms.
    pub bucket_size: usize,
    /// Prompts per bucket.
    pub prompt_histogram: Vec<u64>,
    /// Chosen completions per bucket.
    pub chosen_histogram: Vec<u64>,
    /// Rejected completions per bucket.
    pub rejected_histogram: Vec<u64>,
}

impl Lengths {
    /// Computes the summaries and the histograms of the lengths of `pairs`.
    pub(super) fn new(pairs: &[EncodedPair]) -> Self {
        let prompts = || pairs.iter().map(|pair| pair.chosen.completion_start);
        let chosen = || pairs.iter().map(|pair| completion_tokens(&pair.chosen));
        let rejected = || pairs.iter().map(|pair| completion_tokens(&pair.rejected));
        Self {
            prompt: Summary::new(prompts()),
            chosen: Summary::new(chosen()),
            rejected: Summary::new(rejected()),
            sequence: Summary::new(pairs.iter().map(EncodedPair::longest)),
            bucket_size: BUCKET,
            prompt_histogram: histogram(prompts(), BUCKET),
            chosen_histogram: histogram(chosen(), BUCKET),
            rejected_histogram: histogram(rejected(), BUCKET),
        }
    }
}

/// How often the longer completion is the chosen one. DPO learns length if it predicts the preference well
/// (Park et al. 2024, <https://arxiv.org/abs/2403.19159>).
#[derive(Clone, Debug, Serialize)]
pub struct LengthPreference {
    /// Pairs whose completions have the same number of tokens.
    pub equal: usize,
    /// Among the other pairs, those whose chosen completion is the longer one.
    pub longer_is_chosen: Rate,
}

impl LengthPreference {
    /// Counts the pairs whose chosen completion is longer, and those whose completions are equally long.
    pub(super) fn new(pairs: &[EncodedPair]) -> Self {
        let count = |pair: &EncodedPair| {
            (completion_tokens(&pair.chosen), completion_tokens(&pair.rejected))
        };
        let counts: Vec<_> = pairs.iter().map(count).collect();
        let different = counts.iter().filter(|(chosen, rejected)| chosen != rejected);
        Self {
            equal: counts.len() - different.clone().count(),
            longer_is_chosen: Rate::from_verdicts(
                different.map(|(chosen, rejected)| chosen > rejected),
            ),
        }
    }
}

fn completion_tokens(sequence: &EncodedSequence) -> usize {
    sequence.ids.len() - sequence.completion_start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let summary = Summary::new((1..=200).rev());
        let expected = Summary { min: 1, median: 100, mean: 100.5, p90: 180, p99: 198, max: 200 };
        assert_eq!(summary, expected);
        assert_eq!(
            Summary::new([7]),
            Summary { min: 7, median: 7, mean: 7.0, p90: 7, p99: 7, max: 7 }
        );
        assert_eq!(Summary::new([]), Summary::default());
    }

    #[test]
    fn pairs_of_equal_length_do_not_count_for_the_preference() {
        let sequence = |tokens: usize| EncodedSequence {
            ids: vec![1; 3 + tokens],
            completion_start: 3,
            hidden: Vec::new(),
        };
        let pair = |(chosen, rejected)| EncodedPair {
            id: String::new(),
            chosen: sequence(chosen),
            rejected: sequence(rejected),
        };
        let pairs: Vec<_> = [(5, 2), (4, 4), (1, 70), (9, 8)].map(pair).into();
        let preference = LengthPreference::new(&pairs);
        assert_eq!(preference.equal, 1);
        assert_eq!(
            (preference.longer_is_chosen.correct, preference.longer_is_chosen.total),
            (2, 3)
        );
        let lengths = Lengths::new(&pairs);
        assert_eq!((lengths.prompt.max, lengths.chosen.max, lengths.sequence.max), (3, 9, 73));
        assert_eq!(lengths.rejected_histogram, [3, 1]);
    }
}
