//! Checks `[dpo]`.

use super::{at_least_one, ensure, not_negative, positive};
use crate::config::options::Reference;
use crate::config::ranges::check_number;
use crate::config::sections::DpoSection;
use crate::data::encode::Compat;
use crate::error::Result;
use crate::objective::f_divergence::FDivergence;
use crate::objective::losses::LossType;
use crate::objective::losses::Uses;

impl DpoSection {
    pub(super) fn validate(&self, compat: Compat) -> Result<()> {
        ensure(
            !self.loss_type.is_empty(),
            "dpo.loss_type",
            "is empty: nothing would be trained",
            "set loss_type = \"sigmoid\"",
        )?;
        self.validate_weights()?;
        positive(self.beta, "dpo.beta")?;
        check_number(self.label_smoothing, "dpo.label_smoothing")?;
        self.validate_compat(compat)?;
        self.validate_loss_settings()?;
        self.validate_reference()?;
        if let Some(size) = self.precompute_ref_batch_size {
            at_least_one(size, "dpo.precompute_ref_batch_size")?;
            check_number(size as f64, "dpo.precompute_ref_batch_size")?;
            ensure(
                self.precompute_ref_log_probs,
                "dpo.precompute_ref_batch_size",
                "has no effect: dpo.precompute_ref_log_probs is false",
                "remove the key, or set dpo.precompute_ref_log_probs = true",
            )?;
        }
        self.validate_sync()
    }

    /// Checks that every setting of the loss has an effect on one of the losses, and has a value with which that is defined.
    fn validate_loss_settings(&self) -> Result<()> {
        for (alpha, key) in [(self.ld_alpha, "dpo.ld_alpha"), (self.rpo_alpha, "dpo.rpo_alpha")] {
            alpha.map_or(Ok(()), |alpha| check_number(alpha, key))?;
        }
        check_number(self.f_alpha_divergence_coef, "dpo.f_alpha_divergence_coef")?;
        check_number(self.discopop_tau, "dpo.discopop_tau")?;
        check_number(self.dpop_lambda, "dpo.dpop_lambda")?;
        let default = Self::default();
        let has = |loss| self.loss_type.contains(&loss);
        let uses =
            |setting: fn(Uses) -> bool| self.loss_type.iter().any(|loss| setting(loss.uses()));
        let no_effect = "has no effect on dpo.loss_type";
        let is_alpha = self.f_divergence_type == FDivergence::AlphaDivergence;
        let plain = self.f_divergence_type == FDivergence::ReverseKl;
        ensure(
            plain || uses(|uses| uses.scores),
            "dpo.f_divergence_type",
            no_effect,
            "remove the key, or choose a loss that uses the divergence, such as \"sigmoid\"",
        )?;
        ensure(
            is_alpha || self.f_alpha_divergence_coef == default.f_alpha_divergence_coef,
            "dpo.f_alpha_divergence_coef",
            "has no effect: dpo.f_divergence_type is not \"alpha_divergence\"",
            "remove the key, or set dpo.f_divergence_type = \"alpha_divergence\"",
        )?;
        for (key, loss, is_default) in [
            ("dpo.discopop_tau", LossType::Discopop, self.discopop_tau == default.discopop_tau),
            ("dpo.dpop_lambda", LossType::Dpop, self.dpop_lambda == default.dpop_lambda),
        ] {
            ensure(is_default || has(loss), key, no_effect, "remove the key")?;
        }
        ensure(
            !has(LossType::ExoPair) || self.label_smoothing > 0.0,
            "dpo.label_smoothing",
            "must be above 0 for the loss \"exo_pair\", which contains its logarithm",
            "set it to 1e-3, the value of the paper",
        )
    }

