//! Settings and results of generation. Names and meanings are those of transformers' `GenerationConfig`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::config::MistralConfig;

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// At most this many tokens a prompt; fewer where the model's `max_position_embeddings` is reached.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0: always the most likely token (greedy).
    pub temperature: f64,
    /// Sample among the `top_k` most likely tokens; 0: all.
    pub top_k: usize,
    /// Sample among the fewest most likely tokens that hold this much probability (arXiv 1904.09751); 1: all.
    pub top_p: f64,
    /// Lowers the logits of tokens already in prompt or completion (CTRL, arXiv 1909.05858); 1: off.
    pub repetition_penalty: f64,
    /// Seed of sampling. The same prompt at the same place of the list draws the same numbers in any batch.
    pub seed: u64,
    /// The places of the prompts in the list they are part of, for the numbers they draw; absent: as they come here. What
    /// is left of a list is sampled as it would have been with the rest.
    pub places: Option<Vec<usize>>,
    /// Generation stops at any of these ids.
    pub eos_ids: Vec<u32>,
    /// A completion ends before the first of these texts in it, where text is known: see [`complete`](super::complete).
    pub stop: Vec<String>,
    /// Prompts decoded together.
    pub batch_size: usize,
    /// Guess tokens from the text so far, where the backend computes them for nothing and the choice is greedy. Changes no
    /// completion, only the time it takes.
    pub lookup: bool,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 42,
            places: None,
            eos_ids: Vec::new(),
            stop: Vec::new(),
            batch_size: 8,
            lookup: true,
        }
    }
}

impl GenerateConfig {
    /// The place of the prompt `index`: see [`Self::places`].
    pub(super) fn place(&self, index: usize) -> usize {
        let places = self.places.as_ref();
        places.and_then(|places| places.get(index).copied()).unwrap_or(index)
    }

    /// Whether the next token is the likeliest one, whatever came before.
    pub(super) fn is_plainly_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Refuses what is impossible or contradicts itself.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let (greedy, cut) = (self.temperature == 0.0, self.top_k > 0 || self.top_p < 1.0);
        let (place, problem, remedy) = if self.max_new_tokens == 0 {
            ("--max-new-tokens", "is 0".into(), "ask for at least 1")
        } else if self.batch_size == 0 {
            ("--batch-size", "is 0".into(), "decode at least 1 prompt at a time")
        } else if !greedy && !positive(self.temperature) {
            let problem = format!("is {}", self.temperature);
            ("--temperature", problem, "0 is greedy, usual values are 0.2 to 1")
        } else if !(positive(self.top_p) && self.top_p <= 1.0) {
            let problem = format!("is {}", self.top_p);
            ("--top-p", problem, "give a probability above 0, at most 1")
        } else if !positive(self.repetition_penalty) {
            let problem = format!("is {}", self.repetition_penalty);
            ("--repetition-penalty", problem, "1 is off, usual values are 1 to 1.3")
        } else if self.stop.iter().any(String::is_empty) {
            let problem = "is an empty text, which stands everywhere".into();
            ("--stop", problem, "give the text to stop at, or leave it out")
        } else if greedy && cut {
            let problem = "top_k and top_p have no meaning without sampling".into();
            ("--temperature", problem, "give a temperature above 0, or leave them out")
        } else {
            return Ok(());
        };
        Err(Error::invalid(place, problem, remedy))
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model produced an end token.
    Eos,
    /// The text reached a stop string.
    Stop,
    /// `max_new_tokens`, or the last position the model has.
    Length,
}

/// One completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generated {
    /// The new tokens, the end token or the tokens of the stop string included if there were any.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The ids a model folder wants generation to stop at: `eos_token_id` of `generation_config.json`, else of
/// `config.json`, else the tokenizer's.
///
/// # Errors
/// `generation_config.json` is not readable JSON, or its `eos_token_id` is no id.
pub fn stop_ids(folder: &Path, config: &MistralConfig, tokenizer_eos: u32) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::from("{}"),
        Err(error) => return Err(Error::io(&path, "read", error)),
    };
    let wrong = |problem: String| Error::file(&path, problem, "fetch the file again");
    let value: Value =
        serde_json::from_str(&text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
    let listed = match &value["eos_token_id"] {
        Value::Null => &[],
        Value::Array(ids) => ids.as_slice(),
        one => std::slice::from_ref(one),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = listed.iter().map(id).collect();
    let ids = ids.ok_or_else(|| wrong(format!("eos_token_id is {}", value["eos_token_id"])))?;
    Ok(match (ids.is_empty(), config.eos_token_id.is_empty()) {
        (false, _) => ids,
        (true, false) => config.eos_token_id.clone(),
        (true, true) => vec![tokenizer_eos],
    })
}
