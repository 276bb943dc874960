//! The losses of preference pairs, pure functions of log-probabilities: one file each, with its formula and source.
//!
//! Notation: `r = log p_policy - log p_reference` of a completion, `s` its score under the f-divergence (`s = r` for plain
//! DPO), `Δ = s_chosen - s_rejected`, `ε` the label smoothing. The formulas are those of TRL 1.x; `cdpo` and `dpop`,
//! which TRL lacks, are their papers'.
//!
//! To add a loss, write its file and add it to `losses!` below.

mod aot;
mod aot_unpaired;
mod apo_down;
mod apo_zero;
mod bco_pair;
mod cdpo;
mod discopop;
mod dpop;
mod exo_pair;
mod hinge;
mod ipo;
mod nca_pair;
mod robust;
mod sft;
mod sigmoid;
mod sigmoid_norm;
mod sort;
mod sppo_hard;

use std::ops::Range;

pub(super) use self::cdpo::smoothed;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

/// Defines [`LossType`] and calls the functions of each loss's file.
macro_rules! losses {
    ($($(#[$doc:meta])* $name:ident => $file:ident),* $(,)?) => {
        /// The formula of a loss, with TRL's name (`loss_type` of `DPOConfig`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum LossType {
            $($(#[$doc])* $name,)*
        }

        impl LossType {
            /// Every loss.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Computes the loss of each pair, `[N]`.
            pub fn losses<B: Backend>(self, pairs: &LossInput<'_, B>) -> Tensor<B, 1> {
                match self {
                    $(Self::$name => $file::losses(pairs),)*
                }
            }

            /// Returns the loss of a policy that equals its reference; `None` if it depends on the model.
            pub fn at_zero(self, settings: &LossSettings) -> Option<f64> {
                match self {
                    $(Self::$name => $file::at_zero(settings),)*
                }
            }

            /// Returns which settings change the loss.
            pub fn uses(self) -> Uses {
                match self {
                    $(Self::$name => $file::USES,)*
                }
            }
        }
    };
}

losses! {
    /// DPO (Rafailov et al. 2023, eq. 7).
    Sigmoid => sigmoid,
    /// SLiC (Zhao et al. 2023).
    Hinge => hinge,
    /// IPO (Azar et al. 2023), averaged over tokens.
    Ipo => ipo,
    /// EXO (Ji et al. 2024).
    ExoPair => exo_pair,
    /// NCA (Chen et al. 2024).
    NcaPair => nca_pair,
    /// Robust DPO (Chowdhury et al. 2024).
    Robust => robust,
    /// BCO (Jung et al. 2024), pairwise.
    BcoPair => bco_pair,
    /// SPPO with hard labels (Wu et al. 2024).
    SppoHard => sppo_hard,
    /// AOT (Melnyk et al. 2024), paired.
    Aot => aot,
    /// AOT (Melnyk et al. 2024), unpaired.
    AotUnpaired => aot_unpaired,
    /// APO-zero (D'Oosterlinck et al. 2024).
    ApoZero => apo_zero,
    /// APO-down (D'Oosterlinck et al. 2024).
    ApoDown => apo_down,
    /// DiscoPOP (Lu et al. 2024).
    Discopop => discopop,
    /// Cross-entropy of the chosen completions.
    Sft => sft,
    /// DPO on log-probabilities averaged over tokens.
    SigmoidNorm => sigmoid_norm,
    /// Conservative DPO (Mitchell 2023): DPO with label smoothing.
    Cdpo => cdpo,
    /// DPO-Positive (Pal et al. 2024).
    Dpop => dpop,
}

/// The settings that the formulas contain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Strength of the regularization towards the reference, β.
    pub beta: f64,
    /// Probability that a label is flipped, ε.
    pub label_smoothing: f64,
    /// Temperature of DiscoPOP, τ.
    pub discopop_tau: f64,
    /// Weight of DPO-Positive's penalty, λ.
    pub dpop_lambda: f64,
}

/// Which settings change a loss, besides β.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// The f-divergence.
    pub scores: bool,
    /// The label smoothing.
    pub label_smoothing: bool,
    /// The other pairs of the micro-batch: they must be computed together.
    pub batch: bool,
}

/// Log-probabilities of the two completions of `N` pairs, in nats.
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

    /// Applies `f` to both sides.
    pub fn map(self, f: impl Fn(Tensor<B, 1>) -> Tensor<B, 1>) -> Self {
        Self { chosen: f(self.chosen), rejected: f(self.rejected) }
    }

    /// Returns `chosen - rejected`, `[N]`.
    pub fn difference(&self) -> Tensor<B, 1> {
        self.chosen.clone() - self.rejected.clone()
    }

    /// Returns `self - other` of both sides.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            chosen: self.chosen.clone() - other.chosen.clone(),
            rejected: self.rejected.clone() - other.rejected.clone(),
        }
    }
}

