//! The range of every number in `run.toml`. Numbers in range neither overflow nor request more memory than exists.

use serde_json::Value;

use self::LowerBound::{Above0, From, MinusOneOr};
use self::UpperBound::{AtMost, Below};
use super::{RunConfig, leaves};
use crate::error::{Error, Result};

/// Maximum number of steps: thirty years at one step per millisecond.
const MAX_STEPS: f64 = 1e12;
/// Maximum number of samples or micro-batches that are combined.
const MAX_BATCH: f64 = 1e6;

/// Lower bound of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum LowerBound {
    /// This number, inclusive.
    From(f64),
    /// 0, exclusive.
    Above0,
    /// This number, inclusive; -1 is allowed too, with a meaning of its own.
    MinusOneOr(f64),
}

/// Upper bound of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum UpperBound {
    /// This number, inclusive.
    AtMost(f64),
    /// This number, exclusive.
    Below(f64),
}

/// The range of each numeric key.
pub(super) const RANGES: &[(&str, LowerBound, UpperBound)] = &[
    // TOML's integers are signed, with 64 bits.
    ("seed", From(0.0), AtMost(i64::MAX as f64)),
    ("data.max_length", From(2.0), AtMost(1e7)),
    ("data.max_prompt_length", From(1.0), AtMost(1e7)),
    ("lora.r", From(1.0), AtMost(65_536.0)),
    ("lora.lora_alpha", Above0, AtMost(1e6)),
    ("lora.lora_dropout", From(0.0), Below(1.0)),
    ("lora.layers_to_transform", From(0.0), AtMost(1e6)),
    ("lora.loraplus_lr_ratio", Above0, AtMost(1e6)),
    ("lora.loraplus_weight_decay", From(0.0), AtMost(1e6)),
    ("lora.rank_pattern", From(1.0), AtMost(65_536.0)),
    ("lora.alpha_pattern", Above0, AtMost(1e6)),
    ("lora.loftq_config.loftq_bits", From(4.0), AtMost(4.0)),
    ("lora.loftq_config.loftq_iter", From(1.0), AtMost(1.0)),
    ("dpo.loss_weights", From(0.0), AtMost(1e6)),
    ("dpo.beta", Above0, AtMost(1e6)),
    ("dpo.label_smoothing", From(0.0), Below(0.5)),
    ("dpo.f_alpha_divergence_coef", From(0.0), AtMost(1e6)),
    ("dpo.precompute_ref_batch_size", From(1.0), AtMost(MAX_BATCH)),
    ("dpo.ld_alpha", From(0.0), AtMost(1.0)),
    ("dpo.discopop_tau", Above0, AtMost(1e6)),
    ("dpo.dpop_lambda", From(0.0), AtMost(1e6)),
    ("dpo.ref_model_mixup_alpha", From(0.0), AtMost(1.0)),
    ("dpo.ref_model_sync_steps", From(1.0), AtMost(MAX_STEPS)),
    ("dpo.rpo_alpha", From(0.0), AtMost(1e6)),
    ("kto.beta", Above0, AtMost(1e6)),
    ("kto.desirable_weight", From(0.0), AtMost(1e6)),
    ("kto.undesirable_weight", From(0.0), AtMost(1e6)),
    ("kto.precompute_ref_batch_size", From(1.0), AtMost(MAX_BATCH)),
    ("orpo.beta", From(0.0), AtMost(1e6)),
    ("cpo.beta", Above0, AtMost(1e6)),
    ("cpo.label_smoothing", From(0.0), Below(0.5)),
    ("cpo.cpo_alpha", From(0.0), AtMost(1e6)),
    ("cpo.simpo_gamma", From(0.0), AtMost(1e6)),
    ("cpo.alpha", From(-100.0), AtMost(100.0)),
    ("train.per_device_train_batch_size", From(1.0), AtMost(MAX_BATCH)),
    ("train.per_device_eval_batch_size", From(1.0), AtMost(MAX_BATCH)),
    ("train.gradient_accumulation_steps", From(1.0), AtMost(MAX_BATCH)),
    ("train.learning_rate", From(0.0), AtMost(1e100)),
    ("train.warmup_steps", From(0.0), AtMost(MAX_STEPS)),
    ("train.warmup_ratio", From(0.0), AtMost(1.0)),
    ("train.max_steps", MinusOneOr(1.0), AtMost(MAX_STEPS)),
    ("train.num_train_epochs", Above0, AtMost(1e6)),
    ("train.max_grad_norm", From(0.0), AtMost(1e30)),
    ("train.weight_decay", From(0.0), AtMost(1e6)),
    ("train.adam_beta1", From(0.0), Below(1.0)),
    ("train.adam_beta2", From(0.0), Below(1.0)),
    ("train.adam_epsilon", Above0, AtMost(1e6)),
    ("train.logging_steps", From(1.0), AtMost(MAX_STEPS)),
    ("train.eval_steps", From(0.0), AtMost(MAX_STEPS)),
    ("train.eval_delay", From(0.0), AtMost(MAX_STEPS)),
    ("train.save_steps", From(0.0), AtMost(MAX_STEPS)),
    ("train.save_total_limit", From(0.0), AtMost(MAX_STEPS)),
    ("train.early_stopping_patience", From(1.0), AtMost(MAX_STEPS)),
    ("train.early_stopping_threshold", From(0.0), AtMost(1e6)),
    ("train.max_tokens_per_pass", From(1.0), AtMost(1e9)),
    ("train.lr_scheduler_kwargs.num_cycles", From(0.0), AtMost(1e6)),
    ("train.lr_scheduler_kwargs.lr_end", From(0.0), AtMost(1e6)),
    ("train.lr_scheduler_kwargs.power", From(0.0), AtMost(1e3)),
    ("train.lr_scheduler_kwargs.min_lr", From(0.0), AtMost(1e6)),
    ("train.lr_scheduler_kwargs.min_lr_rate", From(0.0), AtMost(1.0)),
    ("train.lr_scheduler_kwargs.warmup_lr_rate", From(0.0), AtMost(1.0)),
    ("train.lr_scheduler_kwargs.num_decay_steps", From(0.0), AtMost(MAX_STEPS)),
    ("train.lr_scheduler_kwargs.num_stable_steps", From(0.0), AtMost(MAX_STEPS)),
    ("train.lr_scheduler_kwargs.min_lr_ratio", From(0.0), AtMost(1.0)),
    ("train.lr_scheduler_kwargs.timescale", From(1.0), AtMost(MAX_STEPS)),
    ("train.lr_scheduler_kwargs.factor", From(0.0), AtMost(1.0)),
    ("train.lr_scheduler_kwargs.patience", From(0.0), AtMost(MAX_STEPS)),
    ("train.lr_scheduler_kwargs.threshold", From(0.0), AtMost(1e6)),
    ("train.lr_scheduler_kwargs.cooldown", From(0.0), AtMost(MAX_STEPS)),
    ("train.lr_scheduler_kwargs.eps", From(0.0), AtMost(1e6)),
];

