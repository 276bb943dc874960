//! Tests of `arithmo iterate`.

use std::fs;
use std::path::Path;

use arithmo::demo::arithmetic::Split;
use serde_json::Value;

use crate::calls::{arithmo, lines, message, model, printed, write_problems};
use crate::support::{copy, demo_model, json_file};

/// Writes `run.toml`, and `iterate.toml` for `rounds` rounds of twelve problems.
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

/// Checks that the second round continues with the adapter of the first and with other problems, that the same command
/// does nothing again, and that other settings for finished rounds are refused.
#[test]
fn each_round_continues_from_the_one_before() {
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

    // More rounds may be added. Finished ones are not changed.
    write_configs(folder, 2, 1.0);
    let both = printed(folder, &iterate);
    assert!(both.starts_with(&first), "{both}");
    assert_eq!(both.lines().count(), 4, "{both}");
    assert_eq!(adapter(1), weights);
    assert_ne!(adapter(2), weights);
    check_rounds(folder);

    // Sampling settings may change. They apply to new rounds only.
    write_configs(folder, 2, 0.5);
    // A process that is killed at the end of a round leaves partial files.
    let partial = ["round-1/pairs.partial.jsonl", "round-1/evaluation/answers.partial.jsonl"];
    let partial = partial.map(|name| folder.join("rounds").join(name));
    partial.iter().for_each(|file| fs::write(file, "").unwrap());
    assert_eq!(printed(folder, &iterate), both);
    assert_eq!(adapter(1), weights);
    assert!(partial.iter().all(|file| !file.exists()));
    check_pages(folder);

    // Changes that would affect finished rounds are refused. `iterate` has no --overwrite, so no message may name it.
    let other_config = "made with another configuration: ";
    for (file, from, to, problem) in [
        (
            "iterate.toml",
            "rounds = 2",
            "rounds = 2\nseed = 43",
            format!("{other_config}seed was 42, is 43"),
        ),
        (
            "iterate.toml",
            "held-out.jsonl",
            "problems.jsonl",
            format!("{other_config}evaluate.data was held-out.jsonl, is problems.jsonl\n"),
        ),
        (
            "iterate.toml",
            "rounds = 2",
            "rounds = 1",
            "round-2: already exists, but rounds = 1 asks for fewer".to_string(),
        ),
        (
            "run.toml",
            "learning_rate = 1e-3",
            "learning_rate = 2e-3",
            "train.learning_rate: 0.001 -> 0.002".to_string(),
        ),
    ] {
        let file = folder.join(file);
        let config = fs::read_to_string(&file).unwrap();
        fs::write(&file, config.replace(from, to)).unwrap();
        let refused = arithmo(folder, &iterate);
        assert_eq!(refused.status.code(), Some(1));
        let stderr = message(&refused);
        assert!(stderr.contains(&problem), "{stderr}");
        assert!(stderr.contains("another output_dir in iterate.toml"), "{stderr}");
        assert!(!stderr.contains("--overwrite"), "{stderr}");
        fs::write(&file, config).unwrap();
    }
    check_pages(folder);
}

/// Checks that held-out problems are asked with the prompt template of the run, not with the default one.
#[test]
fn held_out_problems_use_the_template_of_the_run() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 12);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 3);
    write_configs(folder, 1, 1.0);
    let run = fs::read_to_string(folder.join("run.toml")).unwrap();
    let run = run.replace("Question: {prompt}\\n\\nAnswer:", "<user>{prompt}</user><model>");
    fs::write(folder.join("run.toml"), run).unwrap();
    // With this template the rounds may find no pair, but the first evaluation comes before them.
    arithmo(folder, &["iterate", "--config", "iterate.toml"]);
    let file = folder.join("rounds/round-0/evaluation/predictions.json");
    let predictions = json_file(&file);
    let predictions = predictions.as_array().unwrap();
    assert_eq!(predictions.len(), 3);
    for prediction in predictions {
        let question = prediction["question"].as_str().unwrap();
        let prompt = format!("<user>{question}</user><model>");
        assert_eq!(prediction["prompt"].as_str().unwrap(), prompt);
    }
}

