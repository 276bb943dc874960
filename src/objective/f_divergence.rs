//! The divergence from the reference that a loss penalizes (f-DPO, Wang et al. 2023, arXiv 2309.16240).
//!
//! With `t = p_policy / p_reference` and `r = log t`, the score of a completion is `f'(t)` of the divergence's generator
//! `f`, as TRL 1.x computes it. Every score is 0 at `r = 0`.

use std::f64::consts::LN_2;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

/// Largest exponent of the alpha-divergence in f32, TRL's.
const MAX_EXPONENT: f64 = 80.0;

/// The divergence whose derivative takes the place of the log-ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// KL(policy || reference), plain DPO: `r`.
    #[default]
    ReverseKl,
    /// KL(reference || policy): `1 - exp(-r)`.
    ForwardKl,
    /// Jensen-Shannon: `log 2 + log σ(r)`.
    JsDivergence,
    /// Alpha-divergence with `dpo.f_alpha_divergence_coef`: `(exp((α - 1) r) - 1) / (α - 1)`.
    AlphaDivergence,
}

impl FDivergence {
    /// Returns the scores of completions with the log-ratios `ratios`, `[N]`.
    ///
    /// `alpha` is the coefficient of the alpha-divergence. Its limit at 1 is the reverse KL divergence. Its
    /// exponent is at most 80, as in TRL; that of the forward KL divergence has no bound.
    pub fn scores<B: Backend>(self, ratios: Tensor<B, 1>, alpha: f64) -> Tensor<B, 1> {
        match self {
            Self::ReverseKl => ratios,
            Self::ForwardKl => ratios.neg().exp().neg() + 1.0,
            Self::JsDivergence => log_sigmoid(ratios) + LN_2,
            Self::AlphaDivergence if (alpha - 1.0).abs() < 1e-6 => ratios,
            Self::AlphaDivergence => {
                let exponents = (ratios * (alpha - 1.0)).clamp_max(MAX_EXPONENT);
                (exponents.exp() - 1.0) * (1.0 / (alpha - 1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::losses::tests::{B, vector};

    fn scores(divergence: FDivergence, alpha: f64, ratio: f64) -> f64 {
        divergence.scores::<B>(vector(&[ratio]), alpha).into_data().iter::<f64>().next().unwrap()
    }

    #[test]
    fn scores_are_derivatives_of_the_generator() {
        let t: f64 = 1.7;
        let near = |ours: f64, expected: f64| {
            assert!((ours - expected).abs() < 1e-12, "{ours} {expected}")
        };
        near(scores(FDivergence::ReverseKl, 0.5, t.ln()), t.ln());
        near(scores(FDivergence::ForwardKl, 0.5, t.ln()), 1.0 - 1.0 / t);
        near(scores(FDivergence::JsDivergence, 0.5, t.ln()), (2.0 * t / (t + 1.0)).ln());
        near(scores(FDivergence::AlphaDivergence, 0.3, t.ln()), (t.powf(-0.7) - 1.0) / -0.7);
        near(scores(FDivergence::AlphaDivergence, 1.0, t.ln()), t.ln());
        // (exp(80) - 1) / 2, although the exponent would be 2,000.
        let bounded = scores(FDivergence::AlphaDivergence, 3.0, 1000.0);
        near(bounded / ((80f64.exp() - 1.0) / 2.0), 1.0);
    }
}
