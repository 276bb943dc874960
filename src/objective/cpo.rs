//! CPO, SimPO and AlphaPO: losses of pairs without a reference model, as TRL's `CPOTrainer` computes them.
//!
//! The score of a completion is `s = log p`, summed over its tokens for `sigmoid` and `hinge`, averaged for the others, and
//! with `α != 0` (AlphaPO) `(1 - exp(-α s)) / α` in its place. With `Δ = s_chosen - s_rejected` and the label smoothing `ε`:
//! - `sigmoid` (CPO, Xu et al. 2024, arXiv 2401.08417, equation 3): `-(1 - ε) log σ(β Δ) - ε log σ(-β Δ)`
//! - `hinge`: `max(0, 1 - β Δ)`
//! - `ipo`: `(Δ - 1 / (2 β))^2`
//! - `simpo` (Meng et al. 2024, arXiv 2405.14734, equation 6) and `alphapo` (Gupta et al. 2025, arXiv 2501.03884): as
//!   `sigmoid` with `Δ - γ / β` for `Δ`
//!
//! The cross-entropy of the chosen completions, a mean over the tokens of a micro-batch, is added with a weight.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use super::log_probs::CompletionLogProbs;
use super::losses::{self, LossSettings, LossType, PairLogProbs};
use super::metrics::{MicroBatchMetrics, Sum, reward_sums};
use super::pass::Pass;
use super::preference::PreferenceLoss;
use super::{MicroBatch, Objective, Usage, per_token};
use crate::data::answers::CpoPair;
use crate::data::batch::PackedBatch;

/// The loss of a pair, with TRL's name (`loss_type` of `CPOConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    /// CPO.
    #[default]
    Sigmoid,
    /// SLiC's hinge loss.
    Hinge,
    /// IPO on log-probabilities averaged over tokens.
    Ipo,
    /// SimPO.
    Simpo,
    /// AlphaPO.
    Alphapo,
}

impl CpoLoss {
    /// Returns whether scores are averages over tokens.
    pub fn averages(self) -> bool {
        matches!(self, Self::Ipo | Self::Simpo | Self::Alphapo)
    }

    /// Returns whether the loss has SimPO's margin.
    pub fn has_margin(self) -> bool {
        matches!(self, Self::Simpo | Self::Alphapo)
    }

    /// Returns whether the label smoothing changes the loss.
    pub fn uses_label_smoothing(self) -> bool {
        !matches!(self, Self::Hinge | Self::Ipo)
    }
}

/// The objective of CPO and its relatives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cpo {
    /// The loss of a pair.
    pub loss_type: CpoLoss,
    /// Factor of the scores, β.
    pub beta: f64,
    /// Probability that a label is flipped, ε.
    pub label_smoothing: f64,
    /// Weight of the cross-entropy of the chosen completions.
    pub cross_entropy_weight: f64,
    /// SimPO's margin, γ.
    pub gamma: f64,
    /// AlphaPO's α; 0 for scores that are log-probabilities.
    pub alpha: f64,
}

impl Cpo {
    /// Computes the preference loss of each pair, `[N]`, without the cross-entropy, from the log-probabilities of its
    /// completions: sums, or averages if [`CpoLoss::averages`].
    pub fn preference_losses<B: Backend>(&self, log_probs: PairLogProbs<B>) -> Tensor<B, 1> {
        let scores = log_probs.map(|logps| match self.alpha {
            0.0 => logps,
            alpha => ((logps * -alpha).exp().neg() + 1.0) / alpha,
        });
        let settings = LossSettings {
            label_smoothing: self.label_smoothing,
            ..PreferenceLoss::sigmoid(self.beta).settings
        };
        match self.loss_type {
            CpoLoss::Hinge => losses::of_scores(LossType::Hinge, scores, &settings),
            CpoLoss::Ipo => losses::of_scores(LossType::Ipo, scores, &settings),
            CpoLoss::Sigmoid => losses::smoothed(scores.difference(), &settings),
            CpoLoss::Simpo | CpoLoss::Alphapo => {
                losses::smoothed(scores.difference() - self.gamma / self.beta, &settings)
            }
        }
    }

    /// Returns the reward of a completion of this log-probability: `β` times its score.
    fn reward(&self, logps: f64) -> f64 {
        let score = match self.alpha {
            0.0 => logps,
            alpha => -(-alpha * logps).exp_m1() / alpha,
        };
        self.beta * score
    }
}

