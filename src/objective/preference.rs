//! The preference loss of a pass: a weighted sum of the [`losses`](super::losses) with the options that apply to all of
//! them.

use std::ops::Range;

use burn::tensor::{Tensor, backend::Backend};

use super::f_divergence::FDivergence;
use super::losses::{LossInput, LossSettings, LossType, PairLogProbs, vector_like};

/// A weighted sum of losses.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceLoss {
    /// The losses and their weights.
    pub terms: Vec<(LossType, f64)>,
    /// The settings of the formulas.
    pub settings: LossSettings,
    /// The divergence from the reference.
    pub f_divergence: FDivergence,
    /// The coefficient of the alpha-divergence.
    pub f_alpha: f64,
    /// Whether each pair's loss is multiplied by the weights of its two completions in WPO (Zhou et al. 2024,
    /// arXiv 2406.11827, equation 2).
    pub use_weighting: bool,
    /// The weight of a completion's tokens beyond the length of the pair's shorter completion (LD-DPO, Liu et al. 2024,
    /// arXiv 2409.06411); `None` for 1.
    pub ld_alpha: Option<f64>,
    /// Whether the reference's log-probabilities count as 0.
    pub reference_free: bool,
}

/// The log-probabilities of the `N` pairs of a pass.
#[derive(Clone, Debug)]
pub struct PassLogProbs<'a, B: Backend> {
    /// Log-probabilities under the policy, summed over tokens with the weights of `ld_alpha`.
    pub policy: PairLogProbs<B>,
    /// The same under the reference.
    pub reference: PairLogProbs<B>,
    /// Sums of the chosen completions without these weights, `[N]`.
    pub chosen_sums: Tensor<B, 1>,
    /// The weight of each completion in WPO, `[2N]`; `None` without WPO (see
    /// [`CompletionLogProbs::weights`](super::log_probs::CompletionLogProbs::weights)).
    pub weights: Option<Tensor<B, 1>>,
    /// Numbers of completion tokens of all chosen, then all rejected completions, `[2N]`.
    pub counts: &'a [usize],
    /// The [token weights](super::pass::Pass::token_weights) of the pairs, `[N]`.
    pub token_weights: &'a [f64],
    /// The pairs of each micro-batch.
    pub micro_batches: &'a [Range<usize>],
}

impl PreferenceLoss {
    /// Returns DPO's sigmoid loss, without options.
    pub fn sigmoid(beta: f64) -> Self {
        let settings =
            LossSettings { beta, label_smoothing: 0.0, discopop_tau: 0.05, dpop_lambda: 50.0 };
        Self {
            terms: vec![(LossType::Sigmoid, 1.0)],
            settings,
            f_divergence: FDivergence::ReverseKl,
            f_alpha: 0.5,
            use_weighting: false,
            ld_alpha: None,
            reference_free: false,
        }
    }

    /// Returns whether a pair's loss depends on the other pairs of its micro-batch, which then must be in one pass.
    pub fn needs_whole_micro_batches(&self) -> bool {
        let weights_tokens = self.use_weighting && self.sft_weight() != 0.0;
        weights_tokens || self.terms.iter().any(|(loss, _)| loss.uses().batch)
    }

    /// Returns the loss of a policy that equals its reference; `None` if it depends on the model.
    pub fn at_zero(&self) -> Option<f64> {
        if self.use_weighting {
            return None;
        }
        let terms = self.terms.iter();
        terms.map(|(loss, weight)| Some(weight * loss.at_zero(&self.settings)?)).sum()
    }

    /// Returns the loss without the cross-entropy of the chosen completions, and the weight of that. Means over pairs are
    /// right for the first, means over tokens for the second; with `use_weighting` they cannot be separated, and the weight
    /// is 0.
    pub fn without_sft(&self) -> (Self, f64) {
        if self.use_weighting {
            return (self.clone(), 0.0);
        }
        let terms = self.terms.iter().filter(|(loss, _)| *loss != LossType::Sft);
        (Self { terms: terms.copied().collect(), ..self.clone() }, self.sft_weight())
    }

    /// Returns the weight of the cross-entropy of the chosen completions.
    fn sft_weight(&self) -> f64 {
        let sft = self.terms.iter().filter(|(loss, _)| *loss == LossType::Sft);
        sft.map(|(_, weight)| weight).sum()
    }

