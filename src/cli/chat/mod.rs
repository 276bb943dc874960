//! Implements `arithmo chat`: reads questions and shows the answers as they are generated.

mod input;

use std::hash::{BuildHasher, RandomState};

use arithmo_backends::TrainBackend;

use crate::data::prompt::{PLAIN, QUESTION};
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{Conversation, FinishReason, GenerateConfig, stop_ids};
use crate::interrupt;
use crate::message;
use crate::model::decoder::Decoder;
use crate::progress::ProgressMode;

use self::input::{Input, LineReader};
use super::generate::DecodingArgs;
use super::model::ModelArgs;
use super::print_text;
use super::template::{ChatTemplateArgs, TemplateArgs};

const COMMANDS: &str = "/adapter on|off   answer with or without the adapter\n\
                        /reset            start a new conversation\n\
                        /help             list these commands\n\
                        /quit             leave the chat, as Ctrl-D does\n\
                        Ctrl-C            stop the current answer\n";

/// Arguments of `arithmo chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) template: TemplateArgs,
    #[command(flatten)]
    pub(super) chat: ChatTemplateArgs,
    #[command(flatten)]
    pub(super) decoding: DecodingArgs,
}

/// Answers the lines of standard input until it ends.
///
/// On a terminal, Ctrl-C stops an answer and the chat continues; otherwise it ends the program.
///
/// # Errors
/// An argument, the model or the adapter is not valid; standard input or output fails; the user interrupts.
pub fn run<B: TrainBackend>(args: &ChatArgs, mode: ProgressMode, device: &B::Device) -> Result<()> {
    let mut config = args.decoding.config(1);
    config.validate()?;
    let text = args.template.or(QUESTION)?;
    let folder = args.model.folder(mode)?;
    let tokenizer = Tokenizer::from_folder(&folder)?;
    let format = args.chat.format(&args.template, &tokenizer, PLAIN, text)?;
    if config.stop.is_empty() {
        config.stop = next_question(&format);
    }
    let model = args.model.load::<B>(&folder, mode, device)?;
    args.decoding.note_positions(model.config.max_position_embeddings, mode);
    config.eos_ids = stop_ids(&folder, &model.config, tokenizer.eos_id())?;
    let speaks = mode != ProgressMode::Quiet;
    if config.temperature > 0.0 && args.decoding.seed.is_none() {
        config.seed = fresh_seed();
        if speaks {
            say!("note: --seed {} repeats this chat", config.seed);
        }
    }
    let with_adapter = args.model.load.adapter.is_some();
    let mut chat = Chat {
        base: model.clone().without_adapter(),
        adapted: with_adapter.then_some(model),
        adapter_on: with_adapter,
        conversation: Conversation::new(),
        questions: 0,
        on_terminal: input::is_terminal(),
        tokenizer,
        format,
        config,
    };
    let prompt = if speaks { PROMPT } else { "" };
    if chat.on_terminal && speaks {
        message::text(COMMANDS);
    }
    let mut lines = LineReader::open();
    chat.answer_lines(|| lines.next(prompt), print_text, message::text)
}

/// Returns a seed that differs from run to run, short enough to be typed again.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one("seed") >> 32
}

const PROMPT: &str = "> ";

/// Returns the start of a next question, which ends an answer, if the template begins with text. With a chat template the
/// model ends its answers itself.
fn next_question(format: &PromptFormat) -> Vec<String> {
    let PromptFormat::Text(template) = format else { return Vec::new() };
    match template.before().trim() {
        "" => Vec::new(),
        text => vec![format!("\n{text}")],
    }
}

/// What to do after a line of input.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Quit,
}

struct Chat<B: TrainBackend> {
    base: Decoder<B>,
    /// The base with the adapter's weights; `Some` if an adapter was named.
    adapted: Option<Decoder<B>>,
    adapter_on: bool,
    conversation: Conversation<B>,
    /// Number of questions so far, including those before a `/reset`, so that each draws other random numbers.
    questions: usize,
    /// Whether a person types the questions and may want to stop an answer.
    on_terminal: bool,
    tokenizer: Tokenizer,
    format: PromptFormat,
    config: GenerateConfig,
}

