//! Groups the pairs of a step into forward and backward passes.
//!
//! The gradient of a step is a weighted sum over its pairs, so that the grouping only affects speed and memory: many short
//! pairs in one pass use the machine better, and a pass of few tokens needs little memory.

use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

use super::losses::vector_like;
use crate::data::encode::EncodedPair;
use crate::data::sample::Sample;

/// Pairs (or examples) computed in one forward and backward pass.
#[derive(Clone, Debug)]
pub struct Pass<'a, S = EncodedPair> {
    /// The pairs, in the order of the step.
    pub pairs: Vec<&'a S>,
    /// Weight of each pair's loss in the loss of the step.
    pub weights: Vec<f64>,
    /// For each pair, the pairs of its micro-batch divided by the scored tokens of their first sides. With them as factors
    /// of summed log-probabilities, a mean over pairs is a mean over tokens.
    pub token_weights: Vec<f64>,
    /// For each pair, what [`Objective::baseline`](super::Objective::baseline) returned for its micro-batch; 0 until then.
    pub baselines: Vec<f64>,
    /// The pairs of each micro-batch, or of the part of it that is in this pass.
    pub micro_batches: Vec<Range<usize>>,
    /// Number of tokens in the packed row.
    pub tokens: usize,
}

impl<S> Pass<'_, S> {
    /// Returns cross-entropies, `[N]`, whose mean over a micro-batch is the mean over the scored tokens of its first sides, from
    /// the summed log-probabilities of the first sides, `[N]`.
    pub fn cross_entropies<B: Backend>(&self, sums: Tensor<B, 1>) -> Tensor<B, 1> {
        let weights = vector_like(&sums, self.token_weights.clone());
        sums.neg() * weights
    }
}

/// Limits on the size of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassLimits {
    /// The largest number of tokens.
    pub tokens: usize,
    /// Whether a micro-batch is always in one pass, even if it has more tokens.
    pub whole_micro_batches: bool,
}

impl From<usize> for PassLimits {
    /// Limits the tokens alone.
    fn from(tokens: usize) -> Self {
        Self { tokens, whole_micro_batches: false }
    }
}

/// Groups the pairs of a step's micro-batches, in order, into passes. A pair that is longer than the limit is a pass by
/// itself. `weights` are those of all pairs, such as [`mean_weights`].
pub fn passes<'a, S: Sample>(
    micro_batches: &[Vec<&'a S>],
    weights: &[f64],
    limits: impl Into<PassLimits>,
) -> Vec<Pass<'a, S>> {
    let pairs: Vec<&S> = micro_batches.iter().flatten().copied().collect();
    let token_weights: Vec<f64> =
        micro_batches.iter().flat_map(|micro| token_weights(micro)).collect();
    let tokens: Vec<usize> = pairs.iter().map(|pair| pair.packed_tokens()).collect();
    let sizes: Vec<usize> = micro_batches.iter().map(Vec::len).collect();
    let pass = |range: Range<usize>| Pass {
        pairs: pairs[range.clone()].to_vec(),
        weights: weights[range.clone()].to_vec(),
        token_weights: token_weights[range.clone()].to_vec(),
        baselines: vec![0.0; range.len()],
        micro_batches: parts(&sizes, &range),
        tokens: tokens[range].iter().sum(),
    };
    grouped(&tokens, &sizes, limits.into()).into_iter().map(pass).collect()
}

/// Returns the weights that make the loss of a step the mean over micro-batches of their mean losses.
pub fn mean_weights<S>(micro_batches: &[Vec<&S>]) -> Vec<f64> {
    let weight = |micro: &Vec<&S>| 1.0 / (micro_batches.len() * micro.len()) as f64;
    micro_batches.iter().flat_map(|micro| vec![weight(micro); micro.len()]).collect()
}

/// Returns [`Pass::token_weights`] of a micro-batch.
fn token_weights<S: Sample>(pairs: &[&S]) -> Vec<f64> {
    let tokens: usize = pairs.iter().map(|pair| pair.scored_tokens(0)).sum();
    vec![pairs.len() as f64 / tokens.max(1) as f64; pairs.len()]
}

/// Returns the part of each micro-batch, of which `sizes` has the numbers of pairs, that lies in `range`, counted from its
/// start.
fn parts(sizes: &[usize], range: &Range<usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    let parts = sizes.iter().map(|size| {
        end += size;
        (end - size).max(range.start)..end.min(range.end)
    });
    let parts = parts.filter(|part| part.start < part.end);
    parts.map(|part| part.start - range.start..part.end - range.start).collect()
}

/// Groups consecutive samples with the given numbers of tokens so that each group has at most [`PassLimits::tokens`] tokens
/// or a single sample. Under [`PassLimits::whole_micro_batches`], micro-batches take the place of samples; `sizes` has their
/// numbers of samples (the last one may be incomplete). Returns the index range of each group.
pub fn grouped(tokens: &[usize], sizes: &[usize], limits: PassLimits) -> Vec<Range<usize>> {
    if !limits.whole_micro_batches {
        return group_within(tokens, limits.tokens);
    }
    let mut starts = vec![0];
    for size in sizes {
        starts.push((starts[starts.len() - 1] + size).min(tokens.len()));
    }
    let batch_tokens: Vec<usize> =
        starts.windows(2).map(|ends| tokens[ends[0]..ends[1]].iter().sum()).collect();
    let groups = group_within(&batch_tokens, limits.tokens).into_iter();
    groups.map(|group| starts[group.start]..starts[group.end]).collect()
}

/// Groups consecutive items of the given sizes so that each group has at most the size `budget` or a single item.
fn group_within(tokens: &[usize], budget: usize) -> Vec<Range<usize>> {
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
#[allow(clippy::single_range_in_vec_init, reason = "the micro-batches of a pass are ranges")]
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
        let passes = passes(&micro_batches, &mean_weights(&micro_batches), 7);
        let tokens: Vec<_> = passes.iter().map(|pass| pass.tokens).collect();
        assert_eq!(tokens, [7, 9, 4]);
        assert_eq!(passes[0].weights, [1.0 / 6.0; 2]);
        assert_eq!(passes[2].weights, [0.25; 2]);
        let sum: f64 = passes.iter().flat_map(|pass| &pass.weights).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn micro_batches_stay_whole_or_are_divided() {
        let pairs = [3, 4, 9, 2, 2, 1].map(pair);
        let micro_batches =
            [vec![&pairs[0], &pairs[1], &pairs[2]], vec![&pairs[3], &pairs[4]], vec![&pairs[5]]];
        let parts = |tokens, whole_micro_batches| -> Vec<_> {
            let limits = PassLimits { tokens, whole_micro_batches };
            let passes = passes(&micro_batches, &[1.0; 6], limits);
            passes.into_iter().map(|pass| pass.micro_batches).collect()
        };
        assert_eq!(parts(7, true), [vec![0..3], vec![0..2, 2..3]]);
        assert_eq!(parts(100, true), [vec![0..3, 3..5, 5..6]]);
        assert_eq!(parts(13, false), [vec![0..2], vec![0..1, 1..3], vec![0..1]]);
    }
}
