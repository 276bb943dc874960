//! Generation from text to text: prompts of a file in, completions as `out.jsonl` holds them out.

use std::fs;
use std::path::Path;

use arithmo_backends::TrainBackend;
use serde::Serialize;
use serde_json::Value;

use super::config::{FinishReason, GenerateConfig};
use super::decode::{GenerateProgress, generate};
use crate::data::prompt::PromptTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::mistral::Mistral;

/// One line of `out.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Completion {
    /// The prompt as given, without the template.
    pub prompt: String,
    /// The generated text, special tokens left out; prompt and completion together are the whole text.
    pub completion: String,
    /// The generated tokens, the end token included if there was one.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Puts each prompt into the template, encodes it (with BOS where the tokenizer adds one) and completes it.
///
/// # Errors
/// As [`generate`], or the tokenizer fails.
pub fn complete<B: TrainBackend>(
    model: &Mistral<B>,
    tokenizer: &Tokenizer,
    prompts: Vec<String>,
    template: &PromptTemplate,
    config: &GenerateConfig,
    on_progress: impl FnMut(GenerateProgress),
) -> Result<Vec<Completion>> {
    let encode = |prompt: &String| tokenizer.encode(&template.apply(prompt), true);
    let ids = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let all = generate(model, &ids, config, on_progress)?;
    let completions = prompts.into_iter().zip(ids.iter().zip(all));
    completions
        .map(|(prompt, (prompt_ids, generated))| {
            Ok(Completion {
                prompt,
                completion: decode_after(tokenizer, prompt_ids, &generated.token_ids)?,
                token_ids: generated.token_ids,
                finish_reason: generated.finish_reason,
            })
        })
        .collect()
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
        true => Err(Error::file(
            path,
            "holds no prompt",
            "write one {\"prompt\": \"...\"} a line",
        )),
        false => Ok(prompts),
    }
}
