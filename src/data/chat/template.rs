//! A chat template: compiled once, rendered for each conversation as transformers renders it.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, Output, State};
use serde_json::Map;

use super::functions::{Clock, MARK, raised_message};
use super::message::{Message, to_template};
use super::{filters, functions, methods, python, rewrite};
use crate::error::{Error, Result};

/// Amount of work that the rendering of an empty conversation may take: instructions, and 64 bytes of text each.
const BASE_WORK: u64 = 1_000_000;
/// Amount of work that each message adds.
const WORK_PER_MESSAGE: u64 = 20_000;
/// Maximum size in bytes of a rendered conversation.
const MAX_OUTPUT: usize = 64 << 20;
/// Maximum depth of nested macros.
const MAX_RECURSION: usize = 100;

const NAME: &str = "chat template";
const TOOL_USE: &str = "chat template for tools";
/// Variable with the text that marks the start and the end of a `generation` block.
const MARKER: &str = "__generation_marker";

/// The chat template of a model. It is compiled when it is first used. Clones share the compiled template.
#[derive(Clone, Debug)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    /// File and key of the template.
    place: String,
    source: String,
    /// Place and source of the template for conversations with tools, if it is another one.
    tool_use: Option<(String, String)>,
    /// Variables such as `bos_token` with their texts.
    special_tokens: Vec<(String, String)>,
    clock: Clock,
    compiled: OnceLock<std::result::Result<Compiled, String>>,
}

#[derive(Clone, Debug)]
struct Compiled {
    environment: Environment<'static>,
    marks_generation: bool,
}

/// The inputs of a rendering besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions<'a> {
    /// Whether the start of the assistant's answer is appended.
    pub add_generation_prompt: bool,
    /// Tools that the assistant may call, as a list of JSON schemas.
    pub tools: Option<&'a serde_json::Value>,
    /// Further variables, the column `chat_template_kwargs` of a data set.
    pub variables: Option<&'a Map<String, serde_json::Value>>,
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges in the text of the template's `generation` blocks, which hold what the assistant wrote.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Creates the template `source` from `place`. `special_tokens` are variables such as `bos_token` with their texts.
    pub fn new(
        place: &str,
        source: &str,
        special_tokens: Vec<(String, String)>,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            place: place.to_string(),
            source: source.to_string(),
            tool_use: None,
            special_tokens,
            clock,
            compiled: OnceLock::new(),
        }))
    }

    /// Creates a template that cannot be used because of `problem`.
    pub(super) fn unusable(place: &str, problem: &str) -> Self {
        let template = Self::new(place, "", Vec::new(), Clock::Start);
        // The cell is new, so it is empty.
        let _ = template.0.compiled.set(Err(problem.to_string()));
        template
    }

    /// Adds the template for conversations with tools, `source` from `place`.
    pub(super) fn with_tool_use(&self, place: &str, source: &str) -> Self {
        let tool_use = Some((place.to_string(), source.to_string()));
        Self(Arc::new(Inner { tool_use, ..Inner::clone(&self.0) }))
    }

    /// Returns the file, and where it is one of several entries the key, of the template.
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// Returns the text of the template.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// Returns the text of the template for conversations with tools, if it is another one.
    pub fn tool_use_source(&self) -> Option<&str> {
        self.0.tool_use.as_ref().map(|(_, source)| source.as_str())
    }

    /// Checks that the template can be used.
    ///
    /// # Errors
    /// The template is not valid; the error names its file.
    pub fn check(&self) -> Result<()> {
        match self.compiled() {
            Ok(_) => Ok(()),
            Err(problem) => Err(Error::invalid(
                &self.0.place,
                problem,
                "correct the template or fetch the model's files again; commands that prompt a model leave it out with \
                 --no-chat-template",
            )),
        }
    }

    /// Returns whether the template marks what the assistant wrote with `generation` blocks.
    pub fn marks_generation(&self) -> bool {
        self.compiled().is_ok_and(|compiled| compiled.marks_generation)
    }

    /// Checks that the template marks what the assistant wrote.
    ///
    /// # Errors
    /// It has no `generation` blocks.
    pub fn check_marks_generation(&self) -> Result<()> {
        if self.marks_generation() {
            return Ok(());
        }
        Err(Error::invalid(
            &self.0.place,
            "has no {% generation %} blocks, by which data.assistant_only_loss knows what the assistant wrote",
            "enclose the assistant's messages and the ends of their turns in {% generation %} and {% endgeneration %}: TRL has \
             such templates for many models (trl/chat_templates/NAME_training.jinja); or set data.assistant_only_loss = false",
        ))
    }

    fn compiled(&self) -> std::result::Result<&Compiled, String> {
        self.0.compiled.get_or_init(|| self.0.compile()).as_ref().map_err(String::clone)
    }

    /// Renders `messages`.
    ///
    /// # Errors
    /// The message of `raise_exception`, what is wrong in the template or with the messages, or which limit was passed.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> std::result::Result<Rendered, String> {
        if messages.is_empty() {
            return Err("the conversation is empty".to_string());
        }
        let compiled = self.compiled()?;
        let with_tools = options.tools.is_some() && self.0.tool_use.is_some();
        let name = if with_tools { TOOL_USE } else { NAME };
        let (mut environment, work) = (compiled.environment.clone(), work(messages));
        environment.set_fuel(Some(work));
        let template = environment.get_template(name).map_err(|e| e.to_string())?;
        let marker = format!("\u{fdd0}{:016x}\u{fdd1}", RandomState::new().hash_one(MARKER));
        let context = self.context(messages, options, &marker);
        let mut out = Limited(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|e| explain(&e, messages, work))?;
        let text = String::from_utf8(out.0).map_err(|e| e.to_string())?;
        Ok(if compiled.marks_generation {
            take_marks(&text, &marker)
        } else {
            Rendered { text, generated: Vec::new() }
        })
    }

    fn context(&self, messages: &[Message], options: &RenderOptions<'_>, marker: &str) -> Value {
        let text = |(name, text): &(String, String)| (name.clone(), Value::from(text.as_str()));
        let mut variables: Vec<(String, Value)> = self.0.special_tokens.iter().map(text).collect();
        for (name, value) in options.variables.into_iter().flatten() {
            variables.push((name.clone(), to_template(value)));
        }
        let messages = messages.iter().map(Message::to_template).collect::<Vec<_>>();
        variables.push(("messages".to_string(), Value::from(messages)));
        let tools = options.tools.map_or(Value::from(()), to_template);
        variables.push(("tools".to_string(), tools));
        variables.push(("documents".to_string(), Value::from(())));
        let add = Value::from(options.add_generation_prompt);
        variables.push(("add_generation_prompt".to_string(), add));
        variables.push((MARKER.to_string(), Value::from(marker)));
        Value::from_pairs(variables)
    }
}

