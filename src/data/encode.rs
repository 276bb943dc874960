//! Encodes pairs and examples as token ids, with BOS, EOS and truncation, and finds where each completion starts.
//!
//! Two behaviors of Hugging Face TRL are reproduced id for id:
//! - [`Compat::Trl1`] (TRL 1.x): the EOS text is appended to each completion, prompt and prompt+completion are
//!   tokenized as whole texts with special tokens, and the prompt ends at the common prefix of all three.
//! - [`Compat::Trl074`] (TRL 0.7.4, `DPODataCollatorWithPadding`): the pieces are tokenized separately without special
//!   tokens, EOS ids inside the text are masked from attention, and the EOS id is appended.
//!
//! The [`EncodeReport`] lists every pair that is dropped, truncated, or without any gradient.

mod answers;
mod assistant;
mod labeled;
mod report;
mod texts;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use answers::encode_answers;
pub use labeled::encode_labeled;
pub use report::{Divergence, EncodeReport, Refusal, Refused};

use self::texts::{Texts, check_template};
use crate::data::example::Example;
use crate::data::pair::PreferencePair;
use crate::data::prompt::PromptTemplate;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Token ids of a prompt and one completion, already truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedSequence {
    /// Prompt ids, then completion ids. Never empty.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first completion token: `ids[completion_start..]` is scored.
    pub completion_start: usize,
    /// Indices that no other token may attend to, ascending. Empty except under `compat = "trl-0.7.4"`, which masks every
    /// EOS id inside the text.
    pub hidden: Vec<usize>,
}

impl EncodedSequence {
    /// Returns the number of scored completion tokens: all of them, except a token at index 0, which nothing predicts.
    pub fn scored_tokens(&self) -> usize {
        self.ids.len().saturating_sub(self.completion_start.max(1))
    }
}

/// An encoded preference pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// The id of the [`PreferencePair`].
    pub id: String,
    /// Prompt and preferred completion.
    pub chosen: EncodedSequence,
    /// Prompt and rejected completion. After truncation its prompt can differ from that of `chosen`.
    pub rejected: EncodedSequence,
}

impl EncodedPair {
    /// Returns the number of tokens of the longer sequence.
    pub fn longest(&self) -> usize {
        let sides = [&self.chosen, &self.rejected];
        sides.map(|side| side.ids.len()).into_iter().max().unwrap_or(0)
    }
}

/// An encoded supervised fine-tuning example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedExample {
    /// The id of the [`Example`].
    pub id: String,
    /// Prompt and completion.
    pub sequence: EncodedSequence,
    /// Indices of completion tokens that are not scored, ascending: those that the assistant did not write, with
    /// [`EncodeConfig::assistant_only_loss`].
    pub unscored: Vec<usize>,
}

/// The TRL version whose tokenization, truncation and metric definitions are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compat {
    /// TRL 1.x.
    #[default]
    #[serde(rename = "trl-1")]
    Trl1,
    /// TRL 0.7.4 of November 2023.
    #[serde(rename = "trl-0.7.4")]
    Trl074,
}

/// Which part of a text that is too long is kept. The text is prompt + completion for TRL 1.x and the prompt for
/// TRL 0.7.4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// The first tokens.
    #[default]
    KeepStart,
    /// The last tokens.
    KeepEnd,
}

/// Settings for encoding pairs and examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncodeConfig {
    /// TRL version whose rules are followed.
    pub compat: Compat,
    /// Maximum number of tokens of prompt + completion. `None` means no limit (for TRL 0.7.4, its default of 512).
    pub max_length: Option<usize>,
    /// Number of tokens to which the prompt is cut if prompt + longer completion exceed `max_length`. TRL 0.7.4 only;
    /// `None` means its default of 128.
    pub max_prompt_length: Option<usize>,
    /// Which part of a text that is too long is kept.
    pub truncation_mode: TruncationMode,
    /// Template into which each prompt is inserted.
    pub prompt_template: PromptTemplate,
    /// Whether an example's tokens are scored only if the assistant wrote them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub assistant_only_loss: bool,
}

