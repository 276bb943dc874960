//! Batches on the host: padded rows of token ids, and samples packed into one row.

use super::encode::EncodedSequence;
use super::sample::Sample;

/// The tokens that one token attends to: two ranges `[start, end)` of token indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionRange {
    /// Range that several sequences share: a prompt, from its first token on. Empty if nothing is shared.
    pub shared: [i64; 2],
    /// Range of the token's own sequence up to and including the token itself.
    pub own: [i64; 2],
}

impl AttentionRange {
    /// Restricts the ranges to a sliding window: a token at `position` attends to position `j` if
    /// `position - window < j`.
    pub fn within(self, window: Option<usize>, position: i64) -> Self {
        let Some(window) = window else { return self };
        let (window, [first, end], [start, own_end]) = (window as i64, self.shared, self.own);
        Self {
            // The shared range starts at position 0.
            shared: [(first + position - window + 1).clamp(first, end), end],
            own: [start.max(own_end - window), own_end],
        }
    }
}

/// Token ids on the host, `B` rows of `S`, row by row.
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
    /// Tokens that each token attends to, `[B * S]`, as indices into all `B * S` tokens.
    pub attention: Vec<AttentionRange>,
    /// Whether a token is masked from all others even inside their attention ranges, `[B * S]`.
    pub hidden: Vec<bool>,
}

impl TokenRows {
    /// Pads `sequences` on the right with `pad_id` to the length of the longest.
    pub fn right_padded(sequences: &[&[u32]], pad_id: u32) -> Self {
        Self::padded(sequences, pad_id, |_| 0)
    }

    /// Pads `sequences` on the left with `pad_id` to the length of the longest, as generation needs it.
    pub fn left_padded(sequences: &[&[u32]], pad_id: u32) -> Self {
        Self::padded(sequences, pad_id, |padding| padding)
    }

    /// Pads `sequences` with `pad_id`. Of a row's `padding` tokens, `left_padding(padding)` are written before the
    /// sequence and the others after it.
    fn padded(sequences: &[&[u32]], pad_id: u32, left_padding: impl Fn(usize) -> usize) -> Self {
        let length = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut rows = Self { rows: sequences.len(), length, ..Self::default() };
        for sequence in sequences {
            let padding = length - sequence.len();
            let left = left_padding(padding);
            rows.push_padding(pad_id, left);
            rows.push_tokens(sequence, 0, [0, 0]);
            rows.push_padding(pad_id, padding - left);
        }
        rows
    }

    /// Appends padding tokens, which attend to nothing and which no token attends to.
    fn push_padding(&mut self, pad_id: u32, count: usize) {
        for _ in 0..count {
            self.ids.push(i64::from(pad_id));
            self.positions.push(0);
            self.attention.push(AttentionRange::default());
            self.hidden.push(false);
        }
    }

    /// Appends consecutive tokens of one sequence, the first at `position`. They attend to each other causally and to the
    /// range `shared`. Returns the index of the first token.
    fn push_tokens(&mut self, ids: &[u32], position: usize, shared: [i64; 2]) -> usize {
        let start = self.ids.len();
        for (offset, id) in ids.iter().enumerate() {
            self.ids.push(i64::from(*id));
            self.positions.push((position + offset) as i64);
            self.attention
                .push(AttentionRange { shared, own: [start as i64, (start + offset + 1) as i64] });
            self.hidden.push(false);
        }
        start
    }
}

/// Samples packed into one row without padding.
///
/// A sample is laid out as the prefix that its sequences share (for a pair the prompt, and the first tokens of the
/// completions as far as they are equal), then the rest of each sequence, such as chosen and rejected. The positions of each
/// rest start again after the shared prefix. Each rest attends to the shared prefix and to itself. A single sequence shares
/// nothing. The last token of a sequence predicts nothing and is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBatch {
    /// The packed row.
    pub tokens: TokenRows,
    /// Row indices of the tokens whose hidden states are needed, ascending; never empty.
    pub queries: Vec<i64>,
    /// For each scored completion token, the index into `queries` of the state that predicts it, `[T]`. The order is
    /// sequence by sequence, first all first sides (chosen), then all second ones (rejected), which is TRL's order.
    pub predicting: Vec<i64>,
    /// Ids of the scored completion tokens, in the order of `predicting`, `[T]`.
    pub targets: Vec<i64>,
    /// Number of scored tokens of each sequence, in the order of `predicting`: `[2N]` for pairs, `[N]` for samples of one
    /// sequence. Sums to `T`.
    pub counts: Vec<usize>,
    /// Ids of the `N` samples.
    pub ids: Vec<String>,
}

