//! `arithmo chat`: questions in, answers out as they are made.

use std::io::{BufRead, IsTerminal};

use arithmo_backends::TrainBackend;

use crate::data::prompt::{PromptTemplate, QUESTION};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{Conversation, FinishReason, GenerateConfig, stop_ids};
use crate::model::mistral::Mistral;
use crate::progress::ProgressMode;

use super::generate::DecodingArgs;
use super::model::ModelArgs;
use super::print_text;

const COMMANDS: &str = "/adapter on|off   answer with or without the adapter\n\
                        /reset            forget what was said\n\
                        /quit             end, as the end of the input does";

/// Arguments of `arithmo chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Text put around each question, with {prompt} where it goes: what the model was trained on
    #[arg(long, value_name = "TEMPLATE", default_value = QUESTION)]
    pub prompt_template: String,
    #[command(flatten)]
    pub(super) decoding: DecodingArgs,
}

/// Answers the lines of standard input until it ends.
///
/// # Errors
/// An argument, the model or the adapter are not right; standard input or output fails; the user interrupts.
pub fn run<B: TrainBackend>(args: &ChatArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let mut config = args.decoding.config(1);
    config.validate()?;
    let template = PromptTemplate::new(&args.prompt_template)?;
    if config.stop.is_empty() {
        config.stop = next_question(&template);
    }
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let model = args.model.load::<B>(&folder, mode, device)?;
    config.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;
    let with_adapter = args.model.adapter.is_some();
    let mut chat = Chat {
        base: model.clone().without_adapter(),
        adapted: with_adapter.then_some(model),
        adapter_on: with_adapter,
        conversation: Conversation::new(),
        tokenizer,
        template,
        config,
    };
    let input = std::io::stdin().lock();
    let shows_prompt = input.is_terminal() && mode != ProgressMode::Quiet;
    if shows_prompt {
        eprintln!("{COMMANDS}");
    }
    chat.answer_lines(input, print_text, |text| {
        if shows_prompt || text != PROMPT {
            eprint!("{text}");
        }
    })
}

const PROMPT: &str = "> ";

/// What a model that goes on after its answer writes next, where the template begins with text.
fn next_question(template: &PromptTemplate) -> Vec<String> {
    match template.before().trim() {
        "" => Vec::new(),
        text => vec![format!("\n{text}")],
    }
}

struct Chat<B: TrainBackend> {
    base: Mistral<B>,
    /// `Some` if an adapter was named; its weights beside the same base.
    adapted: Option<Mistral<B>>,
    adapter_on: bool,
    conversation: Conversation<B>,
    tokenizer: Tokenizer,
    template: PromptTemplate,
    config: GenerateConfig,
}

impl<B: TrainBackend> Chat<B> {
    /// Answers each line of `input`; answers go to `answer`, all else to `say`.
    fn answer_lines(
        &mut self,
        mut input: impl BufRead,
        mut answer: impl FnMut(&str) -> Result<()>,
        say: impl Fn(&str),
    ) -> Result<()> {
        let mut line = String::new();
        loop {
            say(PROMPT);
            line.clear();
            let read = input.read_line(&mut line);
            if read.map_err(|e| Error::io("standard input", "read", e))? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/quit" => return Ok(()),
                "/reset" => self.conversation = Conversation::new(),
                "/adapter on" => say(self.switch(true)),
                "/adapter off" => say(self.switch(false)),
                command if command.starts_with('/') => say(&format!("{COMMANDS}\n")),
                question => self.answer(question, &mut answer, &say)?,
            }
        }
    }

    fn switch(&mut self, on: bool) -> &'static str {
        if on && self.adapted.is_none() {
            return "no adapter was named: start with --adapter DIR\n";
        }
        self.adapter_on = on;
        self.conversation.forget_states();
        match on {
            true => "the adapter is on\n",
            false => "the adapter is off\n",
        }
    }

    /// A question that cannot be answered, because the conversation has become too long for instance, ends nothing.
    fn answer(
        &mut self,
        question: &str,
        answer: &mut impl FnMut(&str) -> Result<()>,
        say: &impl Fn(&str),
    ) -> Result<()> {
        let model = match &self.adapted {
            Some(adapted) if self.adapter_on => adapted,
            _ => &self.base,
        };
        let (tokenizer, template, config) = (&self.tokenizer, &self.template, &self.config);
        let mut started = false;
        let on_text = |text: &str| {
            // The answer's leading space belongs to the prompt's line.
            let text = if started { text } else { text.trim_start() };
            started |= !text.is_empty();
            answer(text)
        };
        let asked = self.conversation.ask(model, tokenizer, question, template, config, on_text);
        match asked {
            Ok(reason) => {
                answer("\n")?;
                if reason == FinishReason::Length {
                    say("(cut off: see --max-new-tokens)\n");
                }
                Ok(())
            }
            Err(error @ Error::Invalid { .. }) => {
                say(&format!("error: {error}\n/reset begins anew\n"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
