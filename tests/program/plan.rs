//! Tests of `arithmo plan`, of `train --dry-run` and of the refusal of runs that do not fit. Also compares plans with
//! the measured memory of runs.

use crate::tiny;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::suite::plan;

#[cfg(target_os = "linux")]
#[test]
fn plans_are_within_five_percent_of_measured_memory() {
    plan::within_five_percent("ndarray", plan::CASES);
    plan::within_five_percent("ndarray", plan::SAVED);
    plan::within_five_percent("ndarray", plan::FULL);
    plan::within_five_percent("ndarray", plan::METHODS);
    plan::within_five_percent("ndarray", plan::PACKED);
}

#[cfg(target_os = "linux")]
#[test]
fn plans_of_other_families_are_within_five_percent_of_measured_memory() {
    plan::within_five_percent("ndarray", plan::FAMILIES);
}

/// A temporary folder with `model/` and `run.toml`.
struct Workshop(TempDir);

impl Workshop {
    /// Creates a workshop whose model is only the configuration of Mistral-7B, without weights.
    fn with_config_only() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        fs::create_dir(workshop.path("model")).unwrap();
        let config = r#"{
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 32768, "sliding_window": 4096, "torch_dtype": "bfloat16"
        }"#;
        fs::write(workshop.path("model/config.json"), config).unwrap();
        workshop.write_run();
        workshop
    }

    /// Creates a workshop with a model of a few thousand weights, and pairs.
    fn with_tiny_model() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        tiny::write_model(&workshop.path("model"), &tiny::config(), 5);
        let pairs = tiny::fixture("tiny").join("pairs.jsonl");
        fs::copy(pairs, workshop.path("pairs.jsonl")).unwrap();
        workshop.write_run();
        workshop
    }

    fn write_run(&self) {
        let [run, model, pairs] = ["run", "model", "pairs.jsonl"].map(|name| self.path(name));
        let toml = format!(
            "output_dir = {run:?}\n[model]\nmodel_name_or_path = {model:?}\n[data]\ntrain_file = {pairs:?}\n\
             max_length = 1024\n[train]\nmax_steps = 2\nwarmup_steps = 0\n"
        );
        fs::write(self.path("run.toml"), toml).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arithmo(&self, command: &str, arguments: &[&str]) -> Output {
        let mut program = Command::new(env!("CARGO_BIN_EXE_arithmo"));
        program.args([command, "--config"]).arg(self.path("run.toml"));
        program.args(arguments).output().unwrap()
    }

    /// Runs `plan` and returns its JSON. Panics unless the exit status is 0 if the run fits, and 1 if not.
    fn plan(&self, arguments: &[&str]) -> Value {
        let output = self.arithmo("plan", &[&["--json"], arguments].concat());
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = if plan["fits"] == Value::Bool(false) { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{output:?}");
        plan
    }
}

#[test]
fn a_plan_needs_only_the_models_config_and_a_memory_size() {
    let workshop = Workshop::with_config_only();
    let card = ["--device-memory", "8GB"];
    let four_bits = [
        "--set",
        "model.quantization=nf4",
        "--set",
        "model.double_quant=true",
        "--set",
        "train.max_tokens_per_pass=2048",
    ];
    let plan = workshop.plan(&[&card[..], &four_bits].concat());
    assert_eq!(plan["fits"], true, "{plan}");
    assert_eq!((&plan["dtype"], &plan["lengths"]), (&"f16".into(), &"max_length".into()));
    assert_eq!(plan["capacity_bytes"], 8_000_000_000u64);
    let bytes = plan["bytes"].as_object().unwrap();
    let sum: u64 = bytes.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(plan["total_bytes"], sum);
    assert!(plan["largest_batch"].as_u64() >= Some(1), "{plan}");

    let plan = workshop.plan(&card);
    assert_eq!(plan["fits"], false);
    let changes = plan["changes"].as_array().unwrap();
    assert!(!changes.is_empty() && changes.len() <= 3);
    for change in changes {
        assert!(change["total_bytes"].as_u64() <= Some(8_000_000_000), "{change}");
        // Plans with the proposed settings have the proposed size.
        let settings = change["set"].as_array().unwrap().iter();
        let settings = settings.flat_map(|setting| ["--set", setting.as_str().unwrap()]);
        let arguments: Vec<&str> = card.into_iter().chain(settings).collect();
        let again = workshop.plan(&arguments);
        assert_eq!(again["fits"], true, "{change}");
        assert_eq!(again["total_bytes"], change["total_bytes"]);
    }

    let table = workshop.arithmo("plan", &[&card[..], &four_bits].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    for part in [
        "weights",
        "4.13 GB",
        "together",
        "left out: what the driver takes",
        "fits into 8.00 GB",
        "lengths unknown",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // On the CPU, a plan counts all memory of the process, so nothing is left out.
    let cpu = workshop.arithmo("plan", &["--backend", "ndarray", "--device-memory", "64GB"]);
    let table = String::from_utf8(cpu.stdout).unwrap();
    assert!(table.contains("together") && !table.contains("left out"), "{table}");
}

#[test]
fn a_plan_that_does_not_fit_exits_with_1_and_a_size_needs_its_unit() {
    let workshop = Workshop::with_config_only();
    let card = ["--device-memory", "8GB"];
    let refused = workshop.arithmo("plan", &card);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("error: plan: the run does not fit"), "{message}");
    assert!(!refused.stdout.is_empty(), "the table is not printed");
    let unit = workshop.arithmo("plan", &["--device-memory", "8"]);
    assert_eq!(unit.status.code(), Some(1));
    let message = String::from_utf8(unit.stderr).unwrap();
    assert!(message.contains("8 bytes") && message.contains("as 8GB"), "{message}");
}

#[test]
fn a_plan_uses_the_lengths_of_the_data_and_measures_the_time() {
    let workshop = Workshop::with_tiny_model();
    let plan = workshop.plan(&["--backend", "ndarray"]);
    assert_eq!(plan["lengths"], "data");
    assert_eq!(plan["fits"], true);
    let timing = &plan["timing"];
    assert_eq!(timing["steps"], 2);
    let seconds = |key: &str| timing[key].as_f64().unwrap();
    assert!(seconds("seconds_per_step") > 0.0 && seconds("flop_per_second") > 0.0);
    assert!((seconds("seconds") - 2.0 * seconds("seconds_per_step")).abs() < 1e-9);
    let untimed = workshop.plan(&["--backend", "ndarray", "--no-timing"]);
    assert!(untimed["timing"].is_null());
}

#[test]
fn a_run_that_does_not_fit_is_refused_before_anything_is_written() {
    let workshop = Workshop::with_tiny_model();
    let little = ["--backend", "ndarray", "--device-memory", "20MB"];
    let refused = workshop.arithmo("train", &little);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stdout.is_empty() && !workshop.path("run").exists());
    let message = String::from_utf8(refused.stderr).unwrap();
    for part in ["error: plan: the run takes", "does not fit into 20.0 MB", "help: "] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // A dry run prints the same and succeeds.
    let dry = workshop.arithmo("train", &[&little[..], &["--dry-run", "--no-timing"]].concat());
    assert!(dry.status.success(), "{dry:?}");
    let table = String::from_utf8(dry.stdout).unwrap();
    assert!(table.contains("does not fit into 20.0 MB"), "{table}");
    assert!(!workshop.path("run").exists());
    let ignored = workshop.arithmo("train", &[&little[..], &["--ignore-plan"]].concat());
    assert!(ignored.status.success(), "{ignored:?}");
    assert!(workshop.path("run/adapter").is_dir());
    let wrong = workshop.arithmo("train", &["--device-memory", "much"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("write it as 8GB"));
}

#[test]
fn the_refusal_proposes_settings_that_fit() {
    let workshop = Workshop::with_tiny_model();
    let keep = [
        "--backend",
        "ndarray",
        "--set",
        "train.gradient_checkpointing=false",
        "--set",
        "train.per_device_train_batch_size=4",
    ];
    let plan = workshop.plan(&[&keep[..], &["--no-timing"]].concat());
    let (total, program) =
        (plan["total_bytes"].as_u64().unwrap(), plan["bytes"]["program"].as_u64().unwrap());
    // The program's own memory, and half of the rest.
    let half = (program + (total - program) / 2).to_string();
    let refused = workshop.arithmo("train", &[&keep[..], &["--device-memory", &half]].concat());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = String::from_utf8(refused.stderr).unwrap();
    let proposed = message.matches("--set ").count();
    assert!(proposed >= 1, "{message}");
    for part in ["takes ", "times the time per step, same result", "--ignore-plan"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
