//! Generation from text to text: prompts of a file in, completions as `out.jsonl` holds them out.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use arithmo_backends::TrainBackend;
use serde::Serialize;
use serde_json::Value;

use super::config::{FinishReason, GenerateConfig, Generated};
use super::decode::generate_with;
use super::listener::{Flow, GenerateProgress, Listener};
use super::stream::TextStream;
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::mistral::Mistral;

/// One line of `out.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// The prompt as given, without the template.
    pub prompt: String,
    /// The generated text, special tokens left out; prompt and completion together are the whole text, but for a stop
    /// string, before which it ends.
    pub completion: String,
    /// The generated tokens, the end token or the tokens of the stop string included if there were any.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What [`complete_each`]'s callback is told, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionEvent<'a> {
    /// The completion of the prompt `index` goes on with `text`: whole characters, and nothing of a stop string.
    Text {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// Never empty.
        text: &'a str,
    },
    /// The prompt `index` is complete; all of its text was told of before.
    Finished {
        /// Index of the prompt in the caller's list.
        index: usize,
        /// Its completion.
        completion: &'a Completion,
    },
    /// A step of decoding is done.
    Step(GenerateProgress),
}

/// Puts each prompt into the template, encodes it (with BOS where the tokenizer adds one) and completes it, up to an end
/// token or the first of `config.stop`; results are in the prompts' order.
///
/// # Errors
/// As [`complete_each`].
pub fn complete<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    prompts: &[String],
    template: &PromptTemplate,
    config: &GenerateConfig,
    mut on_progress: impl FnMut(GenerateProgress),
) -> Result<Vec<Completion>> {
    let mut all = vec![None; prompts.len()];
    complete_each(model, tokenizer, prompts, template, config, |event| {
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

/// As [`complete`], for callers that show text as it comes, or keep each completion the moment it ends. An error of
/// `on_event` ends the whole.
///
/// # Errors
/// As [`generate_with`], or the tokenizer fails.
pub fn complete_each<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    prompts: &[String],
    template: &PromptTemplate,
    config: &GenerateConfig,
    on_event: impl FnMut(CompletionEvent<'_>) -> Result<()>,
) -> Result<()> {
    let encode = |prompt: &String| tokenizer.encode(&template.apply(prompt), true);
    let ids = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let mut texts = Texts::new(tokenizer, prompts, &ids, &config.stop, on_event);
    generate_with(model, &ids, config, &mut texts)
}

/// Turns the tokens of all prompts into text.
pub(super) struct Texts<'a, F> {
    tokenizer: &'a Tokenizer,
    prompts: &'a [String],
    prompt_ids: &'a [Vec<u32>],
    stops: &'a [String],
    /// Of the prompts being completed.
    streams: HashMap<usize, TextStream<'a>>,
    on_event: F,
}

impl<'a, F> Texts<'a, F> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        prompts: &'a [String],
        prompt_ids: &'a [Vec<u32>],
        stops: &'a [String],
        on_event: F,
    ) -> Self {
        Self { tokenizer, prompts, prompt_ids, stops, streams: HashMap::new(), on_event }
    }

    /// The stream of prompt `index`, taken out; a new one where its first token has just come.
    fn take(&mut self, index: usize) -> TextStream<'a> {
        let fresh = || TextStream::new(self.tokenizer, &self.prompt_ids[index], self.stops);
        self.streams.remove(&index).unwrap_or_else(fresh)
    }
}

impl<F: FnMut(CompletionEvent<'_>) -> Result<()>> Listener for Texts<'_, F> {
    fn token(&mut self, index: usize, token_ids: &[u32]) -> Result<Flow> {
        let mut stream = self.take(index);
        if let Some(id) = token_ids.last() {
            let text = stream.push(*id)?;
            if !text.is_empty() {
                (self.on_event)(CompletionEvent::Text { index, text })?;
            }
        }
        let flow = match stream.stopped() {
            true => Flow::Stop,
            false => Flow::Continue,
        };
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

/// The text that `new` adds to `prompt`. Decoded on its own it would lose its leading space, as a text's first word does.
fn decode_after(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32]) -> Result<String> {
    let before = tokenizer.decode(prompt, true)?;
    let whole = tokenizer.decode(&[prompt, new].concat(), true)?;
    match whole.strip_prefix(&before) {
        Some(text) => Ok(text.to_string()),
        None => tokenizer.decode(new, true),
    }
}

/// Reads `prompts.jsonl`: one object a line with a text `prompt`; other keys and blank lines are passed over.
///
/// # Errors
/// The file cannot be read, holds no prompt, or a line has none: its number is named.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let lines = text.trim_start_matches('\u{feff}').lines().zip(1..);
    let mut prompts = Vec::new();
    for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
        let wrong = |problem: String| {
            let place = format!("{}:{number}", path.display());
            Error::invalid(place, problem, "write one {\"prompt\": \"...\"} a line")
        };
        let value: Value =
            serde_json::from_str(line).map_err(|e| wrong(format!("is not JSON: {e}")))?;
        match value.get("prompt").and_then(Value::as_str) {
            Some(prompt) => prompts.push(prompt.to_string()),
            None => return Err(wrong("has no text \"prompt\"".to_string())),
        }
    }
    match prompts.is_empty() {
        true => Err(Error::file(path, "holds no prompt", "write one {\"prompt\": \"...\"} a line")),
        false => Ok(prompts),
    }
}
