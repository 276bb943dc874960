//! Tests of runs on a quantized base: training, resuming, scoring, merging, notes and errors.

use std::fs;
use std::path::Path;

use arithmo::model::config::DecoderConfig;
use serde_json::Value;

use super::{ProcessOutput, STEPS, Workshop, json_lines, metrics, number, program};
use crate::support::json_file;

const NF4: [&str; 2] = ["model.quantization=nf4", "model.double_quant=true"];

/// [`NF4`] as command-line flags.
const NF4_FLAGS: [&str; 3] = ["--quantization", "nf4", "--double-quant"];

/// Runs the program.
fn run(arguments: &[&str]) -> ProcessOutput {
    ProcessOutput::new(program().args(arguments).output().unwrap())
}

/// Runs the program. Panics if it fails.
fn succeeds(arguments: &[&str]) -> ProcessOutput {
    let ended = run(arguments);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended
}

impl Workshop {
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Scores the pairs with the model `name`. Returns the log-probabilities of the chosen sides, and standard error.
    fn scores(&self, name: &str, flags: &[&str]) -> (Vec<f64>, String) {
        let (model, data) = (self.text(name), self.text("pairs.jsonl"));
        let output = self.text("scores.jsonl");
        let fixed =
            ["score", "--model", &model, "--data", &data, "--output", &output, "--overwrite"];
        let ended = succeeds(&[&fixed[..], flags].concat());
        let scores = json_lines(Path::new(&output)).into_iter();
        let chosen = scores.map(|pair| number(&pair, "logps/chosen"));
        (chosen.collect(), ended.stderr)
    }

    /// Merges the run's adapter into `model`. The result is written to `output`.
    fn merge(&self, model: &str, output: &str, flags: &[&str]) -> ProcessOutput {
        let (model, output) = (self.text(model), self.text(output));
        let adapter = self.text("run/adapter");
        let fixed = ["merge", "--model", &model, "--adapter", &adapter, "--output", &output];
        run(&[&fixed[..], flags].concat())
    }

    /// Merges the run's adapter into the run's base and returns standard error. Panics if the command fails.
    fn merged(&self, output: &str, flags: &[&str]) -> String {
        let ended = self.merge("model", output, flags);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stdout, format!("{}\n", self.text(output)));
        ended.stderr
    }
}

