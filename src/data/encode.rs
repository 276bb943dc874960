//! From text to token ids: where the completion starts, BOS and EOS, truncation.
//!
//! Two behaviours of Hugging Face TRL are reproduced id for id:
//! - [`Compat::Trl1`] (TRL 1.x): the EOS text is appended to each completion, prompt and prompt+completion are
//!   tokenised as whole texts with special tokens, and the prompt ends at the common prefix of all three.
//! - [`Compat::Trl074`] (TRL 0.7.4, `DPODataCollatorWithPadding`): the pieces are tokenised separately without special
//!   tokens, EOS ids inside the text are hidden from attention, and the EOS id is appended.
//!
//! Every pair that is dropped, cut, or could not teach anything is named in the [`EncodeReport`].

mod report;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use report::{EncodeReport, Refusal, Refused};

use crate::data::example::Example;
use crate::data::pair::PreferencePair;
use crate::data::prompt::PromptTemplate;
use crate::data::sample::Sample;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// One side of a pair as the model sees it, already truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedSequence {
    /// Prompt ids, then completion ids. Never empty.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first completion token: `ids[completion_start..]` is scored.
    pub completion_start: usize,
    /// Indices no other token may attend to, ascending. Empty except under `compat = "trl-0.7.4"`, which hides every
    /// EOS id that stands inside the text.
    pub hidden: Vec<usize>,
}

impl EncodedSequence {
    /// Completion tokens that are scored: all of them, except one at index 0, which nothing predicts.
    pub fn scored_tokens(&self) -> usize {
        self.ids.len().saturating_sub(self.completion_start.max(1))
    }
}

/// A pair ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// The id of the [`PreferencePair`].
    pub id: String,
    /// Prompt and preferred completion.
    pub chosen: EncodedSequence,
    /// Prompt and other completion. Under truncation its prompt can differ from chosen's.
    pub rejected: EncodedSequence,
}

/// An example of supervised fine-tuning ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedExample {
    /// The id of the [`Example`].
    pub id: String,
    /// Prompt and completion.
    pub sequence: EncodedSequence,
}

/// Whose tokenisation, truncation and metric definitions to follow.
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

/// Which part of a text that is too long is kept: of prompt + completion (TRL 1.x), of the prompt (TRL 0.7.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// The first tokens.
    #[default]
    KeepStart,
    /// The last tokens.
    KeepEnd,
}

/// How pairs become ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EncodeConfig {
    /// Whose rules.
    pub compat: Compat,
    /// Longest prompt + completion, tokens; `None`: no limit (TRL 0.7.4: its default, 512).
    pub max_length: Option<usize>,
    /// TRL 0.7.4 only: the prompt is cut to this many tokens if prompt + longer completion exceed `max_length`;
    /// `None`: its default, 128.
    pub max_prompt_length: Option<usize>,
    /// Which part is kept.
    pub truncation_mode: TruncationMode,
    /// What the prompt is put into.
    pub prompt_template: PromptTemplate,
}

impl EncodeConfig {
    /// The defaults of the TRL version `compat` names: 1024 tokens keeping the start, or 512 with a prompt of 128 keeping
    /// the end.
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
        }
    }

    /// `max_length` and `max_prompt_length` of TRL 0.7.4 with its defaults filled in.
    fn trl074_lengths(&self) -> (usize, usize) {
        (self.max_length.unwrap_or(512), self.max_prompt_length.unwrap_or(128))
    }

    /// Refuses options that the chosen rules cannot honour.
    ///
    /// # Errors
    /// `max_length` is 0, or `max_prompt_length` is given under TRL 1.x, which has none.
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

/// Encoded pairs (or examples) and what happened to the others.
#[derive(Clone, Debug)]
pub struct EncodedDataset<S = EncodedPair> {
    /// In input order, without the dropped ones. Before [`settle`](Self::settle) it still holds the refused ones.
    pub pairs: Vec<S>,
    /// What was dropped, cut or refused.
    pub report: EncodeReport,
    /// For each of `pairs`, whether it is refused.
    refused: Vec<bool>,
}

