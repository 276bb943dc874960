//! Pairs right answers with wrong ones.
//!
//! Of each problem the hardest wrong answers come first: those whose result most samples share, because the model
//! believes in them most. Each text, right or wrong, is in at most one pair. Answers that were cut off are in none,
//! unless asked for: a training sequence ends in an end token, which the model did not write there. Among equally
//! hard wrong answers and among the right ones, the pair with the best-matching lengths is chosen: both sides of a
//! pair should be equally long, and so should both sides of all pairs together, because DPO would otherwise learn to
//! write longer or shorter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sampled answer with its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedAnswer {
    /// Text of the completion.
    pub text: String,
    /// Number of its tokens.
    pub tokens: usize,
    /// Result it states, if any.
    pub answer: Option<String>,
    /// Whether that result is the known one.
    pub correct: bool,
    /// Whether the model ended the answer itself.
    pub ended: bool,
}

/// How answers are paired.
#[derive(Clone, Copy, Debug)]
pub struct PairingConfig {
    /// Maximum number of pairs per problem.
    pub pairs_per_problem: usize,
    /// Whether wrong answers that reached the token limit may be rejected sides too.
    pub keep_cut_off: bool,
}

impl PairingConfig {
    /// Returns whether a sample may be the chosen side. One that was cut off may not: it would teach not to end.
    pub(super) fn may_be_chosen(&self, sample: &CheckedAnswer) -> bool {
        sample.correct && sample.ended
    }

    /// Returns whether a sample may be the rejected side.
    pub(super) fn may_be_rejected(&self, sample: &CheckedAnswer) -> bool {
        !sample.correct && (sample.ended || self.keep_cut_off)
    }
}

/// A distinct text, with the number of samples that share its result.
struct Candidate<'a> {
    sample: &'a CheckedAnswer,
    votes: usize,
}

/// Returns pairs `(right, wrong)` of one problem's samples, at most `config.pairs_per_problem`. Wrong answers whose
/// result is the most frequent come first. `balance` is the sum over all pairs so far of the right side's tokens minus
/// the wrong side's, and is updated.
///
/// Among equally frequent wrong answers it chooses the pair with the least `|gap| + |balance + gap|`, where `gap` is the
/// difference of its lengths, so that no pair is chosen that is more uneven than the imbalance it reduces.
pub fn pair_up<'a>(
    samples: &'a [CheckedAnswer],
    config: &PairingConfig,
    balance: &mut i64,
) -> Vec<(&'a CheckedAnswer, &'a CheckedAnswer)> {
    let mut right = candidates(samples, |sample| config.may_be_chosen(sample));
    let mut wrong = candidates(samples, |sample| config.may_be_rejected(sample));
    let mut pairs = Vec::new();
    while pairs.len() < config.pairs_per_problem {
        let Some(hardest) = wrong.first().map(|wrong| wrong.votes) else {
            break;
        };
        let equally_hard = wrong.iter().take_while(|wrong| wrong.votes == hardest);
        let possible = equally_hard.enumerate().flat_map(|(at, wrong)| {
            let gaps = right.iter().map(|right| gap(right.sample, wrong.sample));
            gaps.enumerate().map(move |(right, gap)| (gap, right, at))
        });
        // Of equals, `min_by_key` returns the first, which was sampled first.
        let unevenness =
            |(gap, _, _): &(i64, usize, usize)| (gap.abs() + (*balance + gap).abs(), gap.abs());
        let Some((gap, right_at, wrong_at)) = possible.min_by_key(unevenness) else {
            break;
        };
        *balance += gap;
        let (right, wrong) = (right.remove(right_at), wrong.remove(wrong_at));
        pairs.push((right.sample, wrong.sample));
    }
    pairs
}

/// Returns by how many tokens the right side is longer.
fn gap(right: &CheckedAnswer, wrong: &CheckedAnswer) -> i64 {
    right.tokens as i64 - wrong.tokens as i64
}

