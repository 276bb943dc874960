//! DPO losses: pure functions of four vectors of log-probabilities.
//!
//! With `r = logp_policy - logp_reference`, both summed over the completion (or averaged, for `sigmoid_norm`), and
//! `Δ = r_chosen - r_rejected`. Definitions are TRL 1.x's; the paper's is `sigmoid`.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpoLossType {
    /// `-log σ(β Δ)`: equation 7 of arXiv 2305.18290.
    Sigmoid,
    /// `-log σ(β Δ)` with `r` averaged over the completion's tokens.
    SigmoidNorm,
}

/// The loss of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoLoss {
    /// The formula.
    pub loss_type: DpoLossType,
    /// Strength of the pull towards the reference.
    pub beta: f64,
    /// What the preference loss is multiplied with.
    pub weight: f64,
    /// What is added: this times the mean cross-entropy of a micro-batch's chosen tokens (TRL's loss type `sft`; the
    /// second term of equation 1 of arXiv 2404.19733). It keeps chosen answers likely where `log p` of both sides would
    /// fall. 0: nothing.
    pub sft_weight: f64,
}

/// Log-probabilities of the two completions of `N` pairs, in nats, summed over tokens.
#[derive(Clone, Debug)]
pub struct PairLogProbs<B: Backend> {
    /// `[N]`
    pub chosen: Tensor<B, 1>,
    /// `[N]`
    pub rejected: Tensor<B, 1>,
}

impl<B: Backend> PairLogProbs<B> {
    /// From one vector `[2N]`, all chosen first.
    pub fn split(both: Tensor<B, 1>) -> Self {
        let pairs = both.dims()[0] / 2;
        Self { chosen: both.clone().narrow(0, 0, pairs), rejected: both.narrow(0, pairs, pairs) }
    }
}

impl DpoLoss {
    /// Loss of each pair, `[N]`.
    ///
    /// # Arguments
    /// - policy, reference: `[N]` each side
    /// - counts: completion tokens of all chosen, then all rejected, `[2N]`
    ///
    /// # Panics
    /// If `counts` does not hold two numbers a pair.
    pub fn forward<B: Backend>(
        &self,
        policy: &PairLogProbs<B>,
        reference: &PairLogProbs<B>,
        counts: &[usize],
    ) -> Tensor<B, 1> {
        let chosen = policy.chosen.clone() - reference.chosen.clone();
        let rejected = policy.rejected.clone() - reference.rejected.clone();
        let pairs = chosen.dims()[0];
        assert_eq!(counts.len(), 2 * pairs, "counts of {pairs} pairs");
        let margin = match self.loss_type {
            DpoLossType::Sigmoid => chosen - rejected,
            DpoLossType::SigmoidNorm => {
                let (of_chosen, of_rejected) = counts.split_at(pairs);
                per_token(chosen, of_chosen) - per_token(rejected, of_rejected)
            }
        };
        log_sigmoid(margin * self.beta).neg() * self.weight
    }

    /// Adds the cross-entropy of the chosen completions to `losses` `[N]`, if that was asked for.
    ///
    /// `shares` are those of [`chosen_shares`], one a pair: with them the mean over a micro-batch's pairs is the mean over
    /// its chosen tokens.
    pub fn add_sft<B: Backend>(
        &self,
        losses: Tensor<B, 1>,
        policy: &PairLogProbs<B>,
        shares: &[f64],
    ) -> Tensor<B, 1> {
        if self.sft_weight == 0.0 {
            return losses;
        }
        let (device, dtype) = (losses.device(), losses.dtype());
        let shares: Vec<f64> = shares.iter().map(|share| share * self.sft_weight).collect();
        let shares = TensorData::new(shares, losses.shape()).convert_dtype(dtype);
        let shares = Tensor::from_data(shares, (&device, dtype));
        losses - policy.chosen.clone() * shares
    }
}

/// For each pair of a micro-batch, pairs over chosen tokens of the micro-batch; `counts` are the chosen tokens of each pair.
pub fn chosen_shares(counts: &[usize]) -> Vec<f64> {
    let tokens: usize = counts.iter().sum();
    vec![counts.len() as f64 / tokens.max(1) as f64; counts.len()]
}

/// Divides each sum by its number of tokens (at least one).
fn per_token<B: Backend>(sums: Tensor<B, 1>, counts: &[usize]) -> Tensor<B, 1> {
    let counts: Vec<f32> = counts.iter().map(|count| (*count).max(1) as f32).collect();
    let device = sums.device();
    let shape = [counts.len()];
    sums.clone() / Tensor::from_data(TensorData::new(counts, shape), (&device, sums.dtype()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: margins 1 and -2 at beta 0.5, half weight; cross-entropies 3 and 5 over 2 + 6 tokens, weight 0.1.
    #[test]
    fn weighted_losses_are_sums() {
        type B = burn_ndarray::NdArray<f32>;
        let vector = |values: [f64; 2]| Tensor::<B, 1>::from_floats(values, &Default::default());
        let side =
            |chosen, rejected| PairLogProbs { chosen: vector(chosen), rejected: vector(rejected) };
        let policy = side([-3.0, -5.0], [-4.0, -4.0]);
        let reference = side([-3.0, -4.0], [-3.0, -5.0]);
        let loss =
            DpoLoss { loss_type: DpoLossType::Sigmoid, beta: 0.5, weight: 0.5, sft_weight: 0.1 };
        let losses = loss.forward(&policy, &reference, &[2, 6, 3, 3]);
        let losses = loss.add_sft(losses, &policy, &chosen_shares(&[2, 6]));
        let losses: Vec<f64> = losses.into_data().iter::<f64>().collect();
        let preference = |margin: f64| 0.5 * (-0.5 * margin).exp().ln_1p();
        let expected = [preference(1.0) + 0.1 * 3.0 / 4.0, preference(-2.0) + 0.1 * 5.0 / 4.0];
        for (ours, theirs) in losses.iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-6, "{losses:?} {expected:?}");
        }
        // The mean is that of all eight tokens.
        let sft = (losses[0] + losses[1] - preference(1.0) - preference(-2.0)) / 2.0;
        assert!((sft - 0.1 * 8.0 / 8.0).abs() < 1e-6);
    }
}
