//! Input that is not what it must be: one clear error, status 1, and nothing written.

use std::fs;

use super::{Workshop, program};

/// Trains, expects a refusal that says `parts`, and that nothing was written.
#[track_caller]
fn refused(workshop: &Workshop, settings: &[&str], parts: &[&str]) {
    workshop.train(settings, &[]).refused(parts);
    assert!(!workshop.path("run").exists());
    assert_eq!(workshop.rests(), [""; 0]);
}

#[test]
fn configuration_errors_name_the_key() {
    let workshop = Workshop::new();
    let wrong = ["train.learning_rte=1e-4"];
    refused(
        &workshop,
        &wrong,
        &[
            "--set train.learning_rte",
            "unknown key",
            "train.learning_rate",
        ],
    );
    refused(&workshop, &["lora.r=0"], &["lora.r", "at least 1"]);
    let toml = workshop.path("run.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace("lora_alpha", "lora_alfa")).unwrap();
    refused(
        &workshop,
        &[],
        &["run.toml:9: lora.lora_alfa", "lora.lora_alpha"],
    );
    fs::write(&toml, "[model\n").unwrap();
    refused(&workshop, &[], &["run.toml"]);
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
fn pairs_that_are_no_pairs_are_named_by_line_or_id() {
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
        &[
            "the-same",
            "chosen and rejected are the same text",
            "skip_untrainable",
        ],
    );
    let skipped = workshop.trained(&["data.skip_untrainable=true", "train.max_steps=1"], &[]);
    assert!(skipped.stderr.contains("the-same"), "{}", skipped.stderr);
}

/// Adam moves every weight by about the learning rate: the second step cannot be finite, the first one was.
#[test]
fn a_step_that_is_not_finite_stops_the_run_and_keeps_what_was_good() {
    let workshop = Workshop::new();
    let settings = [
        "train.learning_rate=1e30",
        "train.lr_scheduler_type=constant",
        "train.warmup_steps=0",
        "train.save_steps=1",
        "train.save_total_limit=1",
    ];
    let ended = workshop.train(&settings, &[]);
    ended.refused(&["step 2 is not finite", "pairs-", "learning_rate", "step-1"]);
    assert!(
        workshop
            .path("run/checkpoints/step-1/checkpoint.json")
            .is_file()
    );
    assert!(!workshop.path("run/checkpoints/step-2").exists());
    assert!(!workshop.path("run/adapter").exists());
    assert_eq!(super::metrics(&workshop.path("run")).len(), 1);
    assert_eq!(workshop.rests(), [""; 0]);
}

#[test]
fn a_model_without_finite_weights_says_so() {
    let workshop = Workshop::new();
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let ended = workshop.train(&[], &[]);
    ended.refused(&[
        "step 1 is not finite",
        "nothing was trained yet",
        "check its weights",
    ]);
    assert!(!workshop.path("run/adapter").exists());
}

#[test]
fn a_dry_run_lists_everything_and_writes_nothing() {
    let workshop = Workshop::new();
    let ended = workshop.trained(&["data.max_length=40"], &["--dry-run"]);
    assert_eq!(ended.stdout, "");
    for part in [
        "chosen_truncated",
        "rejected_truncated",
        "eos_lost",
        "\"pairs-2\"",
        "pairs_read",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(!workshop.path("run").exists());
    assert_eq!(workshop.rests(), [""; 0]);
    // A run that is there stops a dry run as it would stop the run itself.
    workshop.trained(&["train.max_steps=1"], &[]);
    workshop
        .train(&[], &["--dry-run"])
        .refused(&["already holds a run"]);
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [
        &["train"][..],
        &["trian"],
        &["train", "--config"],
        &["train", "--config", "a", "--no"],
    ] {
        let output = program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let output = program()
        .args(["train", "--config", "none.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("none.toml")
    );
}