impl Inner {
    fn compile(&self) -> std::result::Result<Compiled, String> {
        let mut environment = environment(self.clock);
        let mut marks_generation = false;
        let tool_use = self.tool_use.iter().map(|(place, source)| (TOOL_USE, place, source));
        for (name, place, source) in [(NAME, &self.place, &self.source)].into_iter().chain(tool_use)
        {
            let rewritten = rewrite::rewrite(source);
            marks_generation |= rewritten.marks_generation;
            environment.add_template_owned(name, rewritten.source).map_err(|e| {
                let line = e.line().map_or(String::new(), |line| format!(" (line {line})"));
                let detail = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
                let other = match name {
                    NAME => String::new(),
                    _ => format!("its {name}, {place}, "),
                };
                format!("{other}is not a chat template that can be used: {detail}{line}")
            })?;
        }
        Ok(Compiled { environment, marks_generation })
    }
}

/// Returns the amount of work that the rendering of `messages` may take: several times that of every published template.
fn work(messages: &[Message]) -> u64 {
    let text: usize = messages.iter().map(Message::size).sum();
    BASE_WORK + WORK_PER_MESSAGE * messages.len() as u64 + text as u64
}

/// Describes an error of rendering `messages` with this limit of `work`.
fn explain(error: &minijinja::Error, messages: &[Message], work: u64) -> String {
    if let Some(message) = raised_message(error) {
        return format!("the template says: {message}");
    }
    let is_limit = matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure);
    let without_content = messages.iter().enumerate().find(|(_, m)| !m.has_content());
    if let Some((index, message)) = without_content.filter(|_| !is_limit) {
        return format!(
            "message {} of {} (role {:?}) has no content, or a null one, and the template needs a text there",
            index + 1,
            messages.len(),
            message.role()
        );
    }
    let line = error.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    match error.kind() {
        ErrorKind::OutOfFuel => format!(
            "the template does not end within {work} steps, many times what templates need for {} messages",
            messages.len()
        ),
        ErrorKind::WriteFailure => {
            format!("the template writes more than {} MiB", MAX_OUTPUT >> 20)
        }
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}{line}"),
            None => format!("{kind}{line}"),
        },
    }
}

/// Creates the environment of transformers' templates: blocks trimmed, no escaping, no access to files.
fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(print);
    env.set_unknown_method_callback(methods::call);
    env.set_recursion_limit(MAX_RECURSION);
    let mut syntax = SyntaxConfig::builder();
    if let Ok(syntax) = syntax.trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    functions::add_to(&mut env, clock);
    filters::add_to(&mut env);
    env.add_filter(MARK, |state: &State<'_, '_>, text: &str| {
        let marker = state.lookup(MARKER).unwrap_or_default();
        format!("{marker}{text}{marker}")
    });
    env
}

/// Writes a value as Python prints it.
fn print(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> std::result::Result<(), minijinja::Error> {
    if !matches!(state.auto_escape(), minijinja::AutoEscape::None) {
        return minijinja::escape_formatter(out, state, value);
    }
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&python::str(value)?),
    }
    .map_err(minijinja::Error::from)
}

/// Removes the markers from `text`: each pair of them encloses what the assistant wrote.
fn take_marks(text: &str, marker: &str) -> Rendered {
    let mut rendered = Rendered::default();
    for (index, piece) in text.split(marker).enumerate() {
        let start = rendered.text.len();
        rendered.text.push_str(piece);
        if index % 2 == 1 {
            rendered.generated.push(start..rendered.text.len());
        }
    }
    rendered
}

/// Output of at most [`MAX_OUTPUT`] bytes.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
