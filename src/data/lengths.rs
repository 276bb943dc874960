//! Token counts of samples, without the tokens themselves. They are all that the memory and time of a run depend on.

use super::sample::Sample;

/// Counts `lengths` per bucket of `bucket_size` tokens; the last bucket is not empty.
pub fn histogram(lengths: impl IntoIterator<Item = usize>, bucket_size: usize) -> Vec<u64> {
    let mut buckets = Vec::new();
    for length in lengths {
        let bucket = length / bucket_size;
        if buckets.len() <= bucket {
            buckets.resize(bucket + 1, 0);
        }
        buckets[bucket] += 1;
    }
    buckets
}

/// Token counts of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleLengths {
    /// Number of leading tokens that all sequences share and that are computed once.
    pub shared: usize,
    /// Token counts of each sequence: one for an example, chosen and rejected for a pair.
    pub sides: Vec<SideLengths>,
}

/// Token counts of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideLengths {
    /// Number of tokens, prompt and completion together.
    pub tokens: usize,
    /// Index of the first completion token, or of the first token of a prompt that is scored.
    pub completion_start: usize,
}

impl SampleLengths {
    /// Returns the token counts of `sample`.
    pub fn of<S: Sample>(sample: &S) -> Self {
        let side = |(index, side): (usize, &super::encode::EncodedSequence)| SideLengths {
            tokens: side.ids.len(),
            completion_start: side.completion_start.min(sample.first_scored(index)),
        };
        let sides: Vec<_> = sample.sides().into_iter().enumerate().map(side).collect();
        let unshared: usize = sides.iter().map(SideLengths::in_row).sum();
        Self { shared: unshared.saturating_sub(sample.packed_tokens()), sides }
    }

    /// Returns the most expensive sample of `sides` sequences of `max_length` tokens: only the first token is shared, and
    /// all others are scored.
    pub fn longest(max_length: usize, sides: usize) -> Self {
        let side = SideLengths { tokens: max_length, completion_start: 1 };
        Self { shared: usize::from(sides > 1), sides: vec![side; sides] }
    }

    /// Returns the counts after cutting each sequence to its first `max_length` tokens.
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

    /// Returns the number of tokens that the sample takes in a packed row.
    pub fn packed(&self) -> usize {
        let unshared: usize = self.sides.iter().map(SideLengths::in_row).sum();
        let saved = self.shared * self.sides.len().saturating_sub(1);
        unshared.saturating_sub(saved).max(1)
    }

    /// Returns the number of completion tokens that are scored.
    pub fn scored(&self) -> usize {
        self.sides.iter().map(SideLengths::scored).sum()
    }

    /// Returns the number of tokens in the row that predict a scored token. A token that both sides share counts once.
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
    /// Returns the number of tokens that the sequence takes in a row without sharing. The last token predicts nothing and
    /// is left out.
    fn in_row(&self) -> usize {
        self.tokens.saturating_sub(1).max(1)
    }

    /// Returns the index of the token that predicts the first scored token.
    fn first_predicting(&self) -> usize {
        self.completion_start.max(1) - 1
    }

    fn scored(&self) -> usize {
        self.tokens.saturating_sub(self.completion_start.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::PackedBatch;
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

    /// The counts equal those of an actual batch, for completions with a common beginning, a completion that is the
    /// beginning of the other, and pairs with and without a prompt.
    #[test]
    fn lengths_equal_those_of_a_batch() {
        for pair in [
            pair(&[1, 5, 6, 2], &[1, 5, 7], 2),
            pair(&[1, 8, 2], &[1, 8, 9, 2], 1),
            pair(&[4, 5, 6], &[4, 5, 7], 0),
            pair(&[3, 5, 6], &[4, 5, 7, 8, 9], 1),
            pair(&[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 4, 9], 3),
        ] {
            let batch = PackedBatch::new(&[&pair]);
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