impl<S: Sample> EncodedDataset<S> {
    /// Decides what happens to refused pairs: an error (both false), trained on as TRL would
    /// (`allow_empty_completions`), or left out (`skip_untrainable`).
    ///
    /// # Errors
    /// As [`EncodeReport::check`]; or no pair is left.
    pub fn settle(mut self, allow_empty_completions: bool, skip_untrainable: bool) -> Result<Self> {
        self.report.check(allow_empty_completions, skip_untrainable)?;
        if skip_untrainable {
            let mut refused = std::mem::take(&mut self.refused).into_iter();
            self.pairs.retain(|_| !refused.next().unwrap_or(false));
            self.refused = vec![false; self.pairs.len()];
        }
        // A sequence without any token has nothing to be trained on, whatever was allowed.
        let empty = |pair: &&S| pair.sides().iter().any(|side| side.ids.is_empty());
        if let Some(pair) = self.pairs.iter().find(empty) {
            return Err(Error::invalid(
                place(pair),
                "has neither prompt nor completion tokens",
                "leave it out: data.skip_untrainable = true",
            ));
        }
        if self.pairs.is_empty() {
            return Err(Error::invalid(
                "data",
                format!("none of {} {} is left to train on", self.report.pairs_read, S::NAME),
                "raise data.max_length; --dry-run lists what happened to each",
            ));
        }
        self.report.pairs_kept = self.pairs.len();
        Ok(self)
    }

    /// Checks that a model of `vocab_size` tokens and `max_positions` positions can read every sequence.
    ///
    /// # Errors
    /// An id is not below `vocab_size` (the tokenizer belongs to another model, or tokens were added to it), or a
    /// sequence is longer than `max_positions`.
    pub fn check_fits(&self, vocab_size: usize, max_positions: usize) -> Result<()> {
        for pair in &self.pairs {
            let (place, sides) = (place(pair), pair.sides());
            let mut ids = sides.iter().flat_map(|side| &side.ids);
            if let Some(id) = ids.find(|id| **id as usize >= vocab_size) {
                return Err(Error::invalid(
                    place,
                    format!("has the token id {id}, but the model only has {vocab_size} tokens"),
                    "take tokenizer and weights from one and the same model",
                ));
            }
            let longest = sides.iter().map(|side| side.ids.len()).max().unwrap_or(0);
            if longest > max_positions {
                return Err(Error::invalid(
                    place,
                    format!(
                        "has {longest} tokens, the model takes {max_positions} (max_position_embeddings)"
                    ),
                    format!("set the maximum length to {max_positions}"),
                ));
            }
        }
        Ok(())
    }
}

/// What an error calls a sample.
fn place<S: Sample>(sample: &S) -> String {
    format!("{} {}", S::NAME.trim_end_matches('s'), sample.id())
}

/// Encodes all pairs, in order, on all processor cores.
///
/// # Errors
/// The config asks for what its rules do not have, or the tokenizer cannot encode a text. Pairs that cannot teach
/// anything are not an error here but at [`EncodedDataset::settle`].
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    pairs: &[PreferencePair],
    config: &EncodeConfig,
) -> Result<EncodedDataset> {
    config.validate()?;
    let encode = |pair| match config.compat {
        Compat::Trl1 => encode_trl1(tokenizer, pair, config),
        Compat::Trl074 => encode_trl074(tokenizer, pair, config),
    };
    let outcomes: Vec<Outcome> = pairs.par_iter().map(encode).collect::<Result<_>>()?;
    let ids = pairs.iter().map(|pair| &pair.id);
    let dataset = collect(config, ids.zip(outcomes), |id, (chosen, rejected)| EncodedPair {
        id: id.clone(),
        chosen,
        rejected,
    });
    Ok(dataset)
}

