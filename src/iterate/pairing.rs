//! Which right answer is paired with which wrong one.
//!
//! Of each problem the wrong answers come hardest first: those whose result most samples share, because the model believes
//! in them most. Each text is rejected once; its partner is the right text whose length fits best, one not used yet if
//! there is one. Lengths are kept in balance over all pairs: DPO would otherwise learn to write longer or shorter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sampled answer that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The completion.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// The result it states, if any.
    pub answer: Option<String>,
    /// Whether that is the known one.
    pub correct: bool,
    /// Whether the model ended it itself.
    pub ended: bool,
}

/// How answers are paired.
#[derive(Clone, Copy, Debug)]
pub struct PairingConfig {
    /// Most pairs of one problem.
    pub pairs_per_problem: usize,
}

/// A text of some samples, with how many samples share its result.
struct Candidate<'a> {
    sample: &'a Checked,
    votes: usize,
}

/// Pairs `(right, wrong)` of one problem's samples, the hardest wrong answer first. `balance` is the sum over all pairs so
/// far of the right side's tokens minus the wrong side's, and is kept up to date.
///
/// An answer that was cut off is never the right side: it would teach not to end.
pub fn pair_up<'a>(
    samples: &'a [Checked],
    config: &PairingConfig,
    balance: &mut i64,
) -> Vec<(&'a Checked, &'a Checked)> {
    let right = candidates(samples, |sample| sample.correct && sample.ended);
    let wrong = candidates(samples, |sample| !sample.correct);
    let mut uses = vec![0usize; right.len()];
    let mut pairs = Vec::new();
    for wrong in wrong.iter().take(config.pairs_per_problem) {
        let difference =
            |right: &Candidate<'_>| right.sample.tokens as i64 - wrong.sample.tokens as i64;
        // A little against what has gathered so far; never so much that lengths within a pair differ for it.
        let against = (*balance).clamp(-2, 2);
        let fit = |index: &usize| {
            let away = (difference(&right[*index]) + against).unsigned_abs();
            (uses[*index], away)
        };
        let Some(best) = (0..right.len()).min_by_key(fit) else {
            break;
        };
        uses[best] += 1;
        *balance += difference(&right[best]);
        pairs.push((right[best].sample, wrong.sample));
    }
    pairs
}

/// Each text once, most shared result first; without a result last.
fn candidates<'a>(samples: &'a [Checked], wanted: impl Fn(&Checked) -> bool) -> Vec<Candidate<'a>> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in samples.iter().filter_map(|sample| sample.answer.as_deref()) {
        *votes.entry(answer).or_default() += 1;
    }
    let mut found: Vec<Candidate<'a>> = Vec::new();
    for sample in samples.iter().filter(|sample| wanted(sample)) {
        if found.iter().all(|other| other.sample.text != sample.text) {
            let of_answer = sample.answer.as_deref().and_then(|answer| votes.get(answer));
            found.push(Candidate { sample, votes: of_answer.copied().unwrap_or(0) });
        }
    }
    // Stable: among equals the one sampled first.
    found.sort_by_key(|candidate| std::cmp::Reverse(candidate.votes));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, tokens: usize, answer: Option<&str>, correct: bool) -> Checked {
        Checked {
            text: text.into(),
            tokens,
            answer: answer.map(String::from),
            correct,
            ended: true,
        }
    }

    fn texts(pairs: &[(&Checked, &Checked)]) -> Vec<[String; 2]> {
        let text = |(right, wrong): &(&Checked, &Checked)| [right.text.clone(), wrong.text.clone()];
        pairs.iter().map(text).collect()
    }

    #[test]
    fn the_answer_most_samples_share_comes_first_and_texts_come_once() {
        let samples = [
            sample("no answer", 9, None, false),
            sample("a rare 3", 9, Some("3"), false),
            sample("so 5", 9, Some("5"), false),
            sample("7", 4, Some("7"), true),
            sample("thus 5", 9, Some("5"), false),
            sample("so 5", 9, Some("5"), false),
            sample("long 7", 8, Some("7"), true),
        ];
        let config = PairingConfig { pairs_per_problem: 3 };
        let mut balance = 0;
        let pairs = pair_up(&samples, &config, &mut balance);
        // The longer right text fits the nine tokens better; then the other has its turn.
        let expected = [["long 7", "so 5"], ["7", "thus 5"], ["long 7", "a rare 3"]];
        assert_eq!(texts(&pairs), expected);
        assert_eq!(balance, (8 - 9) + (4 - 9) + (8 - 9));
    }

    #[test]
    fn lengths_are_balanced_over_problems() {
        let samples = [
            sample("short", 8, Some("1"), true),
            sample("longer", 12, Some("1"), true),
            sample("wrong", 10, Some("2"), false),
        ];
        let config = PairingConfig { pairs_per_problem: 1 };
        let (mut balance, mut sums) = (0, Vec::new());
        for _ in 0..6 {
            pair_up(&samples, &config, &mut balance);
            sums.push(balance);
        }
        assert!(sums.iter().all(|sum| sum.abs() <= 2), "{sums:?}");
        assert!(sums.contains(&0), "{sums:?}");
    }

    #[test]
    fn nothing_is_paired_where_one_kind_is_missing_or_was_cut_off() {
        let config = PairingConfig { pairs_per_problem: 4 };
        let right = sample("1", 1, Some("1"), true);
        let wrong = sample("2", 1, Some("2"), false);
        let cut = Checked { ended: false, ..right.clone() };
        let mut balance = 0;
        assert!(pair_up(&[right.clone(), right], &config, &mut balance).is_empty());
        assert!(pair_up(&[cut, wrong], &config, &mut balance).is_empty());
        assert_eq!(balance, 0);
    }
}