    /// Checks that nothing is set that the followed version of TRL lacks.
    fn validate_compat(&self, compat: Compat) -> Result<()> {
        if compat == Compat::Trl1 {
            return Ok(());
        }
        let plain = self.f_divergence_type == FDivergence::ReverseKl;
        for (key, given, what) in [
            ("dpo.label_smoothing", self.label_smoothing != 0.0, "label smoothing"),
            ("dpo.f_divergence_type", !plain, "other divergence than the reverse KL"),
            ("dpo.use_weighting", self.use_weighting, "WPO"),
            ("dpo.ld_alpha", self.ld_alpha.is_some(), "LD-DPO"),
            ("dpo.rpo_alpha", self.rpo_alpha.is_some(), "RPO"),
            ("dpo.loss_weights", self.loss_weights.is_some(), "sum of losses"),
            ("dpo.sync_ref_model", self.sync_ref_model, "TR-DPO"),
        ] {
            let problem = format!("TRL 0.7.4 has no {what}");
            ensure(!given, key, problem, "remove the key, or data.compat")?;
        }
        let known = |loss: &LossType| matches!(loss, LossType::Sigmoid | LossType::Hinge);
        ensure(
            self.loss_type.len() == 1 && self.loss_type.iter().all(known),
            "dpo.loss_type",
            "TRL 0.7.4 has only \"sigmoid\" and \"hinge\" of these formulas",
            "choose one of them, or remove data.compat",
        )
    }

    /// Checks that no key about the reference is set that `reference_free` makes void.
    fn validate_reference(&self) -> Result<()> {
        if !self.reference_free {
            return Ok(());
        }
        for (key, given) in [
            ("dpo.reference", self.reference != Reference::Auto),
            ("dpo.precompute_ref_log_probs", self.precompute_ref_log_probs),
            // A divergence of unbounded log-probabilities would overflow, and DPO-Positive's penalty be always on.
            ("dpo.f_divergence_type", self.f_divergence_type != FDivergence::ReverseKl),
            ("dpo.loss_type", self.loss_type.contains(&LossType::Dpop)),
        ] {
            ensure(
                !given,
                key,
                "needs a reference, and dpo.reference_free is true",
                "change the key, or remove dpo.reference_free",
            )?;
        }
        Ok(())
    }

    /// Checks the keys about a reference that follows the policy.
    fn validate_sync(&self) -> Result<()> {
        check_number(self.ref_model_mixup_alpha, "dpo.ref_model_mixup_alpha")?;
        check_number(self.ref_model_sync_steps as f64, "dpo.ref_model_sync_steps")?;
        let default = Self::default();
        if !self.sync_ref_model {
            for (key, is_default) in [
                (
                    "dpo.ref_model_mixup_alpha",
                    self.ref_model_mixup_alpha == default.ref_model_mixup_alpha,
                ),
                (
                    "dpo.ref_model_sync_steps",
                    self.ref_model_sync_steps == default.ref_model_sync_steps,
                ),
            ] {
                ensure(
                    is_default,
                    key,
                    "has no effect: dpo.sync_ref_model is false",
                    "remove the key, or set dpo.sync_ref_model = true",
                )?;
            }
            return Ok(());
        }
        for (key, given) in [
            ("dpo.reference_free", self.reference_free),
            ("dpo.precompute_ref_log_probs", self.precompute_ref_log_probs),
        ] {
            ensure(
                !given,
                key,
                "contradicts dpo.sync_ref_model = true: the reference changes during training",
                "remove one of the two keys",
            )?;
        }
        ensure(
            self.reference != Reference::Base,
            "dpo.reference",
            "is \"base\", but under dpo.sync_ref_model = true the reference starts as the initial policy",
            "remove dpo.reference, or dpo.sync_ref_model",
        )
    }

    fn validate_weights(&self) -> Result<()> {
        let key = "dpo.loss_weights";
        let Some(weights) = &self.loss_weights else {
            return Ok(());
        };
        let (given, wanted) = (weights.len(), self.loss_type.len());
        let problem = format!("has {given} weights for {wanted} losses");
        ensure(given == wanted, key, problem, "give one weight per loss, or remove the key")?;
        weights.iter().try_for_each(|weight| not_negative(*weight, key))?;
        ensure(
            weights.iter().any(|weight| *weight > 0.0)
                || self.rpo_alpha.is_some_and(|alpha| alpha > 0.0),
            key,
            "are all 0: nothing would be trained",
            "give one loss a weight above 0",
        )
    }
}
