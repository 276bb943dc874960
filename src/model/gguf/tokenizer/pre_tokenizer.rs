//! Recognizes how a byte-level tokenizer splits texts into words, by the names that llama.cpp has for it.
//!
//! llama.cpp's converter compares a hash of the tokens of one text, which only knows published vocabularies. The rules
//! themselves are in `tokenizer.json`, so they are compared here; a fine-tuned model with further tokens is recognized too.

use std::path::Path;

use serde_json::Value as Json;

use super::REMEDY;
use crate::error::{Error, Result};

/// The split of Llama 3.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The split of Qwen 2 and 3.
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The split of Mistral Nemo and later models of Mistral.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Returns llama.cpp's name (`tokenizer.ggml.pre`) for the way a byte-level tokenizer splits texts.
///
/// # Errors
/// llama.cpp has none, or another treatment of tokens under that name.
pub(super) fn pre_tokenizer(json: &Json, path: &Path) -> Result<&'static str> {
    let ignores_merges = json["model"]["ignore_merges"] == true;
    let is_normalized = !json["normalizer"].is_null() && json["normalizer"]["type"] != "NFC";
    let parts = parts(json);
    let steps: Vec<Step> = parts.iter().map(|part| step(part)).collect();
    let found = match (steps.as_slice(), ignores_merges) {
        ([Step::Words], false) => Some("gpt-2"),
        ([Step::Digits, Step::Words], false) => Some("smollm"),
        ([Step::Split(LLAMA_3), Step::Bytes], true) => Some("llama-bpe"),
        ([Step::Split(LLAMA_3), Step::Bytes], false) => Some("smaug-bpe"),
        ([Step::Split(QWEN_2), Step::Bytes], false) => Some("qwen2"),
        ([Step::Split(TEKKEN), Step::Bytes], true) => Some("tekken"),
        _ => None,
    };
    found.filter(|_| !is_normalized).ok_or_else(|| {
        let rules = Json::from(parts.into_iter().cloned().collect::<Vec<_>>());
        let problem = format!(
            "splits texts by rules that have no known name in GGUF: {rules}, normalizer {}, ignore_merges {ignores_merges}",
            json["normalizer"]
        );
        Error::file(path, problem, REMEDY)
    })
}

/// A step of the split.
#[derive(Debug)]
enum Step<'a> {
    /// By a regular expression.
    Split(&'a str),
    /// Each digit becomes a word.
    Digits,
    /// Into GPT-2's words, whose bytes become characters.
    Words,
    /// Bytes become characters.
    Bytes,
    /// Something else.
    Other,
}

/// Parses a step of the split.
fn step(part: &Json) -> Step<'_> {
    match part["type"].as_str() {
        Some("Split") if part["behavior"] == "Isolated" && part["invert"] == false => {
            part["pattern"]["Regex"].as_str().map_or(Step::Other, Step::Split)
        }
        Some("Digits") if part["individual_digits"] == true => Step::Digits,
        Some("ByteLevel") if part["add_prefix_space"] != true => {
            // Absent means true.
            if part["use_regex"] == false { Step::Bytes } else { Step::Words }
        }
        _ => Step::Other,
    }
}

/// Returns the steps of the split in order.
pub(super) fn parts(json: &Json) -> Vec<&Json> {
    let whole = &json["pre_tokenizer"];
    match whole["pretokenizers"].as_array() {
        Some(parts) => parts.iter().collect(),
        None if whole.is_null() => Vec::new(),
        None => vec![whole],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn split(regex: &str) -> Json {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    #[test]
    fn published_splits_have_names() {
        let words = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let pairs = json!({"type": "Digits", "individual_digits": false});
        let spaced = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
        for (parts, ignores_merges, expected) in [
            (vec![words.clone()], false, Some("gpt-2")),
            (vec![digits, words.clone()], false, Some("smollm")),
            (vec![split(LLAMA_3), bytes.clone()], true, Some("llama-bpe")),
            (vec![split(LLAMA_3), bytes.clone()], false, Some("smaug-bpe")),
            (vec![split(QWEN_2), bytes.clone()], false, Some("qwen2")),
            (vec![split(TEKKEN), bytes.clone()], true, Some("tekken")),
            (vec![split(TEKKEN), bytes.clone()], false, None),
            (vec![split("x"), bytes], false, None),
            (vec![pairs, words], false, None),
            (vec![spaced], false, None),
        ] {
            let json = json!({
                "model": {"ignore_merges": ignores_merges},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            });
            let found = pre_tokenizer(&json, Path::new("tokenizer.json"));
            assert_eq!(found.as_ref().ok().copied(), expected, "{json}");
            if let Err(error) = found {
                assert!(error.to_string().contains("no known name in GGUF"), "{error}");
            }
        }
    }

    #[test]
    fn other_normalizers_than_nfc_are_refused() {
        for (normalizer, is_known) in [
            (json!(null), true),
            (json!({"type": "NFC"}), true),
            (json!({"type": "Lowercase"}), false),
        ] {
            let json = json!({
                "model": {}, "normalizer": normalizer,
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
            });
            assert_eq!(
                pre_tokenizer(&json, Path::new("tokenizer.json")).is_ok(),
                is_known,
                "{json}"
            );
        }
    }
}
