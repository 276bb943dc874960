//! The families of models that the decoder can be: one file each, which translates between the family's `config.json`
//! and the decoder's [`Switches`](super::switches::Switches).
//!
//! A new family is a new file here, an entry in [`FAMILIES`], and a fixture for `tests/program/families.rs`.

mod gemma3;
mod granite;
mod llama;
pub mod ministral;
mod ministral3;
pub mod mistral;
mod olmo2;
pub mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use std::fmt;

use serde_json::{Map, Value};

use super::config::{DecoderConfig, Fields};
use crate::error::Result;

/// All families, in the order in which errors list them.
pub static FAMILIES: [&Family; 11] = [
    &mistral::FAMILY,
    &ministral::FAMILY,
    &ministral3::FAMILY,
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &gemma3::FAMILY,
    &granite::FAMILY,
    &olmo2::FAMILY,
    &phi3::FAMILY,
];

/// A family of models.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class of transformers, in `architectures`.
    pub architecture: &'static str,
    /// Returns the values of keys that `config.json` may leave out: the defaults of transformers' class.
    pub defaults: fn() -> Value,
    /// Sets the switches as the keys say.
    pub read: fn(&Fields<'_>, &mut DecoderConfig) -> Result<()>,
    /// Adds the keys that only some families have to an object that has the common ones.
    pub write: fn(&DecoderConfig, &mut Map<String, Value>),
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

/// Returns the family of this `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_type == model_type)
}

/// The models of several kinds of input whose text part is a model of one of the families. Only that part is read.
pub const WITH_TEXT_PART: [&str; 2] = ["mistral3", "gemma3"];

/// Returns what is missing for a model of an unknown `model_type`; `None` if that is not known either.
pub fn missing_feature(model_type: &str) -> Option<&'static str> {
    let experts = ["moe", "mixtral", "deepseek", "gpt_oss", "llama4", "dbrx", "jamba"];
    let images = ["_vl", "vision", "llava", "mllama", "paligemma", "pixtral", "idefics", "smolvlm"];
    let recurrent =
        ["mamba", "qwen3_next", "qwen3_5", "falcon_h1", "zamba", "rwkv", "lfm2", "bamba"];
    let contains = |names: &[&str]| names.iter().any(|name| model_type.contains(name));
    Some(match model_type {
        _ if contains(&images) => "an encoder of images",
        _ if contains(&recurrent) => "layers of linear attention or a state space",
        _ if contains(&experts) => "a mixture of experts",
        "gemma2" => "the soft caps on attention scores and logits",
        "gemma" => "norms that multiply by 1 + weight in a layer without norms behind its halves",
        "gemma3n" | "gemma4" | "gemma4_text" => {
            "embeddings per layer and keys and values that layers share"
        }
        "olmo3" => "rotary embeddings that differ between layers with and without a window",
        "cohere" | "cohere2" => "attention and feed-forward blocks that are computed in parallel",
        "gpt2" | "gpt_neox" | "gptj" | "opt" | "bloom" | "falcon" | "phi" => {
            "LayerNorm and a feed-forward block without a gate"
        }
        _ => return None,
    })
}

/// Returns the `model_type` of each family.
pub fn model_types() -> String {
    FAMILIES.map(|family| family.model_type).join(", ")
}

#[cfg(test)]
mod tests;
