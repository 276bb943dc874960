//! Tests of held-out metrics, and of runs that are resumed with another number of steps, with another base, or without
//! a checkpoint.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{STEPS, Workshop, metrics, number};
use crate::support::json_file;

/// Reads the held-out lines of a run's metrics.
fn evaluations(run: &Path) -> Vec<Map<String, Value>> {
    let lines = metrics(run).into_iter();
    lines.filter(|line| line.contains_key("eval_loss")).collect()
}

fn held_out(workshop: &Workshop) -> String {
    format!("data.eval_file={}", workshop.path("held-out.jsonl").display())
}

/// Checks that means over five pairs do not depend on the batch size, and that TRL's means over batches differ.
#[test]
fn held_out_means_do_not_depend_on_the_batch_size() {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let evaluated = |size: &str, means: &str| {
        let size = format!("train.per_device_eval_batch_size={size}");
        let means = format!("train.eval_means={means}");
        workshop.trained(&[&eval, &size, &means, "train.max_steps=4"], &["--overwrite"]);
        evaluations(&workshop.path("run")).pop().unwrap()
    };
    let whole = evaluated("8", "pairs");
    for size in ["1", "2", "3", "5"] {
        let other = evaluated(size, "pairs");
        assert_eq!(other.len(), whole.len());
        for key in whole.keys() {
            let (ours, theirs) = (number(&other, key), number(&whole, key));
            let near = (ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0);
            assert!(near, "batches of {size}, {key}: {ours} {theirs}");
        }
    }
    // TRL's accuracy is a mean of three batches, whose accuracies are multiples of 1/2, so it is a multiple of 1/6.
    let trl = evaluated("2", "trl");
    let accuracy = number(&whole, "eval_rewards/accuracies");
    assert!((5.0 * accuracy - (5.0 * accuracy).round()).abs() < 1e-12, "{accuracy}");
    let sixths = 6.0 * number(&trl, "eval_rewards/accuracies");
    assert!((sixths - sixths.round()).abs() < 1e-12, "{sixths}");
    let differs = |key: &str| (number(&trl, key) - number(&whole, key)).abs() > 1e-4;
    assert!(differs("eval_logps/chosen") && differs("eval_logps/rejected"));
    // The Trainer averages the loss over samples.
    assert!((number(&trl, "eval_loss") - number(&whole, "eval_loss")).abs() < 1e-5);
}

/// Checks that step 4 of 4 is evaluated with `eval_steps = 3`, and that resuming does not repeat it.
#[test]
fn the_last_step_is_always_evaluated_once() {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&eval, "train.eval_steps=3", "train.max_steps=4"];
    let ended = workshop.trained(&settings, &[]);
    assert!(ended.stderr.contains("step 4 eval:"), "{}", ended.stderr);
    let steps = |workshop: &Workshop| -> Vec<f64> {
        let lines = evaluations(&workshop.path("run"));
        lines.iter().map(|line| number(line, "step")).collect()
    };
    assert_eq!(steps(&workshop), [3.0, 4.0]);
    workshop.trained(&settings, &["--resume"]);
    assert_eq!(steps(&workshop), [3.0, 4.0]);
    // Older versions wrote no last evaluation. Resuming adds it.
    let path = workshop.path("run/metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&path, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    workshop.trained(&settings, &["--resume"]);
    assert_eq!(steps(&workshop), [3.0, 4.0]);
    // `eval_steps` changes no weights, so it may change on resume.
    workshop.trained(&[&eval, "train.eval_steps=1", "train.max_steps=4"], &["--resume"]);
}

/// Checks that a finished run that is resumed with more steps equals a run that had them from the start, if the
/// learning rate is constant. An epoch has three steps, so the shorter runs end at, before and after the end of an
/// epoch.
#[test]
fn a_run_resumed_with_more_steps_equals_the_longer_run() {
    let workshop = Workshop::new();
    for (name, settings) in [
        ("constant", &["train.lr_scheduler_type=constant", "train.warmup_steps=0"][..]),
        ("with warmup", &["train.lr_scheduler_type=constant_with_warmup"]),
    ] {
        workshop.trained(settings, &["--overwrite"]);
        let whole = workshop.result();
        for short in [3, 2, 7] {
            let shorter = format!("train.max_steps={short}");
            let with = [settings, &[&shorter]].concat();
            workshop.trained(&with, &["--overwrite"]);
            let ended = workshop.trained(settings, &["--resume"]);
            for part in [
                format!("train.max_steps: {short} -> {STEPS}"),
                format!("has {STEPS} steps now, it had {short}"),
            ] {
                assert!(ended.stderr.contains(&part), "{part}: {}", ended.stderr);
            }
            assert_eq!(workshop.result(), whole, "{name}, from {short}");
        }
    }
    // The manifest has the new number of steps, so the same command does not report it again.
    let settings = ["train.lr_scheduler_type=constant_with_warmup"];
    let ended = workshop.trained(&settings, &["--resume"]);
    assert!(!ended.stderr.contains("steps now"), "{}", ended.stderr);
    let manifest = json_file(&workshop.path("run/manifest.json"));
    assert_eq!(manifest["config"]["train"]["max_steps"], json!(STEPS));
    assert_eq!(manifest["counts"]["optimizer_steps"], json!(STEPS));
}

