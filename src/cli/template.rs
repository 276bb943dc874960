//! The arguments for the prompt template, shared by the subcommands that prompt a model.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::data::prompt::PromptTemplate;
use crate::error::Result;

/// The flags that set the prompt template.
#[derive(Args, Clone, Debug, Default)]
pub struct TemplateArgs {
    /// Apply this template to each prompt; it contains {prompt} once. `\n` is a line break, `\t` a tab, `\\n` a
    /// backslash and an n; commands of LaTeX (\neq, \text) stay as they are. Default: {prompt} alone for generate and
    /// score, the task's own for evaluate, "Question: {prompt}\n\nAnswer:" for chat and sample-pairs.
    #[arg(long, value_name = "TEMPLATE")]
    pub prompt_template: Option<String>,
    /// Read the template from this file, without escapes; a line break at its end is removed.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_template")]
    pub prompt_template_file: Option<PathBuf>,
}

impl TemplateArgs {
    /// Returns the file of the template, which no output may replace.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.prompt_template_file.as_deref().into_iter()
    }

    /// Returns the template set by a flag, if any.
    ///
    /// # Errors
    /// The template does not contain `{prompt}` exactly once, an escape in it is ambiguous, or the file cannot be
    /// read.
    pub fn given(&self) -> Result<Option<PromptTemplate>> {
        match (&self.prompt_template, &self.prompt_template_file) {
            (Some(text), _) => PromptTemplate::typed(text).map(Some),
            (None, Some(file)) => PromptTemplate::read(file).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Returns the template set by a flag, or else `default`.
    ///
    /// # Errors
    /// Same as [`Self::given`].
    pub fn or(&self, default: &str) -> Result<PromptTemplate> {
        match self.given()? {
            Some(template) => Ok(template),
            None => PromptTemplate::new(default),
        }
    }
}