impl EncodeConfig {
    /// Returns the defaults of a TRL version: 1024 tokens keeping the start for 1.x, or 512 tokens with a prompt of 128
    /// keeping the end for 0.7.4.
    pub fn new(compat: Compat) -> Self {
        let (max_length, max_prompt_length, truncation_mode) = match compat {
            Compat::Trl1 => (1024, None, TruncationMode::KeepStart),
            Compat::Trl074 => (512, Some(128), TruncationMode::KeepEnd),
        };
        Self {
            compat,
            max_length: Some(max_length),
            max_prompt_length,
            truncation_mode,
            prompt_template: PromptTemplate::default(),
            assistant_only_loss: false,
        }
    }

    /// Returns `max_length` and `max_prompt_length` with the defaults of TRL 0.7.4 filled in.
    fn trl074_lengths(&self) -> (usize, usize) {
        (self.max_length.unwrap_or(512), self.max_prompt_length.unwrap_or(128))
    }

    /// Checks that the settings fit the TRL version.
    ///
    /// # Errors
    /// `max_length` is 0, or `max_prompt_length` is given under TRL 1.x, which has no such setting.
    pub fn validate(&self) -> Result<()> {
        if self.max_length == Some(0) {
            return Err(Error::invalid(
                "data.max_length",
                "is 0: no token would be left",
                "set data.max_length = 1024",
            ));
        }
        if self.compat == Compat::Trl1 && self.max_prompt_length.is_some() {
            return Err(Error::invalid(
                "data.max_prompt_length",
                "does not exist under data.compat = \"trl-1\"",
                "remove it, or set data.compat = \"trl-0.7.4\"",
            ));
        }
        Ok(())
    }
}

/// Encoded pairs (or examples) and a report about those that were changed or left out.
#[derive(Clone, Debug)]
pub struct EncodedDataset<S = EncodedPair> {
    /// Encoded pairs in input order, without the dropped ones. Refused pairs are included until
    /// [`settle`](Self::settle).
    pub pairs: Vec<S>,
    /// Report about pairs that were dropped, truncated or refused.
    pub report: EncodeReport,
    /// Whether each of `pairs` is refused.
    refused: Vec<bool>,
}

impl<S> EncodedDataset<S> {
    /// Converts each sample.
    pub fn map<T>(self, convert: impl Fn(S) -> T) -> EncodedDataset<T> {
        EncodedDataset {
            pairs: self.pairs.into_iter().map(convert).collect(),
            report: self.report,
            refused: self.refused,
        }
    }
}

impl<S: Sample> EncodedDataset<S> {
    /// Applies the configured treatment of refused pairs. They are an error if both arguments are false, are kept as in
    /// TRL under `allow_empty_completions`, and are removed under `skip_untrainable`.
    ///
    /// # Errors
    /// Same as [`EncodeReport::check`], or no pair is left.
    pub fn settle(mut self, allow_empty_completions: bool, skip_untrainable: bool) -> Result<Self> {
        self.report.check(allow_empty_completions, skip_untrainable)?;
        if skip_untrainable {
            let mut refused = std::mem::take(&mut self.refused).into_iter();
            self.pairs.retain(|_| !refused.next().unwrap_or(false));
            self.refused = vec![false; self.pairs.len()];
        }
        // The model cannot run a sequence without tokens, so it is an error under every setting.
        let empty = |pair: &&S| pair.sides().iter().any(|side| side.ids.is_empty());
        if let Some(pair) = self.pairs.iter().find(empty) {
            return Err(Error::invalid(
                place_in_words(pair),
                "has neither prompt nor completion tokens",
                "leave it out: data.skip_untrainable = true",
            ));
        }
        if self.pairs.is_empty() {
            return Err(Error::invalid(
                "data",
                format!("none of {} {} is left to train on", self.report.pairs_read, S::NAME),
                "raise data.max_length (--max-length); `arithmo train --dry-run` lists what happened to each",
            ));
        }
        self.report.pairs_kept = self.pairs.len();
        Ok(self)
    }

