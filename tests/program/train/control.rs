//! Compares the control of a run with golden runs of transformers' `Trainer`: the best step, early stopping, which
//! checkpoints stay, when evaluations begin, and `reduce_lr_on_plateau`.

use std::fs;
use std::path::Path;

use arithmo::model::save::{NamedTensors, load_safetensors_f32};
use serde_json::{Map, Value, json};

use super::golden::{Golden, Tolerances};
use super::{Workshop, json_lines, metrics, number};
use crate::support::file_names;

/// The tolerances of reference/README-2.md for runs of `control`.
const STRICT: Tolerances =
    Tolerances { loss: 5e-5, grad_norm: 3e-4, rewards: 5e-4, logps: Some(2e-3) };

/// Those for runs with a learning rate so high that rounding grows from step to step.
const LOOSE: Tolerances = Tolerances { loss: 1e-2, grad_norm: 0.3, rewards: 0.3, logps: None };

/// Those for runs of `reduce_lr_on_plateau`.
const PLATEAU: Tolerances = Tolerances { loss: 1e-3, grad_norm: 3e-3, rewards: 5e-3, logps: None };

/// Returns the steps of the checkpoints in the folder of a run, in ascending order.
fn saved_steps(run: &Path) -> Vec<u64> {
    let folder = run.join("checkpoints");
    let names = if folder.exists() { file_names(&folder) } else { Vec::new() };
    let steps = names.iter().map(|name| name.strip_prefix("step-").unwrap().parse().unwrap());
    let mut steps: Vec<u64> = steps.collect();
    steps.sort_unstable();
    steps
}

