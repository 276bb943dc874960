//! Tests of `arithmo sample-pairs`.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use arithmo::demo::arithmetic::Split;
use serde_json::Value;

use crate::calls::{arithmo, command, lines, message, model, printed, write_problems};
use crate::signal::interrupted;
use crate::support::json_file;

/// Checks that stopped sampling continues where it was, and that every answer draws the same random numbers.
#[test]
#[cfg(unix)]
fn interrupted_sampling_equals_uninterrupted_sampling() {
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
    let output = interrupted(child);
    assert_eq!(output.status.code(), Some(130), "{}", message(&output));
    assert!(
        message(&output)
            .contains("of 160 answers are kept; run the same command again to continue")
    );
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

/// Checks that every sample is kept, that answers that were cut off are in no pair, and that each text is in one pair
/// only.
#[test]
fn samples_are_kept_and_cut_off_ones_are_not_paired() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 30);
    let model = model();
    // Most answers of this model have 15 to 45 tokens, so the limit of 24 cuts some off.
    let args = |output: &'static str, more: &'static [&'static str]| {
        let files = ["--data", "problems.jsonl", "--output", output, "--samples", "8"];
        let lengths = ["--max-new-tokens", "24", "--pairs-per-problem", "3"];
        [&["sample-pairs", "--model", model.as_str()][..], &files, &lengths, more].concat()
    };
    printed(folder, &args("pairs.jsonl", &[]));
    let samples = lines(&folder.join("pairs.samples.jsonl"));
    assert_eq!(samples.len(), 240);
    let cut_off: Vec<&Value> =
        samples.iter().filter(|one| one["finish_reason"] == "length").collect();
    assert!(cut_off.len() > 20, "{}", cut_off.len());
    let pairs = lines(&folder.join("pairs.jsonl"));
    assert!(pairs.len() > 5, "{}", pairs.len());
    let mut texts: Vec<(&str, &str)> = Vec::new();
    for pair in &pairs {
        for (side, correct) in [("chosen", true), ("rejected", false)] {
            let text = pair[side].as_str().unwrap();
            let sample = samples.iter().find(|one| {
                one["prompt"] == pair["prompt"]
                    && one["completion"] == text
                    && one["finish_reason"] == "eos"
            });
            assert_eq!(sample.unwrap()["correct"], Value::from(correct), "{pair}");
            texts.push((pair["prompt"].as_str().unwrap(), text));
        }
    }
    let all = texts.len();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), all, "a text is in two pairs");
    let stats = json_file(&folder.join("pairs.stats.json"));
    assert_eq!(stats["samples_cut_off"], cut_off.len());
    assert_eq!(stats["pairs"], pairs.len());
    let gap = stats["mean_tokens_chosen"].as_f64().unwrap()
        - stats["mean_tokens_rejected"].as_f64().unwrap();
    assert!(gap.abs() <= 1.0, "the mean lengths of the sides differ by {gap} tokens");

    printed(folder, &args("more.jsonl", &["--keep-cut-off"]));
    let more = lines(&folder.join("more.jsonl"));
    assert!(more.len() >= pairs.len());
    let stats = fs::read_to_string(folder.join("more.stats.json")).unwrap();
    assert!(stats.contains("\"keep_cut_off\": true"), "{stats}");
    let rejected_cut_off =
        |pair: &&Value| cut_off.iter().any(|one| one["completion"] == pair["rejected"]);
    assert!(!pairs.iter().any(|pair| rejected_cut_off(&pair)));
}

/// Checks that a run that finds no pair leaves the pairs of an earlier one, and links, as they were.
#[test]
fn a_run_without_a_pair_removes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    write_problems(&folder.join("problems.jsonl"), Split::Train, 2);
    let model = model();
    // At this temperature all samples of a problem are equal.
    let args = |output: &'static str| {
        let files = ["--data", "problems.jsonl", "--output", output, "--overwrite"];
        let sampling = ["--samples", "2", "--temperature", "1e-6", "--max-new-tokens", "8"];
        [&["sample-pairs", "--model", model.as_str()][..], &files, &sampling].concat()
    };
    fs::write(folder.join("pairs.jsonl"), "the pairs of an earlier run").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", folder.join("link.jsonl")).unwrap();
    for output in ["pairs.jsonl", "link.jsonl"] {
        let refused = arithmo(folder, &args(output));
        assert_eq!(refused.status.code(), Some(1));
        assert!(message(&refused).contains("no pair resulted"), "{}", message(&refused));
    }
    let kept = fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    assert_eq!(kept, "the pairs of an earlier run");
    #[cfg(unix)]
    assert!(folder.join("link.jsonl").is_symlink());
}
