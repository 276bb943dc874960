//! The text of a model card.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::{Line, file_name};
use crate::adapter::peft::DEFAULT_NAME;
use crate::config::{Method, RunConfig};
use crate::train::manifest::RunManifest;
use crate::train::selection::{BestStep, Selection};

/// Settings that every card shows.
const SETTINGS: [&str; 12] = [
    "seed",
    "train.optim",
    "train.learning_rate",
    "train.lr_scheduler_type",
    "train.per_device_train_batch_size",
    "train.gradient_accumulation_steps",
    "train.max_grad_norm",
    "train.weight_decay",
    "data.max_length",
    "data.prompt_template",
    "model.dtype",
    "model.quantization",
];

/// Settings of preference optimization.
const DPO_SETTINGS: [&str; 2] = ["dpo.loss_type", "dpo.beta"];

/// Settings of an adapter.
const LORA_SETTINGS: [&str; 3] = ["lora.r", "lora.lora_alpha", "lora.target_modules"];

/// Values of the log that say nothing about the result.
const NO_RESULTS: [&str; 9] = [
    "step",
    "epoch",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "eval_num_tokens",
    "tokens_per_second",
    "seconds",
    "peak_memory_bytes",
];

/// What a card describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Adapter,
    /// A model of which all weights were trained.
    Whole,
    /// A model into which an adapter was merged.
    Merged,
}

/// The contents of a card.
pub(super) struct Card<'a> {
    pub(super) manifest: &'a RunManifest,
    pub(super) lines: Vec<Line>,
    pub(super) best: Option<BestStep>,
    pub(super) kind: Kind,
    pub(super) title: String,
}

