//! Tests of complete runs: their files, the meaning of their metrics, and comparisons with `score`.

use std::fs;

use serde_json::{Map, Value, json};

use super::{ProcessOutput, STEPS, Workshop, json_lines, metrics, number, program, tiny};

const KEYS: [&str; 19] = [
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "entropy",
    "num_tokens",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds",
];

#[test]
fn a_run_writes_its_results_to_files_its_adapter_to_stdout_and_its_messages_to_stderr() {
    let workshop = Workshop::new();
    let ended = workshop.trained(&["train.save_steps=4", "train.save_total_limit=2"], &[]);
    let run = workshop.path("run");
    assert_eq!(ended.stdout, format!("{}\n", run.join("adapter").display()));
    assert!(ended.stderr.contains("train: "), "{}", ended.stderr);
    for file in
        ["manifest.json", "metrics.jsonl", "adapter/adapter_config.json", "adapter/tokenizer.json"]
    {
        assert!(run.join(file).is_file(), "{file}");
    }
    for (step, kept) in [(4, false), (8, false), (12, true), (STEPS, true)] {
        assert_eq!(run.join(format!("checkpoints/step-{step}")).exists(), kept, "step-{step}");
    }
    let lines = json_lines(&run.join("metrics.jsonl"));
    assert_eq!(lines.len(), STEPS);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.keys().collect::<Vec<_>>(), KEYS);
        assert_eq!(line["step"], json!(index + 1));
    }
    // Before the first update, policy and reference are equal.
    assert_eq!(number(&lines[0], "loss") as f32, std::f32::consts::LN_2);
    assert_eq!(number(&lines[0], "rewards/margins"), 0.0);
    // Warmup starts at 0, so the second step still uses the initial weights. An epoch has 7 batches, a step has 3.
    assert_eq!(number(&lines[0], "learning_rate"), 0.0);
    assert_eq!(number(&lines[1], "learning_rate"), 2.5e-3);
    assert_eq!(number(&lines[1], "epoch"), 6.0 / 7.0);
    assert_eq!(number(&lines[2], "epoch"), 1.0);
    assert!(number(&lines[STEPS - 1], "loss") < 0.5);

    let quiet = workshop.trained(&[], &["--quiet", "--overwrite"]);
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.stdout, ended.stdout);
}

/// Compares log lines of three steps with the means of lines of one step. The last line has only two steps.
#[test]
fn logging_steps_averages_and_changes_no_weight() {
    let workshop = Workshop::new();
    workshop.trained(&[], &[]);
    let each = workshop.result();
    workshop.trained(&["train.logging_steps=3"], &["--overwrite"]);
    let third = workshop.result();
    assert_eq!(third.adapter, each.adapter);
    let steps: Vec<f64> = third.metrics.iter().map(|line| number(line, "step")).collect();
    assert_eq!(steps, [3.0, 6.0, 9.0, 12.0, 14.0]);
    // Steps have 3, 3, 1, 3, 3, 1, ... micro-batches. The loss is a mean over steps, other metrics over micro-batches.
    let micro = |step: usize| if step.is_multiple_of(3) { 1.0 } else { 3.0 };
    for (line, (first, last)) in
        third.metrics.iter().zip([(1, 3), (4, 6), (7, 9), (10, 12), (13, 14)])
    {
        let range = &each.metrics[first - 1..last];
        let loss = range.iter().map(|line| number(line, "loss")).sum::<f64>() / range.len() as f64;
        assert!((number(line, "loss") - loss).abs() < 1e-12);
        for key in ["rewards/margins", "logps/chosen", "entropy"] {
            let weight: f64 = (first..=last).map(micro).sum();
            let sum: f64 =
                (first..=last).zip(range).map(|(step, line)| micro(step) * number(line, key)).sum();
            assert!((number(line, key) - sum / weight).abs() < 1e-9, "{key}");
        }
        for key in ["num_tokens", "learning_rate", "grad_norm", "epoch"] {
            assert_eq!(line[key], range[range.len() - 1][key]);
        }
    }
}

#[test]
fn seed_shuffle_and_dropout_decide_the_run_and_nothing_else_does() {
    let workshop = Workshop::new();
    let adapter = |settings: &[&str]| {
        workshop.trained(settings, &["--overwrite"]);
        workshop.result().adapter
    };
    let first = adapter(&[]);
    assert_eq!(first, adapter(&[]));
    assert_eq!(first, adapter(&["train.gradient_checkpointing=true"]));
    assert_eq!(first, adapter(&["lora.lora_dropout=0.5"]), "disable_dropout is the default");
    assert_ne!(first, adapter(&["lora.lora_dropout=0.5", "train.disable_dropout=false"]));
    assert_ne!(first, adapter(&["seed=43"]));
    assert_ne!(first, adapter(&["data.shuffle=false"]));
    let eval = format!("data.eval_file={}", tiny::fixture("tiny/held-out.jsonl").display());
    assert_eq!(first, adapter(&[&eval, "train.eval_steps=3"]), "evaluation changes no weight");
}

