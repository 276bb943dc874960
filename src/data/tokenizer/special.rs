//! Special and added tokens from the config files beside `tokenizer.json`, found and added by the rules of transformers.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::error::{Error, Result};
use crate::input_file;

/// The contents of the config files beside `tokenizer.json`.
pub(super) struct SpecialTokens {
    folder: PathBuf,
    /// Files in order of precedence.
    files: Vec<Value>,
    /// `tokenizer_config.json`, or null if it does not exist.
    config: Value,
    /// `special_tokens_map.json` if `tokenizer_config.json` has no `added_tokens_decoder`, else null.
    map: Value,
    /// Ids and contents of `added_tokens.json` if `tokenizer_config.json` has no `added_tokens_decoder`, else empty.
    legacy: BTreeMap<u32, String>,
}

/// A token of `added_tokens_decoder`, or a special token written as an object.
#[derive(Deserialize)]
struct Described {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Described {
    /// Converts the description into a token of the tokenizers crate.
    fn token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .normalized(self.normalized.unwrap_or(!self.special))
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

impl SpecialTokens {
    const FILES: [&str; 4] = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "config.json",
    ];

    /// Special tokens besides EOS and BOS, in the order transformers adds them.
    const OTHERS: [&str; 5] = ["unk", "sep", "pad", "cls", "mask"];

    const DECODER: &str = "added_tokens_decoder";

    /// Reads the files of `folder` that exist.
    ///
    /// # Errors
    /// A file cannot be read or is not JSON.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut found = Vec::new();
        let mut config = Value::Null;
        let mut map = Value::Null;
        for name in Self::FILES {
            let Some(value) = read_json(&folder.join(name))? else {
                continue;
            };
            if name == Self::FILES[0] {
                config = Value::clone(&value);
            }
            if name == Self::FILES[1] && config.get(Self::DECODER).is_none() {
                map = Value::clone(&value);
            }
            found.push(value);
        }
        // As in transformers, `tokenizer_config.json` comes first only where it describes the added tokens itself.
        if !config.is_null() && !map.is_null() {
            found.swap(0, 1);
        }
        let mut legacy = BTreeMap::new();
        let path = folder.join("added_tokens.json");
        if config.get(Self::DECODER).is_none()
            && let Some(value) = read_json(&path)?
        {
            let ids: BTreeMap<String, u32> = serde_json::from_value(value).map_err(|e| {
                let problem = format!("is not an object of tokens with their ids: {e}");
                Error::file(&path, problem, "fetch the file again")
            })?;
            legacy = ids.into_iter().map(|(token, id)| (id, token)).collect();
        }
        Ok(Self { folder: folder.to_path_buf(), files: found, config, map, legacy })
    }

    /// Adds the tokens that `tokenizer_config.json` (or `added_tokens.json`) lists and `tokenizer.json` lacks: first the
    /// tokens of `added_tokens_decoder` by id, then the padding token and other named tokens, then further special tokens.
    /// EOS and BOS are never added.
    ///
    /// # Errors
    /// A token's description is not valid, or the token would get another id than the file says.
    pub(super) fn add_to(&self, inner: &mut tokenizers::Tokenizer) -> Result<()> {
        for (id, token) in self.decoder()? {
            let known = inner.token_to_id(&token.content).is_some();
            let content = token.content.clone();
            inner.add_tokens(&[token]);
            let new_id = inner.token_to_id(&content);
            if !known && new_id != Some(id) {
                let new_id = new_id.map_or("none".to_string(), |id| id.to_string());
                return Err(self.config_error(
                    Self::DECODER,
                    format!("{content:?} has the id {id} but would get {new_id} after the tokens of tokenizer.json"),
                ));
            }
        }
        let special = |value: &Value| -> Option<AddedToken> {
            match value.as_str() {
                Some(content) => Some(AddedToken::from(content, true)),
                None => Described::deserialize(value)
                    .ok()
                    .map(|described| described.token().special(true)),
            }
        };
        let named = Self::OTHERS.iter().filter_map(|kind| {
            let key = format!("{kind}_token");
            self.files.iter().find_map(|file| special(file.get(&key)?))
        });
        let additional = self.additional().into_iter().filter_map(special);
        let missing: Vec<AddedToken> = named
            .chain(additional)
            .filter(|token| inner.token_to_id(&token.content).is_none())
            .collect();
        inner.add_tokens(&missing);
        Ok(())
    }

