//! Generates text from text: reads prompts from a file and makes the completions of `out.jsonl`.

use std::collections::HashMap;
use std::path::Path;

use arithmo_backends::TrainBackend;
use serde::Serialize;
use serde_json::Value;

use super::config::{FinishReason, GenerateConfig, Generated};
use super::decode::generate_with;
use super::listener::{Flow, GenerateProgress, Listener};
use super::stream::TextStream;
use crate::data::json_lines;
use crate::data::prompt_format::PromptFormat;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;

/// One line of `out.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// The prompt as given, without the template.
    pub prompt: String,
    /// The generated text without special tokens. It ends before a stop string; otherwise prompt and completion
    /// together are the whole text.
    pub completion: String,
    /// The generated tokens, including the end token or the tokens of the stop string, if any.
    pub token_ids: Vec<u32>,
    /// Why the completion ended.
    pub finish_reason: FinishReason,
}

/// The events passed to [`complete_each`]'s callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionEvent<'a> {
    /// The completion of the prompt `index` continues with `text`: whole characters, and no part of a stop string.
    Text {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// The new text, never empty.
        text: &'a str,
    },
    /// The prompt `index` is complete; all of its text was passed on before.
    Finished {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// Completion of the prompt.
        completion: &'a Completion,
    },
    /// A step of decoding is done.
    Step(GenerateProgress),
}

/// Completes each prompt up to an end token or the first of `config.stop`, after bringing it into its format and encoding
/// it (with BOS if the tokenizer, or the chat template, adds one). Returns the results in the prompts' order.
///
/// # Errors
/// Same as [`complete_each`].
pub fn complete<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    prompts: &[String],
    format: &PromptFormat,
    config: &GenerateConfig,
    mut on_progress: impl FnMut(GenerateProgress),
) -> Result<Vec<Completion>> {
    let mut all = vec![None; prompts.len()];
    complete_each(model, tokenizer, prompts, format, config, |event| {
        match event {
            CompletionEvent::Text { .. } => {}
            CompletionEvent::Finished { index, completion } => {
                all[index] = Some(completion.clone());
            }
            CompletionEvent::Step(progress) => on_progress(progress),
        }
        Ok(())
    })?;
    Ok(all.into_iter().flatten().collect())
}

/// Completes prompts like [`complete`], and passes text to `on_event` as it is generated and each completion as soon
/// as it ends. An error of `on_event` ends the generation.
///
/// # Errors
/// Same as [`generate_with`], or the chat template or the tokenizer fails.
pub fn complete_each<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    prompts: &[String],
    format: &PromptFormat,
    config: &GenerateConfig,
    on_event: impl FnMut(CompletionEvent<'_>) -> Result<()>,
) -> Result<()> {
    let encode = |prompt: &String| format.encode(tokenizer, prompt);
    let ids = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    complete_ids(model, tokenizer, prompts, &ids, config, on_event)
}

/// Completes prompts like [`complete_each`] that are encoded already: `ids` are those of `prompts`.
///
/// # Errors
/// Same as [`generate_with`], or the tokenizer fails.
pub fn complete_ids<B: TrainBackend>(
    model: &Decoder<B>,
    tokenizer: &Tokenizer,
    prompts: &[String],
    ids: &[Vec<u32>],
    config: &GenerateConfig,
    on_event: impl FnMut(CompletionEvent<'_>) -> Result<()>,
) -> Result<()> {
    let mut texts = TextListener::new(tokenizer, prompts, ids, &config.stop, on_event);
    generate_with(model, ids, config, &mut texts)
}

/// A listener that decodes the tokens of all prompts to text.
pub(super) struct TextListener<'a, F> {
    tokenizer: &'a Tokenizer,
    prompts: &'a [String],
    prompt_ids: &'a [Vec<u32>],
    stops: &'a [String],
    /// Text streams of the prompts being completed, by index.
    streams: HashMap<usize, TextStream<'a>>,
    on_event: F,
}

impl<'a, F> TextListener<'a, F> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        prompts: &'a [String],
        prompt_ids: &'a [Vec<u32>],
        stops: &'a [String],
        on_event: F,
    ) -> Self {
        Self { tokenizer, prompts, prompt_ids, stops, streams: HashMap::new(), on_event }
    }

    /// Removes and returns the stream of prompt `index`, or creates it when its first token arrives.
    fn take(&mut self, index: usize) -> TextStream<'a> {
        let new_stream = || TextStream::new(self.tokenizer, &self.prompt_ids[index], self.stops);
        self.streams.remove(&index).unwrap_or_else(new_stream)
    }
}

impl<F: FnMut(CompletionEvent<'_>) -> Result<()>> Listener for TextListener<'_, F> {
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        let mut stream = self.take(index);
        if let Some(id) = token_ids.last() {
            let text = stream.push(*id)?;
            if !text.is_empty() {
                (self.on_event)(CompletionEvent::Text { index, text })?;
            }
        }
        let flow = if stream.stopped() { Flow::Stop } else { Flow::Continue };
        self.streams.insert(index, stream);
        Ok(flow)
    }

    fn finished(&mut self, index: usize, generated: &Generated) -> Result<()> {
        let stream = self.take(index);
        let text = match generated.finish_reason {
            FinishReason::Stop => stream.text().to_string(),
            FinishReason::Eos | FinishReason::Length => {
                let (prompt, new) = (&self.prompt_ids[index], &generated.token_ids);
                decode_after(self.tokenizer, prompt, new)?
            }
        };
        let rest = stream.rest(&text);
        if !rest.is_empty() {
            (self.on_event)(CompletionEvent::Text { index, text: rest })?;
        }
        let completion = &Completion {
            prompt: self.prompts[index].clone(),
            completion: text,
            token_ids: generated.token_ids.clone(),
            finish_reason: generated.finish_reason,
        };
        (self.on_event)(CompletionEvent::Finished { index, completion })
    }

    fn step(&mut self, progress: GenerateProgress) -> Result<()> {
        (self.on_event)(CompletionEvent::Step(progress))
    }
}

/// Decodes the text that `new` adds to `prompt`. Decoded alone, it would lose its leading space, like any first word.
fn decode_after(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32]) -> Result<String> {
    let before = tokenizer.decode(prompt, true)?;
    let whole = tokenizer.decode(&[prompt, new].concat(), true)?;
    match whole.strip_prefix(&before) {
        Some(text) => Ok(text.to_string()),
        None => tokenizer.decode(new, true),
    }
}

/// Reads `prompts.jsonl`: one object per line with a string `prompt`; other keys and blank lines are ignored.
///
/// # Errors
/// The file cannot be read, holds no prompt, or a line has none; the error names the line's number.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let mut prompts = Vec::new();
    json_lines::read_lines(path, |number, line| {
        let wrong = |problem: String| {
            let place = format!("{}:{number}", path.display());
            Error::invalid(place, problem, "write one {\"prompt\": \"...\"} per line")
        };
        let value = json_lines::parse(line).map_err(wrong)?;
        match value.get("prompt").and_then(Value::as_str) {
            Some(prompt) => prompts.push(prompt.to_string()),
            None => return Err(wrong("has no string \"prompt\"".to_string())),
        }
        Ok(())
    })?;
    if prompts.is_empty() {
        let remedy = "write one {\"prompt\": \"...\"} per line";
        return Err(Error::file(path, "holds no prompt", remedy));
    }
    Ok(prompts)
}
