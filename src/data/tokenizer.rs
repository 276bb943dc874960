//! The tokenizer of a Hugging Face model folder: `tokenizer.json`, and the special tokens from the folder's config files.

mod caught;
mod qwen2;
mod special;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;

use self::caught::caught;
use self::special::SpecialTokens;
use crate::data::chat::{self, ChatTemplate};
use crate::error::{Error, Result};
use crate::input_file;
use crate::output::write_whole;

/// Files that make up a tokenizer, as transformers saves them. [`copy_tokenizer_files`] copies all of them.
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

/// The characters of a token: the first, and the one after the last.
pub type CharRange = (usize, usize);

/// Converts text to token ids and back, and knows the BOS, EOS and padding ids of a model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Path of `tokenizer.json`.
    path: PathBuf,
    eos: (String, u32),
    bos_id: Option<u32>,
    unk_id: Option<u32>,
    /// The padding token, if the tokenizer has one.
    own_pad_id: Option<u32>,
    vocab_size: usize,
    chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder. Tokens that only `tokenizer_config.json` lists are added, as in
    /// transformers.
    ///
    /// Special tokens are taken from `tokenizer_config.json`, else from `special_tokens_map.json`, else (by id) from
    /// `generation_config.json` or `config.json`. Truncation and padding stored in `tokenizer.json` are disabled, because
    /// [`encode_pairs`](super::encode::encode_pairs) decides about lengths.
    ///
    /// # Errors
    /// `tokenizer.json` is missing or damaged, a special token is not in the vocabulary, there is no EOS token, or the chat
    /// template cannot be read.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = match input_file::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if folder.join("tokenizer.model").is_file() => {
                return Err(Error::file(
                    &path,
                    format!("cannot be read ({e}); the folder has a SentencePiece tokenizer.model"),
                    "save it as tokenizer.json: AutoTokenizer.from_pretrained(..).save_pretrained(..)",
                ));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::file(
                    folder,
                    "contains no tokenizer.json",
                    "fetch the tokenizer files of this model too, or save them: AutoTokenizer.from_pretrained(..).save_pretrained(..)",
                ));
            }
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let names = SpecialTokens::read(folder)?;
        let unusable = |problem: String| {
            let problem = format!("is not a usable tokenizer: {problem}");
            Error::file(&path, problem, "fetch the file again")
        };
        let opened = caught(|| -> Result<tokenizers::Tokenizer> {
            let opened = tokenizers::Tokenizer::from_bytes(bytes);
            let mut inner = opened.map_err(|e| unusable(e.to_string()))?;
            inner.with_padding(None);
            let untruncated = inner.with_truncation(None);
            untruncated.map_err(|e| unusable(e.to_string()))?;
            names.add_to(&mut inner)?;
            qwen2::adapt(folder, &mut inner).map_err(unusable)?;
            Ok(inner)
        });
        let inner = opened.map_err(unusable)??;
        let eos = names.find("eos", &inner)?.ok_or_else(|| {
            Error::file(
                folder,
                "names no EOS token in any of its config files",
                "add \"eos_token\" to tokenizer_config.json",
            )
        })?;
        let bos_id = names.find("bos", &inner)?.map(|(_, id)| id);
        // Some files name a token for unknown text that the vocabulary lacks; nothing here depends on it.
        let unk_id = names.find("unk", &inner).ok().flatten().map(|(_, id)| id);
        let own_pad_id = names.find("pad", &inner)?.map(|(_, id)| id);
        let vocab_size = inner.get_vocab_size(true);
        let chat_template = chat::find(folder, names.tokenizer_config(), names.variables())?;
        let tokenizer =
            Self { inner, path, eos, bos_id, unk_id, own_pad_id, vocab_size, chat_template };
        tokenizer.warn_about_flags(&names)?;
        Ok(tokenizer)
    }

    /// Warns if `add_bos_token` or `add_eos_token` contradicts `tokenizer.json`. The latter is used, as in transformers 5;
    /// transformers 4 used the flags.
    fn warn_about_flags(&self, names: &SpecialTokens) -> Result<()> {
        let added_ids = self.encode("", true)?;
        let adds = [
            (
                "add_bos_token",
                "BOS",
                self.bos_id.is_some() && added_ids.first().copied() == self.bos_id,
            ),
            ("add_eos_token", "EOS", added_ids.last() == Some(&self.eos_id())),
        ];
        for (flag, token, added) in adds {
            // If BOS and EOS are the same token, its place in an empty text does not tell which of the two it is.
            if self.bos_id == Some(self.eos_id()) {
                continue;
            }
            if let Some(value) = names.contradicting_flag(flag, added) {
                let action = if added { "adds" } else { "does not add" };
                warn(&format!(
                    "warning: {}: tokenizer_config.json says {flag} = {value}, but tokenizer.json {action} {token}; \
                     tokenizer.json is used, as in transformers 5",
                    self.path.with_file_name("").display()
                ));
            }
        }
        Ok(())
    }

    /// Returns the token ids of `text`. With `add_special_tokens`, the special tokens of the tokenizer's template are
    /// added (for Mistral, BOS at the start).
    ///
    /// # Errors
    /// The tokenizer cannot represent the text because it has no unknown token and no byte fallback.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoded = caught(|| self.inner.encode_fast(text, add_special_tokens));
        let encoding = encoded.and_then(|encoding| encoding.map_err(|e| e.to_string()));
        let encoding = encoding.map_err(|e| self.cannot_encode(text, &e))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn cannot_encode(&self, text: &str, problem: &str) -> Error {
        let text: String = text.chars().take(60).collect();
        self.unusable(&format!("cannot encode {text:?}: {problem}"))
    }

    /// Returns the token ids of `text` without special tokens, and the characters of each token.
    ///
    /// # Errors
    /// Same as [`Self::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<CharRange>)> {
        let encoded = caught(|| self.inner.encode_char_offsets(text, false));
        let encoding = encoded.and_then(|encoding| encoding.map_err(|e| e.to_string()));
        let encoding = encoding.map_err(|e| self.cannot_encode(text, &e))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Returns the text of `ids`. Ids outside the vocabulary are skipped.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let decoded = caught(|| self.inner.decode(ids, skip_special_tokens));
        let decoded = decoded.and_then(|text| text.map_err(|e| e.to_string()));
        decoded.map_err(|e| self.unusable(&format!("cannot decode: {e}")))
    }

    fn unusable(&self, problem: &str) -> Error {
        let remedy = "check that tokenizer.json belongs to the model, or fetch it again";
        Error::file(&self.path, problem, remedy)
    }

    /// Returns the text of the end-of-sequence token.
    pub fn eos_token(&self) -> &str {
        &self.eos.0
    }

    /// Returns the id of the end-of-sequence token.
    pub fn eos_id(&self) -> u32 {
        self.eos.1
    }

    /// Returns the id of the beginning-of-sequence token, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Returns the id of the token for unknown text, if the tokenizer has one.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk_id
    }

    /// Returns the id of the padding token, or of EOS if the tokenizer has no padding token, as TRL pads.
    pub fn pad_id(&self) -> u32 {
        self.own_pad_id.unwrap_or(self.eos.1)
    }

    /// Returns the id of the padding token, if the tokenizer has one.
    pub fn own_pad_id(&self) -> Option<u32> {
        self.own_pad_id
    }

    /// Returns the path of `tokenizer.json`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tokenizer as the content of a `tokenizer.json`, with the tokens and rules that other files of the folder
    /// add.
    ///
    /// # Errors
    /// The tokenizer has a part that cannot be written.
    pub fn to_json(&self) -> Result<Value> {
        let text = caught(|| self.inner.to_string(false));
        let text = text.and_then(|text| text.map_err(|e| e.to_string()));
        let json = text.and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()));
        json.map_err(|e| self.unusable(&format!("cannot be written as JSON: {e}")))
    }

    /// Returns the chat template of the model, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Returns whether `id` is one of the tokens that were added to the vocabulary, such as the special ones.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().contains_key(&id)
    }

    /// Returns the number of tokens, including added ones.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Copies the files of [`TOKENIZER_FILES`] that exist from one folder to another. Each file is copied whole or not at all.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_tokenizer_files(from: &Path, to: &Path) -> Result<()> {
    CarriedFiles::read(from, TOKENIZER_FILES)?.write(to)
}

