//! `arithmo plan`, `train --dry-run` and the refusal of runs that do not fit, as a user calls them; and the plan beside what
//! runs take.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(dead_code, unreachable_pub, reason = "the suite of another backend takes the rest")]

#[path = "suite/plan.rs"]
mod plan;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use plan::tiny;

#[cfg(target_os = "linux")]
#[test]
fn plans_are_within_five_percent_of_what_runs_take() {
    plan::within_five_percent("ndarray", plan::CASES);
    plan::within_five_percent("ndarray", plan::FULL);
    plan::within_five_percent("ndarray", plan::PACKED);
}

/// A folder with `model/` and `run.toml`; of the model, what `with` names.
struct Workshop(TempDir);

impl Workshop {
    /// A model that is only described, as Mistral-7B is.
    fn described() -> Self {
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

    /// A model of some thousand weights, with pairs.
    fn whole() -> Self {
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

    /// The JSON of a plan.
    fn plan(&self, arguments: &[&str]) -> Value {
        let output = self.arithmo("plan", &[&["--json"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn a_model_is_planned_from_its_config_alone_for_a_card_that_is_not_here() {
    let workshop = Workshop::described();
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
        // What is proposed, planned as a user would.
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
        "lengths not known",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // The CPU's memory is that of the process, all of which is counted.
    let cpu = workshop.arithmo("plan", &["--backend", "ndarray", "--device-memory", "64GB"]);
    let table = String::from_utf8(cpu.stdout).unwrap();
    assert!(table.contains("together") && !table.contains("left out"), "{table}");
}

#[test]
fn a_plan_takes_the_real_lengths_and_times_the_device() {
    let workshop = Workshop::whole();
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
    let workshop = Workshop::whole();
    let little = ["--backend", "ndarray", "--device-memory", "20MB"];
    let refused = workshop.arithmo("train", &little);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stdout.is_empty() && !workshop.path("run").exists());
    let message = String::from_utf8(refused.stderr).unwrap();
    for part in ["error: plan: the run takes", "does not fit into 20.0 MB", "help: "] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // A dry run says the same and is no error.
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

/// Between too little and enough there is what changes bring.
#[test]
fn the_refusal_proposes_what_makes_it_fit() {
    let workshop = Workshop::whole();
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
    // Half of what comes on top of the program.
    let half = (program + (total - program) / 2).to_string();
    let refused = workshop.arithmo("train", &[&keep[..], &["--device-memory", &half]].concat());
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = String::from_utf8(refused.stderr).unwrap();
    let proposed = message.matches("--set ").count();
    assert!(proposed >= 1, "{message}");
    for part in ["takes ", "times the time a step, same result", "--ignore-plan"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
