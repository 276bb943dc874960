//! The tables of `run.toml` for the methods other than DPO, with the names of TRL's `KTOConfig`, `ORPOConfig` and `CPOConfig`,
//! and their checks.

use serde::{Deserialize, Serialize};

use super::check::ensure;
use super::options::{Method, Reference};
use super::ranges::check_number;
use super::{DpoSection, RunConfig};
use crate::data::encode::{Compat, TruncationMode};
use crate::error::Result;
use crate::objective::cpo::{Cpo, CpoLoss};
use crate::objective::dpo::PrecomputeSizes;
use crate::objective::kto::KtoLoss;

/// `[kto]`: the loss of examples that are labeled as desirable or not (Ethayarajh et al. 2024), with the names of TRL's
/// `KTOConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KtoSection {
    /// The loss. `"apo_zero_unpaired"` does without mismatched completions (D'Oosterlinck et al. 2024).
    pub loss_type: KtoLoss,
    /// Strength of the regularization towards the reference. Rewards are `beta * (logp - ref_logp)`.
    pub beta: f64,
    /// Weight of the losses of desirable examples.
    pub desirable_weight: f64,
    /// Weight of the losses of undesirable examples.
    pub undesirable_weight: f64,
    /// Reference model: the base, or the initial adapter. `"auto"`: the initial adapter if `lora.adapter` is given,
    /// else the base.
    pub reference: Reference,
    /// Whether to compute all reference log-probabilities once before training instead of at every step. The loss `"kto"`
    /// needs `data.shuffle = false` for it.
    pub precompute_ref_log_probs: bool,
    /// Examples per batch when precomputing. Default: `train.per_device_train_batch_size`.
    pub precompute_ref_batch_size: Option<usize>,
}

impl Default for KtoSection {
    fn default() -> Self {
        Self {
            loss_type: KtoLoss::Kto,
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            reference: Reference::Auto,
            precompute_ref_log_probs: false,
            precompute_ref_batch_size: None,
        }
    }
}

/// `[orpo]`: the loss without a reference of Hong et al. 2024, with the names of TRL's `ORPOConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrpoSection {
    /// Weight of the odds ratio beside the cross-entropy of the chosen text (the paper's lambda).
    pub beta: f64,
}

impl Default for OrpoSection {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

/// `[cpo]`: losses without a reference: CPO (Xu et al. 2024), SimPO (Meng et al. 2024) and AlphaPO (Gupta et al. 2025), with
/// the names of TRL's `CPOConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpoSection {
    /// The loss. `"simpo"` with `cpo_alpha = 0` is SimPO; `"alphapo"` is the same as `"simpo"` with `cpo_alpha = 0`, and needs
    /// `alpha`.
    pub loss_type: CpoLoss,
    /// Factor of the scores. SimPO's authors use 2 to 2.5.
    pub beta: f64,
    /// Probability that a preference label is flipped; without effect on `hinge` and `ipo`.
    pub label_smoothing: f64,
    /// Weight of the cross-entropy of the chosen completions, which is added to the loss. `"alphapo"` sets it to 0.
    pub cpo_alpha: f64,
    /// Margin of `"simpo"` and `"alphapo"` by which the chosen reward must exceed the rejected one.
    pub simpo_gamma: f64,
    /// Alpha of AlphaPO: scores are `(1 - p^-alpha) / alpha` in place of `log p`; 0 keeps `log p`.
    pub alpha: f64,
}

impl Default for CpoSection {
    fn default() -> Self {
        Self {
            loss_type: CpoLoss::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            cpo_alpha: 1.0,
            simpo_gamma: 0.5,
            alpha: 0.0,
        }
    }
}

impl CpoSection {
    /// Returns the objective that the section describes.
    pub fn objective(&self) -> Cpo {
        let is_alphapo = self.loss_type == CpoLoss::Alphapo;
        Cpo {
            loss_type: self.loss_type,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            cross_entropy_weight: if is_alphapo { 0.0 } else { self.cpo_alpha },
            gamma: self.simpo_gamma,
            alpha: self.alpha,
        }
    }

    fn validate(&self) -> Result<()> {
        let default = Self::default();
        let has_margin = self.loss_type.has_margin();
        ensure(
            has_margin || self.simpo_gamma == default.simpo_gamma,
            "cpo.simpo_gamma",
            "has no effect on this cpo.loss_type",
            "remove the key, or set cpo.loss_type = \"simpo\"",
        )?;
        if self.loss_type != CpoLoss::Alphapo {
            return Ok(());
        }
        ensure(
            self.alpha != 0.0,
            "cpo.alpha",
            "is 0, which makes \"alphapo\" the same as \"simpo\" with cpo_alpha = 0",
            "set it to 0.1 or another value, or set cpo.loss_type = \"simpo\" and cpo.cpo_alpha = 0",
        )?;
        ensure(
            self.cpo_alpha == 0.0 || self.cpo_alpha == default.cpo_alpha,
            "cpo.cpo_alpha",
            "has no effect: \"alphapo\" has no cross-entropy",
            "remove the key, or set cpo.loss_type = \"simpo\"",
        )
    }
}

impl RunConfig {
    /// Returns which model is the reference; `None` if the method has none.
    pub fn reference(&self) -> Option<Reference> {
        match self.method {
            Method::Dpo => (!self.dpo.reference_free).then_some(self.dpo.reference),
            Method::Kto => Some(self.kto.reference),
            Method::Sft | Method::Orpo | Method::Cpo => None,
        }
    }

