//! A conversation: each question goes behind all that was said, and only what is new is computed.

use arithmo_backends::TrainBackend;

use super::config::{FinishReason, GenerateConfig};
use super::decode::{Memory, generate_on};
use super::text::{CompletionEvent, Texts};
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::model::mistral::Mistral;

/// Stands between an answer and the next question.
const BETWEEN: &str = "\n\n";

/// What was said so far, and its keys and values.
#[derive(Clone, Debug, Default)]
pub struct Conversation<B: TrainBackend> {
    text: String,
    memory: Option<Memory<B>>,
}

impl<B: TrainBackend> Conversation<B> {
    /// Nothing was said.
    pub fn new() -> Self {
        Self { text: String::new(), memory: None }
    }

    /// Completes `question` in `template`, behind what was said before; `on_text` gets the answer as it comes. Returns why
    /// it ended.
    ///
    /// # Errors
    /// As [`generate_with`](super::generate_with): the question counts as not asked. `on_text` fails.
    pub fn ask(
        &mut self,
        model: &Mistral<B>,
        tokenizer: &Tokenizer,
        question: &str,
        template: &PromptTemplate,
        config: &GenerateConfig,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<FinishReason> {
        let between = if self.text.is_empty() { "" } else { BETWEEN };
        let text = [&self.text, between, &template.apply(question)].concat();
        let (prompts, ids) = ([text.clone()], [tokenizer.encode(&text, true)?]);
        let mut answer = String::new();
        let on_event = |event: CompletionEvent<'_>| match event {
            CompletionEvent::Text { text, .. } => on_text(text),
            CompletionEvent::Finished { completion, .. } => {
                answer.clone_from(&completion.completion);
                Ok(())
            }
            CompletionEvent::Step(_) => Ok(()),
        };
        let mut texts = Texts::new(tokenizer, &prompts, &ids, &config.stop, on_event);
        let generated = generate_on(&mut self.memory, model, &ids[0], config, &mut texts)?;
        drop(texts);
        self.text = text + answer.trim_end();
        Ok(generated.finish_reason)
    }

    /// Forgets keys and values, not what was said: for a change of the model or its adapter.
    pub fn forget_states(&mut self) {
        self.memory = None;
    }
}