/// Small files of a model that are copied into every result trained on it. They are held in memory, so that the result is
/// complete even if the model's folder changes during training.
#[derive(Clone, Debug)]
pub struct CarriedFiles(Vec<(&'static str, Vec<u8>)>);

impl CarriedFiles {
    /// Reads the files in `names` that exist in `folder`.
    ///
    /// # Errors
    /// A file exists and cannot be read, or the folder does not exist.
    pub fn read(folder: &Path, names: impl IntoIterator<Item = &'static str>) -> Result<Self> {
        let mut files = Vec::new();
        for name in names {
            let source = folder.join(name);
            if source.is_file() {
                let bytes = input_file::read(&source).map_err(|e| Error::io(&source, "read", e))?;
                files.push((name, bytes));
            }
        }
        // A folder that has gone since it was opened would look like one without these files.
        std::fs::metadata(folder).map_err(|e| Error::io(folder, "read", e))?;
        Ok(Self(files))
    }

    /// Writes the files into `folder`. Each file is written whole or not at all.
    ///
    /// # Errors
    /// The disk is full or the folder is not writable.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut files = self.0.iter();
        files.try_for_each(|(name, bytes)| write_whole(&folder.join(name), bytes))
    }
}

/// Prints a warning, but only once per process however often the tokenizer is loaded.
fn warn(message: &str) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let new = WARNED.lock().is_ok_and(|mut warned| warned.insert(message.to_string()));
    if new {
        say!("{message}");
    }
}