/// Encodes all examples, in order, as TRL 1.x's `SFTTrainer` does prompts with completions: as [`encode_pairs`] does a
/// side of a pair. In the report the completion is the chosen side.
///
/// # Errors
/// As [`encode_pairs`], or other rules than TRL 1.x's are asked for.
pub fn encode_examples(
    tokenizer: &Tokenizer,
    examples: &[Example],
    config: &EncodeConfig,
) -> Result<EncodedDataset<EncodedExample>> {
    config.validate()?;
    if config.compat != Compat::Trl1 {
        let problem = "is not built for supervised fine-tuning";
        return Err(Error::invalid("data.compat", problem, "remove the key"));
    }
    let encode = |example: &Example| {
        let twice = PreferencePair {
            id: String::new(),
            prompt: example.prompt.clone(),
            chosen: example.completion.clone(),
            rejected: example.completion.clone(),
            chosen_score: None,
            rejected_score: None,
        };
        encode_trl1(tokenizer, &twice, config).map(Outcome::of_one_side)
    };
    let outcomes: Vec<Outcome> = examples.par_iter().map(encode).collect::<Result<_>>()?;
    let ids = examples.iter().map(|example| &example.id);
    let dataset = collect(config, ids.zip(outcomes), |id, (sequence, _)| EncodedExample {
        id: id.clone(),
        sequence,
    });
    Ok(dataset)
}

/// What was encoded, and the report of it.
fn collect<'a, S>(
    config: &EncodeConfig,
    outcomes: impl Iterator<Item = (&'a String, Outcome)>,
    sample: impl Fn(&String, (EncodedSequence, EncodedSequence)) -> S,
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
            dataset.pairs.push(sample(id, sides));
        }
    }
    dataset.report.pairs_kept = dataset.pairs.len();
    dataset
}

/// What became of one pair.
#[derive(Debug, Default)]
struct Outcome {
    /// Chosen and rejected; `None`: dropped.
    sides: Option<(EncodedSequence, EncodedSequence)>,
    refusal: Option<Refusal>,
    prompt_cut: bool,
    chosen_cut: bool,
    rejected_cut: bool,
    eos_lost: bool,
    eos_inside: bool,
    identical_after_truncation: bool,
}

impl Outcome {
    /// Adds what can only be seen at the end: sides that became equal, completions that vanished.
    fn with_sides(mut self, chosen: EncodedSequence, rejected: EncodedSequence) -> Self {
        let vanished = chosen.scored_tokens() == 0 || rejected.scored_tokens() == 0;
        if self.refusal.is_none() && vanished {
            self.refusal = Some(Refusal::LostByTruncation);
        }
        self.identical_after_truncation = self.refusal.is_none() && chosen == rejected;
        self.sides = Some((chosen, rejected));
        self
    }

    /// The same of an example, given as a pair of equal sides: that they are equal is no finding.
    fn of_one_side(mut self) -> Self {
        self.rejected_cut = false;
        self.identical_after_truncation = false;
        self.refusal = self.refusal.filter(|why| *why != Refusal::IdenticalSides);
        let lost = self.sides.as_ref().is_some_and(|(side, _)| side.scored_tokens() == 0);
        if self.refusal.is_none() && lost {
            self.refusal = Some(Refusal::LostByTruncation);
        }
        self
    }
}

/// Whether the texts alone make the pair untrainable: an empty completion, or twice the same.
fn refuse_text(pair: &PreferencePair, eos: &str) -> Option<Refusal> {
    let bare = |text: &'_ str| text.strip_suffix(eos).unwrap_or(text).to_string();
    let (chosen, rejected) = (bare(&pair.chosen), bare(&pair.rejected));
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        Some(Refusal::EmptyCompletion)
    } else if chosen == rejected {
        Some(Refusal::IdenticalSides)
    } else {
        None
    }
}