/// Position of one sample's sequences in the row.
struct Layout {
    /// Number of tokens in the shared prefix.
    shared: usize,
    /// Row index of the shared prefix.
    shared_start: usize,
    /// Row index of the rest of each sequence.
    rests: Vec<usize>,
}

impl Layout {
    /// Returns the row index of token `index` of the sequence `side`.
    fn row_index(&self, side: usize, index: usize) -> usize {
        match index.checked_sub(self.shared) {
            None => self.shared_start + index,
            Some(in_rest) => self.rests[side] + in_rest,
        }
    }
}

impl PackedBatch {
    /// Packs `samples` into one row.
    ///
    /// A completion's first token is predicted by the token before it. A sequence without a token before its completion
    /// (an empty prompt without BOS) is scored from its second token on, as in TRL.
    pub fn new<S: Sample>(samples: &[&S]) -> Self {
        let mut tokens = TokenRows::default();
        let layouts: Vec<Layout> =
            samples.iter().map(|sample| push_sample(&mut tokens, &sample.sides())).collect();
        let mut batch = Self::unscored(tokens, samples.iter().map(|s| s.id().to_string()));
        for side in 0..S::SIDES.len() {
            for (sample, layout) in samples.iter().zip(&layouts) {
                batch.score(*sample, layout, side);
            }
        }
        batch.number_queries();
        batch
    }

    /// Returns a batch whose only row is `tokens`, with no token scored yet.
    fn unscored(mut tokens: TokenRows, ids: impl Iterator<Item = String>) -> Self {
        tokens.rows = 1;
        tokens.length = tokens.ids.len();
        Self {
            tokens,
            queries: Vec::new(),
            predicting: Vec::new(),
            targets: Vec::new(),
            counts: Vec::new(),
            ids: ids.collect(),
        }
    }

    /// Returns the number of samples, `N`.
    pub fn samples(&self) -> usize {
        self.ids.len()
    }

    /// Adds the scored tokens of the sequence `side` of `sample`. `predicting` holds row indices until
    /// [`Self::number_queries`].
    fn score<S: Sample>(&mut self, sample: &S, layout: &Layout, side: usize) {
        let before = self.targets.len();
        for (index, target) in sample.sides()[side].ids.iter().enumerate() {
            if sample.is_scored(side, index) {
                self.predicting.push(layout.row_index(side, index - 1) as i64);
                self.targets.push(i64::from(*target));
            }
        }
        self.counts.push(self.targets.len() - before);
    }

    /// Collects the distinct row indices of `predicting` into `queries` and replaces them by indices into `queries`.
    fn number_queries(&mut self) {
        let mut queries = self.predicting.clone();
        queries.sort_unstable();
        queries.dedup();
        let mut number = vec![0; self.tokens.length];
        for (index, token) in queries.iter().enumerate() {
            number[*token as usize] = index as i64;
        }
        for token in &mut self.predicting {
            *token = number[*token as usize];
        }
        if queries.is_empty() {
            // Under `allow_empty_completions` a batch may have no scored token, but a forward pass needs a query.
            queries.push(0);
        }
        self.queries = queries;
    }
}