/// Checks that a precomputed reference gives the same metrics up to rounding, for several batch sizes.
#[test]
fn a_precomputed_reference_gives_the_same_metrics() {
    let workshop = Workshop::new();
    workshop.trained(&[], &[]);
    let each = metrics(&workshop.path("run"));
    for size in ["2", "5", "14"] {
        let size = format!("dpo.precompute_ref_batch_size={size}");
        workshop.trained(&["dpo.precompute_ref_log_probs=true", &size], &["--overwrite"]);
        for (ours, theirs) in metrics(&workshop.path("run")).iter().zip(&each) {
            for key in ["loss", "rewards/chosen", "rewards/margins", "logps/rejected"] {
                let difference = (number(ours, key) - number(theirs, key)).abs();
                assert!(difference < 2e-4, "{size} {key}: {difference}");
            }
        }
    }
}

/// Checks that training continues from an adapter, which is also the reference by default. With active dropout, policy
/// and reference differ at the first step, which is no error.
#[test]
fn an_adapter_is_continued_with_itself_as_the_reference() {
    let workshop = Workshop::new();
    workshop.trained(&[], &[]);
    let start = workshop.path("start");
    fs::rename(workshop.path("run/adapter"), &start).unwrap();
    let adapter = format!("lora.adapter={}", start.display());
    workshop.trained(&[&adapter], &["--overwrite"]);
    let lines = metrics(&workshop.path("run"));
    assert_eq!(number(&lines[0], "loss") as f32, std::f32::consts::LN_2);
    workshop.trained(&[&adapter, "dpo.reference=base"], &["--overwrite"]);
    let lines = metrics(&workshop.path("run"));
    assert!(number(&lines[0], "rewards/margins") > 0.0, "the adapter is not the trained one");

    // Settings that contradict the adapter's are errors.
    let other_rank = workshop.train(&[&adapter, "lora.r=5"], &["--overwrite"]);
    other_rank.refused(&["lora.r", "lora.adapter"]);
    let other_targets = ["lora.target_modules=[\"down_proj\"]"];
    let other_targets = workshop.train(&[&adapter, other_targets[0]], &["--overwrite"]);
    other_targets.refused(&["lora.target_modules"]);

    let config = start.join("adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut json: Map<String, Value> = serde_json::from_str(&text).unwrap();
    json.insert("lora_dropout".into(), json!(0.3));
    fs::write(&config, Value::Object(json).to_string()).unwrap();
    let first = |settings: &[&str]| {
        workshop.trained(settings, &["--overwrite"]);
        number(&metrics(&workshop.path("run"))[0], "loss")
    };
    assert_eq!(first(&[&adapter]) as f32, std::f32::consts::LN_2);
    let active = first(&[&adapter, "train.disable_dropout=false"]);
    assert!((active - std::f64::consts::LN_2).abs() > 1e-6, "the adapter's dropout has no effect");
}

fn score(
    workshop: &Workshop,
    data: &str,
    output: &str,
    further: &[&str],
) -> Vec<Map<String, Value>> {
    let path = |name: &str| workshop.path(name).display().to_string();
    let (model, data, file) = (path("model"), path(data), path(output));
    let fixed = ["score", "--model", &model, "--data", &data, "--output", &file];
    let ended = ProcessOutput::new(program().args(fixed).args(further).output().unwrap());
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    json_lines(&workshop.path(output))
}

#[test]
fn scores_agree_with_the_held_out_metrics_of_training() {
    let workshop = Workshop::new();
    let eval = format!("data.eval_file={}", workshop.path("held-out.jsonl").display());
    workshop.trained(&[&eval], &[]);
    let adapter = workshop.path("run/adapter").display().to_string();
    let base = score(&workshop, "held-out.jsonl", "base.jsonl", &[]);
    let tuned = score(
        &workshop,
        "held-out.jsonl",
        "tuned.jsonl",
        &["--adapter", &adapter, "--batch-size", "2"],
    );
    let lines = metrics(&workshop.path("run"));
    let last = &lines[STEPS];
    assert_eq!(last["step"], json!(STEPS));
    let mean = |value: &dyn Fn(usize) -> f64| (0..5).map(value).sum::<f64>() / 5.0;
    let reward =
        |key: &str, pair: usize| 0.1 * (number(&tuned[pair], key) - number(&base[pair], key));
    let margin = |pair| reward("logps/chosen", pair) - reward("logps/rejected", pair);
    for (key, expected) in [
        ("eval_rewards/chosen", mean(&|pair| reward("logps/chosen", pair))),
        ("eval_rewards/margins", mean(&margin)),
        ("eval_rewards/accuracies", mean(&|pair| f64::from(margin(pair) > 0.0))),
        ("eval_logps/rejected", mean(&|pair| number(&tuned[pair], "logps/rejected"))),
        ("eval_loss", mean(&|pair| (-margin(pair)).exp().ln_1p())),
    ] {
        let ours = number(last, key);
        assert!((ours - expected).abs() < 1e-4, "{key}: {ours} {expected}");
    }
    assert_eq!(last["eval_num_tokens"], lines[STEPS - 1]["num_tokens"]);
}

/// Checks that truncated pairs are marked in their row, and that dropped pairs are reported even with --quiet.
#[test]
fn truncated_and_dropped_pairs_are_reported() {
    let workshop = Workshop::new();
    let rows = "{\"id\": \"whole\", \"prompt\": \"What is 2 + 2?\", \"chosen\": \" 4\", \"rejected\": \" 5\"}\n\
                {\"id\": \"cut\", \"prompt\": \"What is 2 + 2?\", \"chosen\": \" 4 because two and two are four, as everybody \
                 knows who can count to four\", \"rejected\": \" 5\"}\n";
    let long = format!(
        "{{\"id\": \"long\", \"prompt\": \"{}\", \"chosen\": \" 4\", \"rejected\": \" 5\"}}\n",
        "What is 2 + 2? ".repeat(40)
    );
    fs::write(workshop.path("mixed.jsonl"), format!("{rows}{long}")).unwrap();
    let (model, data) = (workshop.path("model"), workshop.path("mixed.jsonl"));
    let output = workshop.path("mixed-scores.jsonl");
    let mut command = program();
    command.args(["score", "--quiet", "--max-length", "32", "--model"]).arg(model);
    command.arg("--data").arg(data).arg("--output").arg(&output);
    let ended = ProcessOutput::new(command.output().unwrap());
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("holds 2 of the 3 pairs"), "{}", ended.stderr);
    let rows = json_lines(&output);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].get("truncated"), None, "{:?}", rows[0]);
    assert_eq!(rows[1]["truncated"], json!(["chosen"]), "{:?}", rows[1]);
}

