//! The messages of a conversation, prepared for a template as transformers prepares them.

use minijinja::value::Value as TemplateValue;
use serde::Serialize;
use serde_json::{Map, Value};

/// One message: a role, a content and whatever else the data has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

/// Names under which data and templates keep what the assistant thought. The first is the one that most templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Message {
    /// Creates a message of a role and a text.
    pub fn new(role: &str, content: &str) -> Self {
        let field = |name: &str, text: &str| (name.to_string(), Value::from(text));
        Self(Map::from_iter([field("role", role), field("content", content)]))
    }

    /// Takes a message from data.
    ///
    /// # Errors
    /// The value is not an object, or has no role.
    pub fn from_value(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(fields) => match fields.get("role") {
                Some(Value::String(_)) => Ok(Self(fields)),
                Some(other) => Err(format!("role is {other}, not text")),
                None => {
                    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                    Err(format!("role is missing; the message has {}", names.join(", ")))
                }
            },
            other => Err(format!("is {other}, not an object with role and content")),
        }
    }

    /// Returns the role.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the content if it is text.
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// Returns the number of bytes of its texts, about.
    pub(super) fn size(&self) -> usize {
        self.0.values().map(size).sum()
    }

    /// Returns whether the message has a content that is not null.
    pub(super) fn has_content(&self) -> bool {
        self.0.get("content").is_some_and(|content| !content.is_null())
    }

    /// Returns the message with `suffix` after the text of its content, or `None` if it has no text.
    pub(super) fn with_suffix(&self, suffix: &str) -> Option<Self> {
        let mut message = self.clone();
        match message.0.get_mut("content")? {
            Value::String(text) => text.push_str(suffix),
            Value::Array(parts) => {
                let text = parts.iter_mut().rev().find_map(|part| part.get_mut("text"))?;
                let Value::String(text) = text else { return None };
                text.push_str(suffix);
            }
            _ => return None,
        }
        Some(message)
    }

    /// Converts the message for a template. Fields that are null are left out, and what the assistant thought is given under
    /// the names that templates read.
    pub(super) fn to_template(&self) -> TemplateValue {
        let reasoning =
            REASONING.iter().find_map(|name| self.0.get(*name).filter(|v| !v.is_null()));
        let mut fields: Vec<(String, TemplateValue)> = Vec::with_capacity(self.0.len() + 2);
        if let Some(reasoning) = reasoning {
            fields.push(("thinking".to_string(), to_template(reasoning)));
        }
        for (name, value) in self.0.iter().filter(|(_, value)| !value.is_null()) {
            fields.push((name.clone(), to_template(value)));
        }
        if let Some(reasoning) = reasoning {
            fields.push((REASONING[0].to_string(), to_template(reasoning)));
        }
        TemplateValue::from_pairs(fields)
    }
}

/// Returns the number of bytes of the texts in a value of JSON, about.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// Converts a value of JSON for a template.
pub(super) fn to_template(value: &Value) -> TemplateValue {
    match value {
        Value::Null => TemplateValue::from(()),
        Value::Bool(flag) => TemplateValue::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => TemplateValue::from(number),
            (None, Some(number)) => TemplateValue::from(number),
            (None, None) => TemplateValue::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => TemplateValue::from(text.as_str()),
        Value::Array(items) => {
            TemplateValue::from(items.iter().map(to_template).collect::<Vec<_>>())
        }
        Value::Object(fields) => TemplateValue::from_pairs(
            fields.iter().map(|(name, value)| (name.clone(), to_template(value))),
        ),
    }
}
