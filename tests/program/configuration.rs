//! Checks that `docs/configuration.md` lists every key of run.toml, prepare.toml and iterate.toml as their structs
//! define it. With `UPDATE_DOCS=1`, `cargo test --test program configuration` writes the page.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use arithmo::config::{RunConfig, range_in_words};
use arithmo::data::prepare::Rules;
use arithmo::iterate::rounds::SampleSection;
use arithmo::objective::losses::LossType;
use serde_json::Value;

const PAGE: &str = "docs/configuration.md";

/// Files that define the structs and enums of the configuration.
const SOURCES: [&str; 14] = [
    "src/config/mod.rs",
    "src/config/methods.rs",
    "src/objective/cpo.rs",
    "src/objective/kto.rs",
    "src/config/sections.rs",
    "src/config/options.rs",
    "src/adapter/config.rs",
    "src/objective/f_divergence.rs",
    "src/train/schedule/kwargs.rs",
    "src/data/encode.rs",
    "src/iterate/config.rs",
    "src/data/prepare/rules.rs",
    "src/data/prepare/mod.rs",
    "src/data/preference.rs",
];

/// Defaults of transformers' `TrainingArguments` (5.x), TRL's `DPOConfig` (1.x) and PEFT's `LoraConfig` that differ
/// from this program's.
const OTHER_DEFAULTS: [(&str, &str); 19] = [
    ("lora.r", "8"),
    ("lora.lora_alpha", "8"),
    ("train.per_device_train_batch_size", "8"),
    ("train.gradient_accumulation_steps", "1"),
    ("train.learning_rate", "1e-6 (SFT: 2e-5)"),
    ("train.lr_scheduler_type", "\"linear\""),
    ("train.warmup_steps", "0"),
    ("train.max_steps", "-1"),
    ("train.num_train_epochs", "3"),
    ("train.logging_steps", "10"),
    ("train.save_steps", "500"),
    ("train.save_total_limit", "not set: all are kept"),
    ("train.eval_steps", "none, not even the last"),
    ("train.eval_strategy", "\"no\""),
    ("train.eval_means", "as \"trl\""),
    ("train.gradient_checkpointing", "true"),
    ("train.optim", "\"adamw_torch_fused\", the same numbers"),
    ("model.dtype", "float32, computed in bf16"),
    ("train.disable_dropout", "true (SFT: dropout acts)"),
];

/// Descriptions of types that the rules of [`Types::words`] do not cover.
const TYPES: [(&str, &str); 4] = [
    ("TargetModules", "list of names, `\"all-linear\"`, or regular expression"),
    ("ExcludeModules", "list of names, or regular expression"),
    (
        "InitLoraWeights",
        "`true`, `\"gaussian\"`, `\"pissa\"`, `\"pissa_niter_N\"`, `\"olora\"` or `\"loftq\"`",
    ),
    ("GradientCheckpointing", "`\"auto\"`, `true` or `false`"),
];

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_default()
}

/// A field of a struct.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    kind: String,
    doc: String,
}

/// The structs and enums of the sources, by name.
#[derive(Debug, Default)]
struct Types {
    structs: BTreeMap<String, Vec<Field>>,
    /// Documentation of the structs.
    docs: BTreeMap<String, String>,
    enums: BTreeMap<String, Vec<String>>,
}

impl Types {
    fn read() -> Self {
        let mut types = Self::default();
        for source in SOURCES {
            types.add(&read(source));
        }
        types
    }