impl<B: TrainBackend> Objective<B> for Cpo {
    type Sample = CpoPair;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "acc")];

    fn stats(&self) -> LogProbStats {
        LogProbStats::None
    }

    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        _reference: Tensor<A, 1>,
        _batch: &PackedBatch,
        pass: &Pass<'_, CpoPair>,
        usage: Usage,
    ) -> Tensor<A, 1> {
        let sums = policy.sums.clone();
        let log_probs = if self.loss_type.averages() {
            per_token(sums.clone(), &pass.pairs)
        } else {
            sums.clone()
        };
        let losses = self.preference_losses(PairLogProbs::split(log_probs));
        if usage == Usage::Evaluation || self.cross_entropy_weight == 0.0 {
            return losses;
        }
        losses + pass.cross_entropies(PairLogProbs::split(sums).chosen) * self.cross_entropy_weight
    }

    /// Computes TRL's metrics except `logits/*`, which TRL averages over prompts and padding too.
    fn metrics(&self, micro_batch: &MicroBatch<'_, CpoPair>, usage: Usage) -> MicroBatchMetrics {
        let pairs = micro_batch.outputs;
        let logps: Vec<[f64; 2]> = pairs
            .iter()
            .map(|pair| {
                [0, 1].map(|side| {
                    let completion = &pair.policy[side];
                    let tokens =
                        if self.loss_type.averages() { completion.tokens.len() } else { 1 };
                    completion.logps / tokens.max(1) as f64
                })
            })
            .collect();
        let rewards: Vec<[f64; 2]> =
            logps.iter().map(|logps| logps.map(|logps| self.reward(logps))).collect();
        let weight = self.cross_entropy_weight;
        // TRL logs 0 for a cross-entropy that is not part of the loss.
        let nll = match weight {
            0.0 => Sum { total: 0.0, count: 1 },
            _ => {
                Sum::of(pairs.iter().flat_map(|pair| &pair.policy[0].tokens).map(|token| -token[0]))
            }
        };
        let sums = reward_sums(&rewards).into_iter().chain([
            ("logps/chosen", Sum::of(logps.iter().map(|logps| logps[0]))),
            ("logps/rejected", Sum::of(logps.iter().map(|logps| logps[1]))),
            ("nll_loss", nll),
        ]);
        MicroBatchMetrics::from_sums(pairs.len(), usage.loss_sums(pairs, weight, nll), sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{assert_gradients, vector};

    const CPO: Cpo = Cpo {
        loss_type: CpoLoss::Sigmoid,
        beta: 0.7,
        label_smoothing: 0.2,
        cross_entropy_weight: 0.0,
        gamma: 0.3,
        alpha: 0.0,
    };

    fn all() -> Vec<Cpo> {
        let types =
            [CpoLoss::Sigmoid, CpoLoss::Hinge, CpoLoss::Ipo, CpoLoss::Simpo, CpoLoss::Alphapo];
        let with = |alpha| types.map(|loss_type| Cpo { loss_type, alpha, ..CPO });
        [0.0, 0.4, -0.3].into_iter().flat_map(with).collect()
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for cpo in all() {
            assert_gradients(&[-0.7, -1.9, -1.1, -2.3, -0.2, -0.9], &format!("{cpo:?}"), |both| {
                cpo.preference_losses(PairLogProbs::split(both))
            });
        }
    }

    /// The formulas of the module's documentation, in plain numbers.
    #[test]
    fn losses_equal_their_formulas() {
        let (chosen, rejected) = (-0.7f64, -1.9f64);
        for cpo in all() {
            let score = |s: f64| {
                if cpo.alpha == 0.0 { s } else { (1.0 - s.exp().powf(-cpo.alpha)) / cpo.alpha }
            };
            let delta = score(chosen) - score(rejected);
            let smoothed = |delta: f64| {
                0.8 * (-cpo.beta * delta).exp().ln_1p() + 0.2 * (cpo.beta * delta).exp().ln_1p()
            };
            let expected = match cpo.loss_type {
                CpoLoss::Sigmoid => smoothed(delta),
                CpoLoss::Hinge => (1.0 - cpo.beta * delta).max(0.0),
                CpoLoss::Ipo => (delta - 1.0 / (2.0 * cpo.beta)).powi(2),
                CpoLoss::Simpo | CpoLoss::Alphapo => smoothed(delta - cpo.gamma / cpo.beta),
            };
            let log_probs =
                PairLogProbs { chosen: vector(&[chosen]), rejected: vector(&[rejected]) };
            let ours = cpo.preference_losses::<losses::tests::B>(log_probs).into_data();
            let ours = ours.iter::<f64>().next().unwrap();
            assert!((ours - expected).abs() < 1e-12, "{cpo:?}: {ours} {expected}");
            assert!((cpo.reward(chosen) - cpo.beta * score(chosen)).abs() < 1e-12);
        }
    }
}
