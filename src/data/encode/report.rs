//! Report about encoding: which pairs were changed or dropped, and which are refused because they would train on nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Compat, EncodeConfig, Outcome};
use crate::data::chat::RenderedRow;
use crate::error::{Error, Result};

/// Maximum number of ids that a message lists for each kind.
const MAX_LISTED: usize = 10;

/// Why a pair is refused: training on it would have no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A completion is empty or white space, so that only EOS would be learned.
    EmptyCompletion,
    /// Chosen and rejected are the same text, so that the gradient is exactly 0.
    IdenticalSides,
    /// Truncation left no completion token to score, so that the loss is ln 2 and the gradient exactly 0.
    LostByTruncation,
    /// With `assistant_only_loss`: the chat template marks no token as the assistant's.
    NotByAssistant,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyCompletion => "empty completion",
            Self::IdenticalSides => "chosen and rejected are the same text",
            Self::LostByTruncation => "completion lost by truncation",
            Self::NotByAssistant => {
                "the chat template's generation blocks mark nothing that the assistant wrote"
            }
        })
    }
}

/// How a conversation's prompt, rendered alone, goes on where prompt and completion, rendered together, go on otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// The rest of the prompt alone, as the model sees it when it answers.
    pub alone: String,
    /// The text at the same place of prompt and completion together, from which is learned.
    pub together: String,
}

impl Divergence {
    /// Maximum number of characters that are kept of each text.
    const KEPT: usize = 80;

    /// Returns how the prompt of `row` and its first other continuation part, if they do.
    pub(super) fn find(row: &RenderedRow) -> Option<Self> {
        let [alone, together] =
            row.divergence()?.map(|text| text.chars().take(Self::KEPT).collect());
        Some(Self { alone, together })
    }
}

/// Ids of the refused pairs, by reason, in input order.
pub type Refused = BTreeMap<Refusal, Vec<String>>;

/// Lists every pair that encoding changed or dropped, by id. Serialized into the run's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncodeReport {
    /// Settings used for encoding.
    pub config: EncodeConfig,
    /// Number of pairs read.
    pub pairs_read: usize,
    /// Number of pairs encoded; after [`settle`](super::EncodedDataset::settle), the number of pairs to train on.
    pub pairs_kept: usize,
    /// Pairs dropped, as in TRL, because the prompt alone fills `max_length`.
    pub dropped_prompt_too_long: Vec<String>,
    /// Pairs whose prompt was truncated.
    pub prompt_truncated: Vec<String>,
    /// Pairs whose chosen completion was truncated.
    pub chosen_truncated: Vec<String>,
    /// Pairs whose rejected completion was truncated.
    pub rejected_truncated: Vec<String>,
    /// Pairs of which a completion lost its EOS by truncation.
    pub eos_lost: Vec<String>,
    /// Pairs with an EOS token inside the text, not only at its end.
    pub eos_inside_text: Vec<String>,
    /// Pairs whose sides became equal by truncation. They are kept, as in TRL; their gradient is exactly 0.
    pub identical_after_truncation: Vec<String>,
    /// Pairs that would train on nothing.
    pub refused: Refused,
    /// Conversations whose prompt the chat template renders otherwise alone than before the completion, so that the completion
    /// is learned after another text than it is generated after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompt_diverges: Vec<String>,
    /// The texts of the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_divergence: Option<Divergence>,
    /// Whether the samples are examples of one completion, which is counted as `chosen`.
    #[serde(skip)]
    pub single_completion: bool,
    /// Number of examples whose completion follows the prompt without a space, as in `Answer:42`.
    #[serde(skip)]
    pub joined: usize,
    /// Number of examples of which the end of the assistant's turn is not scored.
    #[serde(skip)]
    pub never_stop: usize,
}

