//! The texts that are encoded: a prompt and its completions, with BOS and EOS, or as a chat template renders them.

use super::{Compat, EncodeConfig, Refusal};
use crate::data::chat::RenderedRow;
use crate::data::pair::PreferencePair;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// The texts of a prompt and two completions, which are the same one for an example.
pub(super) struct Texts<'a> {
    pub(super) prompt: &'a str,
    pub(super) completions: [&'a str; 2],
    /// Prompt, and prompt with each completion, as a chat template renders them.
    pub(super) rendered: Option<&'a RenderedRow>,
}

impl<'a> Texts<'a> {
    pub(super) fn new(
        prompt: &'a str,
        completions: [&'a str; 2],
        rendered: Option<&'a RenderedRow>,
    ) -> Self {
        Self { prompt, completions, rendered }
    }

    pub(super) fn from_pair(pair: &'a PreferencePair) -> Self {
        Self::new(&pair.prompt, [&pair.chosen, &pair.rejected], pair.rendered.as_deref())
    }

    /// Returns why the texts alone train on nothing (an empty completion, or two equal ones), or `None`.
    pub(super) fn refusal(&self, eos: &str) -> Option<Refusal> {
        let without_eos = |text: &'a str| match self.rendered {
            None => text.strip_suffix(eos).unwrap_or(text),
            // A template may write a line end after EOS.
            Some(_) => text.trim_end().strip_suffix(eos).unwrap_or(text),
        };
        let [chosen, rejected] = self.completions.map(without_eos);
        if chosen.trim().is_empty() || rejected.trim().is_empty() {
            Some(Refusal::EmptyCompletion)
        } else if chosen == rejected {
            Some(Refusal::IdenticalSides)
        } else {
            None
        }
    }

    /// Returns the ids of the prompt alone, and of the prompt with each completion. A chat template writes BOS and EOS
    /// itself; otherwise the tokenizer adds BOS, and the text of EOS is appended.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<(Vec<u32>, [Vec<u32>; 2])> {
        let special = self.rendered.is_none();
        let (prompt, wholes) = match self.rendered {
            Some(row) => {
                let whole = |index: usize| row.wholes.get(index).or(row.wholes.first());
                (row.prompt.clone(), [0, 1].map(|index| whole(index).cloned().unwrap_or_default()))
            }
            None => {
                let (prompt, eos) =
                    (config.prompt_template.apply(self.prompt), tokenizer.eos_token());
                let whole = |completion: &str| {
                    let end = if completion.ends_with(eos) { "" } else { eos };
                    [&prompt, completion, end].concat()
                };
                let wholes = self.completions.map(whole);
                (prompt, wholes)
            }
        };
        let chosen = tokenizer.encode(&wholes[0], special)?;
        let rejected = if wholes[1] == wholes[0] {
            chosen.clone()
        } else {
            tokenizer.encode(&wholes[1], special)?
        };
        Ok((tokenizer.encode(&prompt, special)?, [chosen, rejected]))
    }
}

/// Refuses a prompt template for a conversation, and a conversation under the rules of TRL 0.7.4, which knows none.
pub(super) fn check_template(id: &str, texts: &Texts<'_>, config: &EncodeConfig) -> Result<()> {
    let (problem, remedy) = if texts.rendered.is_none() {
        return Ok(());
    } else if config.compat == Compat::Trl074 {
        ("is a conversation, which data.compat = \"trl-0.7.4\" does not know", "remove data.compat")
    } else if config.prompt_template != PromptTemplate::default() {
        (
            "is a conversation, for which the chat template is used and not the prompt template",
            "remove data.prompt_template (--prompt-template)",
        )
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!("row {id}"), problem, remedy))
}
