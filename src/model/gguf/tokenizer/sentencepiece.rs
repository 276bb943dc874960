//! Tokenizers of SentencePiece's BPE (`tokenizer.ggml.model = llama`), from the form that `tokenizer.json` has of them.
//!
//! llama.cpp joins the two neighbors whose joined text is the token with the highest score; `tokenizer.json` has a list of
//! merges instead, the first ones first. The list of a converted SentencePiece model has the joins of one token side by
//! side, so the token's place in the list gives its score.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value as Json;

use super::pre_tokenizer::parts;
use super::{BYTE, NORMAL, REMEDY, SPACE, Token, merges};
use crate::error::{Error, Result};

/// Score of tokens that no join makes, below all others.
const UNJOINED: f32 = -1e6;

/// Returns one score per token: the higher, the earlier it is joined. Bytes and special tokens, which nothing is joined
/// to, have 0 as in SentencePiece.
pub(super) fn scores(json: &Json, tokens: &[Token]) -> Vec<f32> {
    let mut ranks = BTreeMap::new();
    for (left, right) in merges(json) {
        let rank = ranks.len();
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |token: &Token| match (ranks.get(&token.text), token.kind) {
        (Some(rank), _) => -(*rank as f32),
        (None, NORMAL) => UNJOINED,
        (None, BYTE) => 0.0,
        (None, _) => UNJOINED,
    };
    tokens.iter().map(score).collect()
}

/// Returns whether a text starts with a space of its own.
///
/// # Errors
/// The text is changed or split in a way that llama.cpp does not know.
pub(super) fn adds_space(json: &Json, path: &Path) -> Result<bool> {
    let normalizer = &json["normalizer"];
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    };
    let space = SPACE.to_string();
    let (mut adds, mut replaces) = (false, false);
    let unknown = |step: &Json| {
        let problem = format!("changes texts by a rule that GGUF cannot hold: {step}");
        Err(Error::file(path, problem, REMEDY))
    };
    for step in steps {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == space => adds = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == space => {
                replaces = true;
            }
            _ => return unknown(step),
        }
    }
    for step in parts(json) {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == space => {
                adds |= step["prepend_scheme"] != "never";
                replaces = true;
            }
            // Gemma's, which finds nothing after the normalizer has replaced all spaces.
            Some("Split") if step["pattern"]["String"] == " " && replaces => {}
            _ => return unknown(step),
        }
    }
    if replaces { Ok(adds) } else { unknown(&Json::from("spaces are kept")) }
}

/// Returns a note if two tokens make a third, which llama.cpp would join, without being in the list of merges. A converted
/// SentencePiece model has no such tokens; a vocabulary that was trained as a list of merges has some.
pub(super) fn note_unlisted_joins(json: &Json) -> Option<String> {
    let vocabulary = json["model"]["vocab"].as_object()?;
    let listed: BTreeSet<(&str, &str)> = merges(json).collect();
    let joined: BTreeSet<String> = listed.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let splits = joined
        .iter()
        .flat_map(|text| text.char_indices().skip(1).map(move |(at, _)| text.split_at(at)));
    let is_known = |text: &str| vocabulary.contains_key(text);
    let unlisted = splits.filter(|(a, b)| is_known(a) && is_known(b) && !listed.contains(&(a, b)));
    let unlisted: Vec<(&str, &str)> = unlisted.collect();
    let (a, b) = unlisted.first()?;
    Some(format!(
        "the tokenizer does not join {a:?} and {b:?} to {:?}, but programs that read GGUF do ({} such pairs): they split \
         some texts into other tokens",
        format!("{a}{b}"),
        unlisted.len()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{CONTROL, UNUSED};
    use super::*;

    #[test]
    fn scores_follow_the_first_merge_of_a_token() {
        let json = json!({"model": {"merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]}});
        let token = |text: &str, kind| Token { text: text.into(), kind };
        let tokens = [
            token("<s>", CONTROL),
            token("<0x0A>", BYTE),
            token("a", NORMAL),
            token("abc", NORMAL),
            token("ab", NORMAL),
            token("bc", NORMAL),
            token("[PAD6]", UNUSED),
        ];
        let scores = scores(&json, &tokens);
        assert_eq!(scores, [UNJOINED, 0.0, UNJOINED, -2.0, 0.0, -1.0, UNJOINED]);
    }

    #[test]
    fn tokens_that_only_llama_cpp_would_join_are_noted() {
        let vocab = json!({"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5});
        let of = |merges: Json| json!({"model": {"vocab": vocab, "merges": merges}});
        let all = json!([["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]);
        assert_eq!(note_unlisted_joins(&of(all)), None);
        let some = note_unlisted_joins(&of(json!([["a", "b"], ["b", "c"], ["ab", "c"]]))).unwrap();
        assert!(some.contains("\"a\" and \"bc\" to \"abc\"") && some.contains("(1 such"), "{some}");
    }

    #[test]
    fn the_first_space_is_that_of_normalizer_or_pre_tokenizer() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let sequence = |steps: Json| json!({"type": "Sequence", "normalizers": steps});
        for (normalizer, split, expected) in [
            (sequence(json!([prepend, replace])), json!(null), Some(true)),
            (replace.clone(), json!(null), Some(false)),
            (replace, json!({"type": "Split", "pattern": {"String": " "}}), Some(false)),
            (json!(null), metaspace("first"), Some(true)),
            (json!(null), metaspace("never"), Some(false)),
            (json!({"type": "NFKC"}), metaspace("first"), None),
            (json!(null), json!({"type": "Whitespace"}), None),
            (json!(null), json!(null), None),
        ] {
            let json = json!({"normalizer": normalizer, "pre_tokenizer": split});
            let found = adds_space(&json, Path::new("tokenizer.json"));
            assert_eq!(found.as_ref().ok().copied(), expected, "{json}");
            if let Err(error) = found {
                assert!(error.to_string().contains("a rule that GGUF cannot hold"), "{error}");
            }
        }
    }
}
