//! Tests of adapters with names: where a run saves them, as PEFT does, and how commands choose one.

use std::collections::BTreeMap;
use std::fs;

use arithmo::model::save::load_safetensors_f32;

use super::{ProcessOutput, Workshop, program};
use crate::support::file_names;

/// Scores the pairs with an adapter.
fn score(workshop: &Workshop, adapter: &str, flags: &[&str]) -> ProcessOutput {
    let mut command = program();
    command.arg("score").arg("--model").arg(workshop.path("model"));
    command.arg("--data").arg(workshop.path("pairs.jsonl")).arg("--adapter");
    command.arg(workshop.path(adapter)).args(["--output", "-"]).args(flags);
    ProcessOutput::new(command.output().unwrap())
}

#[test]
fn a_named_adapter_is_saved_in_its_folder_and_chosen_by_name() {
    let workshop = Workshop::new();
    workshop.trained(&["train.max_steps=2"], &[]);
    let weights =
        |path: &str| fs::read(workshop.path(path).join("adapter_model.safetensors")).unwrap();
    let unnamed = weights("run/adapter");
    let named = ["train.max_steps=2", "lora.adapter_name=math"];
    let ended = workshop.trained(&named, &["--overwrite"]);
    assert_eq!(ended.stdout.trim(), workshop.path("run/adapter/math").display().to_string());
    assert!(weights("run/adapter/math") == unnamed, "the name changes no weight");
    let folder = workshop.path("run/adapter");
    assert!(!folder.join("adapter_config.json").exists() && folder.join("README.md").is_file());
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("--adapter-name math") && card.contains("subfolder=\"math\""), "{card}");

    let by_path = score(&workshop, "run/adapter/math", &[]);
    assert_eq!(by_path.status, Some(0), "{}", by_path.stderr);
    for adapter in ["run", "run/adapter"] {
        let by_name = score(&workshop, adapter, &["--adapter-name", "math"]);
        assert_eq!(by_name.stdout, by_path.stdout, "{adapter}: {}", by_name.stderr);
        score(&workshop, adapter, &[]).refused(&["adapter/math", "choose one of them"]);
        let expected = ["--adapter-name", "\"code\"", "choose one of math"];
        score(&workshop, adapter, &["--adapter-name", "code"]).refused(&expected);
    }
    // The run is resumed, and removed with everything that it wrote.
    workshop.trained(&["train.max_steps=4", "lora.adapter_name=math"], &["--resume"]);
    workshop.trained(&["train.max_steps=2"], &["--overwrite"]);
    assert!(weights("run/adapter") == unnamed && !folder.join("math").exists());
    let by_name = score(&workshop, "run", &["--adapter-name", "default"]);
    assert_eq!(by_name.stdout, by_path.stdout, "{}", by_name.stderr);
}

#[test]
fn names_that_peft_cannot_use_are_refused() {
    let workshop = Workshop::new();
    for name in ["", "a/b", "..", "a.b", "lora", "ref"] {
        let setting = format!("lora.adapter_name='{name}'");
        workshop.train(&[&setting], &[]).refused(&["lora.adapter_name", "choose another name"]);
    }
    assert!(!workshop.path("run").exists());
}

/// The reference that follows an adapter is saved beside it, with the weights of the last checkpoint.
#[test]
fn a_reference_that_follows_the_adapter_is_saved_as_ref() {
    let workshop = Workshop::new();
    let settings = [
        "train.max_steps=4",
        "train.save_steps=4",
        "dpo.sync_ref_model=true",
        "dpo.ref_model_sync_steps=2",
    ];
    workshop.trained(&settings, &[]);
    let read = |path: &str| load_safetensors_f32(&workshop.path(path)).unwrap();
    let saved = read("run/adapter/ref/adapter_model.safetensors");
    let moving = read("run/checkpoints/step-4/reference.safetensors");
    let moving: BTreeMap<String, _> = moving
        .into_iter()
        .map(|(name, tensor)| (format!("base_model.model.{name}"), tensor))
        .collect();
    assert_eq!(saved, moving);
    assert_ne!(saved, read("run/adapter/adapter_model.safetensors"));
    let configs = ["run/adapter", "run/adapter/ref"]
        .map(|folder| fs::read(workshop.path(folder).join("adapter_config.json")).unwrap());
    assert!(configs[0] == configs[1]);
    let [policy, reference] = ["default", "ref"].map(|name| {
        let scored = score(&workshop, "run", &["--adapter-name", name]);
        assert_eq!(scored.status, Some(0), "{}", scored.stderr);
        scored.stdout
    });
    assert_ne!(policy, reference);
    // All of it belongs to the run.
    workshop.trained(&["train.max_steps=2"], &["--overwrite"]);
    assert!(!file_names(&workshop.path("run/adapter")).contains(&"ref".to_string()));
}