/// Appends a sample's sequences to the row and returns their layout.
fn push_sample(tokens: &mut TokenRows, sides: &[&EncodedSequence]) -> Layout {
    let shared = shared_prefix(sides);
    let first = sides.first().and_then(|side| side.ids.get(..shared));
    let shared_start = tokens.push_tokens(first.unwrap_or_default(), 0, [0, 0]);
    let range = [shared_start as i64, (shared_start + shared) as i64];
    let range = if shared == 0 { [0, 0] } else { range };
    let rest = |side: &&EncodedSequence| {
        tokens.push_tokens(&side.ids[shared..end_in_row(side, shared)], shared, range)
    };
    let rests = sides.iter().map(rest).collect();
    let layout = Layout { shared, shared_start, rests };
    for (number, side) in sides.iter().enumerate() {
        for &index in &side.hidden {
            if index + 1 < side.ids.len() {
                tokens.hidden[layout.row_index(number, index)] = true;
            }
        }
    }
    layout
}

/// Returns the number of a sequence's tokens that are in the row, of which `shared` are shared. The last one is left out
/// unless it is shared or the only one.
fn end_in_row(side: &EncodedSequence, shared: usize) -> usize {
    (side.ids.len() - 1).max(shared).max(1)
}

/// Returns the number of tokens with which all of several sequences begin.
fn shared_prefix(sides: &[&EncodedSequence]) -> usize {
    let Some((first, others)) = sides.split_first() else { return 0 };
    let shared = others.iter().map(|other| {
        let equal = first.ids.iter().zip(&other.ids);
        let equal = equal.take_while(|(a, b)| a == b).count();
        // A token that is hidden on one side only must not be shared.
        let differs = |index: &usize| {
            first.hidden.binary_search(index).is_ok() != other.hidden.binary_search(index).is_ok()
        };
        (0..equal).find(differs).unwrap_or(equal)
    });
    shared.min().unwrap_or(0)
}

