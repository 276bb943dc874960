//! KTO: examples that are labeled as desirable or undesirable, against a reference model (Ethayarajh et al. 2024,
//! arXiv 2402.01306, equation 8), as TRL's `KTOTrainer` computes it.
//!
//! With `r = log p_policy - log p_reference` of an example's completion, the loss of a desirable example is
//! `1 - σ(β (r - z))`, that of an undesirable one `1 - σ(β (z - r))`, times the weight of its class. A step's loss is the mean
//! over its micro-batches of their means over examples, whatever their class.
//!
//! `z` estimates the divergence from the reference: the mean of `r` over a micro-batch whose prompts have each the completion of
//! the example before (the first one that of the last), or 0 if that is negative. It has no gradient. So `z`, and with it the
//! loss, depends on which examples are in a micro-batch together. The loss `apo_zero_unpaired` has `z = 0` (D'Oosterlinck et
//! al. 2024, arXiv 2408.06266).

use arithmo_backends::TrainBackend;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::dpo::{ReferenceTiming, check_start};
use super::log_probs::CompletionLogProbs;
use super::losses::{sigmoid, vector_like};
use super::metrics::{MicroBatchMetrics, SampleOutput, Sum};
use super::pass::Pass;
use super::reference::Reference;
use super::{MicroBatch, Objective, Usage};
use crate::data::batch::PackedBatch;
use crate::data::encode::EncodedExample;
use crate::data::labeled::EncodedLabeled;
use crate::error::Result;

/// The loss, with TRL's name (`loss_type` of `KTOConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    /// KTO.
    #[default]
    Kto,
    /// APO-zero on single examples.
    ApoZeroUnpaired,
}

/// The settings of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KtoSettings {
    /// The loss.
    pub loss_type: KtoLoss,
    /// Strength of the regularization towards the reference, β.
    pub beta: f64,
    /// Weight of the losses of desirable examples.
    pub desirable_weight: f64,
    /// Weight of the losses of undesirable examples.
    pub undesirable_weight: f64,
    /// Number of consecutive examples, those of a micro-batch, among which completions are exchanged.
    pub block: usize,
    /// Maximum number of tokens of a prompt with another example's completion, which is cut at its end.
    pub max_length: usize,
}

/// The objective of KTO: the loss and the reference.
#[derive(Debug)]
pub struct Kto<B: TrainBackend> {
    /// The settings of the loss.
    pub settings: KtoSettings,
    /// The reference model.
    pub reference: Reference<B>,
    /// When the reference's log-probabilities of training examples are computed.
    pub timing: ReferenceTiming,
    /// Whether policy and reference are the same function before the first step.
    pub starts_as_reference: bool,
}

impl KtoSettings {
    /// Computes the loss of each example, `[N]`.
    ///
    /// # Shapes
    /// - ratios: `r`, `[N]`
    /// - baselines: `z`, `[N]`
    /// - desirable: whether each example is desirable, `[N]`
    pub fn losses<B: Backend>(
        &self,
        ratios: Tensor<B, 1>,
        baselines: &[f64],
        desirable: &[bool],
    ) -> Tensor<B, 1> {
        let by_class = |desirable_value: f64, other: f64| {
            desirable.iter().map(|good| if *good { desirable_value } else { other }).collect()
        };
        let weights =
            vector_like(&ratios, by_class(self.desirable_weight, self.undesirable_weight));
        let factors = vector_like(&ratios, by_class(-self.beta, self.beta));
        let baselines = vector_like(&ratios, baselines.to_vec());
        // 1 - σ(x) = σ(-x)
        sigmoid((ratios - baselines) * factors) * weights
    }

    /// Returns the loss of examples of a policy that equals its reference; the numbers are those of desirable and of
    /// undesirable ones.
    fn at_zero(&self, [desirable, undesirable]: [usize; 2]) -> f64 {
        let total =
            self.desirable_weight * desirable as f64 + self.undesirable_weight * undesirable as f64;
        0.5 * total / (desirable + undesirable).max(1) as f64
    }
}