#[test]
fn a_resumed_run_on_a_quantized_base_equals_the_whole_one() {
    let loftq = [
        "train.gradient_checkpointing=true",
        "lora.init_lora_weights=loftq",
        "dpo.reference=initial",
    ];
    for further in [&[][..], &loftq] {
        let settings = [&NF4[..], &["train.save_steps=5"], further].concat();
        let workshop = Workshop::new();
        workshop.trained(&settings, &[]);
        let whole = workshop.result();
        // Restore the state of a run that was killed after the first checkpoint.
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
fn supervised_fine_tuning_trains_on_a_quantized_base() {
    let workshop = Workshop::new();
    let rows = json_lines(&workshop.path("pairs.jsonl")).into_iter();
    let rows = rows.map(|mut row| {
        row.remove("rejected");
        let answer = row.remove("chosen").unwrap();
        row.insert("completion".into(), answer);
        format!("{}\n", Value::Object(row))
    });
    let examples = rows.collect::<String>();
    fs::write(workshop.path("examples.jsonl"), examples).unwrap();
    let file = format!("data.train_file={}", workshop.text("examples.jsonl"));
    workshop.trained(&[NF4[0], "method=sft", &file], &[]);
    let lines = metrics(&workshop.path("run"));
    let (first, last) = (&lines[0], &lines[STEPS - 1]);
    assert!(number(last, "loss") < number(first, "loss"), "{last:?}");
}

/// Checks that an adapter records its base's quantization, and that using it on another base changes the scores and
/// gives a note.
#[test]
fn an_adapter_records_the_quantization_of_its_base() {
    let workshop = Workshop::new();
    workshop.trained(&[&NF4[..], &["data.shuffle=false"]].concat(), &[]);
    let recorded = json_file(&workshop.path("run/adapter/base_quantization.json"));
    let expected = serde_json::json!({"quantization": "nf4", "double_quant": true});
    assert_eq!(recorded, expected);

    // The first step has six pairs and uses the initial weights.
    let (base, _) = workshop.scores("model", &NF4_FLAGS);
    let first = &metrics(&workshop.path("run"))[0];
    let mean = base[..6].iter().sum::<f64>() / 6.0;
    assert!((mean - number(first, "logps/chosen")).abs() < 1e-3, "{mean}");

    let adapter = workshop.text("run/adapter");
    let adapter = ["--adapter", adapter.as_str()];
    let (trained, stderr) = workshop.scores("model", &[&adapter[..], &NF4_FLAGS].concat());
    assert!(!stderr.contains("note: "), "{stderr}");
    let (on_full, stderr) = workshop.scores("model", &adapter);
    let note = "trained on a base in nf4, but is used on one in full";
    assert!(stderr.contains(note), "{stderr}");
    assert!(stderr.contains("--quantization nf4 --double-quant"), "{stderr}");
    assert!((trained.iter().sum::<f64>() - on_full.iter().sum::<f64>()).abs() > 1e-3);

    let model = workshop.text("model");
    let prompt = ["generate", "--model", &model, "--prompt", "What is", "--max-new-tokens", "5"];
    let generate = |flags: &[&str]| succeeds(&[&prompt[..], &adapter, flags].concat()).stderr;
    let stderr = generate(&["--quantization", "int8"]);
    assert!(stderr.contains("used on one in int8"), "{stderr}");
    let stderr = generate(&NF4_FLAGS);
    assert!(!stderr.contains("note: "), "{stderr}");
}

/// Parses a target's line: change of log-probabilities, KL, equal answers, all answers, and whether it was written.
fn measured(stderr: &str, target: &str) -> (f64, f64, f64, f64, bool) {
    let line = stderr.lines().find(|line| line.starts_with(target)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words[index].parse::<f64>().unwrap();
    let written = words.contains(&"<-");
    (number(1), number(2), number(3), number(5), written)
}

#[test]
fn merging_into_a_quantized_base_reports_the_change_of_each_target() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    let stderr = workshop.merged("merged", &[]);
    let head = "the base in nf4 with its adapter, on 7 texts of the run";
    assert!(stderr.contains(head), "{stderr}");
    let (log_prob, kl, same, answers, written) = measured(&stderr, "dequantized");
    assert!(log_prob < 1e-5 && kl < 1e-5 && same == answers && written, "{stderr}");
    for target in ["original", "requantized"] {
        let (log_prob, kl, _, all, written) = measured(&stderr, target);
        assert!(log_prob > 1e-3 && kl > 1e-6 && all == answers && !written, "{stderr}");
    }

    // The written model computes as the trained one.
    let adapter = workshop.text("run/adapter");
    let adapted = [&["--adapter", adapter.as_str()][..], &NF4_FLAGS].concat();
    let (trained, _) = workshop.scores("model", &adapted);
    let (merged, _) = workshop.scores("merged", &[]);
    for (merged, trained) in merged.iter().zip(&trained) {
        assert!((merged - trained).abs() < 1e-3, "{merged} {trained}");
    }
}

#[test]
fn each_merge_target_can_be_chosen() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    let data = workshop.text("held-out.jsonl");
    let stderr = workshop.merged("again", &["--target", "requantized", "--data", &data]);
    assert!(stderr.contains("texts of --data"), "{stderr}");
    assert!(measured(&stderr, "requantized").4, "{stderr}");
    let config = DecoderConfig::load(&workshop.path("again")).unwrap();
    assert!(config.quantization.unwrap().double_quant);
    assert_eq!(workshop.scores("again", &[]).0.len(), 14);

    let stderr = workshop.merged("plain", &["--quantization", "none"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    let stderr = workshop.merged("original", &["--target", "original", "--no-measure"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    let stderr = workshop.merged("exact", &["--no-measure"]);
    assert!(!stderr.contains("note: "), "{stderr}");
    let stderr = workshop.merged("int8", &["--quantization", "int8", "--no-measure"]);
    let note = "trained on a base in nf4, but is used on one in int8";
    assert!(stderr.contains(note), "{stderr}");
    let stderr = workshop.merged("rounded", &["--dtype", "bf16", "--no-measure"]);
    let note = "rounded to bf16; --dtype f32 stores exactly the trained model";
    assert!(stderr.contains(note), "{stderr}");
    let bytes = |name: &str| fs::read(workshop.path(name).join("model.safetensors")).unwrap();
    assert_eq!(bytes("plain"), bytes("original"));
    assert_ne!(bytes("plain"), bytes("exact"));
}

#[test]
fn unsupported_uses_of_quantized_weights_are_refused() {
    let workshop = Workshop::new();
    let refused = |settings: &[&str], parts: &[&str]| workshop.train(settings, &[]).refused(parts);
    refused(
        &["model.quantization=nf4", "model.use_peft=false"],
        &["model.quantization", "cannot be trained themselves"],
    );
    refused(&["lora.init_lora_weights=loftq"], &["lora.init_lora_weights", "model.quantization"]);
    let loftq = ["lora.init_lora_weights=loftq", "lora.loftq_config.loftq_iter=5"];
    refused(
        &[&NF4[..], &loftq].concat(),
        &["lora.loftq_config.loftq_iter", "is 5: each iteration", "set it to 1"],
    );
    let model = workshop.text("model");
    let fixed = ["score", "--model", &model, "--data", "x", "--output", "y"];
    let alone = run(&[&fixed[..], &["--double-quant"]].concat());
    assert_eq!(alone.status, Some(2));
    // --double-quant needs a quantization, for a base to quantize and for one that was quantized in training.
    let none = ["--quantization", "none", "--double-quant"];
    let parts = ["--double-quant: has no effect"];
    let generate = ["generate", "--model", &model, "--prompt", "x"];
    run(&[&generate[..], &none].concat()).refused(&parts);
    workshop.merge("model", "merged", &none).refused(&parts);
}

#[test]
fn a_quantized_folder_is_used_as_it_is() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    workshop.merged("again", &["--target", "requantized", "--no-measure"]);
    let base = format!("model.model_name_or_path={}", workshop.text("again"));
    let train = |settings: &[&str]| workshop.train(settings, &["--overwrite"]);
    train(&[&base, "model.quantization=fp4"])
        .refused(&["already quantized as nf4 with double_quant"]);
    let (toml, lora) = (workshop.path("run.toml"), "[lora]\nr = 3\nlora_alpha = 6\n");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace(lora, "")).unwrap();
    train(&[&base, "model.use_peft=false"]).refused(&["quantized as nf4", "use_peft"]);
    fs::write(&toml, text).unwrap();

    workshop.trained(&[&base], &["--overwrite"]);
    workshop
        .merge("again", "out", &["--target", "original", "--no-measure"])
        .refused(&["no original ones", "--target dequantized"]);
    workshop
        .merge("again", "out", &["--quantization", "fp4"])
        .refused(&["--quantization", "already say how they are quantized"]);
    let merged = workshop.merge("again", "out", &[]);
    assert_eq!(merged.status, Some(0), "{}", merged.stderr);
    assert!(!merged.stderr.contains("original "), "{}", merged.stderr);
}
