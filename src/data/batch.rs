//! Batches on the host: rows of token ids, and preference pairs packed into one row.

use super::encode::{EncodedExample, EncodedPair, EncodedSequence};

/// What a token sees, by index: two ranges of tokens (`[start, end)`), before any sliding window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// What it shares with other sequences: a prompt, from its first token on. Empty: nothing.
    pub shared: [i64; 2],
    /// Its own sequence up to and including itself.
    pub own: [i64; 2],
}

impl Sight {
    /// The same within a window: a token at `position` sees position `j` if `position - window < j`.
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
    /// What each token sees, `[B * S]`, by index into all of them.
    pub sight: Vec<Sight>,
    /// Tokens that nobody sees, though they lie within what others see, `[B * S]`.
    pub hidden: Vec<bool>,
}

impl TokenRows {
    /// Pads `sequences` with `pad_id` on the right to the longest.
    pub fn right_padded(sequences: &[&[u32]], pad_id: u32) -> Self {
        Self::padded(sequences, pad_id, |_| 0)
    }

    /// Pads `sequences` with `pad_id` on the left, so that all end together: for generation.
    pub fn left_padded(sequences: &[&[u32]], pad_id: u32) -> Self {
        Self::padded(sequences, pad_id, |padding| padding)
    }

    /// `before(padding)` of a row's padding stands before its sequence.
    fn padded(sequences: &[&[u32]], pad_id: u32, before: impl Fn(usize) -> usize) -> Self {
        let length = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut rows = Self { rows: sequences.len(), length, ..Self::default() };
        for sequence in sequences {
            let padding = length - sequence.len();
            let before = before(padding);
            rows.pad(pad_id, before);
            rows.run(sequence, 0, [0, 0]);
            rows.pad(pad_id, padding - before);
        }
        rows
    }

    /// Adds tokens that see nothing and are seen by nobody.
    fn pad(&mut self, pad_id: u32, count: usize) {
        for _ in 0..count {
            self.ids.push(i64::from(pad_id));
            self.positions.push(0);
            self.sight.push(Sight::default());
            self.hidden.push(false);
        }
    }

    /// Adds tokens that follow each other from `position` on and also see the range `shared`; returns where they start.
    fn run(&mut self, ids: &[u32], position: usize, shared: [i64; 2]) -> usize {
        let start = self.ids.len();
        for (offset, id) in ids.iter().enumerate() {
            self.ids.push(i64::from(*id));
            self.positions.push((position + offset) as i64);
            self.sight.push(Sight { shared, own: [start as i64, (start + offset + 1) as i64] });
            self.hidden.push(false);
        }
        start
    }
}

/// Encoded pairs packed into one row without padding, each prompt once; or examples, one completion each.
///
/// A pair is its shared beginning (the prompt, and the first tokens of the completions as far as they are equal), then
/// the rest of chosen, then the rest of rejected, whose positions start again after the shared beginning. Each rest sees
/// the shared beginning and itself. The last token of a sequence predicts nothing and is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceBatch {
    /// One row.
    pub tokens: TokenRows,
    /// Tokens whose hidden states are needed, by index into the row, ascending; never empty.
    pub queries: Vec<i64>,
    /// For every scored completion token the state that predicts it, by index into `queries`, `[T]`: sequence by
    /// sequence, all chosen sides, then all rejected ones (TRL's order).
    pub predicting: Vec<i64>,
    /// The completion token each of them predicts, `[T]`.
    pub targets: Vec<i64>,
    /// Completion tokens scored of each sequence, `[2N]`, of examples `[N]`; sums to `T`.
    pub counts: Vec<usize>,
    /// Ids of the `N` pairs or examples.
    pub ids: Vec<String>,
}

/// Where the sequences of one pair lie in the row.
struct Place {
    /// Tokens of the shared beginning, and where it starts.
    shared: usize,
    shared_start: usize,
    /// Where the rests of chosen and rejected start.
    rests: [usize; 2],
}

