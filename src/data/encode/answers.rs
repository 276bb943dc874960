//! Encodes pairs by the rules of TRL's `ORPOTrainer` and `CPOTrainer` (`tokenize_row` and `build_tokenized_answer`).

use rayon::prelude::*;

use super::texts::{Texts, check_template};
use super::{Divergence, collect};
use super::{EncodeConfig, EncodedDataset, EncodedPair, EncodedSequence, Outcome, Refusal};
use crate::data::pair::PreferencePair;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Encodes all pairs, in order, as TRL 1.x's trainers without a reference do.
///
/// Prompt and prompt + completion are tokenized as whole texts without special tokens, and the completion begins after as many
/// tokens as the prompt has, or one earlier if the last token of the prompt merges with it. BOS is put in front if the
/// tokenizer has one, and EOS at the end, unless they are there. A sequence that is longer than `max_length` loses the end of
/// its completion, never a part of its prompt. A completion of which nothing is left is refused, because its loss is not a
/// number. Two equal completions are no reason to refuse a pair: the cross-entropy of the chosen one is learned.
///
/// # Errors
/// Same as [`super::encode_pairs`], or the prompts of a pair's two sides differ in more than their last token.
pub fn encode_answers(
    tokenizer: &Tokenizer,
    pairs: &[PreferencePair],
    config: &EncodeConfig,
) -> Result<EncodedDataset> {
    config.validate()?;
    let encode = |pair| encode_pair(tokenizer, pair, config);
    let outcomes: Vec<Outcome> = pairs.par_iter().map(encode).collect::<Result<_>>()?;
    let ids = pairs.iter().map(|pair| &pair.id);
    let pair =
        |id: &String, (chosen, rejected), _| EncodedPair { id: id.clone(), chosen, rejected };
    Ok(collect(config, ids.zip(outcomes), pair))
}

fn encode_pair(
    tokenizer: &Tokenizer,
    pair: &PreferencePair,
    config: &EncodeConfig,
) -> Result<Outcome> {
    let mut texts = Texts::from_pair(pair);
    check_template(&pair.id, &texts, config)?;
    let mut prompt = config.prompt_template.apply(&pair.prompt);
    if let Some(rendered) = texts.rendered {
        let (shared, completions) = rendered.split_for_answers().map_err(|problem| {
            let remedy = "end the prompt with a message of the user, or with one of the assistant that goes on";
            Error::invalid(format!("pair {}", pair.id), problem, remedy)
        })?;
        prompt = shared.to_string();
        if let [chosen, rejected] = completions[..] {
            texts.completions = [chosen, rejected];
        }
    }
    let side = |answer: &str| {
        encode_side(tokenizer, &prompt, answer)?.ok_or_else(|| different_prompts(pair))
    };
    let [chosen, rejected] = texts.completions.map(side);
    let (chosen, rejected) = (chosen?, rejected?);
    check_prompts(pair, &chosen, &rejected)?;
    let max_length = config.max_length.unwrap_or(usize::MAX);
    let eos = tokenizer.eos_id();
    let inside = |side: &EncodedSequence| {
        side.ids.split_last().is_some_and(|(_, before)| before.contains(&eos))
    };
    let is_long = |side: &EncodedSequence| side.ids.len() > max_length;
    let refusal = texts.refusal(tokenizer.eos_token());
    let outcome = Outcome {
        refusal: refusal.filter(|refusal| *refusal != Refusal::IdenticalSides),
        chosen_cut: is_long(&chosen),
        rejected_cut: is_long(&rejected),
        eos_lost: is_long(&chosen) || is_long(&rejected),
        eos_inside: texts.rendered.is_none() && (inside(&chosen) || inside(&rejected)),
        divergence: texts.rendered.and_then(Divergence::find),
        ..Outcome::default()
    };
    let truncate = |mut side: EncodedSequence| {
        side.ids.truncate(max_length.max(side.completion_start));
        side
    };
    let outcome = outcome.with_sides(truncate(chosen), truncate(rejected));
    Ok(Outcome { identical_after_truncation: false, ..outcome })
}

/// Encodes a prompt and an answer; `None` if both together have fewer tokens than the prompt alone.
fn encode_side(
    tokenizer: &Tokenizer,
    prompt: &str,
    answer: &str,
) -> Result<Option<EncodedSequence>> {
    let mut ids = tokenizer.encode(&[prompt, answer].concat(), false)?;
    let prompt = tokenizer.encode(prompt, false)?;
    if ids.len() < prompt.len() {
        return Ok(None);
    }
    let mut completion_start = prompt.len() - usize::from(!ids.starts_with(&prompt));
    if ids.get(completion_start..).and_then(<[u32]>::last) != Some(&tokenizer.eos_id()) {
        ids.push(tokenizer.eos_id());
    }
    let bos = tokenizer.bos_id().filter(|bos| completion_start == 0 || ids.first() != Some(bos));
    if let Some(bos) = bos {
        ids.insert(0, bos);
        completion_start += 1;
    }
    Ok(Some(EncodedSequence { ids, completion_start, hidden: Vec::new() }))
}

/// Checks that the prompts of both sides differ at most in their last token, as TRL does.
fn check_prompts(
    pair: &PreferencePair,
    chosen: &EncodedSequence,
    rejected: &EncodedSequence,
) -> Result<()> {
    let prompt = |side: &EncodedSequence| side.ids[..side.completion_start].to_vec();
    let (chosen, rejected) = (prompt(chosen), prompt(rejected));
    let different = chosen.iter().zip(&rejected).filter(|(a, b)| a != b).count();
    if different > 1 || chosen.len().abs_diff(rejected.len()) > 1 {
        return Err(different_prompts(pair));
    }
    Ok(())
}

fn different_prompts(pair: &PreferencePair) -> Error {
    Error::invalid(
        format!("pair {}", pair.id),
        "the prompt's tokens depend on the completion in more than the last one, which TRL refuses too",
        "end data.prompt_template, or the prompts, with a line end",
    )
}