/// Checks that the page of the rounds links to the pages of each round, and that these exist.
fn check_pages(folder: &Path) {
    let rounds = folder.join("rounds");
    let page = fs::read_to_string(rounds.join("index.html")).unwrap();
    let links: Vec<&str> =
        page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    for link in &links {
        assert!(rounds.join(link).is_file(), "{link}");
    }
    for page in ["round-0/evaluation", "round-1/evaluation", "round-2/run/report"] {
        assert!(links.contains(&format!("{page}/index.html").as_str()), "{page}: {links:?}");
    }
}

/// Checks that a round without pairs is skipped, and sampled again after `[sample]` has changed.
#[test]
fn a_round_without_pairs_is_skipped_and_can_be_repeated() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 24);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 4);
    let iterate = ["iterate", "--config", "iterate.toml"];
    // At this temperature, all samples of a problem are equal, so there is no pair of a right and a wrong one.
    write_configs(folder, 2, 1e-6);
    let none = arithmo(folder, &iterate);
    assert_eq!(none.status.code(), Some(1));
    let stderr = message(&none);
    assert!(stderr.contains("no round gave a pair") && stderr.contains("[sample]"), "{stderr}");
    assert!(!stderr.contains("--"), "the message names a flag of another command: {stderr}");
    let table = String::from_utf8(none.stdout).unwrap();
    assert_eq!(table.matches("skipped").count(), 2, "{table}");
    let samples = folder.join("rounds/round-2/pairs.samples.jsonl");
    assert_eq!(lines(&samples).len(), 12 * 6);
    assert!(!folder.join("rounds/round-1/pairs.jsonl").exists());

    // The same command does not sample again.
    fs::write(&samples, "").unwrap();
    assert_eq!(arithmo(folder, &iterate).status.code(), Some(1));
    assert_eq!(lines(&samples).len(), 0);

    // At a higher temperature, both rounds have pairs, and the second continues from the first.
    write_configs(folder, 2, 1.0);
    let warm = printed(folder, &iterate);
    assert!(!warm.contains("skipped"), "{warm}");
    let manifest = fs::read_to_string(folder.join("rounds/round-2/run/manifest.json")).unwrap();
    assert!(manifest.contains("round-1"), "{manifest}");

    // A third round without pairs is skipped, and the command succeeds.
    write_configs(folder, 3, 1e-6);
    let third = printed(folder, &iterate);
    assert!(third.starts_with(&warm) && third.matches("skipped").count() == 1, "{third}");
    assert!(
        fs::read_to_string(folder.join("rounds/index.html"))
            .unwrap()
            .contains("round-3/pairs.samples.jsonl")
    );
    // The page lists the sampling settings of each round: `temperature`, and `top_p`, which is always 1.0.
    let page = fs::read_to_string(folder.join("rounds/index.html")).unwrap();
    let (_, sampling) = page.split_once("<h2>Sampling</h2>").unwrap();
    let (sampling, configuration) = sampling.split_once("</table>").unwrap();
    assert!(sampling.contains("<th>temperature</th>"), "{sampling}");
    let cells = |value: &str| sampling.matches(&format!("<td>{value}</td>")).count();
    assert_eq!((cells("1.0"), cells("1e-6"), cells("problems.jsonl")), (5, 1, 3), "{sampling}");
    assert!(!configuration.contains("temperature"), "{configuration}");
    write_configs(folder, 3, 1.0);
    assert!(!printed(folder, &iterate).contains("skipped"));
    let manifest = fs::read_to_string(folder.join("rounds/round-3/run/manifest.json")).unwrap();
    assert!(manifest.contains("round-2"), "{manifest}");
}

