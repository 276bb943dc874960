//! What encoding did to the pairs: counted, listed by id, and refused where training would learn nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Compat, EncodeConfig, Outcome};
use crate::error::{Error, Result};

/// Ids an error message lists of each kind.
const LISTED: usize = 10;

/// Why a pair would train on nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A completion is empty or white space: only EOS would be learnt.
    EmptyCompletion,
    /// Chosen and rejected are the same text: the gradient is exactly 0.
    IdenticalSides,
    /// Truncation left no completion token to score: the loss is ln 2 and the gradient exactly 0.
    LostByTruncation,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyCompletion => "empty completion",
            Self::IdenticalSides => "chosen and rejected are the same text",
            Self::LostByTruncation => "completion lost by truncation",
        })
    }
}

/// Ids of the refused pairs, by reason, in input order.
pub type Refused = BTreeMap<Refusal, Vec<String>>;

/// Every pair that did not pass unchanged, by id. Serialised into the run's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncodeReport {
    /// The settings used.
    pub config: EncodeConfig,
    /// Pairs given.
    pub pairs_read: usize,
    /// Pairs encoded; after [`settle`](super::EncodedDataset::settle) those that are trained on.
    pub pairs_kept: usize,
    /// Left out as TRL does: the prompt alone fills `max_length`.
    pub dropped_prompt_too_long: Vec<String>,
    /// Prompt tokens were cut.
    pub prompt_truncated: Vec<String>,
    /// Tokens of the chosen completion were cut.
    pub chosen_truncated: Vec<String>,
    /// Tokens of the rejected completion were cut.
    pub rejected_truncated: Vec<String>,
    /// A completion lost its EOS by truncation.
    pub eos_lost: Vec<String>,
    /// The EOS token stands inside the text, not only at its end.
    pub eos_inside_text: Vec<String>,
    /// Both sides became equal by truncation. Kept, as TRL does; their gradient is exactly 0.
    pub identical_after_truncation: Vec<String>,
    /// Pairs that would train on nothing.
    pub refused: Refused,
}

impl EncodeReport {
    pub(super) fn new(config: &EncodeConfig) -> Self {
        Self {
            config: config.clone(),
            pairs_read: 0,
            pairs_kept: 0,
            dropped_prompt_too_long: Vec::new(),
            prompt_truncated: Vec::new(),
            chosen_truncated: Vec::new(),
            rejected_truncated: Vec::new(),
            eos_lost: Vec::new(),
            eos_inside_text: Vec::new(),
            identical_after_truncation: Vec::new(),
            refused: Refused::new(),
        }
    }

    pub(super) fn count(&mut self, id: &str, outcome: &Outcome) {
        self.pairs_read += 1;
        if let Some(refusal) = outcome.refusal {
            self.refused.entry(refusal).or_default().push(id.to_string());
        }
        for (happened, list) in [
            (outcome.sides.is_none(), &mut self.dropped_prompt_too_long),
            (outcome.prompt_cut, &mut self.prompt_truncated),
            (outcome.chosen_cut, &mut self.chosen_truncated),
            (outcome.rejected_cut, &mut self.rejected_truncated),
            (outcome.eos_lost, &mut self.eos_lost),
            (outcome.eos_inside, &mut self.eos_inside_text),
            (outcome.identical_after_truncation, &mut self.identical_after_truncation),
        ] {
            if happened {
                list.push(id.to_string());
            }
        }
    }

    /// Pairs refused, for any reason.
    pub fn refused_count(&self) -> usize {
        self.refused.values().map(Vec::len).sum()
    }

    /// One line for each thing that happened to some pair, for stderr and `--dry-run`; empty if all passed unchanged.
    pub fn summary(&self) -> Vec<String> {
        let kept = [
            ("dropped: the prompt fills max_length", &self.dropped_prompt_too_long),
            ("prompt truncated", &self.prompt_truncated),
            ("chosen truncated", &self.chosen_truncated),
            ("rejected truncated", &self.rejected_truncated),
            ("EOS lost by truncation", &self.eos_lost),
            ("EOS token inside the text", &self.eos_inside_text),
            ("identical after truncation (kept, gradient 0)", &self.identical_after_truncation),
        ];
        let kept = kept.into_iter().map(|(what, ids)| (what.to_string(), ids));
        let refused =
            self.refused.iter().map(|(why, ids)| (format!("trains on nothing: {why}"), ids));
        let all = kept.chain(refused).filter(|(_, ids)| !ids.is_empty());
        all.map(|(what, ids)| format!("{what}: {}", listed(ids))).collect()
    }

    /// Whether training may start. Refused pairs are an error unless one of the two keys says what to do with them.
    ///
    /// # Errors
    /// There are refused pairs and both keys are false; both keys are true; or `max_prompt_length >= max_length` under
    /// TRL 0.7.4, which empties every completion that is too long, without `allow_empty_completions`.
    pub fn check(&self, allow_empty_completions: bool, skip_untrainable: bool) -> Result<()> {
        if allow_empty_completions && skip_untrainable {
            return Err(Error::invalid(
                "data.skip_untrainable",
                "contradicts data.allow_empty_completions",
                "set only one of the two",
            ));
        }
        let (max_length, max_prompt_length) = self.config.trl074_lengths();
        if self.config.compat == Compat::Trl074
            && max_prompt_length >= max_length
            && !allow_empty_completions
        {
            return Err(Error::invalid(
                "data.max_prompt_length",
                format!(
                    "is {max_prompt_length}, not below max_length ({max_length}): every pair that is too long loses \
                     both completions and trains on nothing"
                ),
                "lower it, or set data.allow_empty_completions = true to reproduce that",
            ));
        }
        if self.refused.is_empty() || allow_empty_completions || skip_untrainable {
            return Ok(());
        }
        let reasons: Vec<String> =
            self.refused.iter().map(|(why, ids)| format!("{why}: {}", listed(ids))).collect();
        Err(Error::invalid(
            "data",
            format!(
                "{} of {} pairs would train on nothing\n    {}",
                self.refused_count(),
                self.pairs_read,
                reasons.join("\n    ")
            ),
            "data.skip_untrainable = true leaves them out, data.allow_empty_completions = true trains on them as TRL \
             does; --dry-run lists all",
        ))
    }
}

/// `3 (ids 7, 9, 12)`, with at most [`LISTED`] ids.
fn listed(ids: &[String]) -> String {
    let shown: Vec<&str> = ids.iter().take(LISTED).map(String::as_str).collect();
    let more = if ids.len() > LISTED { ", ..." } else { "" };
    format!("{} (ids {}{more})", ids.len(), shown.join(", "))
}
