//! The tokenizer in a GGUF file: tokens, their types, and the rules by which llama.cpp splits and joins text.

mod pre_tokenizer;
mod sentencepiece;
mod strips;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use self::pre_tokenizer::pre_tokenizer;
use self::sentencepiece::{adds_space, note_unlisted_joins, scores};
pub(super) use self::strips::model_name;
use super::value::{Keys, Value};
use crate::data::chat::TOOL_USE;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Types of tokens in files (`llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The character that stands for a space in tokens of SentencePiece.
const SPACE: char = '\u{2581}';

/// What to do about a tokenizer that llama.cpp does not know.
const REMEDY: &str = "llama.cpp would split texts in other tokens than those the model was trained on; use the model's \
                      folder with a program that reads Hugging Face's layout";

/// How the tokens of a vocabulary are found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bytes of words are joined by the list of merges.
    ByteLevel,
    /// Characters are joined where the result is a token; other characters are split into bytes.
    SentencePiece,
}

/// A token of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    kind: i32,
}

/// Adds the keys of the tokenizer, whose form in `tokenizer.json` is `json`, for a model with `rows` rows of embeddings, whose
/// generation ends at `stop_ids`. Returns notes for the user.
///
/// # Errors
/// llama.cpp cannot express the tokenizer, or it has more tokens than the model has embeddings.
pub(super) fn tokenizer_keys(
    tokenizer: &Tokenizer,
    json: &Json,
    rows: usize,
    stop_ids: &[u32],
    keys: &mut Keys,
) -> Result<Vec<String>> {
    let path = tokenizer.path();
    let kind = kind(json, path)?;
    let tokens = tokens(json, kind, rows, path)?;
    let mut notes = Vec::new();
    match kind {
        Kind::ByteLevel => {
            keys.set_text("tokenizer.ggml.model", "gpt2");
            keys.set_text("tokenizer.ggml.pre", pre_tokenizer(json, path)?);
        }
        Kind::SentencePiece => {
            keys.set_text("tokenizer.ggml.model", "llama");
            keys.set_text("tokenizer.ggml.pre", "default");
            let space = adds_space(json, path)?;
            keys.set("tokenizer.ggml.add_space_prefix", Value::Bool(space));
            notes.extend(note_unlisted_joins(json));
        }
    }
    let (texts, types) = tokens.iter().map(|token| (token.text.clone(), token.kind)).unzip();
    keys.set("tokenizer.ggml.tokens", Value::Texts(texts));
    keys.set("tokenizer.ggml.token_type", Value::I32s(types));
    match kind {
        Kind::ByteLevel => {
            let merges = merges(json).map(|(a, b)| format!("{} {}", joinable(a), joinable(b)));
            keys.set("tokenizer.ggml.merges", Value::Texts(merges.collect()));
        }
        Kind::SentencePiece => {
            keys.set("tokenizer.ggml.scores", Value::F32s(scores(json, &tokens)));
        }
    }
    special_token_keys(tokenizer, stop_ids, keys)?;
    notes.extend(strips::note(json));
    notes.extend(note_further_ends(tokenizer, stop_ids));
    notes.extend(chat_template_keys(tokenizer, keys));
    Ok(notes)
}

/// Returns how tokens are found.
fn kind(json: &Json, path: &Path) -> Result<Kind> {
    let model = &json["model"];
    let is_bpe = model["type"] == "BPE";
    let is_byte_level = pre_tokenizer::parts(json).iter().any(|part| part["type"] == "ByteLevel");
    match (is_bpe, model["byte_fallback"] == true, is_byte_level) {
        (true, false, true) => Ok(Kind::ByteLevel),
        (true, true, false) => Ok(Kind::SentencePiece),
        _ => {
            let problem = format!(
                "is neither a byte-level BPE nor one of SentencePiece, but a model of type {} {}",
                model["type"], "that GGUF cannot hold"
            );
            Err(Error::file(path, problem, REMEDY))
        }
    }
}

/// Returns all tokens by id, and unused ones for the rows of the embedding that have none.
fn tokens(json: &Json, kind: Kind, rows: usize, path: &Path) -> Result<Vec<Token>> {
    let mut by_id = BTreeMap::new();
    let vocabulary = json["model"]["vocab"].as_object().into_iter().flatten();
    for (text, id) in vocabulary {
        let token = Token { kind: vocabulary_type(text, kind, json), text: text.clone() };
        by_id.insert(id.as_u64().unwrap_or(u64::MAX), token);
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let text = added["content"].as_str().unwrap_or_default();
        let is_unknown = kind == Kind::SentencePiece && json["model"]["unk_token"] == text;
        let token = if is_unknown {
            Token { text: text.to_string(), kind: UNKNOWN }
        } else if added["special"] == true || looks_special(text) {
            Token { text: text.to_string(), kind: CONTROL }
        } else {
            // llama.cpp looks for these in the text as it is.
            Token { text: text.replace(SPACE, " "), kind: USER_DEFINED }
        };
        by_id.insert(added["id"].as_u64().unwrap_or(u64::MAX), token);
    }
    if let Some((id, token)) = by_id.last_key_value().filter(|(id, _)| **id >= rows as u64) {
        return Err(Error::file(
            path,
            format!(
                "gives {:?} the id {id}, but the model has embeddings for {rows} tokens",
                token.text
            ),
            "use the tokenizer files that belong to the model, or resize its embeddings: model.resize_token_embeddings(..)",
        ));
    }
    let padding = |id: u64| Token { text: format!("[PAD{id}]"), kind: UNUSED };
    Ok((0..rows as u64).map(|id| by_id.remove(&id).unwrap_or_else(|| padding(id))).collect())
}

/// Returns the type of a token of the vocabulary that is not an added one.
fn vocabulary_type(text: &str, kind: Kind, json: &Json) -> i32 {
    match kind {
        Kind::SentencePiece if json["model"]["unk_token"] == text => UNKNOWN,
        Kind::SentencePiece if is_byte(text) => BYTE,
        _ => NORMAL,
    }
}

/// Returns whether a token of SentencePiece stands for one byte, as `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Returns whether an added token is one that a text must not contain, although its file does not mark it as special. The
/// rule is that of llama.cpp's converter.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Iterates over the merges of the vocabulary, the first ones first.
fn merges(json: &Json) -> impl Iterator<Item = (&str, &str)> {
    let merges = json["model"]["merges"].as_array().into_iter().flatten();
    merges.filter_map(|merge| match merge {
        Json::String(text) => text.split_once(' '),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    })
}

/// Returns a part of a merge in which no space ends the part.
fn joinable(part: &str) -> String {
    // The character that stands for a space in byte-level tokens.
    part.replace(' ', "\u{120}")
}

/// Adds the ids of special tokens, which of them a text gets, and the chat template.
fn special_token_keys(tokenizer: &Tokenizer, stop_ids: &[u32], keys: &mut Keys) -> Result<()> {
    let eos = tokenizer.eos_id();
    // llama.cpp has a key for one further token that ends generation; it knows others by their texts.
    let eot = stop_ids.iter().copied().find(|id| *id != eos);
    for (name, id) in [
        ("bos", tokenizer.bos_id()),
        ("eos", Some(eos)),
        ("eot", eot),
        ("unknown", tokenizer.unk_id()),
        ("padding", tokenizer.own_pad_id()),
    ] {
        if let Some(id) = id {
            keys.set(format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
    }
    let (bare, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let added = whole.len().saturating_sub(bare.len());
    let starts_with_bos =
        tokenizer.bos_id().is_some() && whole.first().copied() == tokenizer.bos_id();
    let ends_with_eos = whole.last() == Some(&eos);
    for (name, value) in
        [("bos", added > 0 && starts_with_bos), ("eos", added > 0 && ends_with_eos)]
    {
        keys.set(format!("tokenizer.ggml.add_{name}_token"), Value::Bool(value));
    }
    Ok(())
}

/// Returns a note about tokens that end generation and have no key: there are keys for two.
fn note_further_ends(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Option<String> {
    let others = stop_ids.iter().filter(|id| **id != tokenizer.eos_id()).skip(1);
    let texts: Vec<String> = others
        .map(|id| tokenizer.decode(&[*id], false).unwrap_or_else(|_| id.to_string()))
        .collect();
    (!texts.is_empty()).then(|| {
        format!(
            "generation also ends at {}, for which GGUF has no key; programs that read the file may not stop there",
            texts.join(", ")
        )
    })
}

/// Adds the chat templates. Returns a note if there is one that cannot be used.
fn chat_template_keys(tokenizer: &Tokenizer, keys: &mut Keys) -> Option<String> {
    let template = tokenizer.chat_template()?;
    if !template.source().is_empty() {
        keys.set_text("tokenizer.chat_template", template.source());
    }
    if let Some(source) = template.tool_use_source() {
        keys.set("tokenizer.chat_templates", Value::Texts(vec![TOOL_USE.to_string()]));
        keys.set_text(format!("tokenizer.chat_template.{TOOL_USE}"), source);
    }
    let problem = template.check().err()?;
    Some(format!("{problem}; programs that read the file may refuse it"))
}
