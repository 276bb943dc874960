//! Tests of `arithmo doctor` and `arithmo bench` as a user calls them.

use serde_json::Value;

use crate::calls::{arithmo, message, printed};
use crate::pages::root;

const TINY: &str = "tests/fixtures/tiny/config.json";

fn last_line(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn positive(value: &Value) {
    assert!(value.as_f64().is_some_and(|number| number > 0.0), "{value}");
}

#[test]
fn doctor_checks_every_operation() {
    let text = printed(&root(), &["doctor", "--json"]);
    for backend in ["cuda", "wgpu", "ndarray"] {
        assert!(text.contains(&format!("\n  {backend} ")), "{text}");
    }
    let result = last_line(&text);
    let operations = result["operations"].as_array().unwrap();
    for name in [
        "frozen_linear",
        "frozen_linear backward",
        "frozen_linear packed",
        "adapted_linear",
        "adapted_linear backward",
        "rms_norm",
        "rms_norm backward",
        "head_norm",
        "head_norm backward",
        "rope",
        "rope backward",
        "swiglu",
        "swiglu backward",
        "geglu",
        "geglu backward",
        "self_attention",
        "self_attention backward",
        "masked_attention",
        "completion_log_probs",
        "completion_log_probs slopes",
        "sum_of_squares",
        "scale_all",
        "adamw",
    ] {
        let is_operation = |row: &&Value| row["operation"] == name && row["dtype"] == "f32";
        let row = operations.iter().find(is_operation).unwrap();
        assert_eq!(row["ok"], true, "{row}");
        positive(&row["milliseconds"]);
        let line = text.lines().find(|l| l.starts_with(&format!("  {name}")));
        assert!(line.unwrap().contains(" ok "), "{text}");
    }
    assert_eq!(result["ok"], true);
    assert_eq!(result["products"].as_array().unwrap().len(), 4);
    positive(&result["products"][0]["forward_flop_per_second"]);
    positive(&result["copy_bytes_per_second"]);
}

#[test]
fn bench_measures_each_size() {
    let arguments = ["bench", "--shape", TINY, "--tokens", "160,64", "--steps", "2"];
    let text = printed(&root(), &[&arguments[..], &["--peak-tflops", "0.5"]].concat());
    let rows = |text: &str| -> Vec<String> {
        let first = text.lines().filter_map(|line| line.split_whitespace().next());
        let number = |word: &&str| word.parse::<usize>().is_ok();
        first.filter(number).map(String::from).collect()
    };
    // The table of steps and the table of operations are in ascending order.
    assert_eq!(rows(&text), ["64", "160", "64", "160"], "{text}");
    let result = last_line(&text);
    assert_eq!(result["layers"], 2);
    // r (D_in + D_out) of q (20 to 48) and v (20 to 16), in two layers.
    assert_eq!(result["trainable"], 2 * 16 * ((20 + 48) + (20 + 16)));
    let runs = result["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        for key in [
            "seconds_per_step",
            "tokens_per_second",
            "attended_tokens_per_second",
            "pairs_per_second",
            "flop_per_second",
            "mfu",
        ] {
            positive(&run[key]);
        }
        for (_, seconds) in run["seconds_by_operation"].as_object().unwrap() {
            positive(seconds);
        }
        assert_eq!(run["flop_per_weight_and_token"], 6.0);
    }
    // The 64 tokens are one pair with a prompt of 20 and two completions of 22. In attended tokens, the prompt counts
    // twice, and so does the last token of each side.
    assert_eq!(runs[0]["attended_tokens"], 64 + 20 + 2);
}

/// The vocabularies of Qwen and Gemma, on a model of one small layer.
#[test]
fn bench_measures_large_vocabularies() {
    let folder = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(root().join(TINY)).unwrap()).unwrap();
    for vocabulary in [151_936, 262_144] {
        config["vocab_size"] = vocabulary.into();
        let shape = folder.path().join("config.json");
        std::fs::write(&shape, config.to_string()).unwrap();
        let shape = shape.display().to_string();
        let arguments = ["bench", "--shape", &shape, "--tokens", "64", "--steps", "1"];
        let result = last_line(&printed(&root(), &arguments));
        positive(&result["runs"][0]["pairs_per_second"]);
        let weights = result["weights"].as_u64().unwrap();
        assert!(weights > 20 * vocabulary, "{weights}");
    }
}

#[test]
fn bench_reports_the_work_of_its_settings() {
    let arguments = ["bench", "--shape", TINY, "--tokens", "64", "--steps", "1"];
    let run = |more: &[&str]| last_line(&printed(&root(), &[&arguments[..], more].concat()));
    let result = run(&["--precomputed", "--targets", "all-linear", "--layers", "1"]);
    assert_eq!(result["layers"], 1);
    assert_eq!(result["runs"][0]["flop_per_weight_and_token"], 4.0);
    let per_rank = (20 + 48) + 2 * (20 + 16) + (48 + 20) + 3 * (20 + 44);
    assert_eq!(result["trainable"], 16 * per_rank);
    for format in ["nf4", "fp4", "int8"] {
        let result = run(&["--quantization", format, "--double-quant"]);
        assert_eq!(result["quantization"]["quantization"], format);
        assert_eq!(result["quantization"]["double_quant"], true);
    }
    let result = run(&["--gradient-checkpointing", "true"]);
    assert_eq!(result["runs"][0]["flop_per_weight_and_token"], 8.0);
    assert_eq!(result["runs"][0]["mfu"], Value::Null);
}

#[test]
fn bench_refuses_invalid_settings() {
    for (arguments, place, remedy) in [
        (
            &["--shape", TINY, "--quantization", "none", "--double-quant"][..],
            "--double-quant",
            "leave it out",
        ),
        (&["--shape", "no-such-shape"], "--shape", "mistral-7b"),
        (&["--shape", TINY, "--tokens", "3"], "--tokens", "at least 16"),
        (&["--shape", TINY, "--layers", "3"], "--layers", "from 1 to"),
        (&["--shape", TINY, "--steps", "0"], "--steps", "at least 1"),
        (&["--shape", TINY, "--peak-tflops", "0"], "--peak-tflops", "leave it out"),
        (&["--shape", "mistral-7b", "--dtype", "bf16"], "dtype", "f32"),
    ] {
        let output = arithmo(&root(), &[&["bench"], arguments].concat());
        let errors = message(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(place) && errors.contains(remedy), "{errors}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
