//! The arguments for the prompt template, shared by the subcommands that prompt a model.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::data::prompt::PromptTemplate;
use crate::data::prompt_format::{ChatPrompt, PromptFormat};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// The flags that set the prompt template.
#[derive(Args, Clone, Debug, Default)]
pub struct TemplateArgs {
    /// Apply this template to each prompt; it contains {prompt} once. `\n` is a line break, `\t` a tab, `\\n` a
    /// backslash and an n; commands of LaTeX (\neq, \text) stay as they are. For commands that ask a model something, it
    /// replaces the model's chat template. Default without a chat template: {prompt} alone for generate and score, the
    /// task's own for evaluate, "Question: {prompt}\n\nAnswer:" for chat and sample-pairs.
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

/// The flags for the model's chat template, of the subcommands that ask a model something.
#[derive(Args, Clone, Debug, Default)]
pub struct ChatTemplateArgs {
    /// Do not use the model's chat template, which is the default where the model has one: complete text instead.
    #[arg(long)]
    pub no_chat_template: bool,
    /// Begin each conversation with this system message; needs the model's chat template.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["no_chat_template", "prompt_template", "prompt_template_file"])]
    pub system: Option<String>,
}

impl ChatTemplateArgs {
    /// Returns how questions are asked: in the template that `given` sets, else with the model's chat template and the words
    /// `request` around the question, else in the template `text`.
    ///
    /// # Errors
    /// Same as [`TemplateArgs::given`]; or the chat template is not valid, or is absent and a system message is given.
    pub(super) fn format(
        &self,
        given: &TemplateArgs,
        tokenizer: &Tokenizer,
        request: &str,
        text: PromptTemplate,
    ) -> Result<PromptFormat> {
        if let Some(template) = given.given()? {
            return Ok(template.into());
        }
        match tokenizer.chat_template().filter(|_| !self.no_chat_template) {
            Some(template) => {
                template.check()?;
                let (template, system) = (template.clone(), self.system.clone());
                let request = PromptTemplate::new(request)?;
                Ok(PromptFormat::Chat(ChatPrompt { template, system, request }))
            }
            None if self.system.is_some() => Err(Error::invalid(
                "--system",
                "the model has no chat template, so there are no system messages",
                "leave it out, or write it into --prompt-template",
            )),
            None => Ok(text.into()),
        }
    }
}