impl PreferenceBatch {
    /// Packs `pairs`.
    ///
    /// A completion's first token is predicted by the token before it; a sequence that has none before it (an empty
    /// prompt without BOS) is scored from its second token on, as TRL does.
    pub fn new(pairs: &[&EncodedPair]) -> Self {
        let mut tokens = TokenRows::default();
        let places: Vec<Place> = pairs.iter().map(|pair| place(&mut tokens, pair)).collect();
        let mut batch = Self::of(tokens, pairs.iter().map(|pair| pair.id.clone()));
        for side in 0..2 {
            for (pair, place) in pairs.iter().zip(&places) {
                batch.score([&pair.chosen, &pair.rejected][side], place, side);
            }
        }
        batch.number_queries();
        batch
    }

    /// Packs `examples`, each a sequence that sees itself alone.
    pub fn of_examples(examples: &[&EncodedExample]) -> Self {
        let mut tokens = TokenRows::default();
        let mut starts = Vec::with_capacity(examples.len());
        for example in examples {
            let ids = &example.sequence.ids;
            starts.push(tokens.run(&ids[..(ids.len() - 1).max(1)], 0, [0, 0]));
        }
        let mut batch = Self::of(tokens, examples.iter().map(|example| example.id.clone()));
        for (example, start) in examples.iter().zip(starts) {
            let place = Place { shared: 0, shared_start: start, rests: [start, start] };
            batch.score(&example.sequence, &place, 0);
        }
        batch.number_queries();
        batch
    }

    /// A batch of `tokens` in one row, of which none is scored yet.
    fn of(mut tokens: TokenRows, ids: impl Iterator<Item = String>) -> Self {
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

    /// Number of pairs, `N`.
    pub fn pairs(&self) -> usize {
        self.ids.len()
    }

    /// Notes what predicts the completion tokens of a sequence, by index into the row for now.
    fn score(&mut self, sequence: &EncodedSequence, place: &Place, side: usize) {
        let first = sequence.completion_start.max(1);
        for (index, target) in sequence.ids.iter().enumerate().skip(first) {
            let before = index - 1;
            let at = match before.checked_sub(place.shared) {
                None => place.shared_start + before,
                Some(in_rest) => place.rests[side] + in_rest,
            };
            self.predicting.push(at as i64);
            self.targets.push(i64::from(*target));
        }
        self.counts.push(sequence.ids.len().saturating_sub(first));
    }

    /// Makes `queries` of the tokens in `predicting`, each once, and has `predicting` point into it.
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
            // Only under `allow_empty_completions`: nothing is scored, but a pass computes something.
            queries.push(0);
        }
        self.queries = queries;
    }
}

/// Appends a pair to the row.
fn place(tokens: &mut TokenRows, pair: &EncodedPair) -> Place {
    let sides = [&pair.chosen, &pair.rejected];
    let shared = shared_beginning(sides);
    let shared_start = tokens.run(&pair.chosen.ids[..shared], 0, [0, 0]);
    let range = [shared_start as i64, (shared_start + shared) as i64];
    let range = if shared == 0 { [0, 0] } else { range };
    let rests = sides.map(|side| {
        let end = (side.ids.len() - 1).max(shared).max(1);
        tokens.run(&side.ids[shared..end], shared, range)
    });
    let place = Place { shared, shared_start, rests };
    for (side, rest) in sides.into_iter().zip(place.rests) {
        for &index in &side.hidden {
            let at = match index.checked_sub(shared) {
                None => shared_start + index,
                Some(in_rest) => rest + in_rest,
            };
            if index + 1 < side.ids.len() {
                tokens.hidden[at] = true;
            }
        }
    }
    place
}

/// Tokens both sides begin with.
fn shared_beginning([chosen, rejected]: [&EncodedSequence; 2]) -> usize {
    let equal = chosen.ids.iter().zip(&rejected.ids);
    let equal = equal.take_while(|(a, b)| a == b).count();
    // A token hidden on one side only is not the same token.
    let differs = |index: &usize| {
        chosen.hidden.binary_search(index).is_ok() != rejected.hidden.binary_search(index).is_ok()
    };
    (0..equal).find(differs).unwrap_or(equal)
}