impl<B: TrainBackend> Objective<B> for Kto<B> {
    type Sample = EncodedLabeled;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("kl", "kl")];

    fn reference_model(&self) -> Option<&Reference<B>> {
        Some(&self.reference)
    }

    fn reference_model_mut(&mut self) -> Option<&mut Reference<B>> {
        Some(&mut self.reference)
    }

    fn companions(&self, samples: &[&EncodedLabeled]) -> Vec<EncodedExample> {
        if self.settings.loss_type == KtoLoss::ApoZeroUnpaired {
            return Vec::new();
        }
        let blocks = samples.chunks(self.settings.block.max(1));
        let mismatched = blocks.flat_map(|block| {
            let before = block.iter().skip(block.len() - 1).chain(block);
            let pairs = block.iter().zip(before);
            pairs.map(|(own, other)| own.with_completion_of(other, self.settings.max_length))
        });
        mismatched.collect()
    }

    /// Returns the mean, or 0 if it is negative. NaN stays NaN.
    fn baseline(&self, ratios: &[f64]) -> f64 {
        let mean = Sum::of(ratios.iter().copied()).mean();
        if mean < 0.0 { 0.0 } else { mean }
    }

    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        reference: Tensor<A, 1>,
        _batch: &PackedBatch,
        pass: &Pass<'_, EncodedLabeled>,
        _usage: Usage,
    ) -> Tensor<A, 1> {
        let desirable: Vec<bool> = pass.pairs.iter().map(|sample| sample.desirable).collect();
        self.settings.losses(policy.sums.clone() - reference, &pass.baselines, &desirable)
    }

    /// Computes TRL's metrics. Those of a class are absent if the micro-batch has no example of it.
    fn metrics(
        &self,
        micro_batch: &MicroBatch<'_, EncodedLabeled>,
        _usage: Usage,
    ) -> MicroBatchMetrics {
        let outputs = micro_batch.outputs;
        let tokens = outputs.iter().flat_map(|output| &output.policy[0].tokens);
        let mut sums = vec![
            ("kl".to_string(), Sum { total: micro_batch.baseline, count: 1 }),
            ("entropy".to_string(), Sum::of(tokens.map(|token| token[1]))),
        ];
        let mut rewards = Vec::new();
        for (class, desirable) in [("chosen", true), ("rejected", false)] {
            let labeled = micro_batch.samples.iter().zip(outputs);
            let of_class: Vec<&SampleOutput> = labeled
                .filter_map(|(sample, output)| (sample.desirable == desirable).then_some(output))
                .collect();
            if of_class.is_empty() {
                continue;
            }
            let logps = |output: &&SampleOutput| output.policy[0].logps;
            let reward =
                |output: &&SampleOutput| self.settings.beta * (logps(output) - output.reference[0]);
            let tokens = of_class.iter().flat_map(|output| &output.policy[0].tokens);
            let reward = Sum::of(of_class.iter().map(reward));
            rewards.push(reward.mean());
            sums.extend([
                (format!("rewards/{class}"), reward),
                (format!("logps/{class}"), Sum::of(of_class.iter().map(logps))),
                (format!("logits/{class}"), Sum::of(tokens.map(|token| token[3]))),
            ]);
        }
        if let [chosen, rejected] = rewards[..] {
            sums.push(("rewards/margins".to_string(), Sum { total: chosen - rejected, count: 1 }));
        }
        let loss = Sum::of(outputs.iter().map(|output| output.loss));
        MicroBatchMetrics::from_sums(outputs.len(), vec![loss], sums)
    }

    fn check_first_step(&self, micro_batches: &[MicroBatchMetrics]) -> Result<()> {
        if !self.starts_as_reference {
            return Ok(());
        }
        micro_batches.iter().try_for_each(|micro| {
            let count = |key: &str| micro.sums.get(key).map_or(0, |sum| sum.count);
            let loss = self.settings.at_zero(["rewards/chosen", "rewards/rejected"].map(count));
            check_start(micro, Some(loss), self.settings.beta, self.timing)
        })
    }

    fn precompute_batch_size(&self, usage: Usage) -> Option<usize> {
        self.timing.batch_size(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{B, assert_gradients, vector};

    const SETTINGS: KtoSettings = KtoSettings {
        loss_type: KtoLoss::Kto,
        beta: 0.7,
        desirable_weight: 1.5,
        undesirable_weight: 0.4,
        block: 3,
        max_length: 8,
    };
    const BASELINES: [f64; 4] = [0.3, 0.3, 0.9, 0.9];
    const DESIRABLE: [bool; 4] = [true, false, false, true];

    #[test]
    fn gradients_equal_finite_differences() {
        assert_gradients(&[-1.2, 0.4, 2.1, 0.8], "kto", |ratios| {
            SETTINGS.losses(ratios, &BASELINES, &DESIRABLE)
        });
    }

    /// Equation 8 in plain numbers, with the class weights.
    #[test]
    fn losses_equal_their_formula() {
        let ratios = [-1.2, 0.4, 2.1, 0.8];
        let losses = SETTINGS.losses(vector::<B>(&ratios), &BASELINES, &DESIRABLE).into_data();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (index, ours) in losses.iter::<f64>().enumerate() {
            let distance = ratios[index] - BASELINES[index];
            let expected = if DESIRABLE[index] {
                1.5 * (1.0 - sigmoid(0.7 * distance))
            } else {
                0.4 * (1.0 - sigmoid(-0.7 * distance))
            };
            assert!((ours - expected).abs() < 1e-12, "{index}: {ours} {expected}");
        }
        assert!((SETTINGS.at_zero([1, 3]) - (0.75 + 3.0 * 0.2) / 4.0).abs() < 1e-12);
    }
}