    /// Checks that every sequence fits a model of `vocab_size` tokens and `max_positions` positions.
    ///
    /// # Errors
    /// A token id is not less than `vocab_size` (the tokenizer belongs to another model, or tokens were added to it), or
    /// a sequence is longer than `max_positions`.
    pub fn check_fits(&self, vocab_size: usize, max_positions: usize) -> Result<()> {
        for pair in &self.pairs {
            let (place, sides) = (place_in_words(pair), pair.sides());
            let all = pair.token_ids();
            let mut ids = all.iter().copied().flatten();
            if let Some(id) = ids.find(|id| **id as usize >= vocab_size) {
                return Err(Error::invalid(
                    place,
                    format!("has the token id {id}, but the model only has {vocab_size} tokens"),
                    "use the tokenizer and the weights of the same model",
                ));
            }
            let longest = sides.iter().map(|side| side.ids.len()).max().unwrap_or(0);
            if longest > max_positions {
                return Err(Error::invalid(
                    place,
                    format!(
                        "has {longest} tokens, but the model takes at most {max_positions} (max_position_embeddings)"
                    ),
                    format!("set the maximum length to {max_positions}"),
                ));
            }
        }
        Ok(())
    }
}

/// Names a sample for error messages, as in "pair 17".
fn place_in_words<S: Sample>(sample: &S) -> String {
    format!("{} {}", S::NAME.trim_end_matches('s'), sample.id())
}

/// Encodes all pairs, in order, on all processor cores.
///
/// # Errors
/// [`EncodeConfig::validate`] fails, or the tokenizer cannot encode a text. Pairs without any gradient are not an error
/// here but in [`EncodedDataset::settle`].
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    pairs: &[PreferencePair],
    config: &EncodeConfig,
) -> Result<EncodedDataset> {
    config.validate()?;
    let encode = |pair: &PreferencePair| match config.compat {
        Compat::Trl1 => encode_trl1(tokenizer, &pair.id, &Texts::from_pair(pair), config),
        Compat::Trl074 => encode_trl074(tokenizer, pair, config),
    };
    let outcomes: Vec<Outcome> = pairs.par_iter().map(encode).collect::<Result<_>>()?;
    let ids = pairs.iter().map(|pair| &pair.id);
    let dataset = collect(config, ids.zip(outcomes), |id, (chosen, rejected), _| EncodedPair {
        id: id.clone(),
        chosen,
        rejected,
    });
    Ok(dataset)
}

/// Encodes all examples, in order, as TRL 1.x's `SFTTrainer` does: by the rules that [`encode_pairs`] applies to one side
/// of a pair. The report counts each completion as the chosen side.
///
/// # Errors
/// Same as [`encode_pairs`], or `compat` is not TRL 1.x.
pub fn encode_examples(
    tokenizer: &Tokenizer,
    examples: &[Example],
    config: &EncodeConfig,
) -> Result<EncodedDataset<EncodedExample>> {
    config.validate()?;
    if config.compat != Compat::Trl1 {
        let problem = "has no rules for examples of one completion";
        return Err(Error::invalid("data.compat", problem, "remove the key"));
    }
    let encode = |example: &Example| encode_completion(tokenizer, example, config);
    let outcomes: Vec<Outcome> = examples.par_iter().map(encode).collect::<Result<_>>()?;
    let ids = examples.iter().map(|example| &example.id);
    let dataset = collect(config, ids.zip(outcomes), |id, (sequence, _), unscored| {
        EncodedExample { id: id.clone(), sequence, unscored }
    });
    Ok(dataset)
}

/// Encodes a prompt and its only completion by the rules of TRL 1.x.
fn encode_completion(
    tokenizer: &Tokenizer,
    example: &Example,
    config: &EncodeConfig,
) -> Result<Outcome> {
    let texts = Texts::new(
        &example.prompt,
        [&example.completion, &example.completion],
        example.rendered.as_deref(),
    );
    let outcome = encode_trl1(tokenizer, &example.id, &texts, config)?.into_single_side();
    if config.assistant_only_loss {
        assistant::score_only(tokenizer, example, config, outcome)
    } else {
        Ok(outcome)
    }
}