    fn add(&mut self, source: &str) {
        let (mut doc, mut attributes) = (Vec::new(), String::new());
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if let Some(text) = line.strip_prefix("///") {
                doc.push(text.trim().to_string());
            } else if line.starts_with("#[") {
                attributes.push_str(line);
            } else {
                let name = |keyword: &str| {
                    let rest = line.strip_prefix(keyword)?;
                    rest.strip_suffix(" {").map(str::to_string)
                };
                if let Some(name) = name("pub struct ") {
                    let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
                    self.docs.insert(name.clone(), doc.join(" "));
                    self.structs.insert(name, fields(&body));
                } else if let Some(name) = name("pub enum ") {
                    let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
                    self.enums.insert(name, values(&body, &attributes));
                }
                doc.clear();
                attributes.clear();
            }
        }
    }

    /// Describes a Rust type in words.
    fn words(&self, kind: &str) -> String {
        if let Some((_, words)) = TYPES.iter().find(|(name, _)| *name == kind) {
            return (*words).to_string();
        }
        if kind == "Vec<LossType>" {
            let names = LossType::ALL.iter().map(|loss| format!("`{}`", serde_json::json!(loss)));
            return format!("{}, or a list of them", names.collect::<Vec<_>>().join(", "));
        }
        if let Some(inner) = kind.strip_prefix("Option<") {
            return self.words(inner.trim_end_matches('>'));
        }
        if let Some(inner) = kind.strip_prefix("Vec<") {
            return format!("list of {}s", self.words(inner.trim_end_matches('>')));
        }
        if let Some(inner) = kind.strip_prefix("BTreeMap<String, ") {
            return format!("table of {}s", self.words(inner));
        }
        if let Some(values) = self.enums.get(kind) {
            let values: Vec<String> = values.iter().map(|v| format!("`\"{v}\"`")).collect();
            return values.join(", ");
        }
        match kind {
            "String" => "text",
            "PathBuf" => "path",
            "bool" => "`true` or `false`",
            "f64" => "number",
            "usize" | "u64" | "u32" | "i64" | "i32" => "whole number",
            other => panic!("no words for the type {other}"),
        }
        .to_string()
    }
}

fn fields(body: &[&str]) -> Vec<Field> {
    let (mut fields, mut doc) = (Vec::new(), Vec::new());
    for line in body.iter().map(|line| line.trim()) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().to_string());
        } else if let Some((name, kind)) =
            line.strip_prefix("pub ").and_then(|rest| rest.split_once(": "))
        {
            fields.push(Field {
                name: name.to_string(),
                kind: kind.trim_end_matches(',').to_string(),
                doc: plain(&doc.join(" ")),
            });
            doc.clear();
        }
    }
    fields
}

/// Returns the TOML names of an enum's variants.
fn values(body: &[&str], attributes: &str) -> Vec<String> {
    let (mut values, mut renamed) = (Vec::new(), None);
    for line in body.iter().map(|line| line.trim()) {
        if let Some(rest) = line.split_once("rename = \"") {
            renamed = rest.1.split_once('"').map(|(name, _)| name.to_string());
        } else if line.chars().next().is_some_and(char::is_uppercase) {
            let variant = line.trim_end_matches(',');
            values.push(renamed.take().unwrap_or_else(|| case(variant, attributes)));
        }
    }
    values
}

/// Converts a variant's name to the case that serde's attributes ask for.
fn case(variant: &str, attributes: &str) -> String {
    let separator = if attributes.contains("snake_case") {
        "_"
    } else if attributes.contains("kebab-case") {
        "-"
    } else {
        ""
    };
    let mut name = String::new();
    for (index, letter) in variant.chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            name.push_str(separator);
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// Removes links to code from a doc comment.
fn plain(doc: &str) -> String {
    let mut text = String::new();
    let mut rest = doc;
    // [`Name`](target) and [`Name`] become `Name`.
    while let Some(start) = rest.find("[`") {
        let (before, from) = rest.split_at(start);
        let Some(end) = from.find("`]") else { break };
        text.push_str(before);
        let name = &from[1..=end];
        text.push_str(&name.replace("Self::", "").replace("DpoSection::", ""));
        rest = &from[end + 2..];
        if let Some(target) = rest.strip_prefix('(') {
            rest = target.split_once(')').map_or("", |(_, after)| after);
        }
    }
    text.push_str(rest);
    text
}

/// Formats a value as TOML in backticks.
fn toml(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::Number(number) if number.is_f64() => format!("`{:?}`", number.as_f64().unwrap()),
        Value::String(text) => format!("`{text:?}`"),
        Value::Array(items) if items.is_empty() => "`[]`".into(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|v| toml(v).replace('`', "")).collect();
            format!("`[{}]`", items.join(", "))
        }
        value => format!("`{value}`"),
    }
}

struct Table<'a> {
    types: &'a Types,
    rows: String,
}

