//! TRL's metrics, from per-sequence and per-token numbers on the host.

use serde::{Deserialize, Serialize};

use crate::data::batch::PreferenceBatch;

/// What one micro-batch leaves behind, read from the device once.
#[derive(Clone, Debug)]
pub struct MicroBatchOutput {
    /// Mean loss over the pairs.
    pub loss: f64,
    /// Summed policy log-probabilities, `[2N]`, chosen first.
    pub policy: Vec<f64>,
    /// Summed reference log-probabilities, `[2N]`.
    pub reference: Vec<f64>,
    /// Per scored token: log-probability, entropy, argmax match, mean logit; `[T * 4]`.
    pub tokens: Vec<f64>,
}

/// The values TRL logs for one micro-batch, in [`KEYS`]' order, with the number of pairs they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MicroBatchMetrics {
    /// Pairs in the micro-batch.
    pub pairs: usize,
    /// Mean loss over the pairs.
    pub loss: f64,
    /// One value a key of [`KEYS`].
    pub values: [f64; KEYS.len()],
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
    /// Reduces `output` with TRL 1.x's definitions: rewards are `beta * (policy - reference)`, ties count as wrong,
    /// `logits/*` are means over the vocabulary and then over completion tokens, `mean_token_accuracy` counts chosen
    /// tokens, `entropy` all completion tokens.
    pub fn new(batch: &PreferenceBatch, output: &MicroBatchOutput, beta: f64) -> Self {
        let pairs = batch.pairs();
        let rewards = output
            .policy
            .iter()
            .zip(&output.reference)
            .map(|(p, r)| beta * (p - r));
        let rewards: Vec<f64> = rewards.collect();
        let (chosen, rejected) = rewards.split_at(pairs);
        let margins = || chosen.iter().zip(rejected).map(|(c, r)| c - r);
        let (logps_chosen, logps_rejected) = output.policy.split_at(pairs);
        let chosen_tokens: usize = batch.counts[..pairs].iter().sum();
        let (of_chosen, of_rejected) = output.tokens.split_at(4 * chosen_tokens);
        let column = |tokens: &[f64], column| mean(tokens.chunks(4).map(|token| token[column]));
        let values = [
            mean(chosen.iter().copied()),
            mean(rejected.iter().copied()),
            mean(margins().map(|margin| f64::from(margin > 0.0))),
            mean(margins()),
            mean(logps_chosen.iter().copied()),
            mean(logps_rejected.iter().copied()),
            column(of_chosen, 3),
            column(of_rejected, 3),
            column(of_chosen, 2),
            column(&output.tokens, 1),
        ];
        Self {
            pairs,
            loss: output.loss,
            values,
        }
    }

    /// TRL's average over micro-batches: unweighted, for the keys and the loss alike.
    pub fn mean(batches: &[Self]) -> (f64, [f64; KEYS.len()]) {
        let loss = mean(batches.iter().map(|batch| batch.loss));
        let values = std::array::from_fn(|key| mean(batches.iter().map(|batch| batch.values[key])));
        (loss, values)
    }

    /// The loss weighted by pairs, as the Trainer's evaluation reports it.
    pub fn loss_by_pairs(batches: &[Self]) -> f64 {
        let pairs: usize = batches.iter().map(|batch| batch.pairs).sum();
        let sum: f64 = batches
            .iter()
            .map(|batch| batch.loss * batch.pairs as f64)
            .sum();
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
