//! Compares `evaluate preference` with `score`, with and without an adapter.

use std::fs;
use std::path::Path;

use arithmo::data::pair::PreferencePair;
use arithmo::eval::preference::{Margins, PairScore};

use serde_json::{Value, json};

use crate::calls::{arithmo, model, printed, text};
use crate::support::{json_file, json_lines};

const TEMPLATE: &str = "Question: {prompt}\n\nAnswer:";

/// Writes pairs of different lengths and scores.
fn write_pairs(path: &Path) {
    let pair = |n: usize| {
        let (chosen, rejected) =
            ("good words ".repeat(1 + n * 3 % 5), "other words ".repeat(1 + n * 2 % 7));
        json!({
            "id": format!("p{n}"), "prompt": format!("What is {n} times {n}?"), "chosen": format!("{chosen}{n}"),
            "rejected": format!("{rejected}none"), "chosen_score": 3 + n % 4, "rejected_score": 2 - (n % 3) as i64,
        })
    };
    let lines: String = (0..13).map(|n| format!("{}\n", pair(n))).collect();
    fs::write(path, lines).unwrap();
}

/// Trains a few steps with a large learning rate. Returns the folder of the adapter.
fn write_adapter(folder: &Path, pairs: &Path) -> String {
    let (run, config) = (folder.join("run"), folder.join("run.toml"));
    let settings = format!(
        "output_dir = {:?}\nmethod = \"dpo\"\n[model]\nmodel_name_or_path = {:?}\n[data]\ntrain_file = {:?}\nprompt_template = {TEMPLATE:?}\n\
         [lora]\nr = 4\nlora_alpha = 16\n[train]\nlearning_rate = 0.05\nmax_steps = 3\nwarmup_steps = 0\n",
        text(&run),
        model(),
        text(pairs)
    );
    fs::write(&config, settings).unwrap();
    printed(&["train", "--config", text(&config)]);
    text(&run.join("adapter")).to_string()
}

/// Runs `score`. Returns `logps/chosen - logps/rejected` and the whole row of each pair.
fn scored(folder: &Path, pairs: &Path, adapter: &[&str]) -> Vec<(f64, Value)> {
    let output = folder.join("scores.jsonl");
    let model = model();
    let args = [
        "score",
        "--model",
        &model,
        "--data",
        text(pairs),
        "--prompt-template",
        TEMPLATE,
        "--output",
        text(&output),
        "--overwrite",
    ];
    printed(&[&args[..], adapter].concat());
    let margin = |line: &Value| {
        line["logps/chosen"].as_f64().unwrap() - line["logps/rejected"].as_f64().unwrap()
    };
    json_lines(&output).into_iter().map(|line| (margin(&line), line)).collect()
}

#[test]
fn rewards_equal_the_difference_of_scores_with_and_without_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    write_pairs(&pairs);
    let adapter = write_adapter(folder.path(), &pairs);
    let with = scored(folder.path(), &pairs, &["--adapter", &adapter]);
    let without = scored(folder.path(), &pairs, &[]);
    let margins: Vec<f64> = with.iter().zip(&without).map(|(a, b)| 0.5 * (a.0 - b.0)).collect();
    assert!(
        margins.iter().any(|margin| margin.abs() > 0.01),
        "the adapter has no effect: {margins:?}"
    );

    let (output, model) = (folder.path().join("out"), model());
    let args = [
        "evaluate",
        "preference",
        "--model",
        &model,
        "--data",
        text(&pairs),
        "--output",
        text(&output),
        "--prompt-template",
        TEMPLATE,
        "--adapter",
        &adapter,
        "--beta",
        "0.5",
        "--batch-size",
        "4",
    ];
    let table = printed(&args);
    assert!(
        table.contains("By the gap of the votes") && table.contains("expected calibration error"),
        "{table}"
    );
    let results = json_file(&output.join("results.json"));
    let right = |values: &[f64]| values.iter().filter(|value| **value > 0.0).count();
    let likelihoods: Vec<f64> = with.iter().map(|one| one.0).collect();
    assert_eq!(results["scorers"]["reward"]["correct"], right(&margins));
    assert_eq!(results["scorers"]["likelihood"]["correct"], right(&likelihoods));
    assert_eq!(results["scorers"]["reward"]["total"], 13);
    let mean = margins.iter().sum::<f64>() / 13.0;
    let close = |value: &Value, expected: f64| {
        let value = value.as_f64().unwrap();
        assert!(
            (value - expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{value} is not {expected}"
        );
    };
    close(&results["margin"]["mean"], mean);
    // Every table has every pair once.
    for name in ["by_score_gap", "by_length", "by_certainty"] {
        let buckets = results[name].as_array().unwrap();
        let pairs: u64 = buckets.iter().map(|bucket| bucket["total"].as_u64().unwrap()).sum();
        assert_eq!(pairs, 13, "{name}");
    }
    // The score gap of pair n is 3 + n % 4 - (2 - n % 3).
    let gap_3: Vec<f64> = (0..13).filter(|n| 1 + n % 4 + n % 3 == 3).map(|n| margins[n]).collect();
    let bucket = results["by_score_gap"]
        .as_array()
        .unwrap()
        .iter()
        .find(|bucket| bucket["name"] == "3")
        .unwrap();
    assert_eq!(
        (&bucket["total"], &bucket["correct"]),
        (&json!(gap_3.len()), &json!(right(&gap_3)))
    );
    close(&bucket["mean_margin"], gap_3.iter().sum::<f64>() / gap_3.len() as f64);
    assert!(fs::read_to_string(output.join("index.html")).unwrap().contains("By length"));
    // The same command reads the results. Another beta needs another output folder.
    assert_eq!(printed(&args), table);
    let other = arithmo(&[&args[..11], &["--beta", "0.1", "--batch-size", "4"]].concat());
    assert!(!other.status.success());

    // Without an adapter there is no reward.
    let plain = folder.path().join("plain");
    printed(&[
        "evaluate",
        "preference",
        "--model",
        &model,
        "--data",
        text(&pairs),
        "--output",
        text(&plain),
        "--prompt-template",
        TEMPLATE,
    ]);
    let results = json_file(&plain.join("results.json"));
    assert!(results["scorers"]["reward"].is_null());
    assert_eq!(results["margin"]["of"], "likelihood");
    close(&results["margin"]["mean"], without.iter().map(|one| one.0).sum::<f64>() / 13.0);
    // Both evaluations have the same pairs, so their common scorers can be compared.
    let compared = folder.path().join("compared");
    let table = printed(&["compare", text(&plain), text(&output), "--output", text(&compared)]);
    assert!(table.contains("likelihood-per-token") && !table.contains("reward"), "{table}");
}

