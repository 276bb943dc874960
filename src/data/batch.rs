//! Batches on the host: rectangles of token ids, and preference pairs laid out in one.

use super::encode::EncodedPair;

/// Segment of padding and of hidden tokens: no query has it.
pub const NO_SEGMENT: i64 = -1;

/// A rectangle of token ids on the host, `B` rows of `S`, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    /// Number of rows, `B`.
    pub rows: usize,
    /// Length of a row, `S`.
    pub length: usize,
    /// Token ids, `[B * S]`.
    pub ids: Vec<i64>,
    /// Position of each token in its own sequence, `[B * S]`.
    pub positions: Vec<i64>,
    /// Segment of each token as a key, `[B * S]`: 0, or [`NO_SEGMENT`] where nobody may look.
    pub key_segments: Vec<i64>,
}

impl TokenRows {
    /// Pads `sequences` with `pad_id` on the right to the longest.
    ///
    /// `hidden(row)` lists the indices of a row that no token may attend to.
    pub fn right_padded<'a>(
        sequences: &[&[u32]],
        pad_id: u32,
        hidden: impl Fn(usize) -> &'a [usize],
    ) -> Self {
        let mut batch = Self::empty(sequences);
        for (row, sequence) in sequences.iter().enumerate() {
            let start = batch.ids.len();
            for index in 0..batch.length {
                let token = sequence.get(index);
                batch.ids.push(i64::from(*token.unwrap_or(&pad_id)));
                batch.positions.push(index as i64);
                batch
                    .key_segments
                    .push(if token.is_some() { 0 } else { NO_SEGMENT });
            }
            for &index in hidden(row).iter().filter(|&&index| index < sequence.len()) {
                batch.key_segments[start + index] = NO_SEGMENT;
            }
        }
        batch
    }

    /// Pads `sequences` with `pad_id` on the left, so that all end together: for generation.
    pub fn left_padded(sequences: &[&[u32]], pad_id: u32) -> Self {
        let mut batch = Self::empty(sequences);
        for sequence in sequences {
            let padding = batch.length - sequence.len();
            let pads = std::iter::repeat_n((pad_id, 0, NO_SEGMENT), padding);
            let tokens = sequence
                .iter()
                .enumerate()
                .map(|(at, id)| (*id, at as i64, 0));
            for (id, position, segment) in pads.chain(tokens) {
                batch.ids.push(i64::from(id));
                batch.positions.push(position);
                batch.key_segments.push(segment);
            }
        }
        batch
    }

    fn empty(sequences: &[&[u32]]) -> Self {
        let length = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        Self {
            rows: sequences.len(),
            length,
            ..Self::default()
        }
    }
}

/// A micro-batch of encoded pairs: all chosen sides, then all rejected ones, in one rectangle (TRL's order).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceBatch {
    /// The `2N` sequences.
    pub tokens: TokenRows,
    /// Index into the flattened rectangle of every position that predicts a completion token, `[T]`, row by row.
    pub predicting: Vec<i64>,
    /// The completion token each of them predicts, `[T]`.
    pub targets: Vec<i64>,
    /// Completion tokens scored in each row, `[2N]`; sums to `T`.
    pub counts: Vec<usize>,
    /// Ids of the `N` pairs.
    pub ids: Vec<String>,
    /// Tokens that are not padding, over both sides (TRL's `num_tokens`).
    pub attended: usize,
}

impl PreferenceBatch {
    /// Collates `pairs`, padding on the right with `pad_id`.
    ///
    /// A completion's first token is predicted by the token before it; a sequence that has none before it (an empty
    /// prompt without BOS) is scored from its second token on, as TRL does.
    pub fn new(pairs: &[&EncodedPair], pad_id: u32) -> Self {
        let chosen = pairs.iter().map(|pair| &pair.chosen);
        let sides: Vec<_> = chosen
            .chain(pairs.iter().map(|pair| &pair.rejected))
            .collect();
        let sequences: Vec<&[u32]> = sides.iter().map(|side| side.ids.as_slice()).collect();
        let tokens = TokenRows::right_padded(&sequences, pad_id, |row| &sides[row].hidden);
        let mut batch = Self {
            predicting: Vec::new(),
            targets: Vec::new(),
            counts: Vec::new(),
            ids: pairs.iter().map(|pair| pair.id.clone()).collect(),
            attended: sides
                .iter()
                .map(|side| side.ids.len() - side.hidden.len())
                .sum(),
            tokens,
        };
        for (row, side) in sides.iter().enumerate() {
            let first = side.completion_start.max(1);
            for (index, target) in side.ids.iter().enumerate().skip(first) {
                batch
                    .predicting
                    .push((row * batch.tokens.length + index - 1) as i64);
                batch.targets.push(i64::from(*target));
            }
            batch.counts.push(side.ids.len().saturating_sub(first));
        }
        batch
    }

    /// Number of pairs, `N`.
    pub fn pairs(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::EncodedSequence;

    #[test]
    fn pads_right_and_left() {
        let sequences: [&[u32]; 2] = [&[5, 6, 7], &[8]];
        let hidden: [&[usize]; 2] = [&[1], &[]];
        let right = TokenRows::right_padded(&sequences, 9, |row| hidden[row]);
        assert_eq!(right.ids, [5, 6, 7, 8, 9, 9]);
        assert_eq!(right.positions, [0, 1, 2, 0, 1, 2]);
        assert_eq!(right.key_segments, [0, -1, 0, 0, -1, -1]);
        let left = TokenRows::left_padded(&sequences, 9);
        assert_eq!(left.ids, [5, 6, 7, 9, 9, 8]);
        assert_eq!(left.positions, [0, 1, 2, 0, 0, 0]);
        assert_eq!(left.key_segments, [0, 0, 0, -1, -1, 0]);
    }

    #[test]
    fn a_pair_becomes_two_rows_that_predict_their_completions() {
        let side = |ids: &[u32], completion_start| EncodedSequence {
            ids: ids.to_vec(),
            completion_start,
            hidden: Vec::new(),
        };
        let pair = EncodedPair {
            id: "p".into(),
            chosen: side(&[1, 5, 6, 2], 2),
            rejected: side(&[1, 5, 7], 2),
        };
        let batch = PreferenceBatch::new(&[&pair], 9);
        assert_eq!(batch.tokens.ids, [1, 5, 6, 2, 1, 5, 7, 9]);
        assert_eq!(batch.predicting, [1, 2, 5]);
        assert_eq!(batch.targets, [6, 2, 7]);
        assert_eq!((batch.counts, batch.attended), (vec![2, 1], 7));
    }

    #[test]
    fn without_a_prompt_the_first_token_is_not_scored() {
        let side = EncodedSequence {
            ids: vec![4, 5, 6],
            completion_start: 0,
            hidden: Vec::new(),
        };
        let pair = EncodedPair {
            id: "p".into(),
            chosen: side.clone(),
            rejected: side,
        };
        let batch = PreferenceBatch::new(&[&pair], 0);
        assert_eq!(batch.targets, [5, 6, 5, 6]);
        assert_eq!(batch.counts, [2, 2]);
    }
}
