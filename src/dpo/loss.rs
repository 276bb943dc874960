//! DPO losses as pure functions of four vectors of log-probabilities.
//!
//! Notation: `r = logp_policy - logp_reference`, where both are summed over the completion (or averaged, for
//! `sigmoid_norm`), and `Δ = r_chosen - r_rejected`. The definitions are those of TRL 1.x; the paper's is `sigmoid`.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// The formula of a DPO loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpoLossType {
    /// `-log σ(β Δ)`: equation 7 of arXiv 2305.18290.
    Sigmoid,
    /// `-log σ(β Δ)` with `r` averaged over the completion's tokens.
    SigmoidNorm,
}

/// A DPO loss with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoLoss {
    /// Formula of the loss.
    pub loss_type: DpoLossType,
    /// Strength of the regularization towards the reference.
    pub beta: f64,
    /// Weight of the preference loss.
    pub weight: f64,
    /// Weight of the mean cross-entropy of a micro-batch's chosen tokens, which is added to the preference loss (TRL's loss
    /// type `sft`; the second term of equation 1 of arXiv 2404.19733). It keeps chosen answers likely when `log p` of both
    /// sides would decrease. 0 disables it.
    pub sft_weight: f64,
}

/// Log-probabilities of the two completions of `N` pairs, in nats, summed over tokens.
#[derive(Clone, Debug)]
pub struct PairLogProbs<B: Backend> {
    /// Log-probabilities of the chosen completions, `[N]`.
    pub chosen: Tensor<B, 1>,
    /// Log-probabilities of the rejected completions, `[N]`.
    pub rejected: Tensor<B, 1>,
}

impl<B: Backend> PairLogProbs<B> {
    /// Splits one vector `[2N]` of all chosen completions followed by all rejected ones.
    pub fn split(both: Tensor<B, 1>) -> Self {
        let pairs = both.dims()[0] / 2;
        Self { chosen: both.clone().narrow(0, 0, pairs), rejected: both.narrow(0, pairs, pairs) }
    }
}

impl DpoLoss {
    /// Computes the preference loss of each pair, times [`weight`](Self::weight), `[N]`.
    ///
    /// # Arguments
    /// - policy, reference: log-probabilities, `[N]` for each side
    /// - counts: numbers of completion tokens of all chosen, then all rejected completions, `[2N]`; only
    ///   [`DpoLossType::SigmoidNorm`] uses them
    ///
    /// # Panics
    /// If `counts` does not have two numbers per pair.
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
                let (chosen_counts, rejected_counts) = counts.split_at(pairs);
                per_token(chosen, chosen_counts) - per_token(rejected, rejected_counts)
            }
        };
        log_sigmoid(margin * self.beta).neg() * self.weight
    }

    /// Adds the cross-entropy of the chosen completions, times `sft_weight`, to `losses` `[N]`.
    ///
    /// `token_weights` are the [`chosen_token_weights`] of the pairs. With them, the mean over a micro-batch's pairs is the
    /// mean over its chosen tokens.
    pub fn add_sft<B: Backend>(
        &self,
        losses: Tensor<B, 1>,
        policy: &PairLogProbs<B>,
        token_weights: &[f64],
    ) -> Tensor<B, 1> {
        if self.sft_weight == 0.0 {
            return losses;
        }
        let (device, dtype) = (losses.device(), losses.dtype());
        let weights: Vec<f64> =
            token_weights.iter().map(|weight| weight * self.sft_weight).collect();
        let weights = TensorData::new(weights, losses.shape()).convert_dtype(dtype);
        let weights = Tensor::from_data(weights, (&device, dtype));
        losses - policy.chosen.clone() * weights
    }
}

/// Returns the weight of each pair's summed cross-entropy in a micro-batch: the number of pairs divided by the number of
/// chosen tokens of the micro-batch. `counts` are the chosen tokens of each pair.
pub fn chosen_token_weights(counts: &[usize]) -> Vec<f64> {
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

    /// The expected values are computed by hand from margins of 1 and -2 at beta 0.5 with weight 0.5, and cross-entropies of
    /// 3 and 5 over 2 + 6 tokens with weight 0.1.
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
        let losses = loss.add_sft(losses, &policy, &chosen_token_weights(&[2, 6]));
        let losses: Vec<f64> = losses.into_data().iter::<f64>().collect();
        let preference = |margin: f64| 0.5 * (-0.5 * margin).exp().ln_1p();
        let expected = [preference(1.0) + 0.1 * 3.0 / 4.0, preference(-2.0) + 0.1 * 5.0 / 4.0];
        for (ours, theirs) in losses.iter().zip(expected) {
            assert!((ours - theirs).abs() < 1e-6, "{losses:?} {expected:?}");
        }
        // The mean over both pairs is the mean over all eight tokens.
        let sft = (losses[0] + losses[1] - preference(1.0) - preference(-2.0)) / 2.0;
        assert!((sft - 0.1 * 8.0 / 8.0).abs() < 1e-6);
    }
}
