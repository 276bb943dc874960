//! `run.toml` before it is typed: where each key stands, what `--set` changes, which keys there are.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Known;
use toml::{Table, Value};

use super::RunConfig;
use crate::error::{Error, Result};

/// Other names people use for a key. The nearest of these is suggested too.
const ALIASES: &[(&str, &str)] = &[
    ("rank", "lora.r"),
    ("alpha", "lora.lora_alpha"),
    ("dropout", "lora.lora_dropout"),
    ("lr", "train.learning_rate"),
    ("batch_size", "train.per_device_train_batch_size"),
    ("epochs", "train.num_train_epochs"),
    ("steps", "train.max_steps"),
    ("clip_grad_norm", "train.max_grad_norm"),
    ("bf16", "model.dtype"),
    ("fp16", "model.dtype"),
    ("torch_dtype", "model.dtype"),
    ("load_in_4bit", "model.quantization"),
    ("bnb_4bit_quant_type", "model.quantization"),
    ("bnb_4bit_use_double_quant", "model.double_quant"),
    ("eval_strategy", "train.eval_steps"),
    ("save_strategy", "train.save_steps"),
    ("logging_strategy", "train.logging_steps"),
    ("dataset", "data.train_file"),
    ("padding_free", "train.max_tokens_per_pass"),
    ("packing", "train.max_tokens_per_pass"),
];

/// Options of PEFT, TRL and transformers that change results and that this program does not have.
const NOT_BUILT: &[&str] = &[
    "lora.rank_pattern",
    "lora.alpha_pattern",
    "lora.layers_to_transform",
    "lora.exclude_modules",
    "lora.target_parameters",
    "dpo.ref_model_mixup_alpha",
    "dpo.ref_model_sync_steps",
    "train.label_smoothing_factor",
    "train.neftune_noise_alpha",
    "train.group_by_length",
];

/// A configuration file with overrides, key by key.
pub(super) struct Source {
    file: String,
    table: Table,
    /// 1-based line of each dotted key of the file.
    lines: BTreeMap<String, usize>,
    /// Text of each value given by `--set`.
    overrides: BTreeMap<String, String>,
}

impl Source {
    /// Reads the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Takes `text` as the contents of `file`.
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

    /// Applies one `table.key=value`; a value that is not TOML is taken as text.
    pub(super) fn set(&mut self, setting: &str) -> Result<()> {
        let place = format!("--set {setting}");
        let wrong = |problem: &str| {
            let remedy = "write --set table.key=value, as --set train.learning_rate=1e-5";
            Error::invalid(&place, problem, remedy)
        };
        let (key, text) = setting.split_once('=').ok_or_else(|| wrong("has no `=`"))?;
        let (key, text) = (key.trim(), text.trim());
        if key.split('.').any(str::is_empty) {
            return Err(wrong("has no key before the `=`"));
        }
        let value = text.parse::<Value>().unwrap_or_else(|_| Value::String(text.to_string()));
        if value.is_table() {
            return Err(wrong("sets a whole table; set one key at a time"));
        }
        if !insert(&mut self.table, key, value) {
            return Err(wrong("goes through a key that is not a table"));
        }
        self.overrides.insert(key.to_string(), text.to_string());
        Ok(())
    }

    /// The value of a dotted key, if it is given.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.as_table()?.get(part))
    }

    /// Gives a dotted key a value unless it has one.
    pub(super) fn default_to(&mut self, key: &str, value: impl Into<Value>) {
        if self.get(key).is_none() {
            insert(&mut self.table, key, value.into());
        }
    }

    /// Where a reader finds a dotted key: `run.toml:12: lora.r`, or `--set lora.r`.
    pub(super) fn place(&self, key: &str) -> String {
        let file = &self.file;
        match self.lines.get(key) {
            _ if self.overrides.contains_key(key) => format!("--set {key}"),
            Some(line) => format!("{file}:{line}: {key}"),
            None => format!("{file}: {key}"),
        }
    }

    /// Refuses unknown keys and values of the wrong type, the first in the file first.
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

    /// The whole configuration. [`Source::check`] comes first and names the key that is wrong.
    pub(super) fn typed(&self) -> Result<RunConfig> {
        let config: std::result::Result<RunConfig, _> = self.table.clone().try_into();
        config.map_err(|e| Error::invalid(&self.file, e.message(), "correct the value"))
    }

    /// Refuses unknown names, and anything but a table where one belongs: serde would fill a struct from a list too.
    fn check_name(&self, key: &str, value: &Value, known: &Known) -> Result<()> {
        let mut node = known;
        let mut path = String::new();
        for part in key.split('.') {
            let inside_a_value = !node.is_object();
            extend(&mut path, part);
            match node.get(part) {
                Some(next) => node = next,
                None if inside_a_value => return Ok(()),
                None => return Err(self.unknown(&path, known)),
            }
        }
        if node.is_object() && !value.is_table() {
            let problem = format!("expected a table, found {}", value.type_str());
            let remedy = format!("write [{key}] and its keys below");
            return Err(Error::invalid(self.place(key), problem, remedy));
        }
        Ok(())
    }

    fn unknown(&self, key: &str, known: &Known) -> Error {
        let place = self.place(key);
        if NOT_BUILT.contains(&key) {
            return Error::invalid(place, "not built yet", "remove the key");
        }
        match nearest(key, known) {
            Some(best) => Error::invalid(place, "unknown key", format!("did you mean `{best}`?")),
            None => Error::invalid(place, "unknown key", "remove the key"),
        }
    }

    /// Types a value by itself, so that the error can name its key; text given by `--set` that happens to look like a
    /// number stays text where text is wanted.
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
        let message = error
            .message()
            .replace("expected usize", "expected a whole number, 0 or more")
            .replace("expected u64", "expected a whole number, 0 or more")
            .replace("expected i64", "expected a whole number")
            .replace("expected f64", "expected a number");
        Err(Error::invalid(
            self.place(key),
            message,
            "give a value of that kind, or remove the key to take the default",
        ))
    }
}

/// The known key most like `key`, any table; one in the same table is preferred.
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
    own.chain(aliases)
        .map(|(candidate, full)| {
            let same_table = if split(&full).0 == table { 0.1 } else { 0.0 };
            (strsim::jaro_winkler(&name, &candidate) + same_table, full)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, full)| full)
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

/// Sets a dotted key, making the tables it goes through; false if one of them is not a table.
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
            Some(inner) if !inner.is_empty() => collect_leaves(&key, inner, leaves),
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

/// 1-based line of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|byte| **byte == b'\n').count()
}