/// Tokens the pair takes in a row.
pub fn packed_tokens(pair: &EncodedPair) -> usize {
    let sides = [&pair.chosen, &pair.rejected];
    let shared = shared_beginning(sides);
    let rests = sides.map(|side| (side.ids.len() - 1).max(shared).max(1) - shared);
    shared + rests[0] + rests[1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::Sample;

    fn side(ids: &[u32], completion_start: usize, hidden: &[usize]) -> EncodedSequence {
        EncodedSequence { ids: ids.to_vec(), completion_start, hidden: hidden.to_vec() }
    }

    fn pair(chosen: EncodedSequence, rejected: EncodedSequence) -> EncodedPair {
        let id = "p".into();
        EncodedPair { id, chosen, rejected }
    }

    fn own(rows: &TokenRows) -> Vec<[i64; 2]> {
        rows.sight.iter().map(|sight| sight.own).collect()
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
        let batch = PreferenceBatch::new(&[&first, &second]);
        // The rest of the first's rejected is one token, which predicts nothing; the second's share 8.
        assert_eq!(batch.tokens.ids, [1, 5, 6, 1, 8, 9]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 0, 1, 2]);
        let seen = [[0, 1], [0, 2], [2, 3], [3, 4], [3, 5], [5, 6]];
        assert_eq!(own(&batch.tokens), seen);
        assert_eq!(batch.tokens.sight[2].shared, [0, 2]);
        assert_eq!(batch.tokens.sight[5].shared, [3, 5]);
        let predicting: Vec<_> =
            batch.predicting.iter().map(|p| batch.queries[*p as usize]).collect();
        assert_eq!(predicting, [1, 2, 3, 4, 1, 3, 4, 5]);
        assert_eq!(batch.targets, [6, 2, 8, 2, 7, 8, 9, 2]);
        assert_eq!(batch.counts, [2, 2, 1, 3]);
        assert_eq!(packed_tokens(&first) + packed_tokens(&second), 6);
        assert_eq!(first.attended_tokens(), 7);
    }

    #[test]
    fn examples_are_sequences_of_their_own() {
        let example = |sequence| EncodedExample { id: "e".into(), sequence };
        let first = example(side(&[1, 5, 6, 2], 2, &[]));
        let second = example(side(&[1, 5, 2], 0, &[]));
        let batch = PreferenceBatch::of_examples(&[&first, &second]);
        assert_eq!(batch.tokens.ids, [1, 5, 6, 1, 5]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 0, 1]);
        let seen = [[0, 1], [0, 2], [0, 3], [3, 4], [3, 5]];
        assert_eq!(own(&batch.tokens), seen);
        assert_eq!(batch.queries, [1, 2, 3, 4]);
        assert_eq!(batch.targets, [6, 2, 5, 2]);
        assert_eq!(batch.counts, [2, 2]);
    }

    #[test]
    fn what_differs_is_not_shared() {
        // The token at 1 is hidden from chosen alone; prompts that differ share nothing.
        let hidden = pair(side(&[1, 5, 6, 2], 2, &[1]), side(&[1, 5, 7], 2, &[]));
        let batch = PreferenceBatch::new(&[&hidden]);
        assert_eq!(batch.tokens.ids, [1, 5, 6, 5]);
        assert_eq!(batch.tokens.hidden, [false, true, false, false]);
        let other = pair(side(&[3, 5, 6], 1, &[]), side(&[4, 5], 1, &[]));
        let batch = PreferenceBatch::new(&[&other]);
        assert_eq!(batch.tokens.ids, [3, 5, 4]);
        assert_eq!(batch.tokens.sight[2].shared, [0, 0]);
    }

    #[test]
    fn without_a_prompt_the_first_token_is_not_scored() {
        let same = side(&[4, 5, 6], 0, &[]);
        let batch = PreferenceBatch::new(&[&pair(same.clone(), same)]);
        assert_eq!(batch.targets, [5, 6, 5, 6]);
        assert_eq!(batch.counts, [2, 2]);
        assert_eq!(batch.tokens.ids, [4, 5, 6]);
    }

    #[test]
    fn a_window_is_counted_in_positions() {
        // Position 6 of a completion whose prompt (indices 10 to 13) has four tokens and whose own part starts at 20.
        let sight = Sight { shared: [10, 14], own: [20, 23] };
        assert_eq!(sight.within(None, 6), sight);
        let near = |window| sight.within(Some(window), 6);
        assert_eq!(near(7), sight);
        assert_eq!(near(5).shared, [12, 14]);
        assert_eq!(near(5).own, [20, 23]);
        assert_eq!(near(2).shared, [14, 14]);
        assert_eq!(near(2).own, [21, 23]);
    }
}
