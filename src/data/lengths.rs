//! How long samples are: all that decides what a run costs in memory and time, without a token of them.

use super::sample::Sample;

/// Tokens of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleLengths {
    /// What its sequences have in common and is computed once.
    pub shared: usize,
    /// Each sequence: one, or chosen and rejected.
    pub sides: Vec<SideLengths>,
}

/// Tokens of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideLengths {
    /// All of them.
    pub tokens: usize,
    /// Where the completion begins.
    pub completion_start: usize,
}

impl SampleLengths {
    /// Those of `sample`.
    pub fn of<S: Sample>(sample: &S) -> Self {
        let side = |side: &super::encode::EncodedSequence| SideLengths {
            tokens: side.ids.len(),
            completion_start: side.completion_start,
        };
        let sides: Vec<_> = sample.sides().into_iter().map(side).collect();
        // The last token of a sequence predicts nothing and is not in the row.
        let apart: usize = sides.iter().map(SideLengths::in_row).sum();
        Self { shared: apart.saturating_sub(sample.packed_tokens()), sides }
    }

    /// A sample of `sides` sequences of `max_length` tokens that share one, and whose others are all scored: none of that
    /// length takes more.
    pub fn longest(max_length: usize, sides: usize) -> Self {
        let side = SideLengths { tokens: max_length, completion_start: 1 };
        Self { shared: usize::from(sides > 1), sides: vec![side; sides] }
    }

    /// The same with sequences cut to `max_length` tokens.
    pub fn cut(&self, max_length: usize) -> Self {
        let side = |side: &SideLengths| SideLengths {
            tokens: side.tokens.min(max_length),
            completion_start: side.completion_start.min(max_length),
        };
        Self {
            shared: self.shared.min(max_length.saturating_sub(1)),
            sides: self.sides.iter().map(side).collect(),
        }
    }

    /// Tokens it takes in a packed row.
    pub fn packed(&self) -> usize {
        let apart: usize = self.sides.iter().map(SideLengths::in_row).sum();
        let again = self.shared * self.sides.len().saturating_sub(1);
        apart.saturating_sub(again).max(1)
    }

    /// Completion tokens that are scored.
    pub fn scored(&self) -> usize {
        self.sides.iter().map(SideLengths::scored).sum()
    }

    /// Tokens of the row that predict scored ones: those that all sides share count once.
    pub fn predicting(&self) -> usize {
        let [first, second] = self.sides.as_slice() else {
            return self.scored();
        };
        let start = first.first_predicting().max(second.first_predicting());
        let end = self.shared.min(first.in_row()).min(second.in_row());
        self.scored() - end.saturating_sub(start)
    }
}

impl SideLengths {
    fn in_row(&self) -> usize {
        self.tokens.saturating_sub(1).max(1)
    }

    /// The token that predicts the completion's first.
    fn first_predicting(&self) -> usize {
        self.completion_start.max(1) - 1
    }

    fn scored(&self) -> usize {
        self.tokens.saturating_sub(self.completion_start.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::PreferenceBatch;
    use super::super::encode::{EncodedPair, EncodedSequence};
    use super::*;

    fn pair(chosen: &[u32], rejected: &[u32], completion_start: usize) -> EncodedPair {
        let side = |ids: &[u32]| EncodedSequence {
            ids: ids.to_vec(),
            completion_start,
            hidden: Vec::new(),
        };
        EncodedPair { id: "p".into(), chosen: side(chosen), rejected: side(rejected) }
    }

    /// The batch itself is the judge: completions that begin alike, one inside the other, with and without a prompt.
    #[test]
    fn lengths_count_what_a_batch_holds() {
        for pair in [
            pair(&[1, 5, 6, 2], &[1, 5, 7], 2),
            pair(&[1, 8, 2], &[1, 8, 9, 2], 1),
            pair(&[4, 5, 6], &[4, 5, 7], 0),
            pair(&[3, 5, 6], &[4, 5, 7, 8, 9], 1),
            pair(&[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 4, 9], 3),
        ] {
            let batch = PreferenceBatch::new(&[&pair]);
            let lengths = SampleLengths::of(&pair);
            assert_eq!(lengths.packed(), batch.tokens.length, "{pair:?}");
            assert_eq!(lengths.scored(), batch.targets.len(), "{pair:?}");
            assert_eq!(lengths.predicting(), batch.queries.len(), "{pair:?}");
        }
    }

    #[test]
    fn no_sample_of_a_length_takes_more_than_the_longest() {
        let pair = SampleLengths::longest(10, 2);
        assert_eq!((pair.packed(), pair.scored(), pair.predicting()), (17, 18, 17));
        let cut = pair.cut(6);
        assert_eq!(cut, SampleLengths::longest(6, 2));
        let example = SampleLengths::longest(10, 1);
        assert_eq!((example.packed(), example.scored(), example.predicting()), (9, 9, 9));
    }
}