/// Returns the range of a key, if it is numeric.
fn range(key: &str) -> Option<(LowerBound, UpperBound)> {
    let found = RANGES.iter().find(|(name, _, _)| *name == key);
    found.map(|(_, lower, upper)| (*lower, *upper))
}

/// Returns whether `number` is in a range; NaN never is.
fn is_within((lower, upper): (LowerBound, UpperBound), number: f64) -> bool {
    let above_lower = match lower {
        From(lower) => number >= lower,
        Above0 => number >= f64::MIN_POSITIVE,
        MinusOneOr(lower) => number == -1.0 || number >= lower,
    };
    let below_upper = match upper {
        AtMost(upper) => number <= upper,
        Below(end) => number < end,
    };
    above_lower && below_upper
}

/// Returns the range of a numeric key in words, such as `1 to 65536` or `0 to less than 1`.
pub fn range_in_words(key: &str) -> Option<String> {
    let (lower, upper) = range(key)?;
    let lower = match lower {
        _ if key == "seed" => return Some("0 or more".to_string()),
        From(lower) => number_text(lower),
        Above0 => "above 0".to_string(),
        MinusOneOr(lower) => format!("-1, or {}", number_text(lower)),
    };
    Some(match upper {
        AtMost(upper) if lower == number_text(upper) => lower,
        AtMost(upper) => format!("{lower} to {}", number_text(upper)),
        Below(end) => format!("{lower} to less than {}", number_text(end)),
    })
}

/// Returns an error if `number` is out of the range of `key`.
pub(super) fn check_number(number: f64, key: &str) -> Result<()> {
    match range(key) {
        Some(range) if !is_within(range, number) => {
            let words = range_in_words(key).unwrap_or_default();
            let problem = format!("must be {words}, is {}", number_text(number));
            Err(Error::invalid(key, problem, "correct the value"))
        }
        _ => Ok(()),
    }
}

/// Returns an error for the first number that is out of range.
pub(super) fn check(config: &RunConfig) -> Result<()> {
    for (key, value) in leaves(config) {
        let numbers: Vec<f64> = match &value {
            Value::Array(values) => values.iter().filter_map(Value::as_f64).collect(),
            Value::Object(values) => values.values().filter_map(Value::as_f64).collect(),
            value => Vec::from_iter(value.as_f64()),
        };
        numbers.into_iter().try_for_each(|number| check_number(number, &key))?;
    }
    Ok(())
}

/// Formats a number, from 1e6 on with an exponent.
fn number_text(number: f64) -> String {
    if number.abs() < 1e6 { number.to_string() } else { format!("{number:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys without a default may be numeric too, except the texts, lists and shapes named here.
    #[test]
    fn every_number_has_a_range() {
        let text_or_list = [
            "data.eval_file",
            "lora.adapter",
            "lora.exclude_modules",
            "lora.layers_pattern",
            "lora.modules_to_save",
            "train.optim_args",
            "train.metric_for_best_model",
            "train.greater_is_better",
            "train.hub_model_id",
            "train.hub_private_repo",
            "train.hub_revision",
        ];
        let shapes = ["warmup_type", "decay_type", "mode"];
        for (key, value) in leaves(&RunConfig::default()) {
            let may_be_number = value.is_number() || value.is_null();
            let other = text_or_list.contains(&key.as_str())
                || shapes.iter().any(|shape| key.ends_with(shape));
            if may_be_number && !other {
                assert!(range(&key).is_some(), "{key}");
            }
        }
        let known: Vec<String> =
            leaves(&RunConfig::default()).into_iter().map(|(key, _)| key).collect();
        for (key, _, _) in RANGES {
            assert!(known.iter().any(|known| known == key), "{key} is not a key");
        }
    }
}