/// The inputs of a loss for `N` pairs.
#[derive(Clone, Debug)]
pub struct LossInput<'a, B: Backend> {
    /// Summed log-probabilities under the policy.
    pub policy: PairLogProbs<B>,
    /// Summed log-probabilities under the reference.
    pub reference: PairLogProbs<B>,
    /// `r = log p_policy - log p_reference`.
    pub ratios: PairLogProbs<B>,
    /// `s`, the scores under the f-divergence.
    pub scores: PairLogProbs<B>,
    /// Cross-entropies of the chosen completions, `[N]`, scaled so that their mean over a micro-batch is the mean over
    /// its chosen tokens.
    pub cross_entropy: Tensor<B, 1>,
    /// Numbers of completion tokens of all chosen, then all rejected completions, `[2N]`.
    pub counts: &'a [usize],
    /// The pairs of each micro-batch.
    pub micro_batches: &'a [Range<usize>],
    /// The settings.
    pub settings: &'a LossSettings,
}

impl<B: Backend> LossInput<'_, B> {
    /// Returns `Δ = s_chosen - s_rejected`, `[N]`.
    fn delta(&self) -> Tensor<B, 1> {
        self.scores.difference()
    }

    /// Returns the scores divided by the numbers of completion tokens (at least one).
    fn scores_per_token(&self) -> PairLogProbs<B> {
        let (chosen, rejected) = self.counts.split_at(self.counts.len() / 2);
        let per_token = |scores: &Tensor<B, 1>, counts: &[usize]| {
            let counts = counts.iter().map(|count| (*count).max(1) as f64).collect();
            scores.clone() / vector_like(scores, counts)
        };
        PairLogProbs {
            chosen: per_token(&self.scores.chosen, chosen),
            rejected: per_token(&self.scores.rejected, rejected),
        }
    }
}

/// Computes the loss of each pair, `[N]`, from the scores of its completions alone. `ipo` takes scores that are averages
/// already.
pub(super) fn of_scores<B: Backend>(
    loss: LossType,
    scores: PairLogProbs<B>,
    settings: &LossSettings,
) -> Tensor<B, 1> {
    let pairs = scores.chosen.dims()[0];
    let zeros = scores.chosen.zeros_like();
    loss.losses(&LossInput {
        policy: scores.clone(),
        reference: scores.clone().map(|scores| scores.zeros_like()),
        ratios: scores.clone(),
        scores,
        cross_entropy: zeros,
        counts: &vec![1; 2 * pairs],
        micro_batches: &[],
        settings,
    })
}

/// Returns `σ(x)` in the dtype of `x`. (Burn's own sigmoid computes in f32 even for f64.)
pub(super) fn sigmoid<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    log_sigmoid(x).exp()
}

/// Returns `values` as a tensor of `like`'s dtype on its device.
pub(crate) fn vector_like<B: Backend>(like: &Tensor<B, 1>, values: Vec<f64>) -> Tensor<B, 1> {
    let (shape, dtype) = ([values.len()], like.dtype());
    let data = TensorData::new(values, shape).convert_dtype(dtype);
    Tensor::from_data(data, (&like.device(), dtype))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "the micro-batches of a pass are ranges")]
pub(crate) mod tests {
    use burn::backend::Autodiff;

    use super::*;
    use crate::objective::f_divergence::FDivergence;

    pub(crate) type B = burn_ndarray::NdArray<f64>;

