//! Runs on a packed base: trained, stopped and resumed, scored, merged; what is noted, and what is refused.

use std::fs;
use std::path::Path;

use arithmo::model::config::MistralConfig;
use serde_json::Value;

use super::{Ended, STEPS, Workshop, json_lines, metrics, number, program};

const NF4: [&str; 2] = ["model.quantization=nf4", "model.double_quant=true"];

/// `arithmo ARGUMENTS`, which must succeed.
fn succeeds(arguments: &[&str]) -> Ended {
    let ended = Ended::of(program().args(arguments).output().unwrap());
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended
}

#[test]
fn a_resumed_run_on_a_packed_base_equals_the_whole_one() {
    for further in [
        &[][..],
        &[
            "train.gradient_checkpointing=true",
            "lora.init_lora_weights=loftq",
            "dpo.reference=initial",
        ],
    ] {
        let settings = [&NF4[..], &["train.save_steps=5"], further].concat();
        let workshop = Workshop::new();
        workshop.trained(&settings, &[]);
        let whole = workshop.result();
        // As if killed between the first checkpoint and the next.
        fs::remove_dir_all(workshop.path("run/adapter")).unwrap();
        for step in [10, STEPS] {
            fs::remove_dir_all(workshop.path(&format!("run/checkpoints/step-{step}"))).unwrap();
        }
        let resumed = workshop.trained(&settings, &["--resume"]);
        assert!(!resumed.stderr.contains("warning"), "{}", resumed.stderr);
        assert_eq!(workshop.result(), whole, "{further:?}");
    }
}

#[test]
fn supervised_fine_tuning_trains_on_a_packed_base() {
    let workshop = Workshop::new();
    let rows = json_lines(&workshop.path("pairs.jsonl")).into_iter();
    let rows = rows.map(|mut row| {
        row.remove("rejected");
        let answer = row.remove("chosen").unwrap();
        row.insert("completion".into(), answer);
        format!("{}\n", Value::Object(row))
    });
    fs::write(workshop.path("examples.jsonl"), rows.collect::<String>()).unwrap();
    let file = format!(
        "data.train_file={}",
        workshop.path("examples.jsonl").display()
    );
    let settings = [&NF4[..1], &["method=sft", &file]].concat();
    workshop.trained(&settings, &[]);
    let lines = metrics(&workshop.path("run"));
    let (first, last) = (number(&lines[0], "loss"), number(&lines[STEPS - 1], "loss"));
    assert!(last < first, "{last} {first}");
}

/// Scores under the adapter are the run's own on the packed base, others on the full one, and the difference is noted.
#[test]
fn an_adapter_notes_what_its_base_was_packed_as() {
    let workshop = Workshop::new();
    workshop.trained(&[&NF4[..], &["data.shuffle=false"]].concat(), &[]);
    let noted = fs::read_to_string(workshop.path("run/adapter/base_quantization.json")).unwrap();
    let noted: Value = serde_json::from_str(&noted).unwrap();
    assert_eq!(
        noted,
        serde_json::json!({"quantization": "nf4", "double_quant": true})
    );

    let path = |name: &str| workshop.path(name).display().to_string();
    let (model, adapter, data) = (path("model"), path("run/adapter"), path("pairs.jsonl"));
    let score = |output: &str, further: &[&str]| {
        let output = path(output);
        let fixed = [
            "score", "--model", &model, "--data", &data, "--output", &output,
        ];
        let ended = succeeds(&[&fixed[..], further].concat());
        (ended.stderr, json_lines(Path::new(&output)))
    };
    let packed = ["--quantization", "nf4", "--double-quant"];
    let (_, base) = score("base.jsonl", &packed);
    let first = &metrics(&workshop.path("run"))[0];
    let mean = base[..6]
        .iter()
        .map(|pair| number(pair, "logps/chosen"))
        .sum::<f64>()
        / 6.0;
    assert!(
        (mean - number(first, "logps/chosen")).abs() < 1e-3,
        "{mean}"
    );

    let adapter = ["--adapter", adapter.as_str()];
    let (stderr, with_adapter) = score("trained.jsonl", &[&adapter[..], &packed].concat());
    assert!(!stderr.contains("note: "), "{stderr}");
    let (stderr, on_full) = score("full.jsonl", &adapter);
    assert!(
        stderr.contains("trained on a base in nf4, and is used on one in full"),
        "{stderr}"
    );
    assert!(
        stderr.contains("--quantization nf4 --double-quant"),
        "{stderr}"
    );
    let sum = |pairs: &[serde_json::Map<String, Value>]| {
        pairs
            .iter()
            .map(|pair| number(pair, "logps/chosen"))
            .sum::<f64>()
    };
    assert!((sum(&with_adapter) - sum(&on_full)).abs() > 1e-3);

    let generate = |further: &[&str]| {
        let fixed = [
            "generate",
            "--model",
            &model,
            "--prompt",
            "What is",
            "--max-new-tokens",
            "5",
        ];
        succeeds(&[&fixed[..], further].concat())
    };
    let other = generate(&[&adapter[..], &["--quantization", "int8"]].concat());
    assert!(
        other.stderr.contains("used on one in int8"),
        "{}",
        other.stderr
    );
    let same = generate(&[&adapter[..], &packed].concat());
    assert!(!same.stderr.contains("note: "), "{}", same.stderr);
}

