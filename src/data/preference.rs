//! Vote scores, and the choice of the best and the worst of several answers.

use serde::{Deserialize, Serialize};

use super::stack_exchange::Answer;

/// Computes the vote score of an answer: `round(log2(1 + upvotes))`, plus one if the answer is accepted, or -1 if
/// `upvotes` is negative.
///
/// This is the formula of the data set `HuggingFaceH4/stack-exchange-preferences`, after Askell et al. 2021,
/// "A General Language Assistant as a Laboratory for Alignment", appendix C.
///
/// ```
/// use arithmo::data::preference::pm_score;
/// assert_eq!([pm_score(0, false), pm_score(2, false), pm_score(10, true), pm_score(-3, true)], [0, 2, 4, -1]);
/// ```
pub fn pm_score(upvotes: i64, accepted: bool) -> i64 {
    if upvotes < 0 {
        return -1;
    }
    (1.0 + upvotes as f64).log2().round() as i64 + i64::from(accepted)
}

/// How the best and the worst answer are chosen among answers of equal score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TieRule {
    /// The last of the equal answers is both the best and the worst (`>=`, `<=`), as in the original project.
    Last,
    /// The accepted answer counts as better than the others; among the rest, the first one is chosen.
    AcceptedThenFirst,
}

/// Returns the indices of the answers with the highest and the lowest score, or `None` if there are no answers. Both may
/// be the same answer or have the same score.
pub fn best_and_worst(answers: &[Answer], ties: TieRule) -> Option<(usize, usize)> {
    let (mut best, mut worst) = (0, 0);
    let first = answers.first()?;
    let mut best_rank = (first.pm_score, first.selected);
    let mut worst_rank = best_rank;
    for (i, answer) in answers.iter().enumerate().skip(1) {
        let rank = (answer.pm_score, answer.selected);
        let (is_best, is_worst) = match ties {
            TieRule::Last => (rank.0 >= best_rank.0, rank.0 <= worst_rank.0),
            TieRule::AcceptedThenFirst => (rank > best_rank, rank < worst_rank),
        };
        if is_best {
            (best, best_rank) = (i, rank);
        }
        if is_worst {
            (worst, worst_rank) = (i, rank);
        }
    }
    Some((best, worst))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(scores: &[(i64, bool)], ties: TieRule) -> Option<(usize, usize)> {
        let answer = |&(pm_score, selected)| Answer { text: String::new(), pm_score, selected };
        best_and_worst(&scores.iter().map(answer).collect::<Vec<_>>(), ties)
    }

    #[test]
    fn the_last_of_equals_takes_both_roles() {
        let scores = [(3, false), (1, false), (3, false), (1, false), (2, true)];
        assert_eq!(pick(&scores, TieRule::Last), Some((2, 3)));
        assert_eq!(pick(&scores, TieRule::AcceptedThenFirst), Some((0, 1)));
        assert_eq!(pick(&[(2, false), (2, false)], TieRule::Last), Some((1, 1)));
        assert_eq!(pick(&[(2, false), (2, true)], TieRule::AcceptedThenFirst), Some((1, 0)));
        assert_eq!(pick(&[], TieRule::Last), None);
    }

    #[test]
    fn scores_follow_the_formula() {
        let scores: Vec<_> =
            [-5, -1, 0, 1, 2, 4, 5, 6, 90, 91, 1 << 20].map(|n| pm_score(n, false)).into();
        assert_eq!(scores, [-1, -1, 0, 1, 2, 2, 3, 3, 7, 7, 20]);
        assert_eq!((pm_score(0, true), pm_score(-1, true)), (1, -1));
    }
}
