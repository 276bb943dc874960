//! Tests of when a run logs, evaluates and saves: `logging_strategy`, `eval_strategy` and `save_strategy`.

use serde_json::Value;

use super::{Workshop, metrics};
use crate::support::file_names;

/// The steps after which a run logged, evaluated and saved.
#[derive(Debug, PartialEq)]
struct Events {
    logged: Vec<u64>,
    evaluated: Vec<u64>,
    saved: Vec<u64>,
}

/// Trains 14 steps, in epochs of 3 steps, and returns the run's events.
fn events(settings: &[&str]) -> Events {
    let workshop = Workshop::new();
    let eval = format!("data.eval_file={}", workshop.path("held-out.jsonl").display());
    let mut all = vec![eval.as_str(), "train.save_total_limit=0"];
    all.extend(settings);
    workshop.trained(&all, &[]);
    let run = workshop.path("run");
    let lines = metrics(&run);
    let steps_with = |key: &str| {
        let lines = lines.iter().filter(|line| line.contains_key(key));
        lines.map(|line| line.get("step").and_then(Value::as_u64).unwrap()).collect::<Vec<_>>()
    };
    let checkpoints = run.join("checkpoints");
    let names = if checkpoints.exists() { file_names(&checkpoints) } else { Vec::new() };
    let numbers = names.iter().filter_map(|name| name.strip_prefix("step-"));
    let mut saved: Vec<u64> = numbers.map(|number| number.parse().unwrap()).collect();
    saved.sort_unstable();
    Events { logged: steps_with("loss"), evaluated: steps_with("eval_loss"), saved }
}

#[test]
fn epoch_acts_after_every_epoch_and_after_the_last_step() {
    let epochs = vec![3, 6, 9, 12, 14];
    let all = ["logging", "eval", "save"].map(|name| format!("train.{name}_strategy=epoch"));
    let settings: Vec<&str> = all.iter().map(String::as_str).collect();
    let expected =
        Events { logged: epochs.clone(), evaluated: epochs.clone(), saved: epochs.clone() };
    assert_eq!(events(&settings), expected);
}

#[test]
fn steps_acts_at_multiples_and_after_the_last_step() {
    let settings = ["train.logging_steps=5", "train.eval_steps=4", "train.save_steps=7"];
    let expected =
        Events { logged: vec![5, 10, 14], evaluated: vec![4, 8, 12, 14], saved: vec![7, 14] };
    assert_eq!(events(&settings), expected);
}

/// A run that logs nothing else still tells its last loss.
#[test]
fn no_evaluates_and_saves_nothing_and_logs_the_last_step() {
    let all = ["logging", "eval", "save"].map(|name| format!("train.{name}_strategy=no"));
    let settings: Vec<&str> = all.iter().map(String::as_str).collect();
    let expected = Events { logged: vec![14], evaluated: Vec::new(), saved: Vec::new() };
    assert_eq!(events(&settings), expected);
}
