//! The prompt template: text that contains the placeholder `{prompt}`, as in `"Question: {prompt}\n\nAnswer:"`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::template_text::{one_line, unescape};
use crate::error::{Error, Result};
use crate::input_file;

const PLACEHOLDER: &str = "{prompt}";

/// Template that leaves the prompt unchanged.
pub const PLAIN: &str = PLACEHOLDER;

/// Question-and-answer template that the models of this program's presets were trained with.
pub const QUESTION: &str = "Question: {prompt}\n\nAnswer:";

/// A template that contains `{prompt}` exactly once. Other braces are ordinary characters.
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
    /// `{prompt}` is missing or occurs more than once.
    pub fn new(template: &str) -> Result<Self> {
        Self::at(template, "data.prompt_template")
    }

    /// Parses a template typed on a command line and decodes its escapes. See
    /// [`template_text`](crate::data::template_text) for the rules.
    ///
    /// # Errors
    /// Same as [`Self::new`], or an escape could also be a LaTeX command.
    pub fn typed(template: &str) -> Result<Self> {
        let place = "--prompt-template";
        Self::at(&unescape(template, place)?, place)
    }

    /// Reads a template from a file. Escapes are not decoded, and a line end at the end of the file is dropped.
    ///
    /// # Errors
    /// The file cannot be read; otherwise same as [`Self::new`].
    pub fn read(path: &Path) -> Result<Self> {
        let text = input_file::read_once(path).map_err(|e| Error::io(path, "read", e))?;
        let text = text.replace("\r\n", "\n");
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        Self::at(text.strip_suffix('\n').unwrap_or(text), &path.display().to_string())
    }

    /// Parses a template. Errors name `place` as its source.
    fn at(template: &str, place: &str) -> Result<Self> {
        let parts: Vec<&str> = template.split(PLACEHOLDER).collect();
        match parts.as_slice() {
            [before, after] => {
                Ok(Self { before: (*before).to_string(), after: (*after).to_string() })
            }
            _ => Err(Error::invalid(
                place,
                format!("{template:?} contains {PLACEHOLDER} {} times", parts.len() - 1),
                format!("write {PLACEHOLDER} exactly once, as in {QUESTION:?}"),
            )),
        }
    }

    /// Returns the text before the prompt.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// Returns the template on one line for messages, with line ends written as `\n`.
    pub fn shown(&self) -> String {
        one_line(&self.apply(PLACEHOLDER))
    }

    /// Replaces the placeholder with `prompt`. Braces inside `prompt` stay as they are.
    pub fn apply(&self, prompt: &str) -> String {
        [&self.before, prompt, &self.after].concat()
    }
}

impl Default for PromptTemplate {
    /// Returns the template that leaves the prompt unchanged.
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
        template.apply(PLACEHOLDER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_replaces_the_placeholder_and_is_not_expanded_again() {
        let template = PromptTemplate::new("Question: {prompt}\n\nAnswer {x}:").unwrap();
        assert_eq!(template.apply("is {prompt} {y}?"), "Question: is {prompt} {y}?\n\nAnswer {x}:");
        assert_eq!(PromptTemplate::default().apply("$\\frac{1}{2}$"), "$\\frac{1}{2}$");
        assert_eq!(String::from(template), "Question: {prompt}\n\nAnswer {x}:");
    }

    #[test]
    fn typed_templates_and_files_have_line_ends() {
        let typed = PromptTemplate::typed(r"Question: {prompt}\n\nAnswer:").unwrap();
        assert_eq!(typed, PromptTemplate::new(QUESTION).unwrap());
        assert_eq!(typed.shown(), r"Question: {prompt}\n\nAnswer:");
        let error = PromptTemplate::typed("no place").unwrap_err().to_string();
        assert!(error.starts_with("--prompt-template: "), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("template.txt");
        for text in [
            "Question: {prompt}\n\nAnswer:",
            "Question: {prompt}\n\nAnswer:\n",
            "\u{feff}Question: {prompt}\r\n\r\nAnswer:\r\n",
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(PromptTemplate::read(&path).unwrap(), typed, "{text:?}");
        }
        std::fs::write(&path, r"{prompt}\n").unwrap();
        assert_eq!(PromptTemplate::read(&path).unwrap().apply("a"), r"a\n");
        let error = PromptTemplate::read(&folder.path().join("none"));
        assert!(error.unwrap_err().to_string().contains("none: cannot read"));
    }

    #[test]
    fn the_placeholder_must_occur_exactly_once() {
        assert!(PromptTemplate::new(PLAIN).is_ok_and(|plain| plain == PromptTemplate::default()));
        assert_eq!(PromptTemplate::new(QUESTION).unwrap().before(), "Question: ");
        for (template, times) in [("Question:", "0 times"), ("{prompt} {prompt}", "2 times")] {
            let error = PromptTemplate::new(template).unwrap_err().to_string();
            assert!(error.contains(times) && error.contains("prompt_template"), "{error}");
        }
        assert!(serde_json::from_str::<PromptTemplate>("\"{Prompt}\"").is_err());
    }
}