/// Returns each distinct text of the `wanted` samples once, those with the most frequent results among all samples first
/// and those without a result last.
fn candidates<'a>(
    samples: &'a [CheckedAnswer],
    wanted: impl Fn(&CheckedAnswer) -> bool,
) -> Vec<Candidate<'a>> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in samples.iter().filter_map(|sample| sample.answer.as_deref()) {
        *votes.entry(answer).or_default() += 1;
    }
    let mut found: Vec<Candidate<'a>> = Vec::new();
    for sample in samples.iter().filter(|sample| wanted(sample)) {
        if found.iter().all(|other| other.sample.text != sample.text) {
            let answer = sample.answer.as_deref();
            let votes = answer.and_then(|answer| votes.get(answer));
            found.push(Candidate { sample, votes: votes.copied().unwrap_or(0) });
        }
    }
    // The sort is stable: of equals, the one sampled first comes first.
    found.sort_by_key(|candidate| std::cmp::Reverse(candidate.votes));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str, tokens: usize, answer: Option<&str>, correct: bool) -> CheckedAnswer {
        CheckedAnswer {
            text: text.into(),
            tokens,
            answer: answer.map(String::from),
            correct,
            ended: true,
        }
    }

    fn texts(pairs: &[(&CheckedAnswer, &CheckedAnswer)]) -> Vec<[String; 2]> {
        let text = |(right, wrong): &(&CheckedAnswer, &CheckedAnswer)| {
            [right.text.clone(), wrong.text.clone()]
        };
        pairs.iter().map(text).collect()
    }

    fn config(pairs_per_problem: usize) -> PairingConfig {
        PairingConfig { pairs_per_problem, keep_cut_off: false }
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
            sample("7", 4, Some("7"), true),
        ];
        let mut balance = 0;
        let pairs = pair_up(&samples, &config(3), &mut balance);
        // The longer right text fits the nine tokens better; then the other one is paired, and no right text is left.
        let expected = [["long 7", "so 5"], ["7", "thus 5"]];
        assert_eq!(texts(&pairs), expected);
        assert_eq!(balance, (8 - 9) + (4 - 9));
    }

    /// Token counts of samples of SmolLM2-135M at 60 new tokens, where most wrong answers were cut off. Pairing these
    /// gave means of
    /// 11.5 and 43.1 tokens.
    #[test]
    fn answers_that_were_cut_off_do_not_teach_to_be_short() {
        let cut = |text: &str| CheckedAnswer { ended: false, ..sample(text, 60, None, false) };
        let right = |text: &str, tokens| sample(text, tokens, Some("right"), true);
        let problems = [
            vec![right("8", 10), cut("a coin multiplier"), cut("we're in")],
            vec![right("24", 11), cut("48 Step"), cut("18 apples")],
            vec![right("20 Apples", 12), sample("3 Apples", 3, Some("3"), false), cut("Reasoning")],
            vec![
                right("11 tomorrow", 13),
                sample("A total of 26", 17, Some("26"), false),
                right("11.", 4),
                cut("Fill in-box"),
            ],
            vec![
                right("two coins", 11),
                sample("56", 14, Some("56"), false),
                sample("1 coin", 33, Some("1"), false),
            ],
        ];
        let mut balance = 0;
        let pairs = problems.iter().flat_map(|samples| pair_up(samples, &config(2), &mut balance));
        let lengths: Vec<[usize; 2]> =
            pairs.map(|(right, wrong)| [right.tokens, wrong.tokens]).collect();
        assert_eq!(lengths, [[12, 3], [13, 17], [11, 14]]);
        assert_eq!(balance, 2);
    }

    #[test]
    fn equally_hard_answers_are_chosen_by_length() {
        let samples = [
            sample("far too long 2", 40, Some("2"), false),
            sample("3", 4, Some("3"), false),
            sample("so it is 4", 11, Some("4"), false),
            sample("it is 7", 10, Some("7"), true),
        ];
        let mut balance = 0;
        let pairs = pair_up(&samples, &config(1), &mut balance);
        assert_eq!(texts(&pairs), [["it is 7", "so it is 4"]]);
        // An existing imbalance is reduced: right sides were 6 tokens too short in total.
        balance = -6;
        let pairs = pair_up(&samples, &config(1), &mut balance);
        assert_eq!(texts(&pairs), [["it is 7", "3"]]);
        assert_eq!(balance, 0);
    }

    #[test]
    fn lengths_are_balanced_over_problems() {
        let samples = [
            sample("short", 8, Some("1"), true),
            sample("longer", 12, Some("1"), true),
            sample("wrong", 10, Some("2"), false),
        ];
        let (mut balance, mut sums) = (0, Vec::new());
        for _ in 0..6 {
            pair_up(&samples, &config(1), &mut balance);
            sums.push(balance);
        }
        assert!(sums.iter().all(|sum| sum.abs() <= 2), "{sums:?}");
        assert!(sums.contains(&0), "{sums:?}");
    }

    #[test]
    fn nothing_is_paired_where_one_kind_is_missing_or_was_cut_off() {
        let right = sample("1", 1, Some("1"), true);
        let wrong = sample("2", 1, Some("2"), false);
        let cut = |sample: &CheckedAnswer| CheckedAnswer { ended: false, ..sample.clone() };
        let (cut_right, cut_wrong) = (cut(&right), cut(&wrong));
        let mut balance = 0;
        for samples in
            [[right.clone(), right.clone()], [cut_right, wrong], [right.clone(), cut_wrong.clone()]]
        {
            assert!(pair_up(&samples, &config(4), &mut balance).is_empty());
        }
        assert_eq!(balance, 0);
        let keep = PairingConfig { keep_cut_off: true, ..config(4) };
        let samples = [right, cut_wrong];
        assert_eq!(texts(&pair_up(&samples, &keep, &mut balance)), [["1", "2"]]);
    }
}