/// Checks that a resumed run with more steps continues with the learning rates of the longer cosine.
#[test]
fn a_run_resumed_with_more_steps_continues_on_the_longer_cosine() {
    let workshop = Workshop::new();
    let rates = |workshop: &Workshop| -> Vec<f64> {
        let lines = metrics(&workshop.path("run"));
        lines.iter().map(|line| number(line, "learning_rate")).collect()
    };
    workshop.trained(&[], &[]);
    let long = rates(&workshop);
    workshop.trained(&["train.max_steps=6"], &["--overwrite"]);
    let short = rates(&workshop);
    workshop.trained(&[], &["--resume"]);
    assert_eq!(rates(&workshop), [&short[..], &long[6..]].concat());
    // Seven epochs of three steps.
    let epochs = ["train.max_steps=-1", "train.num_train_epochs=7"];
    workshop.trained(&epochs, &["--resume"]);
    assert_eq!(rates(&workshop).len(), 21);
}

#[test]
fn a_run_cannot_be_shorter_than_its_finished_steps() {
    let workshop = Workshop::new();
    let settings = ["train.save_steps=2", "train.max_steps=6"];
    workshop.trained(&settings, &[]);
    let manifest = || fs::read(workshop.path("run/manifest.json")).unwrap();
    let before = manifest();
    workshop.train(&["train.max_steps=5"], &["--resume"]).refused(&[
        "train.max_steps",
        "5 steps is shorter",
        "step 6",
    ]);
    assert_eq!(manifest(), before);
    // Without the last checkpoint, 5 steps are more than the finished ones.
    fs::remove_dir_all(workshop.path("run/checkpoints/step-6")).unwrap();
    workshop.trained(&["train.max_steps=5"], &["--resume"]);
    assert_eq!(number(metrics(&workshop.path("run")).last().unwrap(), "step"), 5.0);
}

#[test]
fn nothing_to_resume_gives_a_warning() {
    let workshop = Workshop::new();
    workshop.trained(&["train.max_steps=2"], &[]);
    let typo = workshop.path("rum");
    let output_dir = format!("output_dir={}", typo.display());
    let settings = ["train.max_steps=2", output_dir.as_str()];
    for flags in [&["--resume"][..], &["--resume", "--quiet"]] {
        let ended = workshop.trained(&settings, flags);
        for part in [
            format!("warning: nothing to resume in {} (there is no such folder)", typo.display()),
            "starting from step 0".into(),
            format!("the run in {}", workshop.path("run").display()),
        ] {
            assert!(ended.stderr.contains(&part), "{part}: {}", ended.stderr);
        }
        fs::remove_dir_all(&typo).unwrap();
    }
    let ended = workshop.trained(&["train.max_steps=2"], &["--resume"]);
    assert!(!ended.stderr.contains("nothing to resume"), "{}", ended.stderr);
}

/// Changes files of the base model in place.
#[test]
fn a_changed_base_model_is_refused() {
    let workshop = Workshop::new();
    let settings = ["train.save_steps=4"];
    workshop.trained(&settings, &[]);
    let whole = workshop.result();
    let model = workshop.path("model");
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, &str, Change); 3] = [
        ("model.safetensors", "weights", |bytes| {
            let last = bytes.len() - 1;
            bytes[last] ^= 0x80;
        }),
        ("tokenizer.json", "tokenizer.json", |bytes| {
            let text = String::from_utf8(std::mem::take(bytes)).unwrap();
            let mut json: Value = serde_json::from_str(&text).unwrap();
            json["truncation"] = json!({"direction": "Right", "max_length": 4096,
                "strategy": "LongestFirst", "stride": 0});
            *bytes = json.to_string().into_bytes();
        }),
        ("generation_config.json", "generation_config.json", |bytes| {
            *bytes = b"{\"eos_token_id\": 3}".to_vec();
        }),
    ];
    for (file, named, change) in changes {
        let path = model.join(file);
        let before = fs::read(&path).ok();
        let mut bytes = before.clone().unwrap_or_default();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        fs::remove_dir_all(workshop.path(&format!("run/checkpoints/step-{STEPS}"))).ok();
        workshop.train(&settings, &["--resume"]).refused(&["manifest.json", named, "--overwrite"]);
        match before {
            Some(before) => fs::write(&path, before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    workshop.trained(&settings, &["--resume"]);
    assert_eq!(workshop.result(), whole);
}
