//! Groups the pairs of a step into forward and backward passes.
//!
//! The gradient of a step is a weighted sum over its pairs, so that the grouping only affects speed and memory: many short
//! pairs in one pass use the machine better, and a pass of few tokens needs little memory.

use std::ops::Range;

use crate::data::encode::EncodedPair;
use crate::data::sample::Sample;

/// Pairs (or examples) computed in one forward and backward pass.
#[derive(Clone, Debug)]
pub struct Pass<'a, S = EncodedPair> {
    /// The pairs, in the order of the step.
    pub pairs: Vec<&'a S>,
    /// Weight of each pair's loss in the loss of the step.
    pub weights: Vec<f64>,
    /// Number of tokens in the packed row.
    pub tokens: usize,
}

/// Groups the pairs of a step's micro-batches, in order, into passes of at most `budget` tokens. A longer pair is a pass by
/// itself. The weights make the loss of the step the mean over micro-batches of their mean losses.
pub fn passes<'a, S: Sample>(micro_batches: &[Vec<&'a S>], budget: usize) -> Vec<Pass<'a, S>> {
    let (mut pairs, mut weights) = (Vec::new(), Vec::new());
    for micro_batch in micro_batches {
        let weight = 1.0 / (micro_batches.len() * micro_batch.len()) as f64;
        pairs.extend(micro_batch.iter().copied());
        weights.resize(pairs.len(), weight);
    }
    let tokens: Vec<usize> = pairs.iter().map(|pair| pair.packed_tokens()).collect();
    let pass = |range: Range<usize>| Pass {
        pairs: pairs[range.clone()].to_vec(),
        weights: weights[range.clone()].to_vec(),
        tokens: tokens[range].iter().sum(),
    };
    grouped(&tokens, budget).into_iter().map(pass).collect()
}

/// Groups consecutive samples with the given numbers of tokens so that each group has at most `budget` tokens or a single
/// sample. Returns the index range of each group.
pub fn grouped(tokens: &[usize], budget: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut group_tokens = 0;
    for (index, tokens) in tokens.iter().enumerate() {
        group_tokens += tokens;
        match groups.last_mut() {
            Some(group) if group_tokens <= budget => group.end = index + 1,
            _ => {
                group_tokens = *tokens;
                groups.push(index..index + 1);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::EncodedSequence;

    /// Returns a pair that takes `tokens` tokens in a packed row, of which two are shared and the others belong to chosen.
    fn pair(tokens: usize) -> EncodedPair {
        let side = |ids: Vec<u32>| EncodedSequence { ids, completion_start: 1, hidden: Vec::new() };
        EncodedPair {
            id: tokens.to_string(),
            chosen: side((0..=tokens as u32).collect()),
            rejected: side(vec![0, 1]),
        }
    }

    #[test]
    fn pairs_fill_passes_in_order_and_keep_their_weight() {
        let pairs = [3, 4, 9, 2, 2].map(pair);
        let micro_batches = [vec![&pairs[0], &pairs[1], &pairs[2]], vec![&pairs[3], &pairs[4]]];
        let passes = passes(&micro_batches, 7);
        let tokens: Vec<_> = passes.iter().map(|pass| pass.tokens).collect();
        assert_eq!(tokens, [7, 9, 4]);
        assert_eq!(passes[0].weights, [1.0 / 6.0; 2]);
        assert_eq!(passes[2].weights, [0.25; 2]);
        let sum: f64 = passes.iter().flat_map(|pass| &pass.weights).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