/// The margin of a pair, and the lengths and votes of its sides.
type Case = (f32, [usize; 2], Option<(i64, i64)>);

/// Compares the tables and the calibration error of five margins with values by hand.
#[test]
fn margins_are_grouped_by_votes_length_and_certainty() {
    let cases = [
        (-1.0, [10, 20], Some((2, 1))),
        (0.0, [19, 20], Some((4, 2))),
        (1.0, [30, 20], Some((9, 1))),
        (2.0, [41, 20], Some((1, -1))),
        (3.0, [8, 10], None),
    ];
    let pair = |(index, (_, _, votes)): (usize, &Case)| PreferencePair {
        id: index.to_string(),
        prompt: "?".into(),
        chosen: "yes".into(),
        rejected: "no".into(),
        chosen_score: votes.map(|votes| votes.0),
        rejected_score: votes.map(|votes| votes.1),
        rendered: None,
    };
    let score = |(index, (margin, tokens, _)): (usize, &Case)| PairScore {
        id: index.to_string(),
        policy: [-10.0 + 2.0 * margin, -20.0],
        reference: Some([-10.0, -20.0]),
        tokens: *tokens,
    };
    let pairs: Vec<_> = cases.iter().enumerate().map(pair).collect();
    let scores: Vec<_> = cases.iter().enumerate().map(score).collect();
    let margins = Margins::new(&pairs, &scores, 0.5);
    assert_eq!(margins.quantity, "reward");
    let (mean, [low, high]) = margins.mean.unwrap();
    // The standard deviation of the five values is sqrt(2.5).
    assert!(
        (mean - 1.0).abs() < 1e-6 && (high - low - 2.0 * 1.959964 * 0.5f64.sqrt()).abs() < 1e-5
    );
    let counts = |buckets: &[arithmo::eval::preference::Bucket]| {
        let count = |bucket: &arithmo::eval::preference::Bucket| {
            format!("{}: {} of {}", bucket.name, bucket.rate.correct, bucket.rate.total)
        };
        buckets.iter().map(count).collect::<Vec<_>>()
    };
    assert_eq!(counts(&margins.by_score_gap), ["1: 0 of 1", "2: 1 of 2", "5 or more: 1 of 1"]);
    assert_eq!(
        counts(&margins.by_length),
        [
            "at most half as long: 0 of 1",
            "shorter: 1 of 1",
            "about as long (10 %): 0 of 1",
            "longer: 1 of 1",
            "more than twice as long: 1 of 1"
        ]
    );
    // sigmoid of 0, 1, 2, 3: 0.5, 0.7311, 0.8808, 0.9526.
    assert_eq!(
        counts(&margins.by_certainty),
        [
            "50 to 55 % sure: 0 of 1",
            "70 to 75 % sure: 1 of 2",
            "85 to 90 % sure: 1 of 1",
            "95 to 100 % sure: 1 of 1"
        ]
    );
    let expected = (0.5 + 2.0 * (0.7311 - 0.5) + (1.0 - 0.8808) + (1.0 - 0.9526)) / 5.0;
    assert!((margins.calibration_error - expected).abs() < 1e-4, "{}", margins.calibration_error);
}
