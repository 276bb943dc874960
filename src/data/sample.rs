//! What is trained on, as the loop of a run sees it: a pair of completions, or one.

use std::path::Path;

use super::batch;
use super::encode::{
    EncodeConfig, EncodedDataset, EncodedExample, EncodedPair, EncodedSequence, encode_examples,
    encode_pairs,
};
use super::example::read_examples;
use super::pair::read_pairs;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// An encoded sample of training.
pub trait Sample: Clone + std::fmt::Debug + Send + Sync {
    /// What samples are called, several of them.
    const NAME: &'static str;
    /// What its sequences are called.
    const SIDES: &'static [&'static str];

    /// Reads and encodes a file of samples.
    ///
    /// # Errors
    /// As the reader and the encoder of this kind.
    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>>;

    /// Names the sample in every report.
    fn id(&self) -> &str;

    /// Its sequences, as many as [`Self::SIDES`].
    fn sides(&self) -> Vec<&EncodedSequence>;

    /// Tokens the sample takes in a packed row.
    fn packed_tokens(&self) -> usize;

    /// Tokens that are attended to, each sequence counted in full (TRL's `num_tokens`).
    fn attended_tokens(&self) -> usize {
        let sides = self.sides().into_iter();
        sides.map(|side| side.ids.len() - side.hidden.len()).sum()
    }
}

impl Sample for EncodedPair {
    const NAME: &'static str = "pairs";
    const SIDES: &'static [&'static str] = &["chosen", "rejected"];

    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>> {
        encode_pairs(tokenizer, &read_pairs(file)?, config)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        vec![&self.chosen, &self.rejected]
    }

    fn packed_tokens(&self) -> usize {
        batch::packed_tokens(self)
    }
}

impl Sample for EncodedExample {
    const NAME: &'static str = "examples";
    const SIDES: &'static [&'static str] = &["completion"];

    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>> {
        encode_examples(tokenizer, &read_examples(file)?, config)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        vec![&self.sequence]
    }

    fn packed_tokens(&self) -> usize {
        // The last token predicts nothing.
        (self.sequence.ids.len() - 1).max(1)
    }
}