/// Collects the outcomes into a data set and its report.
fn collect<'a, S>(
    config: &EncodeConfig,
    outcomes: impl Iterator<Item = (&'a String, Outcome)>,
    sample: impl Fn(&String, (EncodedSequence, EncodedSequence), Vec<usize>) -> S,
) -> EncodedDataset<S> {
    let mut dataset = EncodedDataset {
        pairs: Vec::new(),
        report: EncodeReport::new(config),
        refused: Vec::new(),
    };
    for (id, outcome) in outcomes {
        dataset.report.count(id, &outcome);
        if let Some(sides) = outcome.sides {
            dataset.refused.push(outcome.refusal.is_some());
            dataset.pairs.push(sample(id, sides, outcome.unscored));
        }
    }
    dataset.report.pairs_kept = dataset.pairs.len();
    dataset
}

/// Result of encoding one pair.
#[derive(Debug, Default)]
struct Outcome {
    /// Chosen and rejected; `None` if the pair is dropped.
    sides: Option<(EncodedSequence, EncodedSequence)>,
    /// Indices of completion tokens of an example that are not scored.
    unscored: Vec<usize>,
    /// Whether the end of the assistant's turn is not scored, so that the model does not learn to stop.
    never_stops: bool,
    refusal: Option<Refusal>,
    prompt_cut: bool,
    chosen_cut: bool,
    rejected_cut: bool,
    eos_lost: bool,
    eos_inside: bool,
    identical_after_truncation: bool,
    /// How a conversation's prompt and its continuation part, if the template renders the prompt otherwise alone.
    divergence: Option<Divergence>,
}

impl Outcome {
    /// Adds the truncated sides, and records if truncation made them equal or left no token to score.
    fn with_sides(mut self, chosen: EncodedSequence, rejected: EncodedSequence) -> Self {
        let is_lost = chosen.scored_tokens() == 0 || rejected.scored_tokens() == 0;
        if self.refusal.is_none() && is_lost {
            self.refusal = Some(Refusal::LostByTruncation);
        }
        self.identical_after_truncation = self.refusal.is_none() && chosen == rejected;
        self.sides = Some((chosen, rejected));
        self
    }

    /// Turns the outcome of a pair of two equal sides into that of one example. The findings that only say that both sides
    /// are equal are removed.
    fn into_single_side(mut self) -> Self {
        self.rejected_cut = false;
        self.identical_after_truncation = false;
        self.refusal = self.refusal.filter(|refusal| *refusal != Refusal::IdenticalSides);
        let is_lost = self.sides.as_ref().is_some_and(|(side, _)| side.scored_tokens() == 0);
        if self.refusal.is_none() && is_lost {
            self.refusal = Some(Refusal::LostByTruncation);
        }
        self
    }
}