impl Card<'_> {
    fn config(&self) -> &RunConfig {
        &self.manifest.config
    }

    /// Returns the card without its comment.
    pub(super) fn text(&self) -> String {
        let mut text = self.metadata();
        let _ = write!(text, "\n# {}\n\n{}\n", self.title, self.summary());
        let _ = write!(text, "\n## Data\n\n{}", self.data());
        let _ = write!(text, "\n## Training\n\n{}", self.settings());
        let _ = write!(text, "\n## Results\n\n{}", self.results());
        let _ = write!(text, "\n## How to use it\n\n{}\n", self.usage());
        text
    }

    /// Returns the id of the base model on the hub, or `None` for a local folder.
    fn base_on_hub(&self) -> Option<&str> {
        let name = self.config().model.model_name_or_path.as_str();
        let parts: Vec<&str> = name.split('/').collect();
        let is_id = parts.len() == 2 && parts.iter().all(|part| is_hub_name(part));
        (is_id && !self.manifest.model.folder.ends_with(name)).then_some(name)
    }

    /// Returns the name of the base model, without the folders above a local one.
    fn base(&self) -> String {
        let name = &self.config().model.model_name_or_path;
        self.base_on_hub().map_or_else(|| file_name(Path::new(name)), str::to_string)
    }

    /// Returns the metadata in YAML. The license is that of base and data, which is not known here, and is left out.
    fn metadata(&self) -> String {
        let config = self.config();
        let mut yaml = "---\n".to_string();
        if let Some(base) = self.base_on_hub() {
            let _ = writeln!(yaml, "base_model: {base}");
        }
        let library = if self.kind == Kind::Adapter { "peft" } else { "transformers" };
        let _ = writeln!(yaml, "library_name: {library}\npipeline_tag: text-generation");
        let data = config.data.train_file.to_string_lossy();
        let parts: Vec<&str> =
            data.strip_prefix("hf://datasets/").unwrap_or("").split('/').collect();
        if let [owner, name, _, ..] = parts[..] {
            let name = name.split('@').next().unwrap_or(name);
            let _ = writeln!(yaml, "datasets:\n- {owner}/{name}");
        }
        let _ = writeln!(yaml, "tags:\n- arithmo\n- {}", self.config().method.name());
        if self.kind != Kind::Whole {
            yaml.push_str("- lora\n");
        }
        if let Some(base) = self.base_on_hub().filter(|_| self.kind == Kind::Adapter) {
            let _ = writeln!(yaml, "- base_model:adapter:{base}");
        }
        yaml + "---\n"
    }

    /// Returns what was trained, and how.
    fn summary(&self) -> String {
        let config = self.config();
        let what = match self.kind {
            Kind::Adapter => "A LoRA adapter for",
            Kind::Whole => "All weights of",
            Kind::Merged => "A LoRA adapter merged into",
        };
        let how = match config.method {
            Method::Dpo => "trained with direct preference optimization (DPO) on preference pairs",
            Method::Sft => "trained with supervised fine-tuning (SFT) on completions",
            Method::Kto => "trained with KTO on completions labeled as desirable or not",
            Method::Orpo => "trained with ORPO on preference pairs",
            Method::Cpo => "trained with CPO on preference pairs",
        };
        format!(
            "{what} `{}`, {how} by arithmo {}, started {}.",
            self.base(),
            self.manifest.version,
            self.manifest.started
        )
    }

    /// Returns the table of the data files.
    fn data(&self) -> String {
        let (config, manifest) = (self.config(), self.manifest);
        let mut table = "| file | used for | samples | SHA-256 |\n|---|---|---|---|\n".to_string();
        let files =
            [("train", Some(&config.data.train_file)), ("eval", config.data.eval_file.as_ref())];
        for (name, file) in files {
            let Some(file) = file else { continue };
            let counts = manifest.counts.iter();
            let count = counts.filter(|(key, _)| key.starts_with(&format!("{name}_"))).map(|c| c.1);
            let hash = &manifest.data[format!("{name}_file")]["sha256"];
            let _ = writeln!(
                table,
                "| `{}` | {} | {} | `{}` |",
                file_name(file),
                if name == "train" { "training" } else { "evaluation" },
                count.sum::<u64>(),
                hash.as_str().unwrap_or("unknown")
            );
        }
        table
    }

    /// Returns the number of steps, the device and the table of the settings.
    fn settings(&self) -> String {
        let config = self.config();
        let json = serde_json::to_value(config).unwrap_or_default();
        let method = config.method.name();
        let table = json[method].as_object().into_iter().flat_map(|table| table.keys());
        let method = table
            .map(|key| format!("{method}.{key}"))
            .filter(|key| config.method != Method::Dpo || DPO_SETTINGS.contains(&key.as_str()));
        let lora = LORA_SETTINGS.iter().filter(|_| config.model.use_peft);
        let rows = SETTINGS.iter().chain(lora).map(|key| key.to_string());
        let rows = rows.chain(method).map(|key| {
            let value =
                json.pointer(&format!("/{}", key.replace('.', "/"))).unwrap_or(&Value::Null);
            format!("| `{key}` | `{}` |\n", value.to_string().replace('|', "\\|"))
        });
        let steps = self.lines.iter().filter_map(|line| line.get("step")?.as_u64()).max();
        format!(
            "{} optimizer steps on {}. All settings are in the run's `manifest.json`.\n\n| setting | value |\n|---|---|\n{}",
            steps.unwrap_or_default(),
            self.manifest.device,
            rows.collect::<String>()
        )
    }

    /// Returns the tables of the first and last metrics, of training and of the held-out samples.
    fn results(&self) -> String {
        let (held_out, training): (Vec<&Line>, Vec<&Line>) =
            self.lines.iter().partition(|line| line.contains_key("eval_loss"));
        let mut text = comparison("training", &training);
        if let Some(best) = self.best {
            let metric = Selection::of(&self.config().train).map(|selection| selection.metric);
            let _ = writeln!(
                text,
                "\nThe result is the state after step {}, the best by `{}` ({:.4}).",
                best.step,
                metric.unwrap_or_default(),
                best.metric
            );
        }
        if held_out.is_empty() {
            text.push_str("\nThere was no evaluation on held-out samples.\n");
        } else {
            let _ = write!(text, "\n{}", comparison("held out", &held_out));
        }
        text
    }

    /// Returns how to load the result.
    fn usage(&self) -> String {
        let (base, title) = (self.base(), &self.title);
        if self.kind == Kind::Adapter {
            let name = &self.config().lora.adapter_name;
            let (flag, argument) = if name == DEFAULT_NAME {
                Default::default()
            } else {
                (format!(" --adapter-name {name}"), format!(", subfolder=\"{name}\""))
            };
            format!(
                "With arithmo, where `{title}` is this folder:\n\n```sh\narithmo generate --model {base} --adapter {title}{flag} --prompt \"...\"\n```\n\n\
                 With PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 base = AutoModelForCausalLM.from_pretrained(\"{base}\")\nmodel = PeftModel.from_pretrained(base, \"{title}\"{argument})\n\
                 tokenizer = AutoTokenizer.from_pretrained(\"{title}\")\n```"
            )
        } else {
            format!(
                "With arithmo, where `{title}` is this folder:\n\n```sh\narithmo generate --model {title} --prompt \"...\"\n```\n\n\
                 With transformers:\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"{title}\")\ntokenizer = AutoTokenizer.from_pretrained(\"{title}\")\n```"
            )
        }
    }
}