    /// Returns the numbers of samples in the batches for which the reference is computed before training; `None` if it is not.
    pub fn precompute_sizes(&self) -> Option<PrecomputeSizes> {
        let (precomputes, size) = match self.method {
            Method::Dpo => (self.dpo.precompute_ref_log_probs, self.dpo.precompute_ref_batch_size),
            Method::Kto => (self.kto.precompute_ref_log_probs, self.kto.precompute_ref_batch_size),
            Method::Sft | Method::Orpo | Method::Cpo => return None,
        };
        let train = &self.train;
        precomputes.then(|| PrecomputeSizes {
            training: size.unwrap_or(train.per_device_train_batch_size),
            evaluation: size.unwrap_or(train.per_device_eval_batch_size),
        })
    }

    /// Returns whether each training example is also scored with the completion of another one: KTO's estimate of the
    /// divergence from the reference.
    pub fn has_mismatched_completions(&self) -> bool {
        self.method == Method::Kto && self.kto.loss_type == KtoLoss::Kto
    }

    /// Checks the tables of the methods, and that nothing is set that has no effect on the method.
    pub(super) fn validate_methods(&self) -> Result<()> {
        self.validate_method_numbers()?;
        let tables = [
            ("dpo", Method::Dpo, self.dpo == DpoSection::default()),
            ("kto", Method::Kto, self.kto == KtoSection::default()),
            ("orpo", Method::Orpo, self.orpo == OrpoSection::default()),
            ("cpo", Method::Cpo, self.cpo == CpoSection::default()),
        ];
        for (table, method, is_default) in tables {
            ensure(
                self.method == method || is_default,
                table,
                format!("has no effect: method is \"{}\"", self.method.name()),
                format!("remove the table, or set method = \"{table}\""),
            )?;
        }
        ensure(
            self.method == Method::Dpo || self.data.compat == Compat::Trl1,
            "data.compat",
            format!("is not built for method = \"{}\"", self.method.name()),
            "remove the key",
        )?;
        let keeps_either_end = matches!(self.method, Method::Dpo | Method::Sft);
        ensure(
            keeps_either_end || self.data.truncation_mode == TruncationMode::KeepStart,
            "data.truncation_mode",
            format!("must be \"keep_start\" for method = \"{}\", as in TRL", self.method.name()),
            "remove the key",
        )?;
        ensure(
            self.method == Method::Sft || !self.data.assistant_only_loss,
            "data.assistant_only_loss",
            format!("has no effect: method is \"{}\"", self.method.name()),
            "remove the key, or set method = \"sft\"",
        )?;
        let without_reference = matches!(self.method, Method::Orpo | Method::Cpo);
        ensure(
            !(without_reference && self.data.allow_empty_completions),
            "data.allow_empty_completions",
            "a mean over no token is not a number, so that one such pair would end the run",
            "remove the key; data.skip_untrainable = true leaves such pairs out",
        )?;
        self.validate_kto()?;
        self.cpo.validate()
    }

    /// Checks the ranges of the numbers of `[kto]`, `[orpo]` and `[cpo]`.
    fn validate_method_numbers(&self) -> Result<()> {
        let (kto, cpo) = (&self.kto, &self.cpo);
        let numbers = [
            ("kto.beta", kto.beta),
            ("kto.desirable_weight", kto.desirable_weight),
            ("kto.undesirable_weight", kto.undesirable_weight),
            ("kto.precompute_ref_batch_size", kto.precompute_ref_batch_size.unwrap_or(1) as f64),
            ("orpo.beta", self.orpo.beta),
            ("cpo.beta", cpo.beta),
            ("cpo.label_smoothing", cpo.label_smoothing),
            ("cpo.cpo_alpha", cpo.cpo_alpha),
            ("cpo.simpo_gamma", cpo.simpo_gamma),
            ("cpo.alpha", cpo.alpha),
        ];
        numbers.into_iter().try_for_each(|(key, number)| check_number(number, key))
    }

    /// Checks the settings of `[kto]` that depend on others.
    fn validate_kto(&self) -> Result<()> {
        let kto = &self.kto;
        ensure(
            kto.desirable_weight > 0.0 || kto.undesirable_weight > 0.0,
            "kto.desirable_weight",
            "and kto.undesirable_weight are both 0: nothing would be trained",
            "give one of them a value above 0",
        )?;
        ensure(
            kto.precompute_ref_log_probs || kto.precompute_ref_batch_size.is_none(),
            "kto.precompute_ref_batch_size",
            "has no effect: kto.precompute_ref_log_probs is false",
            "remove the key, or set kto.precompute_ref_log_probs = true",
        )?;
        if !self.has_mismatched_completions() {
            return Ok(());
        }
        ensure(
            self.train.per_device_train_batch_size > 1,
            "train.per_device_train_batch_size",
            "is 1, but the loss \"kto\" pairs each prompt with the completion of another example of its micro-batch",
            "set it to 2 or more (and gradient_accumulation_steps lower), or set kto.loss_type = \"apo_zero_unpaired\"",
        )?;
        ensure(
            !(kto.precompute_ref_log_probs && self.data.shuffle),
            "kto.precompute_ref_log_probs",
            "needs the same micro-batches in every epoch, because the loss \"kto\" pairs prompts with completions of other \
             examples of their micro-batch, and data.shuffle is true",
            "set data.shuffle = false, or remove the key",
        )
    }
}
