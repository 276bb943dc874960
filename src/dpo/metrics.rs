//! TRL's metrics, from per-sequence and per-token numbers on the host.

use serde::{Deserialize, Serialize};

/// What one pair leaves behind, read from the device once a step.
#[derive(Clone, Debug, PartialEq)]
pub struct PairOutput {
    /// Its loss.
    pub loss: f64,
    /// What the policy says about chosen, then rejected.
    pub policy: [CompletionOutput; 2],
    /// Summed log-probabilities under the reference: chosen, rejected.
    pub reference: [f64; 2],
}

/// What the policy says about one completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionOutput {
    /// Summed log-probability.
    pub logps: f64,
    /// Per scored token: log-probability, entropy, argmax match, mean logit.
    pub tokens: Vec<[f64; 4]>,
}

/// The values TRL logs for one micro-batch, with the number of pairs (or examples) they stand for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MicroBatchMetrics {
    /// Pairs in the micro-batch.
    pub pairs: usize,
    /// Mean loss.
    pub loss: f64,
    /// One value a key; of pairs the keys are [`KEYS`].
    pub values: Vec<f64>,
}

/// Metric names, as TRL writes them.
pub const KEYS: [&str; 10] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "entropy",
];

impl MicroBatchMetrics {
    /// Reduces the pairs of a micro-batch with TRL 1.x's definitions: rewards are `beta * (policy - reference)`, ties
    /// count as wrong, `logits/*` are means over the vocabulary and then over completion tokens, `mean_token_accuracy`
    /// counts chosen tokens, `entropy` all completion tokens.
    pub fn new(pairs: &[PairOutput], beta: f64) -> Self {
        let reward = |side: usize| {
            let rewards = pairs.iter();
            rewards.map(move |pair| beta * (pair.policy[side].logps - pair.reference[side]))
        };
        let margins = || reward(0).zip(reward(1)).map(|(c, r)| c - r);
        let logps = |side: usize| mean(pairs.iter().map(move |pair| pair.policy[side].logps));
        let tokens = |side: usize| pairs.iter().flat_map(move |pair| &pair.policy[side].tokens);
        let values = [
            mean(reward(0)),
            mean(reward(1)),
            mean(margins().map(|margin| f64::from(margin > 0.0))),
            mean(margins()),
            logps(0),
            logps(1),
            mean(tokens(0).map(|token| token[3])),
            mean(tokens(1).map(|token| token[3])),
            mean(tokens(0).map(|token| token[2])),
            mean(tokens(0).chain(tokens(1)).map(|token| token[1])),
        ];
        Self {
            pairs: pairs.len(),
            loss: mean(pairs.iter().map(|pair| pair.loss)),
            values: values.to_vec(),
        }
    }

    /// TRL's average over micro-batches: unweighted, for the keys and the loss alike.
    pub fn mean(batches: &[Self]) -> (f64, Vec<f64>) {
        let loss = mean(batches.iter().map(|batch| batch.loss));
        let keys = batches.first().map_or(0, |batch| batch.values.len());
        let of_key = |key: usize| mean(batches.iter().filter_map(|b| b.values.get(key)).copied());
        (loss, (0..keys).map(of_key).collect())
    }

    /// The loss weighted by pairs, as the Trainer's evaluation reports it.
    pub fn loss_by_pairs(batches: &[Self]) -> f64 {
        let pairs: usize = batches.iter().map(|batch| batch.pairs).sum();
        let sum: f64 = batches.iter().map(|batch| batch.loss * batch.pairs as f64).sum();
        sum / pairs.max(1) as f64
    }
}

/// Mean, 0 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    sum / count.max(1) as f64
}