/// Returns the table of the metrics of the first and the last of `lines`.
fn comparison(what: &str, lines: &[&Line]) -> String {
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return String::new();
    };
    let step = |line: &Line| line.get("step").and_then(Value::as_u64).unwrap_or_default();
    let mut table =
        format!("| {what} | step {} | step {} |\n|---|---|---|\n", step(first), step(last));
    for (key, value) in last.iter().filter(|(key, _)| !NO_RESULTS.contains(&key.as_str())) {
        let shown = |value: Option<&Value>| {
            value.and_then(Value::as_f64).map_or("none".to_string(), |value| format!("{value:.4}"))
        };
        let _ = writeln!(table, "| `{key}` | {} | {} |", shown(first.get(key)), shown(Some(value)));
    }
    table
}

/// Returns whether `name` is a valid name of an owner or a repository on the hub.
fn is_hub_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name != "." && name != ".." && name.chars().all(valid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::manifest::StartingModel;

    fn manifest(base: &str) -> RunManifest {
        let mut config = RunConfig { output_dir: "runs/mine".into(), ..RunConfig::default() };
        config.model.model_name_or_path = base.into();
        config.data.train_file = "/home/me/secret/pairs.jsonl".into();
        let model = StartingModel { folder: "/cache/abc".into(), ..StartingModel::default() };
        let mut manifest = RunManifest::new(config, model, "ndarray cpu");
        manifest.data = json!({"train_file": {"sha256": "0123ab"}});
        manifest.counts = [("train_pairs".to_string(), 48)].into();
        manifest
    }

    fn text(manifest: &RunManifest) -> String {
        let line = |line: Value| line.as_object().unwrap().clone();
        let lines = vec![
            line(json!({"step": 1, "loss": 0.68754, "rewards/margins": 0.0, "seconds": 1.0})),
            line(json!({"step": 9, "loss": 0.5, "rewards/margins": 0.25, "seconds": 2.0})),
            line(json!({"step": 9, "eval_loss": 0.625})),
        ];
        let kind = if manifest.config.model.use_peft { Kind::Adapter } else { Kind::Whole };
        let title = file_name(&manifest.config.output_dir);
        Card { manifest, lines, best: None, kind, title }.text()
    }

    #[test]
    fn the_metadata_are_those_of_the_hub() {
        let card = text(&manifest("owner/Base-7B"));
        let expected = "---\nbase_model: owner/Base-7B\nlibrary_name: peft\npipeline_tag: text-generation\n\
                        tags:\n- arithmo\n- dpo\n- lora\n- base_model:adapter:owner/Base-7B\n---\n\n# mine\n";
        assert!(card.starts_with(expected), "{card}");
        for part in [
            "| `pairs.jsonl` | training | 48 | `0123ab` |",
            "| training | step 1 | step 9 |",
            "| `loss` | 0.6875 | 0.5000 |",
            "| `eval_loss` | 0.6250 | 0.6250 |",
            "| `dpo.beta` | `0.1` |",
            "--model owner/Base-7B --adapter mine",
            "PeftModel.from_pretrained(base, \"mine\")",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
        assert!(!card.contains("secret") && !card.contains("`seconds`"), "{card}");
    }

    /// A local base has no id on the hub; all weights of a model are no adapter.
    #[test]
    fn a_local_base_and_a_whole_model_are_described() {
        let mut manifest = manifest("models/tiny");
        manifest.model.folder = "models/tiny".into();
        manifest.config.model.use_peft = false;
        manifest.config.method = Method::Sft;
        manifest.config.data.train_file = "hf://datasets/owner/pairs@main/train.parquet".into();
        let card = text(&manifest);
        let expected = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ndatasets:\n- owner/pairs\n\
                        tags:\n- arithmo\n- sft\n---\n";
        assert!(card.starts_with(expected), "{card}");
        assert!(card.contains("All weights of `tiny`") && !card.contains("lora"), "{card}");
    }
}