/// The rules of TRL 1.x: `DPOTrainer._prepare_dataset` and `DataCollatorForPreference`.
fn encode_trl1(
    tokenizer: &Tokenizer,
    pair: &PreferencePair,
    config: &EncodeConfig,
) -> Result<Outcome> {
    let eos = tokenizer.eos_token();
    let prompt = config.prompt_template.apply(&pair.prompt);
    let joint = |completion: &str| {
        let end = if completion.ends_with(eos) { "" } else { eos };
        tokenizer.encode(&[&prompt, completion, end].concat(), true)
    };
    let chosen = joint(&pair.chosen)?;
    let rejected = match pair.rejected == pair.chosen {
        true => chosen.clone(),
        false => joint(&pair.rejected)?,
    };
    // The last prompt token may have merged with the completion's first characters: the prompt ends before it.
    let prompt = tokenizer.encode(&prompt, true)?;
    let start = common_prefix(&prompt, &chosen).min(common_prefix(&prompt, &rejected));
    let max_length = config.max_length.unwrap_or(usize::MAX);
    if config.truncation_mode == TruncationMode::KeepStart && start >= max_length {
        return Ok(Outcome::default());
    }
    let id = tokenizer.eos_id();
    let inside = |ids: &[u32]| ids.split_last().is_some_and(|(_, before)| before.contains(&id));
    let keep_end = config.truncation_mode == TruncationMode::KeepEnd;
    // Tokens of prompt and completion that `keep_end` leaves away, from the left.
    let cut = |ids: &[u32]| {
        if keep_end { ids.len().saturating_sub(max_length) } else { 0 }
    };
    let outcome = Outcome {
        refusal: refuse_text(pair, eos),
        prompt_cut: start > 0 && cut(&chosen).max(cut(&rejected)) > 0,
        chosen_cut: if keep_end { cut(&chosen) > start } else { chosen.len() > max_length },
        rejected_cut: if keep_end { cut(&rejected) > start } else { rejected.len() > max_length },
        eos_lost: !keep_end && chosen.len().max(rejected.len()) > max_length,
        eos_inside: inside(&chosen) || inside(&rejected),
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

/// The rules of TRL 0.7.4: `DPODataCollatorWithPadding.tokenize_batch_element`.
fn encode_trl074(
    tokenizer: &Tokenizer,
    pair: &PreferencePair,
    config: &EncodeConfig,
) -> Result<Outcome> {
    let (max_length, max_prompt_length) = config.trl074_lengths();
    let eos = tokenizer.eos_id();
    let mut prompt = tokenizer.encode(&config.prompt_template.apply(&pair.prompt), false)?;
    let mut chosen = tokenizer.encode(&pair.chosen, false)?;
    let mut rejected = tokenizer.encode(&pair.rejected, false)?;
    let eos_inside = [&prompt, &chosen, &rejected].iter().any(|ids| ids.contains(&eos));
    chosen.push(eos);
    rejected.push(eos);
    let lengths = (prompt.len(), chosen.len(), rejected.len());
    let longer = chosen.len().max(rejected.len());
    if prompt.len() + longer > max_length {
        match config.truncation_mode {
            TruncationMode::KeepStart => prompt.truncate(max_prompt_length),
            // Python's `prompt[-n:]`, which for n = 0 is the whole prompt.
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
        refusal: refuse_text(pair, tokenizer.eos_token()),
        prompt_cut: prompt.len() < lengths.0,
        chosen_cut,
        rejected_cut,
        eos_lost: chosen_cut || rejected_cut,
        eos_inside,
        ..Outcome::default()
    };
    let join = |completion: Vec<u32>, cut: bool| {
        let ids = [prompt.as_slice(), &completion].concat();
        // The EOS that was appended stays visible; every other one is hidden.
        let appended = if cut { ids.len() } else { ids.len() - 1 };
        let hidden = (0..appended).filter(|&i| ids[i] == eos).collect();
        EncodedSequence { completion_start: prompt.len(), ids, hidden }
    };
    Ok(outcome.with_sides(join(chosen, chosen_cut), join(rejected, rejected_cut)))
}

/// Where Python's slice `ids[: max_length - max_prompt_length]` ends; a negative bound counts from the end.
fn python_end(len: usize, max_length: usize, max_prompt_length: usize) -> usize {
    match max_length.checked_sub(max_prompt_length) {
        Some(kept) => kept.min(len),
        None => len.saturating_sub(max_prompt_length - max_length),
    }
}
