//! Transformers 5 splits texts for a Qwen 2 model by that family's rules, whatever `tokenizer.json` says, if the tokenizer
//! is of no particular class.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::input_file;

/// The split of Qwen 2: words with the character before them, single digits, punctuation, and white space.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Sets the normalizer and the split of Qwen 2, if the model in `folder` is one of that family and
/// `tokenizer_config.json` names no class of its own. The tokenizers of the published models have them already.
///
/// # Errors
/// The tokenizer library does not accept them.
pub(super) fn adapt(folder: &Path, tokenizer: &mut Tokenizer) -> Result<(), String> {
    let object = |name: &str| -> Value {
        let text = input_file::read_to_string(folder.join(name)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let general = ["PreTrainedTokenizerFast", "TokenizersBackend"];
    let class = object("tokenizer_config.json")["tokenizer_class"].clone();
    let is_general = class.as_str().is_none_or(|class| general.contains(&class));
    if object("config.json")["model_type"] != "qwen2" || !is_general {
        return Ok(());
    }
    let normalizer = serde_json::from_value::<NormalizerWrapper>(json!({"type": "NFC"}));
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    ]});
    let split = serde_json::from_value::<PreTokenizerWrapper>(split);
    let message = |error: serde_json::Error| error.to_string();
    tokenizer.with_normalizer(Some(normalizer.map_err(message)?));
    tokenizer.with_pre_tokenizer(Some(split.map_err(message)?));
    Ok(())
}