/// Checks that errors in the configuration name the key of iterate.toml, before anything is printed or written.
#[test]
fn errors_in_the_configuration_leave_no_files() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 12);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 4);
    write_configs(folder, 1, 1.0);
    let config = fs::read_to_string(folder.join("iterate.toml")).unwrap();
    for (key, other, expected) in [
        ("run = \"run.toml\"", "run = \"absent.toml\"", "absent.toml"),
        ("samples = 6", "samples = 1", "iterate.toml: sample.samples: must be at least 2"),
        ("temperature = 1.0", "temperature = 0.0", "iterate.toml: sample.temperature"),
        ("max_new_tokens = 60", "max_new_tokens = 0", "iterate.toml: sample.max_new_tokens"),
        ("temperature = 1.0", "top_p = 2.0", "iterate.toml: sample.top_p"),
        ("data = \"held-out.jsonl\"", "data = \"absent.jsonl\"", "absent.jsonl"),
        ("rounds = 1", "rounds = 0", "iterate.toml: rounds"),
    ] {
        fs::write(folder.join("iterate.toml"), config.replace(key, other)).unwrap();
        let output = arithmo(folder, &["iterate", "--config", "iterate.toml"]);
        let message = message(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(expected) && !message.contains("--"), "{message}");
        assert!(output.stdout.is_empty() && !folder.join("rounds").exists(), "{key}");
    }
    fs::write(folder.join("iterate.toml"), config).unwrap();
    let run = fs::read_to_string(folder.join("run.toml")).unwrap();
    for (addition, expected) in [
        ("push_to_hub = true", "run.toml: train.push_to_hub: would push every round"),
        ("[lora]\nadapter_name = \"x\"", "run.toml: lora.adapter_name"),
    ] {
        let changed = match addition.strip_prefix("[lora]") {
            Some(key) => run.replace("[lora]", &format!("[lora]{key}")),
            None => format!("{run}{addition}\n"),
        };
        fs::write(folder.join("run.toml"), changed).unwrap();
        let output = arithmo(folder, &["iterate", "--config", "iterate.toml"]);
        let message = message(&output);
        assert!(output.status.code() == Some(1) && message.contains(expected), "{message}");
        assert!(!folder.join("rounds").exists(), "{addition}");
    }
}

/// The first round starts with a part of the base, and the second one continues the converted form, whose ranks, also those
/// of single projections, are twice as large.
#[test]
fn rounds_after_a_residual_start_have_twice_the_ranks() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 24);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 4);
    write_configs(folder, 2, 1.0);
    let run = fs::read_to_string(folder.join("run.toml")).unwrap();
    let lora = "[lora]\ninit_lora_weights = \"pissa\"\nrank_pattern = { v_proj = 2 }";
    fs::write(folder.join("run.toml"), run.replace("[lora]", lora)).unwrap();
    let output = arithmo(folder, &["iterate", "--config", "iterate.toml"]);
    let message = message(&output);
    assert!(output.status.success(), "{message}");
    assert!(
        message.contains("round 2 continues the adapter with rank 8, twice lora.r"),
        "{message}"
    );
    for round in ["round-1", "round-2"] {
        let config =
            json_file(&folder.join(format!("rounds/{round}/run/adapter/adapter_config.json")));
        assert_eq!((&config["r"], &config["rank_pattern"]["v_proj"]), (&8.into(), &4.into()));
    }
}

