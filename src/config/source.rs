//! The untyped `run.toml` with its `--set` overrides: finds the line of each key, and checks names and types.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Known;
use toml::{Table, Value};

use super::suggest::{MIN_SIMILARITY, in_backticks, line_of, readable, similarity};
use super::{OPEN_TABLES, RunConfig, hints};
use crate::data::template_text::unescape;
use crate::error::{Error, Result};
use crate::input_file;

/// Common other names of keys, as (name, key); candidates for suggestions.
const ALIASES: &[(&str, &str)] = &[
    ("rank", "lora.r"),
    ("alpha", "lora.lora_alpha"),
    ("dropout", "lora.lora_dropout"),
    ("lr", "train.learning_rate"),
    ("batch_size", "train.per_device_train_batch_size"),
    ("epochs", "train.num_train_epochs"),
    ("steps", "train.max_steps"),
    ("clip_grad_norm", "train.max_grad_norm"),
    ("dataset", "data.train_file"),
];

/// The key of the prompt template.
const TEMPLATE: &str = "data.prompt_template";

/// A parsed configuration file with its overrides.
pub(super) struct Source {
    file: String,
    table: Table,
    /// 1-based line of each dotted key of the file.
    lines: BTreeMap<String, usize>,
    /// Text of each value given by `--set`, by dotted key.
    overrides: BTreeMap<String, String>,
}

impl Source {
    /// Reads the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = input_file::read_once(path).map_err(|e| Error::io(path, "read", e))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Parses `text`, the contents of `file`.
    pub(super) fn parse(file: &str, text: &str) -> Result<Self> {
        let syntax = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let remedy = "write TOML: `key = value` lines under [table] headers, text in quotes";
            Error::invalid(format!("{file}:{line}"), error.message(), remedy)
        };
        let spanned = toml::de::DeTable::parse(text).map_err(syntax)?;
        let mut lines = BTreeMap::new();
        find_lines(text, "", spanned.get_ref(), &mut lines);
        Ok(Self {
            file: file.to_string(),
            table: toml::from_str(text).map_err(syntax)?,
            lines,
            overrides: BTreeMap::new(),
        })
    }

    /// Applies one `table.key=value`. A value that is not TOML is used as text.
    pub(super) fn set(&mut self, setting: &str) -> Result<()> {
        let place = format!("--set {setting}");
        let wrong = |problem: &str| {
            let remedy = "write --set table.key=value, such as --set train.learning_rate=1e-5";
            Error::invalid(&place, problem, remedy)
        };
        let (key, text) = setting.split_once('=').ok_or_else(|| wrong("has no `=`"))?;
        let (key, text) = (key.trim(), text.trim());
        if key.split('.').any(str::is_empty) {
            return Err(wrong("has no key before the `=`"));
        }
        let value = match text.parse::<Value>() {
            Ok(value) => value,
            // A template without TOML's quotes has the escapes of --prompt-template.
            Err(_) if key == TEMPLATE => Value::String(unescape(text, &format!("--set {key}"))?),
            Err(_) => Value::String(text.to_string()),
        };
        if value.is_table() && !OPEN_TABLES.contains(&key) {
            return Err(wrong("sets a whole table; set one key at a time"));
        }
        if !insert(&mut self.table, key, value) {
            return Err(wrong("goes through a key that is not a table"));
        }
        self.overrides.insert(key.to_string(), text.to_string());
        Ok(())
    }

    /// Returns the value of a dotted key, if it is given.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.as_table()?.get(part))
    }

    /// Sets a dotted key unless it has a value.
    pub(super) fn set_default(&mut self, key: &str, value: impl Into<Value>) {
        if self.get(key).is_none() {
            insert(&mut self.table, key, value.into());
        }
    }

    /// Returns the place of a dotted key for errors: `run.toml:12: lora.r`, or `--set lora.r`.
    pub(super) fn place(&self, key: &str) -> String {
        let file = &self.file;
        match self.lines.get(key) {
            _ if self.overrides.contains_key(key) => format!("--set {key}"),
            Some(line) => format!("{file}:{line}: {key}"),
            None => format!("{file}: {key}"),
        }
    }

    /// Returns an error for the first key in the file that is unknown or has a value of the wrong type.
    pub(super) fn check(&mut self) -> Result<()> {
        let known = serde_json::to_value(RunConfig::default())
            .map_err(|e| Error::run(e, "this is a defect of the program: please report it"))?;
        let mut leaves = Vec::new();
        collect_leaves("", &self.table, &mut leaves);
        leaves.sort_by_key(|(key, _)| self.lines.get(key).copied().unwrap_or(usize::MAX));
        for (key, value) in leaves {
            self.check_name(&key, &value, &known)?;
            self.check_type(&key, value)?;
        }
        Ok(())
    }

    /// Converts to the typed configuration. Call [`Source::check`] first: its errors name the key.
    pub(super) fn typed(&self) -> Result<RunConfig> {
        let config: std::result::Result<RunConfig, _> = self.table.clone().try_into();
        config.map_err(|e| Error::invalid(&self.file, e.message(), "correct the value"))
    }

    /// Returns an error for an unknown key, or for a table whose value is not a table (serde would fill it from a
    /// list).
    fn check_name(&self, key: &str, value: &Value, known: &Known) -> Result<()> {
        let mut node = known;
        let mut path = String::new();
        for part in key.split('.') {
            let inside_value = !node.is_object();
            extend(&mut path, part);
            match node.get(part) {
                Some(next) => node = next,
                None if inside_value => return Ok(()),
                None => return Err(self.unknown_key(&path, known)),
            }
        }
        if node.is_object() && !value.is_table() {
            let problem = format!("expected a table, found {}", value.type_str());
            let remedy = format!("write [{key}] and its keys below");
            return Err(Error::invalid(self.place(key), problem, remedy));
        }
        Ok(())
    }

    /// Returns the error for an unknown key, with the nearest known one.
    fn unknown_key(&self, key: &str, known: &Known) -> Error {
        let place = self.place(key);
        if let Some((problem, remedy)) = hints::other_library_hint(key) {
            return Error::invalid(place, problem, remedy);
        }
        match nearest(key, known) {
            Some(best) => Error::invalid(place, "unknown key", format!("did you mean `{best}`?")),
            None => Error::invalid(
                place,
                "unknown key",
                "remove the key; docs/configuration.md lists all keys",
            ),
        }
    }

    /// Checks the type of one value by itself, so that the error can name its key. A value of `--set` that looks like a
    /// number stays text if the key needs text.
    fn check_type(&mut self, key: &str, value: Value) -> Result<()> {
        let alone = |value: Value| {
            let mut table = Table::new();
            insert(&mut table, key, value);
            table.try_into::<RunConfig>().map(drop)
        };
        let Err(error) = alone(value) else {
            return Ok(());
        };
        if let Some(text) = self.overrides.get(key) {
            let text = Value::String(text.clone());
            if alone(text.clone()).is_ok() {
                insert(&mut self.table, key, text);
                return Ok(());
            }
        }
        Err(self.wrong_value(key, &error))
    }

    /// Returns the error for a value of the wrong type.
    fn wrong_value(&self, key: &str, error: &toml::de::Error) -> Error {
        let message = error.message();
        let given = self.get(key);
        if message.contains("unit variant") {
            let found = given.map_or("another value", Value::type_str);
            let problem = format!("expected text in quotes, found {found}");
            let remedy = "use one of the values that docs/configuration.md lists for this key";
            return Error::invalid(self.place(key), problem, remedy);
        }
        let known = match message.split_once("expected") {
            Some((_, known)) if message.starts_with("unknown variant") => in_backticks(known),
            _ => Vec::new(),
        };
        let value = given.and_then(Value::as_str).unwrap_or_default();
        let method = (key == "method").then(|| hints::method_remedy(value)).flatten();
        let remedy = match hints::nearest_value(value, &known) {
            _ if method.is_some() => method.unwrap_or_default(),
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "use a value of that type, or remove the key to use the default".to_string(),
        };
        Error::invalid(self.place(key), readable(message), remedy)
    }
}

