//! Finds the tokens that the assistant wrote, as transformers' `apply_chat_template(return_assistant_tokens_mask=True)`.

use std::ops::Range;

use super::{EncodeConfig, Outcome, Refusal, TruncationMode};
use crate::data::example::Example;
use crate::data::tokenizer::{CharRange, Tokenizer};
use crate::error::{Error, Result};

/// Removes the tokens that the assistant did not write from the scored tokens of `outcome`.
///
/// # Errors
/// The example is no conversation.
pub(super) fn score_only(
    tokenizer: &Tokenizer,
    example: &Example,
    config: &EncodeConfig,
    mut outcome: Outcome,
) -> Result<Outcome> {
    let place = || format!("example {}", example.id);
    let Some((whole, generated)) = example
        .rendered
        .as_deref()
        .and_then(|row| Some((row.wholes.first()?, row.generated.first()?)))
    else {
        return Err(Error::invalid(
            place(),
            "is text, and data.assistant_only_loss is for conversations",
            "write the rows as lists of messages, or remove the key",
        ));
    };
    let (ids, offsets) = tokenizer.encode_with_offsets(whole)?;
    let written = written_by_assistant(&offsets, &in_characters(whole, generated));
    if !written.contains(&true) {
        outcome.refusal = Some(Refusal::NotByAssistant);
    }
    outcome.never_stops = !ends_turn(tokenizer, &ids, &written)?;
    let Some((sequence, _)) = outcome.sides.as_mut() else { return Ok(outcome) };
    let removed = match config.truncation_mode {
        TruncationMode::KeepStart => 0,
        TruncationMode::KeepEnd => ids.len() - sequence.ids.len(),
    };
    let is_scored = |index: &usize| written[removed + index];
    let length = sequence.ids.len();
    let first = (sequence.completion_start..length).find(is_scored);
    sequence.completion_start = first.unwrap_or(length);
    outcome.unscored =
        (sequence.completion_start..length).filter(|index| !is_scored(index)).collect();
    let scored = sequence.scored_tokens() - outcome.unscored.len();
    if outcome.refusal.is_none() && scored == 0 {
        outcome.refusal = Some(Refusal::LostByTruncation);
    }
    Ok(outcome)
}

/// Returns whether the assistant's last token that is no white space is an added one, as the ends of turns are. The rule is
/// that of TRL's `is_chat_template_stop_token_trained`.
fn ends_turn(tokenizer: &Tokenizer, ids: &[u32], written: &[bool]) -> Result<bool> {
    for (id, _) in ids.iter().zip(written).rev().filter(|(_, written)| **written) {
        if !tokenizer.decode(&[*id], false)?.trim().is_empty() {
            return Ok(tokenizer.is_added(*id));
        }
    }
    Ok(false)
}

/// Returns which tokens, of the given `offsets`, the ranges of characters in `generated` make the assistant's.
///
/// The rule is that of transformers: from the first token with the first character to the first token with the last
/// one, or to the end of the text if that is no token, or the first of all.
fn written_by_assistant(offsets: &[CharRange], generated: &[Range<usize>]) -> Vec<bool> {
    let mut written = vec![false; offsets.len()];
    let token_with = |character: usize| {
        offsets.iter().position(|(start, end)| (*start..*end).contains(&character))
    };
    for range in generated {
        let Some(first) = token_with(range.start) else { break };
        let last = range.end.checked_sub(1).and_then(token_with).filter(|last| *last > 0);
        let end = last.map_or(offsets.len(), |last| last + 1);
        (first..end).for_each(|index| written[index] = true);
    }
    written
}

/// Converts ranges of bytes of `text` to ranges of characters.
fn in_characters(text: &str, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let count = |end: usize| text[..end].chars().count();
    ranges.iter().map(|range| count(range.start)..count(range.end)).collect()
}