impl<B: TrainBackend> Chat<B> {
    /// Answers each line that `next` returns; answers go to `answer`, everything else to `say`.
    fn answer_lines(
        &mut self,
        mut next: impl FnMut() -> Result<Input>,
        mut answer: impl FnMut(&str) -> Result<()>,
        say: impl Fn(&str),
    ) -> Result<()> {
        let mut interrupted = false;
        loop {
            if self.on_terminal {
                // A Ctrl-C that came too late for the last answer must not stop the next one.
                interrupt::clear_request();
            }
            match next()? {
                Input::End => return Ok(()),
                Input::Interrupted if interrupted => return Ok(()),
                Input::Interrupted => {
                    interrupted = true;
                    say("Ctrl-D, /quit, or Ctrl-C again leaves\n");
                    continue;
                }
                Input::NotText => say("the line is not UTF-8 and was ignored\n"),
                Input::Line(line) => {
                    if self.handle_line(line.trim(), &mut answer, &say)? == Next::Quit {
                        return Ok(());
                    }
                }
            }
            interrupted = false;
        }
    }

    /// Runs the command in `line`, which begins with `/`, or answers the question in it. An empty line does nothing. Pieces
    /// of the answer are passed to `answer`, messages to `say`.
    fn handle_line(
        &mut self,
        line: &str,
        answer: &mut impl FnMut(&str) -> Result<()>,
        say: &impl Fn(&str),
    ) -> Result<Next> {
        if !line.starts_with('/') {
            if !line.is_empty() {
                self.answer(line, answer, say)?;
            }
            return Ok(Next::Continue);
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_lowercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["/quit"] => return Ok(Next::Quit),
            ["/reset"] => self.conversation = Conversation::new(),
            ["/adapter", "on"] => say(self.switch(true)),
            ["/adapter", "off"] => say(self.switch(false)),
            ["/help"] => say(COMMANDS),
            ["/adapter", ..] => say("/adapter takes on or off\n"),
            _ => {
                let shown: String = line.chars().take(60).collect();
                say(&format!("there is no command {shown}; there are:\n{COMMANDS}"));
            }
        }
        Ok(Next::Continue)
    }

    /// Turns the adapter on or off, and returns the message to show.
    fn switch(&mut self, on: bool) -> &'static str {
        if on && self.adapted.is_none() {
            return "no adapter was named: start with --adapter DIR\n";
        }
        self.adapter_on = on;
        self.conversation.forget_states();
        if on { "the adapter is on\n" } else { "the adapter is off\n" }
    }

    /// Answers a question, and passes the text to `answer` as it is generated. A question that cannot be answered, for
    /// instance because the conversation has become too long, does not end the chat; nor does an answer that is stopped
    /// on a terminal.
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
        self.config.places = Some(vec![self.questions]);
        self.questions += 1;
        let (tokenizer, format, config) = (&self.tokenizer, &self.format, &self.config);
        let mut started = false;
        let on_text = |text: &str| {
            // The answer's leading space would indent its first line.
            let text = if started { text } else { text.trim_start() };
            started |= !text.is_empty();
            answer(text)
        };
        let finished = self.conversation.ask(model, tokenizer, question, format, config, on_text);
        match finished {
            Ok(reason) => {
                answer("\n")?;
                if reason == FinishReason::Length {
                    say("(cut off: see --max-new-tokens)\n");
                }
                Ok(())
            }
            Err(Error::Interrupted { .. }) if self.on_terminal && interrupt::clear_request() => {
                answer("\n")?;
                say("(stopped; the conversation so far is kept)\n");
                Ok(())
            }
            Err(error @ Error::Invalid { .. }) => {
                say(&format!("error: {error}\n/reset starts a new conversation\n"));
                Ok(())
            }
            Err(error) => {
                if started {
                    // The error message starts on a line of its own.
                    answer("\n")?;
                }
                Err(error)
            }
        }
    }
}
