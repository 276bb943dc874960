//! A conversation: each question is appended to the earlier text, and only the new tokens are computed.

use arithmo_backends::TrainBackend;

use super::config::Generated;
use super::config::{FinishReason, GenerateConfig};
use super::decode::{PrefixCache, generate_with_prefix};
use super::listener::{Flow, GenerateProgress, Listener};
use super::text::{CompletionEvent, TextListener};
use crate::data::chat::Message;
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::decoder::Decoder;

/// Separator between an answer and the next question.
const SEPARATOR: &str = "\n\n";

/// The text of a conversation so far, with its keys and values.
#[derive(Clone, Debug, Default)]
pub struct Conversation<B: TrainBackend> {
    text: String,
    /// The messages so far, for a model with a chat template.
    messages: Vec<Message>,
    prefix: Option<PrefixCache<B>>,
}

impl<B: TrainBackend> Conversation<B> {
    /// Starts an empty conversation.
    pub fn new() -> Self {
        Self { text: String::new(), messages: Vec::new(), prefix: None }
    }

    /// Completes `question` in its format after the earlier text or messages; `on_text` receives the answer piece by piece.
    /// Returns why the answer ended.
    ///
    /// # Errors
    /// Same as [`generate_with`](super::generate_with), after which the question counts as not asked; an error of
    /// `on_text`; or the user asks to stop ([`Error::Interrupted`]): question and partial answer are kept, unless the
    /// answer is still empty.
    pub fn ask(
        &mut self,
        model: &Decoder<B>,
        tokenizer: &Tokenizer,
        question: &str,
        format: &PromptFormat,
        config: &GenerateConfig,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<FinishReason> {
        let mut messages = self.messages.clone();
        let text = match format {
            PromptFormat::Text(template) => {
                let separator = if self.text.is_empty() { "" } else { SEPARATOR };
                [&self.text, separator, &template.apply(question)].concat()
            }
            PromptFormat::Chat(chat) => {
                if messages.is_empty() {
                    messages = chat.start();
                }
                messages.push(chat.message(question));
                chat.render(&messages)?
            }
        };
        let ids = tokenizer.encode(&text, format.adds_special_tokens())?;
        let (prompts, ids) = ([text.clone()], [ids]);
        let mut answer = String::new();
        let on_event = |event: CompletionEvent<'_>| match event {
            CompletionEvent::Text { text, .. } => {
                answer.push_str(text);
                on_text(text)
            }
            CompletionEvent::Finished { completion, .. } => {
                answer.clone_from(&completion.completion);
                Ok(())
            }
            CompletionEvent::Step(_) => Ok(()),
        };
        let mut texts = TextListener::new(tokenizer, &prompts, &ids, &config.stop, on_event);
        let mut stoppable = Stoppable { listener: &mut texts, stopped: false };
        let generated =
            generate_with_prefix(&mut self.prefix, model, &ids[0], config, &mut stoppable);
        let stopped = stoppable.stopped;
        drop(texts);
        let keep = |answer: &str| {
            self.text = text + answer.trim_end();
            messages.push(Message::new("assistant", answer.trim_end()));
            self.messages = messages;
        };
        match generated {
            Ok(generated) if !stopped => {
                keep(&answer);
                Ok(generated.finish_reason)
            }
            Ok(_) | Err(Error::Interrupted { .. }) => {
                if !answer.trim().is_empty() {
                    keep(&answer);
                }
                let note = "the answer was stopped".into();
                Err(Error::Interrupted { note })
            }
            Err(error) => Err(error),
        }
    }

    /// Drops keys and values but keeps the text, for a change of the model or its adapter.
    pub fn forget_states(&mut self) {
        self.prefix = None;
    }
}

/// A listener that ends the completion when the user asks to stop. Unlike an error, this keeps the computed keys and
/// values.
struct Stoppable<'a, L> {
    listener: &'a mut L,
    stopped: bool,
}

impl<L: Listener> Listener for Stoppable<'_, L> {
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        let flow = self.listener.token(index, token_ids)?;
        if flow == Flow::Continue && interrupt::requested() {
            self.stopped = true;
            return Ok(Flow::Stop);
        }
        Ok(flow)
    }

    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()> {
        self.listener.finished(index, generated)
    }

    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        self.listener.step(progress)
    }
}