#[test]
fn merging_a_run_on_a_packed_base_says_what_each_target_changes() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    let path = |name: &str| workshop.path(name).display().to_string();
    let (model, adapter, data) = (path("model"), path("run/adapter"), path("pairs.jsonl"));
    let merge = |output: &str, further: &[&str]| {
        let output = path(output);
        let fixed = [
            "merge",
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--output",
            &output,
        ];
        let ended = succeeds(&[&fixed[..], further].concat());
        assert_eq!(ended.stdout, format!("{output}\n"));
        ended.stderr
    };
    let stderr = merge("merged", &[]);
    assert!(
        stderr.contains("the base in nf4 with its adapter, on 7 texts of the run"),
        "{stderr}"
    );
    let numbers = |target: &str| {
        let line = stderr
            .lines()
            .find(|line| line.starts_with(target))
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<f64>().unwrap();
        assert_eq!(words.contains(&"<-"), target == "dequantized", "{line}");
        (number(1), number(2), number(3), number(5))
    };
    let (log_prob, kl, same, answers) = numbers("dequantized");
    assert!(
        log_prob < 1e-5 && kl.abs() < 1e-5 && same == answers,
        "{stderr}"
    );
    for target in ["original", "requantized"] {
        let (log_prob, kl, _, of) = numbers(target);
        assert!(log_prob > 1e-3 && kl > 1e-6 && of == answers, "{stderr}");
    }

    // What is written is what was trained; packed again, it opens packed.
    let score = |model: &str, further: &[&str]| {
        let output = path("scores.jsonl");
        let fixed = [
            "score", "--model", model, "--data", &data, "--output", &output,
        ];
        succeeds(&[&fixed[..], further].concat());
        let scores = json_lines(Path::new(&output)).into_iter();
        scores
            .map(|pair| number(&pair, "logps/chosen"))
            .collect::<Vec<_>>()
    };
    let adapted = [
        "--adapter",
        &adapter,
        "--quantization",
        "nf4",
        "--double-quant",
    ];
    let trained = score(&model, &adapted);
    for (merged, trained) in score(&path("merged"), &[]).iter().zip(&trained) {
        assert!((merged - trained).abs() < 1e-3, "{merged} {trained}");
    }
    let stderr = merge("again", &["--target", "requantized", "--data", &data]);
    assert!(stderr.contains("texts of --data"), "{stderr}");
    let config = MistralConfig::load(&workshop.path("again")).unwrap();
    assert!(config.quantization.unwrap().double_quant);
    let again = score(&path("again"), &[]);
    assert_eq!(again.len(), trained.len());

    let stderr = merge("plain", &["--quantization", "none"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    let stderr = merge("original", &["--target", "original", "--no-measure"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    let bytes = |name: &str| fs::read(workshop.path(name).join("model.safetensors")).unwrap();
    assert_eq!(bytes("plain"), bytes("original"));
    assert_ne!(bytes("plain"), bytes("merged"));
}

#[test]
fn what_cannot_be_done_with_packed_weights_is_refused() {
    let workshop = Workshop::new();
    let refused = |settings: &[&str], parts: &[&str]| workshop.train(settings, &[]).refused(parts);
    refused(
        &["model.quantization=nf4", "model.use_peft=false"],
        &[
            "model.quantization",
            "cannot be trained themselves",
            "use_peft = true",
        ],
    );
    refused(
        &["lora.init_lora_weights=loftq"],
        &["lora.init_lora_weights", "model.quantization"],
    );
    refused(
        &[
            "model.quantization=nf4",
            "lora.init_lora_weights=loftq",
            "lora.loftq_config.loftq_iter=5",
        ],
        &["lora.loftq_config.loftq_iter", "5 is not built yet"],
    );
    // A folder that is packed already.
    workshop.trained(&NF4, &[]);
    let path = |name: &str| workshop.path(name).display().to_string();
    let (model, adapter, again) = (path("model"), path("run/adapter"), path("again"));
    let fixed = [
        "merge",
        "--model",
        &model,
        "--adapter",
        &adapter,
        "--output",
        &again,
    ];
    succeeds(&[&fixed[..], &["--target", "requantized", "--no-measure"]].concat());
    let base = format!("model.model_name_or_path={again}");
    let overwriting = |settings: &[&str]| workshop.train(settings, &["--overwrite"]);
    overwriting(&[&base, "model.quantization=fp4"])
        .refused(&["packed as nf4 with double_quant already"]);
    let (toml, lora) = (workshop.path("run.toml"), "[lora]\nr = 3\nlora_alpha = 6\n");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace(lora, "")).unwrap();
    overwriting(&[&base, "model.use_peft=false"]).refused(&["packed as nf4", "use_peft"]);
    fs::write(&toml, text).unwrap();
    workshop.trained(&[&base], &["--overwrite"]);
    let ended = |arguments: &[&str]| Ended::of(program().args(arguments).output().unwrap());
    let out = path("out");
    let merge = [
        "merge",
        "--model",
        &again,
        "--adapter",
        &adapter,
        "--output",
        &out,
    ];
    ended(&[&merge[..], &["--target", "original", "--no-measure"]].concat())
        .refused(&["no original ones", "--target dequantized"]);
    ended(&[&merge[..], &["--quantization", "fp4"]].concat())
        .refused(&["--quantization", "packed"]);
    let score = [
        "score",
        "--model",
        &model,
        "--data",
        &out,
        "--output",
        &out,
        "--double-quant",
    ];
    assert_eq!(ended(&score).status, Some(2));
}
