//! Takes conversations from the columns of a row and renders them with the model's chat template.

use serde_json::{Map, Value};

use super::{BadRow, Columns, kind};
use crate::data::chat::{Conversation, Message, RenderedRow, extract_prompt};

/// Names that transformers' `apply_chat_template` takes for arguments of its own, so that they are no variables.
const RESERVED: [&str; 10] = [
    "messages",
    "conversation",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "truncation",
    "return_dict",
    "return_assistant_tokens_mask",
];

/// Remedy for a column that should hold messages.
const MESSAGES: &str = "write a list of messages, {\"role\": \"user\", \"content\": \"...\"}";

impl Columns<'_> {
    /// Returns whether the row is a conversation: one of the columns `keys` is a list of messages. All rows of a file must
    /// be conversations, or none.
    pub(in crate::data) fn is_conversation(&mut self, keys: &[&str]) -> bool {
        let is_list = |key: &&str| matches!(self.row.get(*key), Some(Value::Array(_)));
        self.conversational = keys.iter().any(is_list);
        self.conversational
    }

    /// Returns whether the column `key` is a list.
    pub(in crate::data) fn is_list(&self, key: &str) -> bool {
        matches!(self.row.get(key), Some(Value::Array(_)))
    }

    /// Takes the messages of the column `key`.
    pub(in crate::data) fn messages(&mut self, key: &str) -> Result<Vec<Message>, BadRow> {
        let bad = |problem: String| BadRow { problem, remedy: MESSAGES };
        let list = match self.row.remove(key) {
            Some(Value::Array(list)) => list,
            Some(other) => {
                let problem = format!(
                    "{key}: is {}, while another column is a list of messages",
                    kind(&other)
                );
                return Err(bad(problem));
            }
            None => return Err(bad(format!("{key}: is missing; the row has {}", self.present()))),
        };
        if list.is_empty() {
            return Err(bad(format!("{key}: holds no message")));
        }
        let message = |(index, value): (usize, Value)| {
            let named = |problem| bad(format!("{key}[{index}]: {problem}"));
            Message::from_value(with_usual_names(value)).map_err(named)
        };
        list.into_iter().enumerate().map(message).collect()
    }

    /// Takes prompt, chosen and rejected of a conversation. A prompt that is absent, or is text, is what chosen and rejected
    /// begin with.
    pub(in crate::data) fn preference(&mut self) -> Result<Conversation, BadRow> {
        let mut sides = [self.messages("chosen")?, self.messages("rejected")?];
        let prompt = if self.is_list("prompt") {
            self.messages("prompt")?
        } else {
            extract_prompt(&mut sides)
        };
        if prompt.is_empty() {
            return Err(BadRow {
                problem: "prompt: is missing, and chosen and rejected do not begin with the same messages".to_string(),
                remedy: "give the messages before the answers in a column prompt",
            });
        }
        self.conversation(prompt, sides.to_vec())
    }

    /// Takes the columns that the chat template is given besides the messages.
    pub(in crate::data) fn conversation(
        &mut self,
        prompt: Vec<Message>,
        completions: Vec<Vec<Message>>,
    ) -> Result<Conversation, BadRow> {
        let variables = match self.row.remove("chat_template_kwargs") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(other) => {
                let problem = format!("chat_template_kwargs: is {}, not an object", kind(&other));
                let remedy = "write an object of the template's variables, or leave the key out";
                return Err(BadRow { problem, remedy });
            }
        };
        if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
            let problem = format!("chat_template_kwargs: {name} is no variable of the template");
            let remedy =
                "leave it out: messages and tools are columns, and the rest follows from the row";
            return Err(BadRow { problem, remedy });
        }
        let tools = match self.row.remove("tools") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => {
                Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
            }
            Some(tools) => Some(tools),
        };
        match &tools {
            None | Some(Value::Array(_)) => {}
            Some(other) => {
                let problem = format!("tools: is {}, not a list of JSON schemas", kind(other));
                return Err(BadRow { problem, remedy: "write the list, or its JSON as text" });
            }
        }
        let tools = tools.filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
        Ok(Conversation { prompt, completions, tools, variables })
    }

    /// Renders a conversation with the model's chat template.
    pub(in crate::data) fn render(
        &self,
        conversation: &Conversation,
    ) -> Result<RenderedRow, BadRow> {
        let Some(template) = self.chat else {
            return Err(BadRow {
                problem: "is a conversation, and the model has no chat template".to_string(),
                remedy: "put the template of the model's instruct version into its folder as chat_template.jinja, or write the \
                         row as text",
            });
        };
        conversation.render(template).map_err(|problem| BadRow {
            problem: format!("cannot be rendered with {}: {problem}", template.place()),
            remedy: "change the messages to what the template takes, or leave the row out",
        })
    }
}

/// Renames `from` and `value`, as some data sets call role and content.
fn with_usual_names(mut message: Value) -> Value {
    if let Some(fields) = message.as_object_mut() {
        for (other, usual) in [("from", "role"), ("value", "content")] {
            if !fields.contains_key(usual)
                && let Some(value) = fields.remove(other)
            {
                fields.insert(usual.to_string(), value);
            }
        }
    }
    message
}
