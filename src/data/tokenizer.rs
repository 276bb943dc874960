//! The tokenizer of a Hugging Face folder: `tokenizer.json`, with the special tokens the files beside it name.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::output::write_whole;

/// Files that make up a tokenizer, as transformers saves them. Only the first is read here; all are carried along.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// Text to ids and back, with the BOS, EOS and padding ids of a model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos: (String, u32),
    bos_id: Option<u32>,
    pad_id: u32,
    vocab_size: usize,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder.
    ///
    /// Special tokens are taken from `tokenizer_config.json`, else `special_tokens_map.json`, else (by id) from
    /// `generation_config.json` or `config.json`. Truncation and padding stored in `tokenizer.json` are switched off:
    /// lengths are decided by [`encode_pairs`](super::encode::encode_pairs) alone.
    ///
    /// # Errors
    /// `tokenizer.json` is missing or damaged, a special token is not in the vocabulary, or there is no EOS token.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if folder.join("tokenizer.model").is_file() => {
                return Err(Error::file(
                    &path,
                    format!(
                        "cannot be read ({e}); the folder holds a SentencePiece tokenizer.model"
                    ),
                    "save it as tokenizer.json: AutoTokenizer.from_pretrained(..).save_pretrained(..)",
                ));
            }
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            Error::file(&path, format!("is not a tokenizer: {e}"), "fetch the file again")
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, e, "fetch the file again"))?;
        let names = SpecialTokens::read(folder)?;
        let eos = names.find("eos", &inner)?.ok_or_else(|| {
            Error::file(
                folder,
                "names no EOS token in any of its config files",
                "add \"eos_token\" to tokenizer_config.json",
            )
        })?;
        let bos_id = names.find("bos", &inner)?.map(|(_, id)| id);
        // TRL pads with EOS where the tokenizer has no padding token.
        let pad_id = names.find("pad", &inner)?.map_or(eos.1, |(_, id)| id);
        let vocab_size = inner.get_vocab_size(true);
        Ok(Self { inner, eos, bos_id, pad_id, vocab_size })
    }

    /// The ids of `text`. `add_special_tokens` adds what the tokenizer's template says (Mistral: BOS in front).
    ///
    /// # Errors
    /// The tokenizer's model cannot express the text (no unknown token and no byte fallback).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(|e| {
            Error::invalid(
                "tokenizer",
                format!("cannot encode {:?}: {e}", text.chars().take(60).collect::<String>()),
                "check that tokenizer.json belongs to the model",
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; ids outside the vocabulary vanish.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| {
            Error::invalid(
                "tokenizer",
                format!("cannot decode: {e}"),
                "check that tokenizer.json belongs to the model",
            )
        })
    }

    /// The end-of-sequence token as text.
    pub fn eos_token(&self) -> &str {
        &self.eos.0
    }

    /// The end-of-sequence id.
    pub fn eos_id(&self) -> u32 {
        self.eos.1
    }

    /// The begin-of-sequence id, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The padding id; EOS where the tokenizer names none.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Copies the tokenizer's files (those of [`TOKENIZER_FILES`] that exist) from one folder to another, each whole.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_tokenizer_files(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let source = from.join(name);
        if source.is_file() {
            let bytes = fs::read(&source).map_err(|e| Error::io(&source, "read", e))?;
            write_whole(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// The config files beside `tokenizer.json`, in the order they are believed.
struct SpecialTokens(Vec<Value>);

impl SpecialTokens {
    const FILES: [&str; 4] = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "config.json",
    ];

    fn read(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for path in Self::FILES.map(|name| folder.join(name)) {
            match fs::read(&path) {
                Ok(bytes) => files.push(serde_json::from_slice(&bytes).map_err(|e| {
                    Error::file(&path, format!("is not JSON: {e}"), "fetch the file again")
                })?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(&path, "read", e)),
            }
        }
        Ok(Self(files))
    }

    /// Token and id of `kind` (`eos`, `bos`, `pad`).
    fn find(&self, kind: &str, inner: &tokenizers::Tokenizer) -> Result<Option<(String, u32)>> {
        let key = format!("{kind}_token");
        for file in &self.0 {
            // Written as a plain string or as {"content": "</s>", "lstrip": false, ...}.
            let token = file.get(&key).map(|token| token.get("content").unwrap_or(token));
            if let Some(token) = token.and_then(Value::as_str) {
                let id = inner.token_to_id(token).ok_or_else(|| {
                    Error::invalid(
                        format!("tokenizer: {key}"),
                        format!("{token:?} is not in the vocabulary"),
                        "take all tokenizer files from one model",
                    )
                })?;
                return Ok(Some((token.to_string(), id)));
            }
        }
        let key = format!("{kind}_token_id");
        for file in &self.0 {
            let id = file.get(&key).map(|id| id.get(0).unwrap_or(id)).and_then(Value::as_u64);
            let id = id.and_then(|id| u32::try_from(id).ok());
            if let Some((token, id)) = id.and_then(|id| Some((inner.id_to_token(id)?, id))) {
                return Ok(Some((token, id)));
            }
        }
        Ok(None)
    }
}
