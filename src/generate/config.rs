//! Settings and results of generation, with the names and meanings of transformers' `GenerationConfig`.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::input_file;
use crate::model::config::DecoderConfig;

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// Maximum number of new tokens per prompt; fewer if the model's `max_position_embeddings` is reached.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0 means greedy decoding.
    pub temperature: f64,
    /// Samples among the `top_k` most likely tokens; 0 means all.
    pub top_k: usize,
    /// Samples among the fewest most likely tokens whose probabilities sum to `top_p` (arXiv 1904.09751); 1 means
    /// all.
    pub top_p: f64,
    /// Lowers the logits of tokens that occur in prompt or completion (CTRL, arXiv 1909.05858); 1 means off.
    pub repetition_penalty: f64,
    /// Seed of sampling. The same prompt at the same place in the list draws the same numbers in any batch.
    pub seed: u64,
    /// Places of the prompts in the full list, which determine the numbers they draw; `None` means the order given
    /// here. With them, the rest of a list is sampled as it would have been with the whole list.
    pub places: Option<Vec<usize>>,
    /// Token ids that end a completion.
    pub eos_ids: Vec<u32>,
    /// Texts that end a completion, before the first occurrence of any, in functions that return text: see
    /// [`complete`](super::complete).
    pub stop: Vec<String>,
    /// Number of prompts decoded together.
    pub batch_size: usize,
    /// Whether to guess tokens from the text so far, if the backend computes them at no cost and decoding is greedy.
    /// It changes no completion, only the time it takes.
    pub lookup: bool,
}

impl Default for GenerateConfig {
    /// Returns greedy decoding of at most 256 new tokens with seed 42. These are not transformers' defaults.
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
    /// Returns the place of the prompt `index`: see [`Self::places`].
    pub(super) fn place(&self, index: usize) -> usize {
        let places = self.places.as_ref();
        places.and_then(|places| places.get(index).copied()).unwrap_or(index)
    }

    /// Returns whether the next token is always the most likely one, independent of earlier tokens.
    pub(super) fn is_plainly_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Checks that the settings are possible and consistent.
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
            ("--top-p", problem, "choose a probability above 0 and at most 1")
        } else if !positive(self.repetition_penalty) {
            let problem = format!("is {}", self.repetition_penalty);
            ("--repetition-penalty", problem, "1 is off, usual values are 1 to 1.3")
        } else if self.stop.iter().any(String::is_empty) {
            let problem = "is an empty text, which would stop at once".into();
            ("--stop", problem, "name the text to stop at, or leave it out")
        } else if greedy && cut {
            let problem = "top_k and top_p have no effect without sampling".into();
            ("--temperature", problem, "choose a temperature above 0, or leave them out")
        } else {
            return Ok(());
        };
        Err(Error::invalid(place, problem, remedy))
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model produced an end token.
    Eos,
    /// The text reached a stop string.
    Stop,
    /// `max_new_tokens` or the last position of the model was reached.
    Length,
}

/// One completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generated {
    /// The new tokens, including the end token or the tokens of the stop string, if any.
    pub token_ids: Vec<u32>,
    /// Why the completion ended.
    pub finish_reason: FinishReason,
}

/// Returns the token ids that end generation for a model folder: `eos_token_id` of `generation_config.json`, else of
/// `config.json`, else the tokenizer's.
///
/// # Errors
/// `generation_config.json` is not readable JSON, or its `eos_token_id` is not a token id.
pub fn stop_ids(folder: &Path, config: &DecoderConfig, tokenizer_eos: u32) -> Result<Vec<u32>> {
    let path = folder.join("generation_config.json");
    let text = match input_file::read_to_string(&path) {
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
