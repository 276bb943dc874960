//! Opens what the program wrote with PEFT and transformers, and compares log-probabilities.
//!
//! `ARITHMO_PEER_PYTHON` names a Python with torch, transformers and peft; the default is `python3`. Without these
//! packages nothing is compared, and the test says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::calls::printed;
use crate::support::{reference, smollm2};

/// Three pairs of text that every tiny model's tokenizer knows.
const PAIRS: &str = r#"{"prompt": "Question: Carla sold 35 eggs.\nAnswer:", "chosen": " 35*2 = 70.\n#### 70", "rejected": " She sold none."}
{"prompt": "Question: What is 7 - 4?\nAnswer:", "chosen": " 7 - 4 = 3", "rejected": " 11, because 7 + 4 = 11."}
{"prompt": "Question: A pen costs $3. What do 5 cost?\nAnswer:", "chosen": " 15", "rejected": " 8"}
"#;

/// What is trained: a model of the golden data, and further keys of `[lora]`.
const RUNS: [(&str, &str); 9] = [
    ("models/tiny-a", "target_modules = \"all-linear\""),
    ("models/tiny-b", "use_dora = true\nuse_rslora = true"),
    ("models/tiny-a", "init_lora_weights = \"pissa\""),
    (
        "models/tiny-b",
        "modules_to_save = [\"lm_head\"]\nrank_pattern = { k_proj = 3 }\ntarget_modules = [\"k_proj\", \"o_proj\"]",
    ),
    ("families/models/qwen2", "target_modules = \"all-linear\""),
    ("families/models/ministral3", "target_modules = [\"q_proj\", \"down_proj\"]"),
    ("families/models/qwen3", "target_modules = \"all-linear\"\nuse_dora = true"),
    ("families/models/gemma3", "target_modules = \"all-linear\""),
    ("families/models/smollm3", "target_modules = \"all-linear\""),
];

/// Returns the peer's Python. If it lacks a package, prints a note and returns `None`.
fn python() -> Option<String> {
    let python = std::env::var("ARITHMO_PEER_PYTHON").unwrap_or_else(|_| "python3".into());
    let check = Command::new(&python).args(["-c", "import torch, transformers, peft"]).output();
    if check.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("SKIPPED: {python} has no torch, transformers and peft; set ARITHMO_PEER_PYTHON");
    None
}

/// Trains three steps at a high rate and merges. Returns what the peer has to open, with our log-probabilities of each.
fn trained(folder: &Path, number: usize, model: &Path, lora: &str) -> Value {
    let model = model.display().to_string();
    let config = format!(
        "output_dir = \"run-{number}\"\n[model]\nmodel_name_or_path = \"{model}\"\ndtype = \"f32\"\n\
         [data]\ntrain_file = \"pairs.jsonl\"\nmax_length = 128\n\
         [lora]\nr = 4\nlora_alpha = 12\n{lora}\n\
         [train]\nmax_steps = 3\nwarmup_steps = 0\nper_device_train_batch_size = 3\n\
         gradient_accumulation_steps = 1\nlearning_rate = 2e-2\n"
    );
    fs::write(folder.join("run.toml"), config).unwrap();
    printed(folder, &["train", "--config", "run.toml", "--quiet"]);
    let (adapter, merged) = (format!("run-{number}/adapter"), format!("merged-{number}"));
    let on_adapter = ["--model", &model, "--adapter", &adapter];
    printed(folder, &[&["merge"], &on_adapter[..], &["--output", &merged]].concat());
    let scores = [format!("adapter-{number}.jsonl"), format!("merged-{number}.jsonl")];
    let score = ["score", "--dtype", "f32", "--data", "pairs.jsonl", "--per-token", "--output"];
    printed(folder, &[&score[..], &[&scores[0]], &on_adapter].concat());
    printed(folder, &[&score[..], &[&scores[1], "--model", &merged]].concat());
    json!({"base": model, "adapter": adapter, "merged": merged, "scores": scores})
}

/// Trains and merges `models`, and lets the peer open everything.
fn compare(models: &[(PathBuf, &str)]) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pairs.jsonl"), PAIRS).unwrap();
    let jobs: Vec<Value> = models
        .iter()
        .enumerate()
        .map(|(number, (model, lora))| trained(folder.path(), number, model, lora))
        .collect();
    fs::write(folder.path().join("jobs.json"), Value::from(jobs).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/open_with_peft.py");
    let output = Command::new(python).current_dir(&folder).arg(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{text}");
    assert_eq!(text.lines().count(), 2 * models.len(), "{text}");
}

#[test]
#[ignore = "needs a Python with torch, transformers and peft"]
fn peft_and_transformers_open_what_training_and_merging_write() {
    let models: Vec<_> =
        RUNS.iter().filter_map(|(model, lora)| Some((reference(model)?, *lora))).collect();
    compare(&models);
}

#[test]
#[ignore = "needs a Python with torch, transformers and peft, and a model that is not in the tree"]
fn peft_and_transformers_open_what_a_real_model_became() {
    let Some(model) = smollm2() else { return };
    compare(&[(model, "target_modules = \"all-linear\"")]);
}
