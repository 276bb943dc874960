//! The prompt template: text with `{prompt}` in it, as in `"Question: {prompt}\n\nAnswer:"`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const SLOT: &str = "{prompt}";

/// A prompt as it is, with nothing around it.
pub const PLAIN: &str = SLOT;

/// A question with the words around it that the models of this program's presets were trained on.
pub const QUESTION: &str = "Question: {prompt}\n\nAnswer:";

/// A text in which `{prompt}` stands exactly once. Other braces are ordinary characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptTemplate {
    before: String,
    after: String,
}

impl PromptTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// `{prompt}` is missing or stands more than once.
    pub fn new(template: &str) -> Result<Self> {
        let parts: Vec<&str> = template.split(SLOT).collect();
        match parts.as_slice() {
            [before, after] => {
                Ok(Self { before: (*before).to_string(), after: (*after).to_string() })
            }
            _ => Err(Error::invalid(
                "data.prompt_template",
                format!("{template:?} holds {SLOT} {} times", parts.len() - 1),
                format!("write {SLOT} exactly once, as in {QUESTION:?}"),
            )),
        }
    }

    /// What stands before the prompt.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// The template with `prompt` in its place; braces inside `prompt` are left alone.
    pub fn apply(&self, prompt: &str) -> String {
        [&self.before, prompt, &self.after].concat()
    }
}

impl Default for PromptTemplate {
    /// The prompt as it is.
    fn default() -> Self {
        Self { before: String::new(), after: String::new() }
    }
}

impl TryFrom<String> for PromptTemplate {
    type Error = Error;

    fn try_from(template: String) -> Result<Self> {
        Self::new(&template)
    }
}

impl From<PromptTemplate> for String {
    fn from(template: PromptTemplate) -> Self {
        template.apply(SLOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_goes_where_the_slot_is_and_is_not_expanded_again() {
        let template = PromptTemplate::new("Question: {prompt}\n\nAnswer {x}:").unwrap();
        assert_eq!(template.apply("is {prompt} {y}?"), "Question: is {prompt} {y}?\n\nAnswer {x}:");
        assert_eq!(PromptTemplate::default().apply("$\\frac{1}{2}$"), "$\\frac{1}{2}$");
        assert_eq!(String::from(template), "Question: {prompt}\n\nAnswer {x}:");
    }

    #[test]
    fn the_slot_must_stand_exactly_once() {
        assert!(PromptTemplate::new(PLAIN).is_ok_and(|plain| plain == PromptTemplate::default()));
        assert_eq!(PromptTemplate::new(QUESTION).unwrap().before(), "Question: ");
        for (template, times) in [("Question:", "0 times"), ("{prompt} {prompt}", "2 times")] {
            let error = PromptTemplate::new(template).unwrap_err().to_string();
            assert!(error.contains(times) && error.contains("prompt_template"), "{error}");
        }
        assert!(serde_json::from_str::<PromptTemplate>("\"{Prompt}\"").is_err());
    }
}