    /// Computes the loss of each pair, `[N]`. The mean over a micro-batch is its loss.
    ///
    /// # Panics
    /// If `counts` does not have two numbers per pair, or WPO is on and there are no weights.
    pub fn losses<B: Backend>(&self, pass: &PassLogProbs<'_, B>) -> Tensor<B, 1> {
        let pairs = pass.chosen_sums.dims()[0];
        assert_eq!(pass.counts.len(), 2 * pairs, "counts of {pairs} pairs");
        let reference = if self.reference_free {
            pass.reference.clone().map(|logps| logps.zeros_like())
        } else {
            pass.reference.clone()
        };
        let ratios = pass.policy.minus(&reference);
        let scores = |ratios| self.f_divergence.scores(ratios, self.f_alpha);
        let token_weights = vector_like(&pass.chosen_sums, pass.token_weights.to_vec());
        let input = LossInput {
            policy: pass.policy.clone(),
            reference,
            scores: ratios.clone().map(scores),
            ratios,
            cross_entropy: pass.chosen_sums.clone().neg() * token_weights,
            counts: pass.counts,
            micro_batches: pass.micro_batches,
            settings: &self.settings,
        };
        let pair_weights = self.use_weighting.then(|| {
            let Some(weights) = &pass.weights else { panic!("WPO needs the tokens' weights") };
            let weights = PairLogProbs::split(weights.clone());
            weights.chosen * weights.rejected
        });
        let terms = self.terms.iter().map(|(loss, weight)| {
            let losses = loss.losses(&input);
            let losses = match &pair_weights {
                Some(weights) if *loss == LossType::Sft => {
                    means(losses, pass.micro_batches) * weights.clone()
                }
                Some(weights) => losses * weights.clone(),
                None => losses,
            };
            losses * *weight
        });
        let sum = terms.reduce(|sum, losses| sum + losses);
        sum.unwrap_or_else(|| pass.chosen_sums.zeros_like())
    }
}

/// Returns the mean over each micro-batch in place of its values, `[N]`.
fn means<B: Backend>(values: Tensor<B, 1>, micro_batches: &[Range<usize>]) -> Tensor<B, 1> {
    let means = micro_batches.iter().map(|range| {
        let mean = values.clone().narrow(0, range.start, range.len()).mean();
        mean.expand([range.len()])
    });
    Tensor::cat(means.collect::<Vec<_>>(), 0)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "the micro-batches of a pass are ranges")]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{B, vector};

    fn side(chosen: &[f64], rejected: &[f64]) -> PairLogProbs<B> {
        PairLogProbs { chosen: vector(chosen), rejected: vector(rejected) }
    }

    fn values(tensor: Tensor<B, 1>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    fn near(ours: &[f64], expected: &[f64]) {
        let same = ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(ours.len() == expected.len() && same, "{ours:?} {expected:?}");
    }

    /// Two pairs of one micro-batch with margins of 1 and -2, and cross-entropies of 3 and 5 over 2 and 6 chosen tokens.
    fn pass(token_weights: &[f64]) -> PassLogProbs<'_, B> {
        PassLogProbs {
            policy: side(&[-3.0, -5.0], &[-4.0, -4.0]),
            reference: side(&[-3.0, -4.0], &[-3.0, -5.0]),
            chosen_sums: vector(&[-3.0, -5.0]),
            weights: Some(vector(&[0.5, 0.25, 0.2, 0.8])),
            counts: &[2, 6, 3, 3],
            token_weights,
            micro_batches: &[0..2],
        }
    }

    /// The expected values are computed by hand at beta 0.5.
    #[test]
    fn weighted_losses_are_sums() {
        let terms = vec![(LossType::Sigmoid, 0.5), (LossType::Sft, 0.1)];
        let loss = PreferenceLoss { terms, ..PreferenceLoss::sigmoid(0.5) };
        let token_weights = [2.0 / 8.0; 2];
        let sigmoid = |margin: f64| (-0.5 * margin).exp().ln_1p();
        let expected =
            [0.5 * sigmoid(1.0) + 0.1 * 3.0 / 4.0, 0.5 * sigmoid(-2.0) + 0.1 * 5.0 / 4.0];
        near(&values(loss.losses(&pass(&token_weights))), &expected);
        // The mean over both pairs is the mean over all eight tokens.
        let (preference, weight) = loss.without_sft();
        assert_eq!(weight, 0.1);
        near(
            &values(preference.losses(&pass(&token_weights))),
            &[0.5 * sigmoid(1.0), 0.5 * sigmoid(-2.0)],
        );
        assert_eq!(loss.at_zero(), None);
        assert_eq!(preference.at_zero(), Some(0.5 * std::f64::consts::LN_2));

        // The weights of the pairs are 0.5 * 0.2 and 0.25 * 0.8. All pairs have the micro-batch's cross-entropy, 1.
        let weighted = PreferenceLoss { use_weighting: true, ..loss };
        let expected = [0.1 * (0.5 * sigmoid(1.0) + 0.1), 0.2 * (0.5 * sigmoid(-2.0) + 0.1)];
        near(&values(weighted.losses(&pass(&token_weights))), &expected);
        assert!(weighted.needs_whole_micro_batches());
    }

    #[test]
    fn without_a_reference_the_policy_alone_counts() {
        let loss = PreferenceLoss { reference_free: true, ..PreferenceLoss::sigmoid(0.5) };
        let sigmoid = |margin: f64| (-0.5 * margin).exp().ln_1p();
        near(&values(loss.losses(&pass(&[0.25; 2]))), &[sigmoid(1.0), sigmoid(-1.0)]);
    }
}