/// Returns the known key, in any table, that `key` is probably a misspelling of. Keys in the same table are preferred.
fn nearest(key: &str, known: &Known) -> Option<String> {
    let split = |key: &str| {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        (table.to_string(), name.to_string())
    };
    let (table, name) = split(key);
    let mut names = Vec::new();
    collect_names("", known, &mut names);
    let own = names.iter().map(|full| (split(full).1, full.clone()));
    let aliases = ALIASES.iter().map(|(a, full)| (a.to_string(), full.to_string()));
    let scored = own.chain(aliases).filter_map(|(candidate, full)| {
        let similarity = similarity(&name, &candidate);
        let of_table = split(&full).0;
        let same_table = if of_table == table { 0.1 } else { 0.0 };
        // These tables have keys that `[dpo]` has too.
        let other_method = if ["kto", "orpo", "cpo"].contains(&&*of_table) { 0.01 } else { 0.0 };
        (similarity >= MIN_SIMILARITY).then_some((similarity + same_table - other_method, full))
    });
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, full)| full)
}

/// Appends a part to a dotted key.
fn extend(path: &mut String, part: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(part);
}

fn join(prefix: &str, part: &str) -> String {
    let mut path = prefix.to_string();
    extend(&mut path, part);
    path
}

/// Sets a dotted key and creates missing tables on its path. Returns false if a part of the path is not a table.
fn insert(table: &mut Table, key: &str, value: Value) -> bool {
    match key.split_once('.') {
        None => {
            table.insert(key.to_string(), value);
            true
        }
        Some((first, rest)) => table
            .entry(first)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .is_some_and(|inner| insert(inner, rest, value)),
    }
}

fn collect_leaves(prefix: &str, table: &Table, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let key = join(prefix, name);
        match value.as_table() {
            Some(inner) if !inner.is_empty() && !OPEN_TABLES.contains(&key.as_str()) => {
                collect_leaves(&key, inner, leaves);
            }
            _ => leaves.push((key, value.clone())),
        }
    }
}

fn collect_names(prefix: &str, known: &Known, names: &mut Vec<String>) {
    for (name, value) in known.as_object().into_iter().flatten() {
        let key = join(prefix, name);
        collect_names(&key, value, names);
        names.push(key);
    }
}

fn find_lines(
    text: &str,
    prefix: &str,
    table: &toml::de::DeTable<'_>,
    lines: &mut BTreeMap<String, usize>,
) {
    for (name, value) in table {
        let key = join(prefix, name.get_ref());
        lines.insert(key.clone(), line_of(text, name.span().start));
        if let Some(inner) = value.get_ref().as_table() {
            find_lines(text, &key, inner, lines);
        }
    }
}
