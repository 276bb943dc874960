//! Checks that invalid input gives one clear error and status 1, and that nothing is written.

use std::fs;

use arithmo::data::tokenizer::Tokenizer;
use serde_json::Value;

use super::{Workshop, program, tiny};

/// Trains. Panics unless the command fails with `parts` in its message and writes nothing.
#[track_caller]
fn refused(workshop: &Workshop, settings: &[&str], parts: &[&str]) {
    workshop.train(settings, &[]).refused(parts);
    assert!(!workshop.path("run").exists());
    assert_eq!(workshop.unfinished_files(), [""; 0]);
}

#[test]
fn configuration_errors_name_the_key() {
    let workshop = Workshop::new();
    let wrong = ["train.learning_rte=1e-4"];
    refused(&workshop, &wrong, &["--set train.learning_rte", "unknown key", "train.learning_rate"]);
    refused(&workshop, &["lora.r=0"], &["lora.r", "at least 1"]);
    let toml = workshop.path("run.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace("lora_alpha", "lora_alfa")).unwrap();
    refused(&workshop, &[], &["run.toml:9: lora.lora_alfa", "lora.lora_alpha"]);
    fs::write(&toml, "[model\n").unwrap();
    refused(&workshop, &[], &["run.toml"]);
}

/// The adapter is looked for before the data are read, also by `--dry-run`.
#[test]
fn a_missing_starting_adapter_is_named_first() {
    let workshop = Workshop::new();
    let settings = ["lora.adapter=nowhere", "data.train_file=neither.jsonl"];
    refused(&workshop, &settings, &["nowhere", "is not a folder"]);
    workshop.train(&settings, &["--dry-run"]).refused(&["nowhere", "is not a folder"]);
}

#[test]
fn adapter_options_without_effect_or_sense_are_refused() {
    let workshop = Workshop::new();
    for (settings, parts) in [
        (
            &["lora.target_modules=[\"layers.9.q_proj\"]"][..],
            ["lora.target_modules", "`layers.9.q_proj`"],
        ),
        (&["lora.target_modules=model"], ["lora.target_modules", "`model` matches no projection"]),
        (&["lora.exclude_modules=.*"], ["lora.target_modules", "no projection is left"]),
        (&["lora.layers_to_transform=7"], ["lora.target_modules", "no projection is left"]),
        (
            &["lora.rank_pattern={ k_proj = 2 }"],
            ["lora.rank_pattern", "`k_proj` matches no projection"],
        ),
        (
            &["lora.alpha_pattern={ q_proj = 2, \".*_proj\" = 3 }"],
            ["lora.alpha_pattern", "different values"],
        ),
        (
            &["lora.modules_to_save=[\"head\", \"nrom\"]"],
            ["lora.modules_to_save", "`nrom` chooses no module"],
        ),
        (
            &["lora.modules_to_save=[\"mlp\"]"],
            ["lora.modules_to_save", "model.layers.0.mlp, which holds other"],
        ),
        (
            &["lora.modules_to_save=[\"_proj\"]"],
            ["lora.modules_to_save", "also gets a low-rank branch"],
        ),
        (
            &["lora.modules_to_save=[\"up_proj\"]", "model.quantization=nf4"],
            ["lora.modules_to_save", "is quantized"],
        ),
    ] {
        refused(&workshop, settings, &parts);
    }
    let config = workshop.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut object: Value = serde_json::from_str(&text).unwrap();
    object["tie_word_embeddings"] = true.into();
    fs::write(&config, object.to_string()).unwrap();
    let tied = ["lora.modules_to_save=[\"embed_tokens\"]"];
    refused(&workshop, &tied, &["lora.modules_to_save", "tie_word_embeddings"]);
}

#[test]
fn missing_and_damaged_files_are_named() {
    let workshop = Workshop::new();
    let elsewhere = workshop.path("none.jsonl").display().to_string();
    let set = format!("data.train_file={elsewhere}");
    let ended = workshop.train(&[&set], &[]);
    assert_eq!(ended.status, Some(1));
    assert!(ended.stderr.contains(&elsewhere), "{}", ended.stderr);
    assert!(!workshop.path("run").exists());

    let weights = workshop.path("model/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    refused(&workshop, &[], &["model.safetensors"]);
    fs::write(&weights, &bytes[..20]).unwrap();
    refused(&workshop, &[], &["model.safetensors"]);
}

#[test]
fn errors_for_invalid_pairs_name_the_line_or_id() {
    let workshop = Workshop::new();
    let file = workshop.path("pairs.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |line: &str| [&lines[..2], &[line], &lines[2..]].concat().join("\n");

    fs::write(&file, with(r#"{"prompt": "What is"#)).unwrap();
    refused(&workshop, &[], &["pairs.jsonl:3"]);
    let same = r#"{"id": "the-same", "prompt": "p", "chosen": "yes", "rejected": "yes"}"#;
    fs::write(&file, with(same)).unwrap();
    refused(
        &workshop,
        &[],
        &["the-same", "chosen and rejected are the same text", "skip_untrainable"],
    );
    let skipped = workshop.trained(&["data.skip_untrainable=true", "train.max_steps=1"], &[]);
    assert!(skipped.stderr.contains("the-same"), "{}", skipped.stderr);
}

/// Checks a run in which one pair has a token whose embedding is NaN. The steps before that pair are kept.
#[test]
fn a_step_that_is_not_finite_stops_the_run_and_keeps_earlier_steps() {
    let workshop = Workshop::new();
    let pairs = workshop.path("pairs.jsonl");
    let text = fs::read_to_string(&pairs).unwrap();
    fs::write(
        &pairs,
        text.replacen(r#""pairs-13", "prompt": ""#, r#""pairs-13", "prompt": "~"#, 1),
    )
    .unwrap();
    poison_embedding(&workshop, "~");
    let settings = ["data.shuffle=false", "train.save_total_limit=1"];
    let ended = workshop.train(&settings, &[]);
    // Step 3 has the pairs 12 and 13.
    ended.refused(&[
        "step 3 is not finite",
        "pairs pairs-13; the weight model.embed_tokens.weight holds 1 NaN",
        "checkpoint step-2",
    ]);
    let check_kept_steps = || {
        assert!(workshop.path("run/checkpoints/step-2/checkpoint.json").is_file());
        assert!(!workshop.path("run/checkpoints/step-3").exists());
        assert!(!workshop.path("run/adapter").exists());
        assert_eq!(super::metrics(&workshop.path("run")).len(), 2);
        assert_eq!(workshop.unfinished_files(), [""; 0]);
    };
    check_kept_steps();
    workshop.train(&settings, &["--resume"]).refused(&["step 3 is not finite"]);
    check_kept_steps();
}

/// Overwrites values of a weight of the model, from value number `first` on.
fn overwrite_weight(workshop: &Workshop, name: &str, first: usize, values: &[f32]) {
    let file = workshop.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let start = 8 + header + start + first * 4;
    for (place, value) in bytes[start..].chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(&file, bytes).unwrap();
}

/// Writes a NaN to the embedding of a text's first token.
fn poison_embedding(workshop: &Workshop, text: &str) {
    let id =
        Tokenizer::from_folder(&workshop.path("model")).unwrap().encode(text, false).unwrap()[0];
    let first = id as usize * tiny::config().hidden_size;
    overwrite_weight(workshop, "model.embed_tokens.weight", first, &[f32::NAN]);
}

/// Checks a run whose first update makes weights infinite, although loss and gradient are finite.
#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let workshop = Workshop::new();
    let schedule = ["train.lr_scheduler_type=constant", "train.warmup_steps=0"];
    let settings = [&schedule[..], &["train.learning_rate=1e39", "train.save_steps=1"]].concat();
    let ended = workshop.train(&settings, &[]);
    ended.refused(&["the weights after step 1 are not finite", "learning_rate"]);
    assert_eq!(
        fs::read_dir(workshop.path("run"))
            .unwrap()
            .filter(|e| {
                let name = e.as_ref().unwrap().file_name();
                name == "checkpoints" || name == "adapter"
            })
            .count(),
        0
    );
}

/// The weights of a norm in the second layer are finite, but their products with values above 1.2 are not.
#[test]
fn the_first_layer_that_overflows_is_named() {
    let workshop = Workshop::new();
    let norm = "model.layers.1.post_attention_layernorm.weight";
    overwrite_weight(&workshop, norm, 0, &vec![3e38; tiny::config().hidden_size]);
    workshop.train(&[], &[]).refused(&[
        "step 1 is not finite",
        "first the activations from layer 1 (model.layers.1) on",
        "nothing was trained yet",
    ]);
}

#[test]
fn a_model_with_a_nan_weight_is_refused() {
    let workshop = Workshop::new();
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let ended = workshop.train(&[], &[]);
    ended.refused(&["the weight lm_head.weight holds 1 NaN", "the model is broken"]);
    assert!(!workshop.path("run/adapter").exists());
}

#[test]
fn a_dry_run_lists_everything_and_writes_nothing() {
    let workshop = Workshop::new();
    let ended = workshop.trained(&["data.max_length=40"], &["--dry-run"]);
    for part in ["weights", "together", "fits into", "s per step"] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    for part in ["chosen_truncated", "rejected_truncated", "eos_lost", "\"pairs-2\"", "pairs_read"]
    {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(!workshop.path("run").exists());
    assert_eq!(workshop.unfinished_files(), [""; 0]);
    // An existing run is no error and is not changed.
    workshop.trained(&["train.max_steps=1"], &[]);
    let manifest = fs::read(workshop.path("run/manifest.json")).unwrap();
    workshop.trained(&["train.max_steps=2"], &["--dry-run"]);
    assert_eq!(fs::read(workshop.path("run/manifest.json")).unwrap(), manifest);
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in
        [&["train"][..], &["trian"], &["train", "--config"], &["train", "--config", "a", "--no"]]
    {
        let output = program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let output = program().args(["train", "--config", "none.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("none.toml"));
}
