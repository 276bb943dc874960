//! The settings on which an evaluation's numbers depend, and the check that kept answers have the same settings.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::model::identity::{ModelIdentity, hex};

/// The setting that holds a [`ModelIdentity`].
const IDENTITY: &str = "model_identity";

/// The settings on which an evaluation's numbers depend, by name: model, adapter, data, prompt, limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub Map<String, Value>);

impl Settings {
    /// Settings that are only paths. They are not compared; the hashes of the files are, so that files can be moved.
    const PATHS: [&'static str; 4] = ["data", "adapter", "model", "predictions"];

    /// Adds one setting.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_string(), value.into());
        self
    }

    /// Adds the hashes of the model's files.
    pub fn with_identity(self, identity: &ModelIdentity) -> Self {
        let hashes = identity.settings();
        let hashes: Map<String, Value> =
            hashes.map(|(name, hash)| (name.to_string(), hash.into())).collect();
        self.with(IDENTITY, hashes)
    }

    /// Describes each difference between these settings and `new`. Files are compared by content, not by path.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        // An older version saved other settings of the model, which do not identify it.
        let unknown = new.0.contains_key(IDENTITY) && !self.0.contains_key(IDENTITY);
        let compared = |name: &&str| {
            let in_both = self.0.contains_key(*name) && new.0.contains_key(*name);
            !Self::PATHS.contains(name) && (in_both || !unknown || *name == IDENTITY)
        };
        let names = self.all_names(new).into_iter().filter(compared);
        names.flat_map(|name| self.difference(new, name)).collect()
    }

    /// Returns the names of all settings here and then those only in `other`.
    pub(super) fn all_names<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let others = other.0.keys().filter(|name| !self.0.contains_key(*name));
        self.0.keys().chain(others).map(String::as_str).collect()
    }

    fn difference(&self, new: &Self, name: &str) -> Vec<String> {
        let (old, new) = (self.0.get(name), new.0.get(name));
        if old == new {
            return Vec::new();
        }
        if name == IDENTITY {
            return identity_differences(old, new);
        }
        if let Some(rows) = name.strip_suffix("_sha256") {
            return vec![format!("the content of the {rows} changed")];
        }
        let text = |value: Option<&Value>| value.map_or("not set".to_string(), Value::to_string);
        vec![format!("{name} was {}, is {}", text(old), text(new))]
    }
}

/// Describes which files of a model changed.
fn identity_differences(old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let identity = |value: Option<&Value>| {
        let hashes = value.cloned().unwrap_or_default();
        serde_json::from_value::<ModelIdentity>(hashes).ok()
    };
    match (identity(old), identity(new)) {
        (Some(old), Some(new)) => old.differences(&new),
        _ => vec![
            "it does not say which weights and tokenizer its answers came from (an older version wrote it)"
                .to_string(),
        ],
    }
}

/// Chained hashes of a list of rows: one for each prefix of the list.
#[derive(Clone, Debug)]
struct RowHashes {
    /// Kind of the rows: `problems` or `pairs`.
    name: &'static str,
    /// Hash of the first `n` rows at index `n - 1`.
    prefixes: Vec<String>,
}

/// The settings and rows that kept answers must have been made with to be continued. The rows may be a prefix of these.
#[derive(Clone, Debug)]
pub struct ResultKey {
    settings: Settings,
    rows: RowHashes,
    remedy: String,
}

impl ResultKey {
    /// Creates the key of answers to `rows`, which are texts. `name` is `problems` or `pairs`. The remedy in errors is that
    /// of a command with `--output` and `--overwrite`.
    pub fn new(
        settings: Settings,
        name: &'static str,
        rows: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Self {
        let mut hasher = Sha256::new();
        let prefixes = rows.into_iter().map(|row| {
            let row = row.as_ref();
            hasher.update((row.len() as u64).to_le_bytes());
            hasher.update(row);
            hex(hasher.clone().finalize())
        });
        let prefixes = prefixes.collect();
        Self {
            settings,
            rows: RowHashes { name, prefixes },
            remedy: "give another --output, or --overwrite to start again".to_string(),
        }
    }

    /// Replaces the remedy in errors.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Returns the remedy in errors.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Adds a setting.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings = self.settings.with(name, value);
        self
    }