/// Returns the number of tokens that a sample with these sequences takes in a packed row.
pub fn packed_tokens(sides: &[&EncodedSequence]) -> usize {
    let shared = shared_prefix(sides);
    shared + sides.iter().map(|side| end_in_row(side, shared) - shared).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::{EncodedExample, EncodedPair};

    fn side(ids: &[u32], completion_start: usize, hidden: &[usize]) -> EncodedSequence {
        EncodedSequence { ids: ids.to_vec(), completion_start, hidden: hidden.to_vec() }
    }

    fn pair(chosen: EncodedSequence, rejected: EncodedSequence) -> EncodedPair {
        let id = "p".into();
        EncodedPair { id, chosen, rejected }
    }

    fn own(rows: &TokenRows) -> Vec<[i64; 2]> {
        rows.attention.iter().map(|range| range.own).collect()
    }

    #[test]
    fn pads_right_and_left() {
        let sequences: [&[u32]; 2] = [&[5, 6, 7], &[8]];
        let right = TokenRows::right_padded(&sequences, 9);
        assert_eq!(right.ids, [5, 6, 7, 8, 9, 9]);
        assert_eq!(right.positions, [0, 1, 2, 0, 0, 0]);
        let seen = [[0, 1], [0, 2], [0, 3], [3, 4], [0, 0], [0, 0]];
        assert_eq!(own(&right), seen);
        let left = TokenRows::left_padded(&sequences, 9);
        assert_eq!(left.ids, [5, 6, 7, 9, 9, 8]);
        assert_eq!(left.positions, [0, 1, 2, 0, 0, 0]);
        let seen = [[0, 1], [0, 2], [0, 3], [0, 0], [0, 0], [5, 6]];
        assert_eq!(own(&left), seen);
    }

    #[test]
    fn a_pair_is_its_prompt_once_and_two_completions() {
        let first = pair(side(&[1, 5, 6, 2], 2, &[]), side(&[1, 5, 7], 2, &[]));
        let second = pair(side(&[1, 8, 2], 1, &[]), side(&[1, 8, 9, 2], 1, &[]));
        let batch = PackedBatch::new(&[&first, &second]);
        // The rest of the first pair's rejected side is one token, which predicts nothing. Both sides of the second pair
        // share the token 8.
        assert_eq!(batch.tokens.ids, [1, 5, 6, 1, 8, 9]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 0, 1, 2]);
        let seen = [[0, 1], [0, 2], [2, 3], [3, 4], [3, 5], [5, 6]];
        assert_eq!(own(&batch.tokens), seen);
        assert_eq!(batch.tokens.attention[2].shared, [0, 2]);
        assert_eq!(batch.tokens.attention[5].shared, [3, 5]);
        let predicting: Vec<_> =
            batch.predicting.iter().map(|p| batch.queries[*p as usize]).collect();
        assert_eq!(predicting, [1, 2, 3, 4, 1, 3, 4, 5]);
        assert_eq!(batch.targets, [6, 2, 8, 2, 7, 8, 9, 2]);
        assert_eq!(batch.counts, [2, 2, 1, 3]);
        assert_eq!(first.packed_tokens() + second.packed_tokens(), 6);
        assert_eq!(first.attended_tokens(), 7);
    }

    #[test]
    fn examples_are_sequences_of_their_own() {
        let example = |sequence| EncodedExample { id: "e".into(), sequence, unscored: Vec::new() };
        let first = example(side(&[1, 5, 6, 2], 2, &[]));
        let second = example(side(&[1, 5, 2], 0, &[]));
        let batch = PackedBatch::new(&[&first, &second]);
        assert_eq!(batch.tokens.ids, [1, 5, 6, 1, 5]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 0, 1]);
        let seen = [[0, 1], [0, 2], [0, 3], [3, 4], [3, 5]];
        assert_eq!(own(&batch.tokens), seen);
        assert_eq!(batch.queries, [1, 2, 3, 4]);
        assert_eq!(batch.targets, [6, 2, 5, 2]);
        assert_eq!(batch.counts, [2, 2]);
    }

    #[test]
    fn completion_tokens_that_are_not_scored_are_predicted_by_nothing() {
        let sequence = side(&[1, 5, 6, 7, 8, 2], 2, &[]);
        let example = EncodedExample { id: "e".into(), sequence, unscored: vec![3, 4] };
        let batch = PackedBatch::new(&[&example, &example]);
        assert_eq!(batch.targets, [6, 2, 6, 2]);
        assert_eq!(batch.queries, [1, 4, 6, 9]);
        assert_eq!(batch.counts, [2, 2]);
        assert_eq!(example.scored_tokens(0), 2);
        assert_eq!((example.packed_tokens(), example.attended_tokens()), (5, 6));
    }

    #[test]
    fn tokens_that_differ_are_not_shared() {
        // The token at index 1 is hidden in chosen only, and prompts that differ share nothing.
        let hidden = pair(side(&[1, 5, 6, 2], 2, &[1]), side(&[1, 5, 7], 2, &[]));
        let batch = PackedBatch::new(&[&hidden]);
        assert_eq!(batch.tokens.ids, [1, 5, 6, 5]);
        assert_eq!(batch.tokens.hidden, [false, true, false, false]);
        let other = pair(side(&[3, 5, 6], 1, &[]), side(&[4, 5], 1, &[]));
        let batch = PackedBatch::new(&[&other]);
        assert_eq!(batch.tokens.ids, [3, 5, 4]);
        assert_eq!(batch.tokens.attention[2].shared, [0, 0]);
    }

    #[test]
    fn without_a_prompt_the_first_token_is_not_scored() {
        let same = side(&[4, 5, 6], 0, &[]);
        let batch = PackedBatch::new(&[&pair(same.clone(), same)]);
        assert_eq!(batch.targets, [5, 6, 5, 6]);
        assert_eq!(batch.counts, [2, 2]);
        assert_eq!(batch.tokens.ids, [4, 5, 6]);
    }

    #[test]
    fn a_window_is_counted_in_positions() {
        // Position 6 of a completion whose prompt (indices 10 to 13) has four tokens and whose own part starts at 20.
        let range = AttentionRange { shared: [10, 14], own: [20, 23] };
        assert_eq!(range.within(None, 6), range);
        let near = |window| range.within(Some(window), 6);
        assert_eq!(near(7), range);
        assert_eq!(near(5).shared, [12, 14]);
        assert_eq!(near(5).own, [20, 23]);
        assert_eq!(near(2).shared, [14, 14]);
        assert_eq!(near(2).own, [21, 23]);
    }
}
