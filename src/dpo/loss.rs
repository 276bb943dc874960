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
        Self {
            chosen: both.clone().narrow(0, 0, pairs),
            rejected: both.narrow(0, pairs, pairs),
        }
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
        log_sigmoid(margin * self.beta).neg()
    }
}

/// Divides each sum by its number of tokens (at least one).
fn per_token<B: Backend>(sums: Tensor<B, 1>, counts: &[usize]) -> Tensor<B, 1> {
    let counts: Vec<f32> = counts.iter().map(|count| (*count).max(1) as f32).collect();
    let device = sums.device();
    let shape = [counts.len()];
    sums.clone() / Tensor::from_data(TensorData::new(counts, shape), (&device, sums.dtype()))
}