    pub(crate) fn vector<B: Backend>(values: &[f64]) -> Tensor<B, 1> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::from_data(data, (&Default::default(), burn::tensor::DType::F64))
    }

    /// Compares the gradient of the sum of `losses` at `start` with central differences.
    pub(crate) fn assert_gradients(
        start: &[f64],
        what: &str,
        losses: impl Fn(Tensor<Autodiff<B>, 1>) -> Tensor<Autodiff<B>, 1>,
    ) {
        const STEP: f64 = 1e-5;
        let at = vector::<Autodiff<B>>(start).require_grad();
        let grads = losses(at.clone()).sum().backward();
        let ours = at.grad(&grads).map(|grad| grad.into_data().to_vec::<f64>().unwrap());
        for (index, ours) in ours.unwrap().into_iter().enumerate() {
            let sum = |step: f64| -> f64 {
                let mut values = start.to_vec();
                values[index] += step;
                losses(vector(&values)).into_data().iter::<f64>().sum()
            };
            let expected = (sum(STEP) - sum(-STEP)) / (2.0 * STEP);
            let near = (ours - expected).abs() < 1e-7 * expected.abs().max(1.0);
            assert!(near, "{what} {index}: {ours} {expected}");
        }
    }

    const SETTINGS: LossSettings =
        LossSettings { beta: 0.3, label_smoothing: 0.2, discopop_tau: 0.4, dpop_lambda: 3.0 };

    /// Returns the losses of five pairs in two micro-batches, for the policy's chosen and rejected log-probabilities.
    fn losses<B: Backend>(
        loss: LossType,
        divergence: FDivergence,
        policy: PairLogProbs<B>,
    ) -> Tensor<B, 1> {
        let reference = PairLogProbs {
            chosen: vector(&[-3.1, -2.0, -7.5, -4.4, -6.0]),
            rejected: vector(&[-2.2, -5.1, -6.4, -4.9, -3.3]),
        };
        let ratios = policy.minus(&reference);
        loss.losses(&LossInput {
            scores: ratios.clone().map(|ratios| divergence.scores(ratios, 0.7)),
            cross_entropy: policy.chosen.clone().neg() * 0.25,
            policy,
            reference,
            ratios,
            counts: &[3, 5, 2, 7, 4, 6, 1, 8, 2, 5],
            micro_batches: &[0..3, 3..5],
            settings: &SETTINGS,
        })
    }

    /// The gradient of every loss, under every divergence, equals central differences.
    #[test]
    fn gradients_equal_finite_differences() {
        // No two values that AOT sorts are equal.
        let start = [-2.7, -2.9, -6.1, -5.0, -6.9, -3.6, -4.2, -7.3, -4.1, -2.9];
        let divergences = [
            FDivergence::ReverseKl,
            FDivergence::ForwardKl,
            FDivergence::JsDivergence,
            FDivergence::AlphaDivergence,
        ];
        for (loss, divergence) in
            LossType::ALL.iter().flat_map(|loss| divergences.map(|divergence| (*loss, divergence)))
        {
            assert_gradients(&start, &format!("{loss:?} {divergence:?}"), |policy| {
                losses(loss, divergence, PairLogProbs::split(policy))
            });
        }
    }

    /// A setting changes exactly the losses that say that they use it.
    #[test]
    fn losses_use_the_settings_that_they_declare() {
        let values = [-2.7, -2.9, -6.1, -5.0, -6.6, -3.6, -4.2, -7.0, -4.1, -2.9];
        for loss in LossType::ALL {
            let policy = || PairLogProbs::split(vector::<B>(&values));
            let numbers = |tensor: Tensor<B, 1>| tensor.into_data().to_vec::<f64>().unwrap();
            let [plain, other] = [FDivergence::ReverseKl, FDivergence::JsDivergence]
                .map(|divergence| numbers(losses(*loss, divergence, policy())));
            assert_eq!(plain != other, loss.uses().scores, "{loss:?}");
            let alone = |settings: &LossSettings| {
                let reference = PairLogProbs::split(vector::<B>(&[-3.0, -4.0]));
                let policy = PairLogProbs::split(vector::<B>(&[-2.5, -4.1]));
                let ratios = policy.minus(&reference);
                let input = LossInput {
                    scores: ratios.clone(),
                    cross_entropy: policy.chosen.clone().neg(),
                    policy,
                    reference,
                    ratios,
                    counts: &[1, 1],
                    micro_batches: &[0..1],
                    settings,
                };
                numbers(loss.losses(&input))[0]
            };
            let smoother = LossSettings { label_smoothing: 0.1, ..SETTINGS };
            let differs = (alone(&SETTINGS) - alone(&smoother)).abs() > 1e-6;
            assert_eq!(differs, loss.uses().label_smoothing, "{loss:?}");
        }
    }

    #[test]
    fn at_zero_is_the_loss_of_a_policy_that_equals_its_reference() {
        let values = [-3.1, -2.0, -7.5, -4.4, -6.0, -2.2, -5.1, -6.4, -4.9, -3.3];
        for loss in LossType::ALL {
            let policy = PairLogProbs::split(vector::<B>(&values));
            let losses = losses(*loss, FDivergence::ForwardKl, policy).into_data();
            let Some(expected) = loss.at_zero(&SETTINGS) else {
                assert_eq!(*loss, LossType::Sft);
                continue;
            };
            for ours in losses.iter::<f64>() {
                assert!((ours - expected).abs() < 1e-12, "{loss:?}: {ours} {expected}");
            }
        }
    }
}