#[test]
fn scores_have_their_keys_in_order_and_equal_the_sum_of_their_tokens() {
    let workshop = Workshop::new();
    let short = score(&workshop, "pairs.jsonl", "short.jsonl", &[]);
    let long = score(&workshop, "pairs.jsonl", "long.jsonl", &["--per-token", "--batch-size", "3"]);
    let keys = ["id", "logps/chosen", "logps/rejected", "tokens/chosen", "tokens/rejected"];
    let further =
        ["token_ids/chosen", "token_logps/chosen", "token_ids/rejected", "token_logps/rejected"];
    assert_eq!((short.len(), long.len()), (14, 14));
    for (index, (short, long)) in short.iter().zip(&long).enumerate() {
        assert_eq!(short.keys().collect::<Vec<_>>(), keys);
        assert_eq!(long.keys().collect::<Vec<_>>(), [&keys[..], &further].concat());
        assert_eq!(short["id"], json!(format!("pairs-{index}")));
        for side in ["chosen", "rejected"] {
            let list = |key: &str| long[&format!("{key}/{side}")].as_array().unwrap();
            let sum: f64 = list("token_logps").iter().map(|logp| logp.as_f64().unwrap()).sum();
            let whole = number(short, &format!("logps/{side}"));
            assert!((sum - whole).abs() < 1e-5 * whole.abs(), "{sum} {whole}");
            let count = short[&format!("tokens/{side}")].as_u64().unwrap() as usize;
            assert_eq!((list("token_ids").len(), list("token_logps").len()), (count, count));
            assert_eq!(list("token_ids").last(), Some(&json!(2)), "the last token is not </s>");
        }
    }
}

#[test]
fn failed_scoring_leaves_no_files() {
    let workshop = Workshop::new();
    fs::write(workshop.path("bad.jsonl"), "{}\n").unwrap();
    let path = |name: &str| workshop.path(name).display().to_string();
    let (model, data, output) = (path("model"), path("bad.jsonl"), path("scores.jsonl"));
    let arguments = ["score", "--model", &model, "--data", &data, "--output", &output];
    ProcessOutput::new(program().args(arguments).output().unwrap()).refused(&["bad.jsonl:1"]);
    assert!(!workshop.path("scores.jsonl").exists());
    assert_eq!(workshop.unfinished_files(), [""; 0]);
}
