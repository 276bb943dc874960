//! The [`Sample`] trait: the interface of encoded preference pairs and encoded examples to the training loop.

use std::path::Path;

use super::batch;
use super::encode::{
    EncodeConfig, EncodedDataset, EncodedExample, EncodedPair, EncodedSequence, encode_examples,
    encode_pairs,
};
use super::example::{Example, read_examples};
use super::pair::read_pairs;
use super::prompt::PromptTemplate;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// An encoded training sample of one or more sequences.
pub trait Sample: Clone + std::fmt::Debug + Send + Sync {
    /// Plural noun for samples of this kind, used in messages.
    const NAME: &'static str;
    /// Name of each sequence of a sample, used in messages.
    const SIDES: &'static [&'static str];

    /// Reads and encodes all samples of a file.
    ///
    /// # Errors
    /// Same as the reader and the encoder of this kind of samples.
    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>>;

    /// Returns the id that identifies the sample in every report.
    fn id(&self) -> &str;

    /// Returns the sequences of the sample, one for each name in [`Self::SIDES`].
    fn sides(&self) -> Vec<&EncodedSequence>;

    /// Returns the index of the first scored token of sequence `side`: that of the completion, unless the prompt is scored
    /// too. The token at index 0 is never scored, because nothing predicts it.
    fn first_scored(&self, side: usize) -> usize {
        self.sides()[side].completion_start.max(1)
    }

    /// Returns whether the token `index` of sequence `side` is scored.
    fn is_scored(&self, side: usize, index: usize) -> bool {
        index >= self.first_scored(side)
    }

    /// Returns the number of scored tokens of sequence `side`.
    fn scored_tokens(&self, side: usize) -> usize {
        self.sides()[side].ids.len().saturating_sub(self.first_scored(side))
    }

    /// Returns all token ids that the model may be given because of the sample.
    fn token_ids(&self) -> Vec<&[u32]> {
        self.sides().into_iter().map(|side| side.ids.as_slice()).collect()
    }

    /// Returns the number of tokens that the sample takes in a packed row.
    fn packed_tokens(&self) -> usize {
        batch::packed_tokens(&self.sides())
    }

    /// Returns the number of tokens with attention, counting each sequence in full (TRL's `num_tokens`).
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
        encode_pairs(tokenizer, &read_pairs(file, tokenizer.chat_template())?, config)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        vec![&self.chosen, &self.rejected]
    }
}

/// Returns whether the completion follows the prompt without a space: it begins with a letter, a digit or a minus sign,
/// and the prompt ends in a visible character other than the end of a chat template's turn (`>` or `]`).
fn is_joined(template: &PromptTemplate, example: &Example) -> bool {
    if example.rendered.is_some() {
        return false;
    }
    let prompt = template.apply(&example.prompt);
    let ends_prompt = |c: char| !c.is_whitespace() && c != '>' && c != ']';
    let begins_word = |c: char| c.is_alphanumeric() || c == '-';
    prompt.chars().next_back().is_some_and(ends_prompt)
        && example.completion.chars().next().is_some_and(begins_word)
}

impl Sample for EncodedExample {
    const NAME: &'static str = "examples";
    const SIDES: &'static [&'static str] = &["completion"];

    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>> {
        let chat = tokenizer.chat_template();
        if let Some(chat) = chat.filter(|_| config.assistant_only_loss) {
            chat.check()?;
            chat.check_marks_generation()?;
        }
        let examples = read_examples(file, chat)?;
        let encoded = encode_examples(tokenizer, &examples, config);
        let mut encoded =
            encoded.map_err(|error| error.within(&format!("{}: ", file.display())))?;
        encoded.report.single_completion = true;
        encoded.report.joined =
            examples.iter().filter(|example| is_joined(&config.prompt_template, example)).count();
        Ok(encoded)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        vec![&self.sequence]
    }

    fn is_scored(&self, side: usize, index: usize) -> bool {
        index >= self.first_scored(side) && self.unscored.binary_search(&index).is_err()
    }

    fn scored_tokens(&self, _side: usize) -> usize {
        self.sequence.scored_tokens() - self.unscored.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_that_follow_without_a_space_are_seen() {
        let joined = |template: &str, prompt: &str, completion: &str| {
            let example = Example {
                id: "1".into(),
                prompt: prompt.into(),
                completion: completion.into(),
                rendered: None,
            };
            is_joined(&PromptTemplate::new(template).unwrap(), &example)
        };
        assert!(joined("Question: {prompt}\n\nAnswer:", "2 + 2?", "Natalia sold 4"));
        assert!(joined("{prompt}", "2 + 2 =", "4"));
        assert!(!joined("{prompt}", "2 + 2 =", " 4"));
        assert!(!joined("Answer: {prompt} ", "2", "4"));
        assert!(!joined("{prompt}\n", "2", "4"));
        // The end of a chat template's turn.
        assert!(!joined("[INST] {prompt} [/INST]", "2", "4"));
        assert!(!joined("{prompt}", "", "4"));
    }
}
