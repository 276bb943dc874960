//! ORPO: cross-entropy of the chosen text and an odds ratio, without a reference model (Hong et al. 2024, arXiv 2403.07691,
//! equations 6 and 7), as TRL's `ORPOTrainer` computes it.
//!
//! With `a` the log-probability of a completion averaged over its tokens, its log-odds are `a - log(1 - exp(a))`. The loss of
//! a pair is `-β log σ(log-odds of chosen - log-odds of rejected)`. The cross-entropy is that of the chosen prompt and
//! completion, a mean over the tokens of a micro-batch.

use arithmo_backends::{LogProbStats, TrainBackend};
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};

use super::log_probs::{CompletionLogProbs, DeviceBatch};
use super::losses::PairLogProbs;
use super::metrics::{MicroBatchMetrics, SampleOutput, Sum, reward_sums};
use super::pass::Pass;
use super::{MicroBatch, Objective, Usage, per_token};
use crate::data::answers::OrpoPair;
use crate::data::batch::PackedBatch;
use crate::data::sample::Sample;

/// The objective of ORPO.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orpo {
    /// Weight of the odds ratio, β (the paper's λ).
    pub beta: f64,
}

impl Orpo {
    /// Computes the loss of the odds ratio of each pair, `[N]`, from the averaged log-probabilities of its completions.
    pub fn odds_losses<B: Backend>(&self, averages: PairLogProbs<B>) -> Tensor<B, 1> {
        log_sigmoid(averages.map(log_odds).difference()) * -self.beta
    }
}

/// Computes `a - log(1 - exp(a))` for negative `a`. `1 - exp(a) = -tanh(a / 2) (1 + exp(a))` is accurate near 0 too.
fn log_odds<B: Backend>(a: Tensor<B, 1>) -> Tensor<B, 1> {
    let other = (a.clone() * 0.5).tanh().neg().log() + a.clone().exp().log1p();
    a - other
}

impl<B: TrainBackend> Objective<B> for Orpo {
    type Sample = OrpoPair;

    const STATUS_KEYS: &'static [(&'static str, &'static str)] =
        &[("loss", "loss"), ("rewards/margins", "margin"), ("rewards/accuracies", "acc")];

    /// Leaves the tokens of the prompts, which are scored for the cross-entropy, out of the weighted sums.
    fn prepare(&self, samples: &[&OrpoPair], batch: &PackedBatch, on_device: &mut DeviceBatch<B>) {
        let prompts: Vec<usize> = (0..OrpoPair::SIDES.len())
            .flat_map(|side| samples.iter().map(move |sample| sample.scored_prompt_tokens(side)))
            .collect();
        let weight = |row: usize, at: usize| if at < prompts[row] { 0.0 } else { 1.0 };
        on_device.completions.weigh(batch, weight);
    }

    fn stats(&self) -> LogProbStats {
        LogProbStats::None
    }

    fn losses<A: TrainBackend>(
        &self,
        policy: &CompletionLogProbs<A>,
        _reference: Tensor<A, 1>,
        _batch: &PackedBatch,
        pass: &Pass<'_, OrpoPair>,
        usage: Usage,
    ) -> Tensor<A, 1> {
        let averages = per_token(policy.weighted_sums.clone(), &pass.pairs);
        let losses = self.odds_losses(PairLogProbs::split(averages));
        match usage {
            Usage::Evaluation => losses,
            Usage::Training => {
                losses + pass.cross_entropies(PairLogProbs::split(policy.sums.clone()).chosen)
            }
        }
    }

    /// Computes TRL's metrics except `logits/*`, which TRL averages over prompts and padding too. `logps/*` are averages over
    /// tokens.
    fn metrics(&self, micro_batch: &MicroBatch<'_, OrpoPair>, usage: Usage) -> MicroBatchMetrics {
        // The sums of the device run over the prompt too, so that they round differently for two equal completions.
        let average = |sample: &OrpoPair, output: &SampleOutput| {
            [0, 1].map(|side| {
                let tokens = output.policy[side].tokens.iter();
                let completion = tokens.skip(sample.scored_prompt_tokens(side));
                Sum::of(completion.map(|token| token[0])).mean()
            })
        };
        let pairs = micro_batch.samples.iter().zip(micro_batch.outputs);
        let averages: Vec<[f64; 2]> =
            pairs.map(|(sample, output)| average(sample, output)).collect();
        let rewards: Vec<[f64; 2]> =
            averages.iter().map(|sides| sides.map(|average| self.beta * average)).collect();
        let log_odds = |a: f64| a - (-a.exp_m1()).ln();
        let ratios: Vec<f64> = averages.iter().map(|[c, r]| log_odds(*c) - log_odds(*r)).collect();
        let outputs = micro_batch.outputs;
        let nll = outputs.iter().flat_map(|pair| &pair.policy[0].tokens).map(|token| -token[0]);
        let nll = Sum::of(nll);
        let sums = reward_sums(&rewards).into_iter().chain([
            ("logps/chosen", Sum::of(averages.iter().map(|averages| averages[0]))),
            ("logps/rejected", Sum::of(averages.iter().map(|averages| averages[1]))),
            ("nll_loss", nll),
            ("log_odds_ratio", Sum::of(ratios.iter().map(|ratio| -(-ratio).exp().ln_1p()))),
            ("log_odds_chosen", Sum::of(ratios.iter().copied())),
        ]);
        MicroBatchMetrics::from_sums(outputs.len(), usage.loss_sums(outputs, 1.0, nll), sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{B, assert_gradients, vector};

    #[test]
    fn gradients_equal_finite_differences() {
        // Averages on both sides of -ln 2, where TRL changes its formula.
        let averages = [-0.01, -0.7, -3.0, -0.4, -9.0, -0.05];
        assert_gradients(&averages, "orpo", |both| {
            Orpo { beta: 0.7 }.odds_losses(PairLogProbs::split(both))
        });
    }

    #[test]
    fn log_odds_are_accurate_for_every_probability() {
        for a in [-1e-9f64, -1e-4, -0.3, -std::f64::consts::LN_2, -2.0, -30.0, -700.0] {
            let ours = log_odds(vector::<B>(&[a])).into_data().iter::<f64>().next().unwrap();
            let expected = a - (-a.exp_m1()).ln();
            assert!(
                (ours - expected).abs() < 1e-12 * expected.abs().max(1.0),
                "{a}: {ours} {expected}"
            );
        }
    }
}
