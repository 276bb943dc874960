//! How a question becomes the text that a model completes: with a template of text, or as a message of a chat.

use sha2::{Digest, Sha256};

use super::chat::{ChatTemplate, Message, RenderOptions};
use super::prompt::PromptTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// How a question becomes a prompt.
#[derive(Clone, Debug)]
pub enum PromptFormat {
    /// The question in a template of text. The tokenizer adds BOS.
    Text(PromptTemplate),
    /// The question as the user's message in the model's chat template, which writes BOS itself.
    Chat(ChatPrompt),
}

/// A question as the user's message in a chat.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    /// The model's chat template.
    pub template: ChatTemplate,
    /// A system message before the question.
    pub system: Option<String>,
    /// The words around the question in the user's message.
    pub request: PromptTemplate,
}

impl ChatPrompt {
    /// Returns the messages before the user's first one.
    pub fn start(&self) -> Vec<Message> {
        self.system.iter().map(|system| Message::new("system", system)).collect()
    }

    /// Returns the user's message with `question`.
    pub fn message(&self, question: &str) -> Message {
        Message::new("user", &self.request.apply(question))
    }

    /// Renders `messages` and the start of the assistant's answer.
    ///
    /// # Errors
    /// The template refuses the messages, or is not valid.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let rendered = self.template.render(messages, &options).map_err(|problem| {
            Error::invalid(
                self.template.place(),
                format!("cannot render the messages: {problem}"),
                "leave out what it does not take (--system), or the template itself: --no-chat-template",
            )
        })?;
        Ok(rendered.text)
    }
}

impl PromptFormat {
    /// Returns the prompt for `question`.
    ///
    /// # Errors
    /// Same as [`ChatPrompt::render`].
    pub fn apply(&self, question: &str) -> Result<String> {
        match self {
            Self::Text(template) => Ok(template.apply(question)),
            Self::Chat(chat) => {
                let mut messages = chat.start();
                messages.push(chat.message(question));
                chat.render(&messages)
            }
        }
    }

    /// Returns whether the tokenizer adds its special tokens to a prompt. A chat template has written them, and another BOS
    /// would be one too many.
    pub fn adds_special_tokens(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    /// Returns the token ids of the prompt for `question`.
    ///
    /// # Errors
    /// Same as [`Self::apply`], or the tokenizer cannot encode the prompt.
    pub fn encode(&self, tokenizer: &Tokenizer, question: &str) -> Result<Vec<u32>> {
        tokenizer.encode(&self.apply(question)?, self.adds_special_tokens())
    }

    /// Returns a text that identifies the format: two formats with equal texts make equal prompts.
    pub fn identity(&self) -> String {
        match self {
            Self::Text(template) => String::from(template.clone()),
            Self::Chat(chat) => {
                let hash = Sha256::digest(chat.template.source().as_bytes());
                let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                let system = chat.system.as_ref().map(|text| format!(", system {text:?}"));
                let request = (chat.request != PromptTemplate::default())
                    .then(|| format!(", user {:?}", String::from(chat.request.clone())));
                ["chat template ", &hash, &system.unwrap_or_default(), &request.unwrap_or_default()]
                    .concat()
            }
        }
    }
}

impl From<PromptTemplate> for PromptFormat {
    fn from(template: PromptTemplate) -> Self {
        Self::Text(template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat::Clock;

    #[test]
    fn a_question_becomes_a_message() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                      {% if add_generation_prompt %}<assistant>{% endif %}";
        let mut chat = ChatPrompt {
            template: ChatTemplate::new("t", source, Vec::new(), Clock::Start),
            system: None,
            request: PromptTemplate::new("Solve: {prompt}").unwrap(),
        };
        let plain = PromptFormat::Chat(chat.clone());
        assert_eq!(plain.apply("2?").unwrap(), "<user>Solve: 2?<assistant>");
        chat.system = Some("Be short.".into());
        let format = PromptFormat::Chat(chat);
        assert_eq!(format.apply("2?").unwrap(), "<system>Be short.<user>Solve: 2?<assistant>");
        assert!(!format.adds_special_tokens());
        assert_ne!(format.identity(), plain.identity());
        let text = PromptFormat::from(PromptTemplate::new("Q: {prompt}").unwrap());
        assert_eq!(
            (text.apply("2?").unwrap().as_str(), text.identity().as_str()),
            ("Q: 2?", "Q: {prompt}")
        );
    }
}