/// Checks that inputs are refused if the rounds would overwrite them.
#[test]
fn inputs_among_the_rounds_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 12);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 4);
    write_configs(folder, 1, 1.0);
    let config = fs::read_to_string(folder.join("iterate.toml")).unwrap();
    fs::create_dir_all(folder.join("rounds/round-1")).unwrap();
    for (file, to, key) in [
        ("iterate.toml", "rounds/base-model.json", "--config"),
        ("iterate.toml", "rounds/iterate.toml", "--config"),
        ("run.toml", "rounds/round-1/run.toml", "run"),
        ("problems.jsonl", "rounds/round-1/pairs.jsonl", "sample.data"),
        ("held-out.jsonl", "rounds/index.html", "evaluate.data"),
    ] {
        fs::rename(folder.join(file), folder.join(to)).unwrap();
        let (path, text) = match key {
            "--config" => (to, config.clone()),
            _ => ("iterate.toml", config.replace(&format!("{file:?}"), &format!("{to:?}"))),
        };
        fs::write(folder.join(path), &text).unwrap();
        let before = fs::read(folder.join(to)).unwrap();
        let refused = arithmo(folder, &["iterate", "--config", path]);
        assert_eq!(refused.status.code(), Some(1));
        let stderr = message(&refused);
        assert!(stderr.contains(&format!("{key}: {to} lies in rounds/")), "{stderr}");
        assert!(fs::read(folder.join(to)).unwrap() == before);
        fs::rename(folder.join(to), folder.join(file)).unwrap();
        fs::write(folder.join("iterate.toml"), &config).unwrap();
    }
}

/// Checks that the base model must not change between rounds.
#[test]
fn another_base_model_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 12);
    write_problems(&folder.join("held-out.jsonl"), Split::HeldOut, 4);
    write_configs(folder, 1, 1.0);
    let base = folder.join("base");
    copy(&demo_model(), &base);
    let run = fs::read_to_string(folder.join("run.toml")).unwrap();
    let run = run.replace(&model(), base.to_str().unwrap());
    fs::write(folder.join("run.toml"), run).unwrap();
    let iterate = ["iterate", "--config", "iterate.toml"];
    let table = printed(folder, &iterate);
    assert_eq!(printed(folder, &iterate), table);

    let weights = base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(&weights, bytes).unwrap();
    for rounds in [1, 2] {
        write_rounds(folder, rounds);
        let refused = arithmo(folder, &iterate);
        assert_eq!(refused.status.code(), Some(1));
        let stderr = message(&refused);
        assert!(stderr.contains("base model changed") && stderr.contains("weights"), "{stderr}");
    }
}

/// Sets the number of rounds in `iterate.toml`.
fn write_rounds(folder: &Path, rounds: usize) {
    let config = fs::read_to_string(folder.join("iterate.toml")).unwrap();
    let config = config.lines().map(|line| {
        if line.starts_with("rounds = ") {
            format!("rounds = {rounds}\n")
        } else {
            format!("{line}\n")
        }
    });
    fs::write(folder.join("iterate.toml"), config.collect::<String>()).unwrap();
}

/// Checks two finished rounds: they have different problems, and the second starts with the adapter of the first.
fn check_rounds(folder: &Path) {
    let path = |round: usize, name: &str| folder.join(format!("rounds/round-{round}/{name}"));
    let prompts = |round| -> Vec<String> {
        let pairs = lines(&path(round, "pairs.jsonl"));
        let prompt = |pair: &Value| pair["prompt"].as_str().unwrap().to_string();
        pairs.iter().map(prompt).collect()
    };
    let (one, two) = (prompts(1), prompts(2));
    assert!(!one.is_empty() && !two.is_empty());
    assert!(one.iter().all(|prompt| !two.contains(prompt)));
    let manifest = fs::read_to_string(path(2, "run/manifest.json")).unwrap();
    assert!(manifest.contains("round-1"), "{manifest}");
    // The reference is the adapter that a round starts with, so its first loss is ln 2.
    for round in [1, 2] {
        let metrics = lines(&path(round, "run/metrics.jsonl"));
        let loss = metrics[0]["loss"].as_f64().unwrap();
        assert!((loss - 2f64.ln()).abs() < 1e-5, "round {round}: {loss}");
    }
    for round in 0..=2 {
        let verdicts = lines(&path(round, "evaluation/verdicts.jsonl"));
        assert_eq!(verdicts.len(), 10, "round {round}");
    }
}
