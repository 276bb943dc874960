//! The identity of a model: hashes of everything that determines its outputs, so that saved results are never taken
//! for those of another model.
//!
//! Only contents count, not locations or times: a copied, renamed or touched folder is the same model, and a change
//! of one bit of one weight makes another one. Computing it takes reading every byte of the weights; `remembered`
//! explains what makes that affordable and which change can go unnoticed.

mod remembered;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::input_file;

/// Name of the weights' hash.
const WEIGHTS: &str = "weights";

/// Name of the hash of `quantization_config` in `config.json`: how the stored weights are quantized.
const QUANTIZATION: &str = "quantization_config";

/// Files besides the weights whose contents count. The first one must exist.
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// Keys without effect that transformers writes into `config.json` and `generation_config.json` whenever it saves
/// them.
const WITHOUT_EFFECT: [&str; 2] = ["_name_or_path", "transformers_version"];

/// The SHA-256 hashes, in hex, of a model's weights and of each file that [`ModelIdentity::read`] reads, by name.
/// Serialized as a flat JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelIdentity(BTreeMap<String, String>);

impl ModelIdentity {
    /// Computes the identity of the model in `folder`. It hashes the weights (every tensor's name, dtype, shape and
    /// bytes, however they are distributed over files), `config.json` (with `quantization_config` separately),
    /// `generation_config.json`, and the tokenizer's files with the chat template. JSON files are hashed as values:
    /// neither the order of keys nor white space matters. Files that do not exist have no hash.
    ///
    /// # Errors
    /// `config.json` or the weights are missing, damaged or unreadable, or the user interrupts.
    pub fn read(folder: &Path) -> Result<Self> {
        let files = WeightFiles::open(folder)?;
        let mut identity = Self::read_without_weights(folder)?;
        identity.insert(WEIGHTS, weights_digest(&files)?);
        Ok(identity)
    }

    /// Computes the identity like [`read`](Self::read), without the weights.
    pub(crate) fn read_without_weights(folder: &Path) -> Result<Self> {
        let mut identity = Self::default();
        for name in FILES {
            let path = folder.join(name);
            if name == FILES[0] || path.exists() {
                identity.add_file(name, &path)?;
            }
        }
        Ok(identity)
    }

    /// Adds the hash of the file at `path` under `name`. A JSON file is hashed as a value, without the keys in
    /// [`WITHOUT_EFFECT`]; its `quantization_config` gets a hash of its own.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = input_file::read(path).map_err(|e| Error::io(path, "read", e))?;
        // A file that is not valid JSON is refused where it is used; here its bytes are hashed.
        let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else {
            self.insert(name, hex(Sha256::digest(&bytes)));
            return Ok(());
        };
        if let Some(object) = value.as_object_mut() {
            for key in WITHOUT_EFFECT {
                object.remove(key);
            }
            if let Some(packing) = object.remove(QUANTIZATION) {
                self.insert(QUANTIZATION, value_digest(packing));
            }
        }
        self.insert(name, value_digest(value));
        Ok(())
    }

    fn insert(&mut self, name: &str, hash: String) {
        self.0.insert(name.to_string(), hash);
    }

    /// Iterates over names and hashes, sorted by name.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, hash)| (name.as_str(), hash.as_str()))
    }

    /// Describes each difference to `now` in words: `"the weights of the model changed"`. Empty if both are the same
    /// model.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        let changes = names.into_iter().filter_map(|name| {
            let change = match (self.0.get(name), now.0.get(name)) {
                (Some(old), Some(new)) if old == new => return None,
                (Some(_), Some(_)) => "changed",
                (None, _) => "was added",
                (_, None) => "was removed",
            };
            Some(match name.as_str() {
                WEIGHTS => format!("the weights of the model {change}"),
                adapter if adapter.starts_with("adapter_") => {
                    format!("{adapter} of the adapter {change}")
                }
                other => format!("{other} of the model {change}"),
            })
        });
        changes.collect()
    }

    /// Returns one hash of all hashes, in hex.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, hash) in self.settings() {
            hasher.update(format!("{name} {hash}\n"));
        }
        hex(hasher.finalize())
    }
}

/// Returns the hash of the inputs of quantization: `config.json` of `folder` and the contents of its weights, in hex.
///
/// # Errors
/// A file cannot be read, or the user interrupts.
pub(super) fn weights_and_config(folder: &Path, files: &WeightFiles) -> Result<String> {
    let mut identity = ModelIdentity::default();
    identity.add_file(FILES[0], &folder.join(FILES[0]))?;
    identity.insert(WEIGHTS, weights_digest(files)?);
    Ok(identity.fingerprint())
}

/// Returns the hash of the tensors' contents, from disk if it was computed before and the files have not changed
/// since.
fn weights_digest(files: &WeightFiles) -> Result<String> {
    remembered::digest(files, || Ok(hex(files.digest()?)))
}

/// Returns the hash of a JSON value, independent of the order of its keys.
fn value_digest(mut value: Value) -> String {
    value.sort_all_objects();
    hex(Sha256::digest(value.to_string()))
}

/// Encodes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