impl Table<'_> {
    /// Adds one row per field of the struct `name` with its default. Fields of nested structs get dotted keys.
    fn add(&mut self, prefix: &str, name: &str, defaults: &Value) {
        for field in &self.types.structs[name] {
            let key = format!("{prefix}{}", field.name);
            let kind = field
                .kind
                .strip_prefix("Option<")
                .map_or(field.kind.as_str(), |inner| inner.trim_end_matches('>'));
            let default = defaults.get(&field.name).unwrap_or(&Value::Null);
            if self.types.structs.contains_key(kind) {
                self.add(&format!("{key}."), kind, default);
                continue;
            }
            let required = defaults.get(&field.name).is_none() && !field.kind.starts_with("Option");
            let default = if required { "required".to_string() } else { toml(default) };
            // Only keys of run.toml have a range. Other files may have keys of the same name.
            let is_run = self.types.structs["RunConfig"]
                .iter()
                .any(|table| prefix.starts_with(&format!("{}.", table.name)));
            let range = match range_in_words(&key) {
                Some(words) if is_run => format!(", {words}"),
                _ => String::new(),
            };
            let other = OTHER_DEFAULTS.iter().find(|(name, _)| *name == key);
            let other = other.map_or("", |(_, default)| default);
            let kind = self.types.words(&field.kind);
            let doc = field.doc.replace('|', "\\|");
            self.rows += &format!("| `{key}` | {kind}{range} | {default} | {other} | {doc} |\n");
        }
    }
}

fn table(types: &Types, prefix: &str, name: &str, defaults: &Value) -> String {
    let mut table = Table {
        types,
        rows: "| key | type | default | default there | what it is |\n|---|---|---|---|---|\n"
            .into(),
    };
    table.add(prefix, name, defaults);
    table.rows
}

fn run_toml(types: &Types) -> String {
    let defaults = serde_json::to_value(RunConfig::default()).unwrap();
    let mut text = "| key | type | default | default there | what it is |\n|---|---|---|---|---|\n"
        .to_string();
    let mut tables = String::new();
    for field in &types.structs["RunConfig"] {
        let default = &defaults[&field.name];
        if default.is_object() {
            let rows = table(types, &format!("{}.", field.name), &field.kind, default);
            tables += &format!(
                "\n### [{}]\n\n{}\n\n{rows}",
                field.name,
                plain(&types.docs[&field.kind])
                    .trim_start_matches(&format!("`[{}]`: ", field.name))
            );
        } else {
            let kind = types.words(&field.kind);
            let range = range_in_words(&field.name);
            let range = range.map_or(String::new(), |words| format!(", {words}"));
            text += &format!(
                "| `{}` | {kind}{range} | {} | | {} |\n",
                field.name,
                toml(default),
                field.doc
            );
        }
    }
    text + &tables
}

const HEAD: &str = "\
# Every key of the configuration files

