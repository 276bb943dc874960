//! Compares runs of KTO, ORPO and CPO with golden runs of TRL and PEFT, and prints the largest deviation of each quantity.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value};

use super::golden::Golden;
use super::{Workshop, json_lines, number, program};
use crate::support;

/// The largest deviation of each quantity from a golden run, as a part of its tolerance.
#[derive(Default)]
struct Deviations(BTreeMap<String, (f64, f64)>);

impl Deviations {
    /// Checks a value and remembers its deviation.
    fn check(&mut self, what: &str, key: &str, ours: f64, theirs: f64, tolerance: f64) {
        let off = (ours - theirs).abs();
        assert!(off <= tolerance, "{what} {key}: got {ours}, expected {theirs} (off by {off:e})");
        let group = key.strip_prefix("eval_").unwrap_or(key);
        let group = group.split_once('/').map_or(group, |(group, _)| group);
        let worst = self.0.entry(group.to_string()).or_default();
        if off >= worst.0 {
            *worst = (off, tolerance);
        }
    }

    /// Prints one line.
    fn print(&self, name: &str) {
        let worst = self.0.iter().filter(|(_, (_, tolerance))| *tolerance > 1e-9);
        let worst: Vec<String> =
            worst.map(|(key, (off, limit))| format!("{key} {off:.1e} of {limit:.1e}")).collect();
        eprintln!("{name}: {}", worst.join(", "));
    }
}

/// Returns the tolerance of reference/README-2.md; `None` for what this program does not log: `logits/*` of the methods
/// without a reference are means over prompts and padding in TRL.
fn tolerance(golden: &Golden, key: &str, theirs: f64) -> Option<f64> {
    let method = golden.method();
    let loss_type = golden.config[method].get("loss_type").and_then(Value::as_str);
    let averages = method == "orpo" || matches!(loss_type, Some("simpo" | "ipo"));
    Some(match key {
        "loss" => 5e-5 * theirs.abs().max(1.0),
        "grad_norm" => 3e-4 * theirs.abs(),
        "learning_rate" | "epoch" => 1e-12,
        "step" | "num_tokens" | "rewards/accuracies" => 0.0,
        "kl" => 5e-4,
        "entropy" => 1e-4,
        "nll_loss" | "log_odds_ratio" | "log_odds_chosen" => 2e-5,
        key if key.starts_with("rewards/") => 5e-4,
        key if key.starts_with("logps/") => {
            if averages {
                2e-5
            } else {
                2e-3
            }
        }
        key if key.starts_with("logits/") && method == "kto" => 1e-5,
        key if key.starts_with("logits/") => return None,
        other => panic!("no tolerance for {other}"),
    })
}

/// Compares the lines of a run with golden ones. A metric that TRL does not log must be absent here too.
fn check_lines(
    golden: &Golden,
    ours: &[&Map<String, Value>],
    theirs: &[Map<String, Value>],
    deviations: &mut Deviations,
) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        let what = format!("step {}", theirs["step"]);
        for (key, value) in theirs.iter().filter(|(key, _)| *key != "micro") {
            let plain = key.strip_prefix("eval_").unwrap_or(key);
            let expected = value.as_f64().unwrap();
            if let Some(tolerance) = tolerance(golden, plain, expected) {
                // TRL's accuracies are means in f32.
                let tolerance = if plain == "rewards/accuracies" { 1e-6 } else { tolerance };
                deviations.check(&what, key, number(ours, key), expected, tolerance);
            }
        }
        for key in ours.keys().filter(|key| key.contains('/')) {
            assert!(theirs.contains_key(key), "{what}: {key}");
        }
    }
}

/// Replays the run `method/NAME`, with these settings in addition.
fn replay(name: &str, further: &[&str]) {
    let Some(golden) = Golden::open(&format!("method/{name}")) else {
        return;
    };
    let lines = golden.train(further);
    let mut deviations = Deviations::default();
    for (file, is_evaluation) in [("trace.jsonl", false), ("eval.jsonl", true)] {
        let file = golden.folder.join(file);
        let theirs = if file.is_file() { json_lines(&file) } else { Vec::new() };
        let lines = lines.iter().filter(|line| line.contains_key("eval_loss") == is_evaluation);
        check_lines(&golden, &lines.collect::<Vec<_>>(), &theirs, &mut deviations);
    }
    golden.check_adapter(2e-4);
    let worst = golden.worst("weights");
    deviations.check("at the end", "adapter", worst, 0.0, 2e-4);
    deviations.print(name);
}

#[test]
fn kto() {
    replay("kto_batch4", &[]);
}

#[test]
fn orpo() {
    replay("orpo_batch4", &[]);
}

#[test]
fn cpo() {
    replay("cpo_sigmoid_batch4_ls0.1", &[]);
}

/// Every golden run of the three methods.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn all_runs() {
    let Some(folder) = support::shared("reference/method") else { return };
    let names = support::file_names(&folder).into_iter().filter(|name| !name.starts_with('_'));
    let names: Vec<String> = names.collect();
    names.iter().for_each(|name| replay(name, &[]));
    assert_eq!(names.len(), 26);
}

/// Passes smaller than a micro-batch, and recomputed activations, change no result.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn passes_change_no_result() {
    for name in ["kto_partial_batches", "orpo_batch4", "simpo_alpha1_batch4"] {
        for setting in ["train.max_tokens_per_pass=150", "train.gradient_checkpointing=true"] {
            replay(name, &[setting]);
        }
    }
}