    /// Returns all settings, with the number of rows and their hash.
    pub fn settings(&self) -> Settings {
        self.settings_for_first(self.rows.prefixes.len())
    }

    /// Returns all settings, as if only the first `rows` rows existed.
    fn settings_for_first(&self, rows: usize) -> Settings {
        let name = self.rows.name;
        let settings = self.settings.clone().with(name, rows);
        match rows.checked_sub(1).and_then(|at| self.rows.prefixes.get(at)) {
            Some(hash) => settings.with(&format!("{name}_sha256"), hash.as_str()),
            None => settings,
        }
    }

    /// Checks that the results at `path`, made with the settings `old`, can be continued. Returns their number of rows.
    ///
    /// # Errors
    /// The settings or rows differ, or the old results have more rows. The error names every difference.
    pub fn check(&self, path: &Path, old: &Settings) -> Result<usize> {
        let (name, all) = (self.rows.name, self.rows.prefixes.len());
        let before = old.0.get(name).and_then(Value::as_u64);
        let before = before.and_then(|rows| usize::try_from(rows).ok());
        let fewer = before.is_some_and(|before| before > all);
        let rows = before.map_or(all, |rows| rows.min(all));
        let mut new = self.settings_for_first(rows);
        let hash = format!("{name}_sha256");
        if let (true, Some(old)) = (fewer, old.0.get(&hash)) {
            // The old hash covers rows that are not in this list, so a change of content cannot be known.
            new = new.with(&hash, old.clone());
        }
        let mut differences = old.differences(&new);
        if differences.is_empty() {
            return Ok(rows);
        }
        if fewer {
            let note = format!("the results of more {name} cannot be continued with fewer");
            differences.push(note);
        }
        let problem = format!("was started with other settings: {}", differences.join("; "));
        Err(Error::file(path, problem, &self.remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(rows: &[&str]) -> ResultKey {
        let settings = Settings::default().with("max_new_tokens", 9);
        ResultKey::new(settings, "problems", rows)
    }

    #[test]
    fn only_the_same_or_more_rows_continue_results() {
        let path = Path::new("out");
        let two = key(&["a", "b"]).settings();
        assert_eq!(key(&["a", "b"]).check(path, &two).unwrap(), 2);
        assert_eq!(key(&["a", "b", "c"]).check(path, &two).unwrap(), 2);
        let refused = |key: ResultKey| key.check(path, &two).unwrap_err().to_string();
        let fewer = refused(key(&["a"]));
        let expected = "problems was 2, is 1; the results of more problems cannot be continued";
        assert!(fewer.contains(expected), "{fewer}");
        assert!(!fewer.contains("content"), "{fewer}");
        // Other differences are still named.
        let other = refused(key(&["a"]).with("max_new_tokens", 10));
        assert!(other.contains("max_new_tokens was 9, is 10"), "{other}");
        for other in [key(&["a", "B", "c"]), key(&["ab", "", "c"])] {
            assert!(refused(other).contains("the content of the problems changed"));
        }
        let other = key(&["a", "b", "c"]).with("max_new_tokens", 10);
        assert!(refused(other.with_remedy("do so")).contains("max_new_tokens was 9, is 10"));
    }

    #[test]
    fn paths_are_not_compared_and_unknown_models_differ() {
        let old = Settings::default().with("data", "a.jsonl").with("model", "here");
        let moved = Settings::default().with("data", "b/a.jsonl").with("model", "there");
        assert!(old.differences(&moved).is_empty());
        let known = moved.with(IDENTITY, json!({"weights": "ab"}));
        let older = old.with("model_bytes", 3).with("max_new_tokens", 9);
        let differences = older.differences(&known.clone().with("max_new_tokens", 10));
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert!(differences.iter().any(|text| text.contains("does not say which weights")));
        assert!(differences.contains(&"max_new_tokens was 9, is 10".to_string()));
        let changed = known.clone().with(IDENTITY, json!({"weights": "cd"}));
        let differences = known.differences(&changed).join(";");
        assert!(differences.contains("weights"), "{differences}");
    }
}