Generated by `UPDATE_DOCS=1 cargo test --test program configuration` from the structs of the program; a test fails where the two differ.
Any key of run.toml can be set on the command line: `--set train.learning_rate=1e-5`. Relative paths are relative to the folder
the command is started in, not to the file. \"Default there\" is the default of the library the key's name comes from
(TRL's `DPOConfig`, transformers' `TrainingArguments`, PEFT's `LoraConfig`), where it is another one.

";

const RESUMING: &str = "
### What may change when a run is resumed

`arithmo train --resume` goes on from the newest whole checkpoint. These keys may have other values then:

- `output_dir` (after the folder was moved), `train.logging_strategy`, `train.logging_steps`, `train.save_strategy`, `train.save_steps`,
  `train.save_total_limit`, `train.eval_on_start`, `train.load_best_model_at_end`, `train.gradient_checkpointing`: they change no step.
- `train.eval_strategy`, `train.eval_steps`, `train.eval_delay`, `train.per_device_eval_batch_size`, unless evaluations are compared
  (`train.metric_for_best_model` and all that needs it): then they decide which step is the best, when the run stops, or the learning rate.
- `train.max_steps`, `train.num_train_epochs`: a run can be made longer, after its end too, or shorter, but not shorter than what
  is done. Steps that are done stay as they are, and the order of the data is the one a run of the new length has. The
  learning rate of the steps to come is that of a run of the new length: with `constant` and `constant_with_warmup` the result is
  bit for bit that of a run that was as long from the start (on the CPU); with `cosine` and `linear`, which end at 0, the rate
  goes back up to where the longer curve is at that step. A warmup that is given as a share is a share of the new length.

Everything else is refused, with each difference named; so is another model (weights, tokenizer, chat template, generation
config) under the same path, and other data.
";

fn page() -> String {
    let types = Types::read();
    let rules = serde_json::to_value(Rules::preset(Default::default())).unwrap();
    let sample = serde_json::to_value(SampleSection::default()).unwrap();
    let iterate = serde_json::json!({"seed": 42, "sample": sample});
    format!(
        "{HEAD}## run.toml\n\n{}{RESUMING}\n## prepare.toml\n\n{}\n## iterate.toml\n\n{}",
        run_toml(&types),
        table(&types, "", "Rules", &rules),
        table(&types, "", "IterateConfig", &iterate)
    )
}

#[test]
fn the_page_matches_the_structs() {
    let page = page();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let remedy = "run: UPDATE_DOCS=1 cargo test --test program configuration";
    assert_eq!(read(PAGE), page, "{PAGE} is stale; {remedy}");
}

/// Compares the page with the keys that serde writes, which include keys that the parser above may overlook.
#[test]
fn no_key_is_missing() {
    fn keys(prefix: &str, value: &Value, found: &mut Vec<String>) {
        for (name, value) in value.as_object().unwrap() {
            let key = format!("{prefix}{name}");
            if value.is_object() { keys(&format!("{key}."), value, found) } else { found.push(key) }
        }
    }
    let page = page();
    let mut found = Vec::new();
    keys("", &serde_json::to_value(RunConfig::default()).unwrap(), &mut found);
    keys("", &serde_json::to_value(Rules::preset(Default::default())).unwrap(), &mut found);
    keys("sample.", &serde_json::to_value(SampleSection::default()).unwrap(), &mut found);
    for key in ["output_dir", "rounds", "run", "evaluate.data"] {
        found.push(key.into());
    }
    for key in found {
        assert!(page.contains(&format!("| `{key}` |")), "{key} is not on the page");
    }
    for (key, _) in OTHER_DEFAULTS {
        assert!(page.contains(&format!("| `{key}` |")), "{key} is no key");
    }
}

/// Returns the limits of a range in words, and whether the range includes them.
fn ends(words: &str) -> Vec<(f64, bool)> {
    let number = |text: &str| text.parse::<f64>().unwrap();
    let (words, minus_one) = match words.strip_prefix("-1, or ") {
        Some(words) => (words, vec![(-1.0, true)]),
        None => (words, Vec::new()),
    };
    let (min, max) = words.split_once(" to ").unwrap_or((words, words));
    let min = match min.strip_prefix("above ") {
        Some(min) => (number(min), false),
        None => (number(min), true),
    };
    let max = match max.strip_prefix("less than ") {
        Some(max) => (number(max), false),
        None => (number(max.trim_start_matches("above ")), true),
    };
    [minus_one, vec![min, max]].concat()
}

#[test]
fn limits_of_ranges_are_accepted_or_refused_as_the_page_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    fs::write(&file, "data.eval_file = 'held-out.jsonl'\n").unwrap();
    let rows = read(PAGE);
    let keys = rows.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut checked = 0;
    for (key, row) in keys {
        let Some(words) = range_in_words(key).filter(|words| *words != "0 or more") else {
            continue;
        };
        assert!(row.contains(&format!(", {words} |")), "{key}: {words}");
        for (number, allowed) in ends(&words) {
            let value =
                if number.abs() < 1e15 { number.to_string() } else { format!("{number:e}") };
            let value = match key {
                "dpo.loss_weights" => format!("[{value}]"),
                "lora.rank_pattern" | "lora.alpha_pattern" => format!("{{ q_proj = {value} }}"),
                _ => value,
            };
            let loaded = RunConfig::load(&file, &[format!("{key}={value}")]);
            let error = loaded.err().map_or(String::new(), |error| error.to_string());
            // A value within the range may still be refused for other reasons.
            let out_of_range = error.contains(&format!("{key}: must be"));
            assert_eq!(out_of_range, !allowed, "{key} = {value}: {error}");
            checked += 1;
        }
    }
    assert!(checked > 80, "{checked}");
}