/// `alphapo` is `simpo` without cross-entropy.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn alphapo_is_simpo_without_cross_entropy() {
    replay("simpo_alphapo", &["cpo.loss_type=alphapo", "cpo.cpo_alpha=1"]);
}

/// A run of KTO on shuffled data trains, and gives the same numbers again.
#[test]
fn shuffled_runs_are_repeatable() {
    let workshop = Workshop::new();
    let settings = ["method=kto", "train.gradient_accumulation_steps=2"];
    workshop.trained(&settings, &[]);
    let first = workshop.result();
    let kl: Vec<f64> = first.metrics.iter().map(|line| number(line, "kl")).collect();
    assert_eq!(kl[0], 0.0, "policy and reference are equal before the first update");
    assert!(kl.iter().any(|kl| *kl > 0.0), "{kl:?}");
    workshop.trained(&settings, &["--overwrite"]);
    assert_eq!(workshop.result(), first);
}

/// What a method cannot honor is refused, and the message names the key.
#[test]
fn settings_without_effect_are_refused() {
    let workshop = Workshop::new();
    for (settings, parts) in [
        (&["kto.beta=0.2"][..], ["kto: has no effect", "method is \"dpo\""]),
        (&["method=orpo", "dpo.beta=0.2"], ["dpo: has no effect", "method is \"orpo\""]),
        (&["method=cpo", "orpo.beta=0.2"], ["orpo: has no effect", "set method = \"orpo\""]),
        (&["method=kto", "train.per_device_train_batch_size=1"], ["train_batch_size", "is 1"]),
        (&["method=kto", "kto.precompute_ref_log_probs=true"], ["kto.precompute", "data.shuffle"]),
        (&["method=kto", "kto.precompute_ref_batch_size=2"], ["batch_size", "has no effect"]),
        (
            &["method=kto", "kto.desirable_weight=0", "kto.undesirable_weight=0"],
            ["kto.desirable_weight", "nothing would be trained"],
        ),
        (&["method=kto", "data.truncation_mode=keep_end"], ["truncation_mode", "keep_start"]),
        (
            &["method=cpo", "data.compat=trl-0.7.4", "data.max_prompt_length=64"],
            ["data.compat", "not built"],
        ),
        (
            &["method=orpo", "data.allow_empty_completions=true"],
            ["allow_empty", "skip_untrainable"],
        ),
        (&["method=cpo", "cpo.simpo_gamma=1"], ["cpo.simpo_gamma", "has no effect"]),
        (&["method=cpo", "cpo.loss_type=alphapo"], ["cpo.alpha", "is 0"]),
        (
            &["method=cpo", "cpo.loss_type=alphapo", "cpo.alpha=1", "cpo.cpo_alpha=0.5"],
            ["cpo.cpo_alpha", "has no effect"],
        ),
    ] {
        workshop.train(settings, &[]).refused(&parts);
        assert!(!workshop.path("run").exists(), "{settings:?}");
    }
    let ended = workshop.trained(
        &["method=cpo", "cpo.loss_type=ipo", "cpo.label_smoothing=0.1", "train.max_steps=1"],
        &[],
    );
    assert!(ended.stderr.contains("warning: cpo.label_smoothing"), "{}", ended.stderr);
}

/// A pair whose prompt leaves no room for a completion has no loss in ORPO and CPO: it is refused, or left out.
#[test]
fn completions_without_a_token_are_not_trained_on() {
    let workshop = Workshop::new();
    let file = workshop.path("pairs.jsonl");
    let pairs = fs::read_to_string(&file).unwrap();
    let prompt = "How much is it? ".repeat(60);
    let long = format!(
        "{{\"id\": \"long\", \"prompt\": \"{prompt}\", \"chosen\": \"1\", \"rejected\": \"2\"}}\n"
    );
    fs::write(&file, long + &pairs).unwrap();
    for method in ["method=orpo", "method=cpo"] {
        let refused = workshop.train(&[method], &["--overwrite"]);
        refused.refused(&["completion lost by truncation: 1 (ids long)"]);
        let ended = workshop.trained(&[method, "data.skip_untrainable=true"], &["--overwrite"]);
        assert!(ended.stderr.contains("completion lost by truncation: 1"), "{}", ended.stderr);
        let lines = json_lines(&workshop.path("run/metrics.jsonl"));
        assert!(lines.iter().all(|line| number(line, "loss") > 0.0));
    }
}

/// The page of a run shows the metrics and the table of its method.
#[test]
fn reports_show_the_metrics_of_the_method() {
    let workshop = Workshop::new();
    for (method, shown, absent) in [
        ("kto", ["kl", "kto.beta"], ["dpo.beta", "rewards/accuracies"]),
        ("orpo", ["nll_loss", "orpo.beta"], ["dpo.beta", ">kl<"]),
        ("cpo", ["nll_loss", "cpo.beta"], ["kto.beta", ">kl<"]),
    ] {
        workshop.trained(&[&format!("method={method}"), "train.max_steps=4"], &["--overwrite"]);
        let run = workshop.path("run");
        let ended = program().arg("report").arg("--run").arg(&run).output().unwrap();
        assert!(ended.status.success());
        let page = fs::read_to_string(run.join("report/index.html")).unwrap();
        for part in shown {
            assert!(page.contains(part), "{method}: {part}");
        }
        for part in absent {
            assert!(!page.contains(part), "{method}: {part}");
        }
    }
}
