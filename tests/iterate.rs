//! `arithmo sample-pairs` and `arithmo iterate`: pairs from the model's own answers, and rounds of learning from them.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use arithmo::data::arithmetic::{Split, problems};
use serde_json::Value;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arithmo"));
    command.current_dir(folder).args(arguments);
    command.args(["--backend", "ndarray"]);
    command
}

fn arithmo(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = arithmo(folder, arguments);
    assert!(output.status.success(), "{}", message(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn write_problems(path: &Path, split: Split, count: usize) {
    let lines = problems(split, 3, count);
    let lines = lines.iter().map(|problem| format!("{}\n", problem.known()));
    fs::write(path, lines.collect::<String>()).unwrap();
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The model built into the program.
fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model");
    path.display().to_string()
}

/// A sampling that is stopped goes on where it was, and every answer draws the numbers it would have drawn.
#[test]
#[cfg(unix)]
fn an_interrupted_sampling_ends_as_an_uninterrupted_one() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 40);
    let model = model();
    let args = |output: &'static str, seed: &'static str| {
        let sampling = ["--samples", "4", "--max-new-tokens", "60", "--batch-size", "5"];
        let files = ["--data", "problems.jsonl", "--output", output, "--seed", seed];
        let start = ["sample-pairs", "--model", model.as_str()];
        [&start[..], &files[..], &sampling[..]].concat()
    };
    printed(folder, &args("whole.jsonl", "8"));

    let partial = folder.join("stopped.partial.jsonl");
    let mut child =
        command(folder, &args("stopped.jsonl", "8")).stderr(Stdio::piped()).spawn().unwrap();
    let kept = || fs::read_to_string(&partial).map_or(0, |text| text.lines().count());
    while kept() < 20 && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    Command::new("kill").args(["-INT", &id]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", message(&output));
    assert!(message(&output).contains("of 160 answers are kept; the same command goes on"));
    assert!((20..161).contains(&kept()) && !folder.join("stopped.jsonl").exists());

    let other = arithmo(folder, &args("stopped.jsonl", "9"));
    assert_eq!(other.status.code(), Some(1));
    assert!(message(&other).contains("sampling was"), "{}", message(&other));

    printed(folder, &args("stopped.jsonl", "8"));
    assert!(!partial.exists());
    for suffix in ["jsonl", "stats.json"] {
        let [whole, stopped] = ["whole", "stopped"]
            .map(|stem| fs::read_to_string(folder.join(format!("{stem}.{suffix}"))).unwrap());
        assert_eq!(whole, stopped, "{suffix}");
    }
    let pairs = lines(&folder.join("whole.jsonl"));
    assert!(pairs.len() > 5, "{} pairs", pairs.len());
    assert!(pairs.iter().all(|pair| pair["chosen"] != pair["rejected"]));
}

/// Writes `run.toml`, and `iterate.toml` for so many rounds of twelve problems each.
fn write_configs(folder: &Path, rounds: usize, temperature: f64) {
    let run = format!(
        r#"
output_dir = "unused"
[model]
model_name_or_path = "{}"
[data]
train_file = "unused.jsonl"
prompt_template = "Question: {{prompt}}\n\nAnswer:"
max_length = 256
[lora]
r = 4
lora_alpha = 8
[train]
per_device_train_batch_size = 4
gradient_accumulation_steps = 1
learning_rate = 1e-3
warmup_steps = 0
max_steps = 2
"#,
        model()
    );
    let iterate = format!(
        r#"
output_dir = "rounds"
rounds = {rounds}
run = "run.toml"
[sample]
data = "problems.jsonl"
problems = 12
samples = 6
temperature = {temperature:?}
max_new_tokens = 60
[evaluate]
data = "held-out.jsonl"
"#
    );
    fs::write(folder.join("run.toml"), run).unwrap();
    fs::write(folder.join("iterate.toml"), iterate).unwrap();
}

/// The second round goes on with the adapter of the first and with other problems; the same command again does nothing
/// anew, and what was begun with other settings is not mixed with it.
#[test]
fn rounds_go_on_from_each_other() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 24);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 10);
    let iterate = ["iterate", "--config", "iterate.toml"];
    write_configs(folder, 1, 1.0);
    let first = printed(folder, &iterate);
    assert_eq!(first.lines().count(), 3, "{first}");
    let adapter = |round: usize| {
        let name = format!("rounds/round-{round}/run/adapter/adapter_model.safetensors");
        fs::read(folder.join(name)).unwrap()
    };
    let weights = adapter(1);

    // More rounds may be asked for; those that are done stay as they are.
    write_configs(folder, 2, 1.0);
    let both = printed(folder, &iterate);
    assert!(both.starts_with(&first), "{both}");
    assert_eq!(both.lines().count(), 4, "{both}");
    assert_eq!(adapter(1), weights);
    // Begun with the first round's adapter, the second ends elsewhere.
    assert_ne!(adapter(2), weights);
    check_rounds(folder);

    write_configs(folder, 2, 0.5);
    let refused = arithmo(folder, &iterate);
    assert_eq!(refused.status.code(), Some(1));
    assert!(message(&refused).contains("made by another configuration"));
}

fn check_rounds(folder: &Path) {
    let of = |round: usize, name: &str| folder.join(format!("rounds/round-{round}/{name}"));
    let prompts = |round| -> Vec<String> {
        let pairs = lines(&of(round, "pairs.jsonl"));
        let prompt = |pair: &Value| pair["prompt"].as_str().unwrap().to_string();
        pairs.iter().map(prompt).collect()
    };
    let (one, two) = (prompts(1), prompts(2));
    assert!(!one.is_empty() && !two.is_empty());
    assert!(one.iter().all(|prompt| !two.contains(prompt)));
    let manifest = fs::read_to_string(of(2, "run/manifest.json")).unwrap();
    assert!(manifest.contains("round-1"), "{manifest}");
    // The reference is the adapter a round begins with, so its first step begins at ln 2.
    for round in [1, 2] {
        let metrics = lines(&of(round, "run/metrics.jsonl"));
        let loss = metrics[0]["loss"].as_f64().unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-5, "round {round}: {loss}");
    }
    for round in 0..=2 {
        let verdicts = lines(&of(round, "evaluation/verdicts.jsonl"));
        assert_eq!(verdicts.len(), 10, "round {round}");
    }
}