/// Encodes a pair by the rules of TRL 1.x (`DPOTrainer._prepare_dataset` and `DataCollatorForPreference`).
fn encode_trl1(
    tokenizer: &Tokenizer,
    id: &str,
    texts: &Texts<'_>,
    config: &EncodeConfig,
) -> Result<Outcome> {
    check_template(id, texts, config)?;
    let (prompt, [chosen, rejected]) = texts.encode(tokenizer, config)?;
    // The last prompt token may have merged with the completion's first characters, so the prompt ends before it.
    let start = common_prefix(&prompt, &chosen).min(common_prefix(&prompt, &rejected));
    let max_length = config.max_length.unwrap_or(usize::MAX);
    if config.truncation_mode == TruncationMode::KeepStart && start >= max_length {
        return Ok(Outcome::default());
    }
    let eos = tokenizer.eos_id();
    let inside = |ids: &[u32]| ids.split_last().is_some_and(|(_, before)| before.contains(&eos));
    // The turns of a conversation end with EOS.
    let eos_inside = texts.rendered.is_none() && (inside(&chosen) || inside(&rejected));
    let keep_end = config.truncation_mode == TruncationMode::KeepEnd;
    // Number of tokens that `keep_end` removes from the start.
    let cut = |ids: &[u32]| {
        if keep_end { ids.len().saturating_sub(max_length) } else { 0 }
    };
    let outcome = Outcome {
        refusal: texts.refusal(tokenizer.eos_token()),
        prompt_cut: start > 0 && cut(&chosen).max(cut(&rejected)) > 0,
        chosen_cut: if keep_end { cut(&chosen) > start } else { chosen.len() > max_length },
        rejected_cut: if keep_end { cut(&rejected) > start } else { rejected.len() > max_length },
        eos_lost: !keep_end && chosen.len().max(rejected.len()) > max_length,
        eos_inside,
        divergence: texts.rendered.and_then(Divergence::find),
        ..Outcome::default()
    };
    let truncate = |mut ids: Vec<u32>| {
        let cut = cut(&ids);
        ids.drain(..cut);
        ids.truncate(max_length);
        EncodedSequence { ids, completion_start: start.saturating_sub(cut), hidden: Vec::new() }
    };
    Ok(outcome.with_sides(truncate(chosen), truncate(rejected)))
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Encodes a pair by the rules of TRL 0.7.4 (`DPODataCollatorWithPadding.tokenize_batch_element`).
fn encode_trl074(
    tokenizer: &Tokenizer,
    pair: &PreferencePair,
    config: &EncodeConfig,
) -> Result<Outcome> {
    let (max_length, max_prompt_length) = config.trl074_lengths();
    let texts = Texts::from_pair(pair);
    check_template(&pair.id, &texts, config)?;
    let eos = tokenizer.eos_id();
    let mut prompt = tokenizer.encode(&config.prompt_template.apply(&pair.prompt), false)?;
    let mut chosen = tokenizer.encode(&pair.chosen, false)?;
    let mut rejected = tokenizer.encode(&pair.rejected, false)?;
    let eos_inside = [&prompt, &chosen, &rejected].iter().any(|ids| ids.contains(&eos));
    chosen.push(eos);
    rejected.push(eos);
    let whole_prompt = prompt.len();
    let longer = chosen.len().max(rejected.len());
    if prompt.len() + longer > max_length {
        match config.truncation_mode {
            TruncationMode::KeepStart => prompt.truncate(max_prompt_length),
            // TRL computes Python's `prompt[-n:]`, which for n = 0 is the whole prompt.
            TruncationMode::KeepEnd if max_prompt_length > 0 => {
                prompt.drain(..prompt.len().saturating_sub(max_prompt_length));
            }
            TruncationMode::KeepEnd => {}
        }
    }
    let whole = (chosen.len(), rejected.len());
    if prompt.len() + longer > max_length {
        for side in [&mut chosen, &mut rejected] {
            side.truncate(python_end(side.len(), max_length, max_prompt_length));
        }
    }
    let (chosen_cut, rejected_cut) = (chosen.len() < whole.0, rejected.len() < whole.1);
    let outcome = Outcome {
        refusal: texts.refusal(tokenizer.eos_token()),
        prompt_cut: prompt.len() < whole_prompt,
        chosen_cut,
        rejected_cut,
        eos_lost: chosen_cut || rejected_cut,
        eos_inside,
        ..Outcome::default()
    };
    let join = |completion: Vec<u32>, cut: bool| {
        let ids = [prompt.as_slice(), &completion].concat();
        // The appended EOS stays visible; every other EOS is masked.
        let appended = if cut { ids.len() } else { ids.len() - 1 };
        let hidden = (0..appended).filter(|&i| ids[i] == eos).collect();
        EncodedSequence { completion_start: prompt.len(), ids, hidden }
    };
    Ok(outcome.with_sides(join(chosen, chosen_cut), join(rejected, rejected_cut)))
}

/// Returns where Python's slice `ids[: max_length - max_prompt_length]` ends. A negative bound counts from the end.
fn python_end(len: usize, max_length: usize, max_prompt_length: usize) -> usize {
    match max_length.checked_sub(max_prompt_length) {
        Some(kept) => kept.min(len),
        None => len.saturating_sub(max_prompt_length - max_length),
    }
}