impl EncodeReport {
    /// Creates an empty report.
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
            prompt_diverges: Vec::new(),
            first_divergence: None,
            single_completion: false,
            joined: 0,
            never_stop: 0,
        }
    }

    /// Adds the outcome of encoding the pair `id`.
    pub(super) fn count(&mut self, id: &str, outcome: &Outcome) {
        self.pairs_read += 1;
        self.never_stop += usize::from(outcome.never_stops);
        if let Some(refusal) = outcome.refusal {
            self.refused.entry(refusal).or_default().push(id.to_string());
        }
        if let Some(divergence) = &outcome.divergence {
            self.prompt_diverges.push(id.to_string());
            self.first_divergence.get_or_insert_with(|| divergence.clone());
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

    /// Returns the number of refused pairs, over all reasons.
    pub fn refused_count(&self) -> usize {
        self.refused.values().map(Vec::len).sum()
    }

    /// Returns one line for each kind of change with its pairs, for stderr and `--dry-run`. Empty if all pairs passed
    /// unchanged.
    pub fn summary(&self) -> Vec<String> {
        let chosen = if self.single_completion { "completion" } else { "chosen" };
        let chosen_truncated = format!("{chosen} truncated");
        let changes = [
            ("dropped: the prompt fills max_length", &self.dropped_prompt_too_long),
            ("prompt truncated", &self.prompt_truncated),
            (&chosen_truncated, &self.chosen_truncated),
            ("rejected truncated", &self.rejected_truncated),
            ("EOS lost by truncation", &self.eos_lost),
            ("EOS token inside the text", &self.eos_inside_text),
            ("identical after truncation (kept, gradient 0)", &self.identical_after_truncation),
        ];
        let changes = changes.into_iter().map(|(change, ids)| (change.to_string(), ids));
        let refused =
            self.refused.iter().map(|(reason, ids)| (format!("trains on nothing: {reason}"), ids));
        let all = changes.chain(refused).filter(|(_, ids)| !ids.is_empty());
        let lines = all.map(|(change, ids)| format!("{change}: {}", listed(ids)));
        let lines = lines.chain(self.divergence_warning()).chain(self.missing_space_hint());
        lines.chain(self.missing_stop_warning()).collect()
    }

    /// Returns a warning if no example teaches the model to end its turn.
    fn missing_stop_warning(&self) -> Option<String> {
        (self.never_stop > 0 && self.never_stop == self.pairs_read).then(|| {
            "warning: the chat template's generation blocks leave out the end of the assistant's turn, so that the model does \
             not learn to stop; move {% endgeneration %} behind it"
                .to_string()
        })
    }

    /// Returns a warning about prompts that the chat template renders otherwise alone, with both texts.
    fn divergence_warning(&self) -> Option<String> {
        let Divergence { alone, together } = self.first_divergence.as_ref()?;
        Some(format!(
            "warning: the chat template renders the prompt otherwise alone than before the completion: {}; where the prompt goes \
             on with {alone:?}, both together go on with {together:?}, from which is learned; a template made for training \
             (chat_template.jinja) renders both alike",
            listed(&self.prompt_diverges)
        ))
    }

    /// Returns a hint if most completions follow their prompt without a space, where a base model would write one.
    fn missing_space_hint(&self) -> Option<String> {
        (2 * self.joined > self.pairs_read).then(|| {
            format!(
                "hint: in {} of {} examples the completion follows the prompt without a space, as in `Answer:42`; base models \
                 write a space there: begin the completions with one, or end data.prompt_template with a line end",
                self.joined, self.pairs_read
            )
        })
    }

    /// Returns the plural noun for the samples.
    fn noun(&self) -> &'static str {
        if self.single_completion { "examples" } else { "pairs" }
    }

    /// Checks that training may start. Refused pairs are an error unless one of the two keys says how to treat them.
    ///
    /// # Errors
    /// - Pairs are refused and both keys are false.
    /// - Both keys are true.
    /// - `max_prompt_length >= max_length` under TRL 0.7.4, which empties every completion that is too long, and
    ///   `allow_empty_completions` is false.
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
                    "is {max_prompt_length}, not less than max_length ({max_length}): every pair that is too long loses \
                     both completions and trains on nothing"
                ),
                "lower it, or set data.allow_empty_completions = true to reproduce that",
            ));
        }
        if self.refused.is_empty() || allow_empty_completions || skip_untrainable {
            return Ok(());
        }
        let reasons: Vec<String> =
            self.refused.iter().map(|(reason, ids)| format!("{reason}: {}", listed(ids))).collect();
        Err(Error::invalid(
            "data",
            format!(
                "{} of {} {} would train on nothing\n    {}",
                self.refused_count(),
                self.pairs_read,
                self.noun(),
                reasons.join("\n    ")
            ),
            "data.skip_untrainable = true leaves them out, data.allow_empty_completions = true trains on them as TRL \
             does; --dry-run lists all",
        ))
    }
}

/// Formats the number of ids and at most [`MAX_LISTED`] of them, as in `3 (ids 7, 9, 12)`.
fn listed(ids: &[String]) -> String {
    let shown: Vec<&str> = ids.iter().take(MAX_LISTED).map(String::as_str).collect();
    let more = if ids.len() > MAX_LISTED { ", ..." } else { "" };
    format!("{} (ids {}{more})", ids.len(), shown.join(", "))
}