    /// Returns the names and texts of the special tokens as chat templates see them: `bos_token` and its like, if they are
    /// set, and the named ones of `extra_special_tokens`.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let text =
            |token: &Value| token.get("content").unwrap_or(token).as_str().map(str::to_string);
        let kinds = ["bos", "eos"].into_iter().chain(Self::OTHERS);
        let known = kinds.filter_map(|kind| {
            let key = format!("{kind}_token");
            let found = self.files.iter().find_map(|file| file.get(&key).and_then(text));
            found.map(|token| (key, token))
        });
        let named = self.config.get("extra_special_tokens").and_then(Value::as_object);
        let named = named.into_iter().flatten();
        known.chain(named.filter_map(|(name, token)| Some((name.clone(), text(token)?)))).collect()
    }

    /// Returns `tokenizer_config.json`, or null if there is none.
    pub(super) fn tokenizer_config(&self) -> &Value {
        &self.config
    }

    /// Returns further special tokens in the order in which transformers adds them: first the tokens of the table of
    /// named tokens, then those of the lists. `special_tokens_map.json` is used only if there is no
    /// `added_tokens_decoder`.
    fn additional(&self) -> Vec<&Value> {
        let files = [&self.config, &self.map];
        let named = files.map(|file| file.get("extra_special_tokens").and_then(Value::as_object));
        let lists = ["additional_special_tokens", "extra_special_tokens"]
            .map(|key| files.map(|file| file.get(key).and_then(Value::as_array)));
        let named = named.into_iter().flatten().flat_map(|names| names.values());
        named.chain(lists.into_iter().flatten().flatten().flatten()).collect()
    }

    /// Returns the tokens of `added_tokens_decoder`, or else of `added_tokens.json`, by id.
    fn decoder(&self) -> Result<BTreeMap<u32, AddedToken>> {
        let Some(decoder) = self.config.get(Self::DECODER).filter(|v| !v.is_null()) else {
            let plain = |(id, content): (&u32, &String)| (*id, AddedToken::from(&**content, false));
            return Ok(self.legacy.iter().map(plain).collect());
        };
        let decoder = BTreeMap::<String, Described>::deserialize(decoder).map_err(|e| {
            self.config_error(Self::DECODER, format!("does not describe tokens: {e}"))
        })?;
        let token = |(id, described): (String, Described)| match id.parse() {
            Ok(id) => Ok((id, described.token())),
            Err(_) => Err(self.config_error(Self::DECODER, format!("{id:?} is not an id"))),
        };
        decoder.into_iter().map(token).collect()
    }

    /// Returns an error about `key` in `tokenizer_config.json`.
    fn config_error(&self, key: &str, problem: String) -> Error {
        let path = self.folder.join(Self::FILES[0]);
        let place = format!("{}: {key}", path.display());
        Error::invalid(place, problem, "use the tokenizer files of one model")
    }

    /// Finds the special token `kind` (`eos`, `bos` or `pad`) and returns its text and id.
    ///
    /// # Errors
    /// The token is not in the vocabulary.
    pub(super) fn find(
        &self,
        kind: &str,
        inner: &tokenizers::Tokenizer,
    ) -> Result<Option<(String, u32)>> {
        let key = format!("{kind}_token");
        for file in &self.files {
            // A token is a plain string or an object such as {"content": "</s>", "lstrip": false}.
            let token = file.get(&key).map(|token| token.get("content").unwrap_or(token));
            if let Some(token) = token.and_then(Value::as_str) {
                let id = inner.token_to_id(token).ok_or_else(|| {
                    Error::invalid(
                        format!("tokenizer: {key}"),
                        format!("{token:?} is not in the vocabulary"),
                        "use the tokenizer files of one model",
                    )
                })?;
                return Ok(Some((token.to_string(), id)));
            }
        }
        let key = format!("{kind}_token_id");
        for file in &self.files {
            let id = file.get(&key).map(|id| id.get(0).unwrap_or(id)).and_then(Value::as_u64);
            let id = id.and_then(|id| u32::try_from(id).ok());
            if let Some((token, id)) = id.and_then(|id| Some((inner.id_to_token(id)?, id))) {
                return Ok(Some((token, id)));
            }
        }
        Ok(None)
    }

    /// Returns the value of `flag` (`add_bos_token` or `add_eos_token`) in `tokenizer_config.json` if it differs from
    /// `added`, which says what `tokenizer.json` does. The flags of a plain fast tokenizer never count, because
    /// transformers ignores them.
    pub(super) fn contradicting_flag(&self, flag: &str, added: bool) -> Option<bool> {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str);
        let plain = ["PreTrainedTokenizerFast", "TokenizersBackend"];
        let value = self.config.get(flag)?.as_bool()?;
        (value != added && class.is_none_or(|class| !plain.contains(&class))).then_some(value)
    }
}

/// Reads the JSON file at `path`. Returns `None` if it does not exist.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match input_file::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::file(path, format!("is not JSON: {e}"), "fetch the file again")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}