fn state(run: &Path, step: u64) -> Value {
    let path = run.join(format!("checkpoints/step-{step}/state.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Replays the golden run `GROUP/NAME` and compares its metrics, checkpoints, best step and adapter.
fn replay(group: &str, name: &str, tolerances: Tolerances, adapter: f32) {
    let Some(golden) = Golden::open(&format!("{group}/{name}")) else {
        return;
    };
    golden.check_metrics(tolerances);
    golden.check_adapter(adapter);
    golden.print_worst();
    let Some(control) = golden.config.get("control") else {
        return;
    };
    let run = golden.path("run");
    let number = |name: &Value| name.as_str().unwrap().strip_prefix("checkpoint-").unwrap().parse();
    let mut left: Vec<u64> = control["checkpoints_left"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| number(n).unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(saved_steps(Path::new(&run)), left, "{name}");
    let last = metrics(Path::new(&run)).last().unwrap()["step"].as_u64();
    assert_eq!(last, control["stopped_at_step"].as_u64(), "{name}");
    // The state that is saved in the newest checkpoint.
    let newest = *left.last().unwrap();
    let theirs = &control["trainer_state_of_last_checkpoint"];
    let ours = &state(Path::new(&run), newest)["selected"];
    assert_eq!(ours["best"]["step"].as_u64(), theirs["best_global_step"].as_u64(), "{name}");
    if let Some(best) = theirs["best_metric"].as_f64() {
        let off = (ours["best"]["metric"].as_f64().unwrap() - best).abs();
        assert!(off <= tolerances.rewards, "{name}: the best metric is off by {off}");
    }
    let stopping = &theirs["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"];
    if let Some(counter) = stopping["early_stopping_patience_counter"].as_u64() {
        assert_eq!(ours["without_improvement"].as_u64(), Some(counter), "{name}");
    }
    let saved = format!("checkpoint-{newest}.adapter_model.safetensors");
    let file = format!("checkpoints/step-{newest}/adapter_model.safetensors");
    golden.check_tensors(&file, &saved, adapter);
}

/// Stops after step 12 of 36, and the result is step 6.
#[test]
fn early_stopping() {
    replay("control", "early_stopping", STRICT, 2e-4);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn early_stopping_by_other_metrics() {
    replay("control", "early_stopping_threshold", STRICT, 2e-4);
    replay("control", "early_stopping_margins", LOOSE, 5e-3);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_best_step() {
    for name in ["best_margins_smaller", "epoch_strategy"] {
        replay("control", name, STRICT, 2e-4);
    }
    // Three runs with the same steps, up to 14, 20 and 30; `early_stopping` compares the first 12 strictly.
    for name in ["best_default_metric", "best_eval_loss", "best_margins"] {
        replay("control", name, LOOSE, 5e-3);
    }
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_newest_checkpoints_are_kept() {
    replay("control", "save_total_limit_only", STRICT, 2e-4);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn evaluations_begin_at_the_start_or_later() {
    replay("control", "eval_on_start_delay", STRICT, 2e-4);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn the_reference_of_held_out_pairs_is_precomputed() {
    replay("control", "precompute_eval", STRICT, 2e-4);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn all_weights() {
    let Some(golden) = Golden::open("control/full_finetune") else {
        return;
    };
    golden.check_metrics(STRICT);
    let ours =
        load_safetensors_f32(Path::new(&golden.path("run/model/model.safetensors"))).unwrap();
    let theirs = golden.folder.join("final_weights_part.safetensors");
    let mut compared = 0;
    for (name, (_, theirs)) in load_safetensors_f32(&theirs).unwrap() {
        // The first rows of a matrix are named as in `policy.model.embed_tokens.weight[:64]`.
        let Some(name) = name.strip_prefix("policy.") else { continue };
        let ours = &ours[name.split('[').next().unwrap()].1;
        let off = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = ours.iter().zip(&theirs).map(off).fold(0f32, f32::max);
        assert!(worst <= 2e-4, "{name}: off by {worst}");
        compared += 1;
    }
    assert_eq!(compared, 5);
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn a_plateau_lowers_the_learning_rate() {
    replay("optim", "sched_reduce_on_plateau", PLATEAU, 2e-3);
}

/// Replays the golden run `NAME` with `save_strategy = "best"`: the checkpoints are those of the evaluations that transformers
/// would save, which are better than all before.
fn check_saved_best(name: &str) {
    let Some(golden) = Golden::open(&format!("control/{name}")) else {
        return;
    };
    let given = &golden.config["dpo"];
    let text = |key: &str| given[key].as_str();
    let metric = text("metric_for_best_model").unwrap_or("eval_loss").to_string();
    let metric = if metric.starts_with("eval_") { metric } else { format!("eval_{metric}") };
    let greater = given["greater_is_better"].as_bool().unwrap_or(!metric.ends_with("loss"));
    let (mut best, mut expected) = (f64::NEG_INFINITY, Vec::new());
    for line in json_lines(&golden.folder.join("eval.jsonl")) {
        let value = if greater { number(&line, &metric) } else { -number(&line, &metric) };
        if value > best {
            best = value;
            expected.push(number(&line, "step") as u64);
        }
    }
    let metric = format!("train.metric_for_best_model={metric}");
    let settings =
        ["train.save_strategy=best", "train.save_steps=0", "train.save_total_limit=0", &metric];
    golden.train(&settings);
    let saved = saved_steps(Path::new(&golden.path("run")));
    assert_eq!(saved, expected, "{name}");
}

#[test]
fn only_better_evaluations_are_saved() {
    check_saved_best("early_stopping");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn only_better_evaluations_are_saved_by_other_metrics() {
    for name in ["early_stopping_margins", "best_margins", "best_eval_loss", "epoch_strategy"] {
        check_saved_best(name);
    }
}

/// Settings of a run that stops after step 8 of 14, because no evaluation after the first improves by more than a huge
/// threshold. The largest loss is the best one, so that the best step is not the last.
const STOPS: [&str; 7] = [
    "train.eval_steps=2",
    "train.save_steps=2",
    "train.save_total_limit=0",
    "train.load_best_model_at_end=true",
    "train.greater_is_better=true",
    "train.early_stopping_patience=3",
    "train.early_stopping_threshold=10",
];

fn held_out(workshop: &Workshop) -> String {
    format!("data.eval_file={}", workshop.path("held-out.jsonl").display())
}

/// Reads the weights of an adapter, whose file may have other metadata in a checkpoint.
fn weights(workshop: &Workshop, folder: &str) -> NamedTensors {
    let path = workshop.path("run").join(folder).join("adapter_model.safetensors");
    load_safetensors_f32(&path).unwrap()
}

/// What a run leaves, which must not depend on interruptions.
#[derive(Debug, PartialEq)]
struct Ending {
    adapter: Vec<u8>,
    log: Vec<Map<String, Value>>,
    checkpoints: Vec<u64>,
    /// What the evaluations have shown, in the last checkpoint.
    decided: Value,
}

fn ending(workshop: &Workshop) -> Ending {
    let run = workshop.path("run");
    let checkpoints = saved_steps(&run);
    let state = state(&run, *checkpoints.last().unwrap());
    Ending {
        adapter: fs::read(run.join("adapter/adapter_model.safetensors")).unwrap(),
        log: metrics(&run),
        checkpoints,
        decided: json!([state["selected"], state["plateau"]]),
    }
}

/// Checks that a run that is resumed from each of its checkpoints ends like the whole run.
fn check_resumed(settings: &[&str], expected: &[u64]) {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], settings].concat();
    workshop.trained(&settings, &[]);
    let whole = ending(&workshop);
    assert_eq!(whole.checkpoints, expected);
    for from in expected {
        for step in expected.iter().filter(|step| *step > from) {
            let checkpoint = workshop.path(&format!("run/checkpoints/step-{step}"));
            fs::remove_dir_all(checkpoint).unwrap();
        }
        workshop.trained(&settings, &["--resume"]);
        assert_eq!(ending(&workshop), whole, "from step {from}");
    }
}

#[test]
fn a_resumed_run_stops_at_the_same_step_with_the_same_best_one() {
    check_resumed(&STOPS, &[2, 4, 6, 8]);
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], &STOPS[..]].concat();
    let ended = workshop.trained(&settings, &[]);
    for part in ["stopped early after step 8 of 14", "that of step 2: eval_loss", "is the result"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert_eq!(weights(&workshop, "adapter"), weights(&workshop, "checkpoints/step-2"));
    assert_ne!(weights(&workshop, "adapter"), weights(&workshop, "checkpoints/step-8"));
}

/// The rate is halved after every evaluation but the first, because the loss never rises by so much.
#[test]
fn a_resumed_run_has_the_same_learning_rates_on_a_plateau() {
    let settings = [
        "train.lr_scheduler_type=reduce_lr_on_plateau",
        "train.lr_scheduler_kwargs.mode=max",
        "train.lr_scheduler_kwargs.threshold=10",
        "train.lr_scheduler_kwargs.factor=0.5",
        "train.lr_scheduler_kwargs.patience=0",
        "train.greater_is_better=true",
        "train.eval_steps=3",
        "train.save_steps=2",
        "train.save_total_limit=0",
    ];
    check_resumed(&settings, &[2, 4, 6, 8, 10, 12, 14]);
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], &settings[..]].concat();
    workshop.trained(&settings, &[]);
    let lines = metrics(&workshop.path("run"));
    let rates: Vec<f64> =
        lines.iter().filter_map(|line| line.get("learning_rate")?.as_f64()).collect();
    let halvings = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3];
    assert_eq!(rates, halvings.map(|times| 5e-3 * 0.5f64.powi(times)));
}

/// Nothing is saved after the last step or an early stop, unless it is the best.
#[test]
fn a_run_that_saves_the_best_steps_resumes_from_them() {
    let settings = [
        "train.eval_steps=2",
        "train.save_strategy=best",
        "train.metric_for_best_model=loss",
        "train.save_total_limit=0",
    ];
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    workshop.trained(&[&[eval.as_str()], &settings[..]].concat(), &[]);
    let run = workshop.path("run");
    let (mut best, mut expected) = (f64::INFINITY, Vec::new());
    for line in metrics(&run).iter().filter(|line| line.contains_key("eval_loss")) {
        if number(line, "eval_loss") < best {
            best = number(line, "eval_loss");
            expected.push(number(line, "step") as u64);
        }
    }
    assert!(expected.len() > 1, "{expected:?}");
    check_resumed(&settings, &expected);
    for (missing, part) in [
        ("train.metric_for_best_model=loss", "train.metric_for_best_model"),
        ("train.eval_steps=2", "during training"),
    ] {
        let settings: Vec<&str> = settings.into_iter().filter(|key| *key != missing).collect();
        workshop.train(&[&[eval.as_str()], &settings[..]].concat(), &[]).refused(&[part]);
    }
}

/// A best step is saved even if no checkpoint is due.
#[test]
fn a_best_step_between_checkpoints_is_saved() {
    let workshop = Workshop::new();
    let settings = [
        &held_out(&workshop),
        "train.eval_steps=2",
        "train.save_steps=6",
        "train.save_total_limit=0",
        "train.load_best_model_at_end=true",
        "train.greater_is_better=true",
    ];
    workshop.trained(&settings, &[]);
    assert_eq!(saved_steps(&workshop.path("run")), [2, 6, 12, 14]);
}

/// A checkpoint of the best step that was damaged is an error that says how to take the last step instead.
#[test]
fn a_damaged_best_checkpoint_is_named() {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], &STOPS[..]].concat();
    workshop.trained(&settings, &[]);
    let damaged = workshop.path("run/checkpoints/step-2/adapter_model.safetensors");
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    let expected = ["step-2", "cannot be restored", "--set train.load_best_model_at_end=false"];
    workshop.train(&settings, &["--resume"]).refused(&expected);
    let last = ["train.load_best_model_at_end=false", "train.metric_for_best_model=loss"];
    workshop.trained(&[&settings[..], &last].concat(), &["--resume"]);
    assert_eq!(weights(&workshop, "adapter"), weights(&workshop, "checkpoints/step-8"));
}

/// The steps of evaluations may change on resumption only while they decide nothing.
#[test]
fn evaluations_that_decide_may_not_change() {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], &STOPS[..]].concat();
    workshop.trained(&settings, &[]);
    for changed in
        ["train.eval_steps=1", "train.per_device_eval_batch_size=3", "train.eval_delay=1"]
    {
        let key = changed.split('=').next().unwrap();
        workshop.train(&[&settings[..], &[changed]].concat(), &["--resume"]).refused(&[key]);
    }
}

#[test]
fn an_unknown_metric_is_refused() {
    let workshop = Workshop::new();
    let eval = held_out(&workshop);
    let settings = [&[eval.as_str()], &STOPS[..]].concat();
    let metric = ["train.metric_for_best_model=eval_rewards/margin"];
    let expected = ["train.metric_for_best_model", "did you mean \"rewards/margins\"?"];
    workshop.train(&[&settings[..], &metric].concat(), &[]).refused(&expected);
    assert!(!workshop.path("run").exists());
}
