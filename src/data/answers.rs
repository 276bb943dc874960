//! Pairs as TRL's trainers without a reference, ORPO and CPO, tokenize them.

use std::path::Path;

use super::encode::{EncodeConfig, EncodedDataset, EncodedPair, EncodedSequence, encode_answers};
use super::pair::read_pairs;
use super::sample::Sample;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// A pair by the tokenization of [`encode_answers`]. With `SCORES_PROMPT` the prompt of the chosen sequence is scored too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerPair<const SCORES_PROMPT: bool>(pub EncodedPair);

/// A pair for CPO.
pub type CpoPair = AnswerPair<false>;

/// A pair for ORPO, whose cross-entropy includes the prompt.
pub type OrpoPair = AnswerPair<true>;

impl<const SCORES_PROMPT: bool> AnswerPair<SCORES_PROMPT> {
    /// Returns the number of scored tokens of sequence `side` that belong to the prompt.
    pub fn scored_prompt_tokens(&self, side: usize) -> usize {
        self.scored_tokens(side) - self.sides()[side].scored_tokens()
    }
}

impl<const SCORES_PROMPT: bool> Sample for AnswerPair<SCORES_PROMPT> {
    const NAME: &'static str = EncodedPair::NAME;
    const SIDES: &'static [&'static str] = EncodedPair::SIDES;

    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>> {
        Ok(encode_answers(tokenizer, &read_pairs(file, tokenizer.chat_template())?, config)?
            .map(Self))
    }

    fn id(&self) -> &str {
        &self.0.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        self.0.sides()
    }

    fn first_scored(&self, side: usize) -> usize {
        if SCORES_PROMPT && side == 0 { 1 } else { self.0.first_scored(side) }
    }
}
