//! Runs on a packed base: trained, stopped and resumed, scored, merged; what is noted, and what is refused.

use std::fs;
use std::path::Path;

use arithmo::model::config::MistralConfig;
use serde_json::Value;

use super::{Ended, STEPS, Workshop, json_lines, metrics, number, program};

const NF4: [&str; 2] = ["model.quantization=nf4", "model.double_quant=true"];

/// [`NF4`] on the command line.
const NF4_FLAGS: [&str; 3] = ["--quantization", "nf4", "--double-quant"];

/// `arithmo ARGUMENTS`.
fn run(arguments: &[&str]) -> Ended {
    Ended::of(program().args(arguments).output().unwrap())
}

/// `arithmo ARGUMENTS`, which must succeed.
fn succeeds(arguments: &[&str]) -> Ended {
    let ended = run(arguments);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended
}

impl Workshop {
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What `score` says of the pairs under the model `name`: the chosen sides, and the messages.
    fn scores(&self, name: &str, flags: &[&str]) -> (Vec<f64>, String) {
        let (model, data) = (self.text(name), self.text("pairs.jsonl"));
        let output = self.text("scores.jsonl");
        let fixed = ["score", "--model", &model, "--data", &data, "--output", &output];
        let ended = succeeds(&[&fixed[..], flags].concat());
        let scores = json_lines(Path::new(&output)).into_iter();
        let chosen = scores.map(|pair| number(&pair, "logps/chosen"));
        (chosen.collect(), ended.stderr)
    }

    /// Merges the run's adapter into `model`, to `output`.
    fn merge(&self, model: &str, output: &str, flags: &[&str]) -> Ended {
        let (model, output) = (self.text(model), self.text(output));
        let adapter = self.text("run/adapter");
        let fixed = ["merge", "--model", &model, "--adapter", &adapter, "--output", &output];
        run(&[&fixed[..], flags].concat())
    }

    /// As [`Self::merge`] into the run's base, which must succeed; returns the messages.
    fn merged(&self, output: &str, flags: &[&str]) -> String {
        let ended = self.merge("model", output, flags);
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stdout, format!("{}\n", self.text(output)));
        ended.stderr
    }
}

#[test]
fn a_resumed_run_on_a_packed_base_equals_the_whole_one() {
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
    let examples = rows.collect::<String>();
    fs::write(workshop.path("examples.jsonl"), examples).unwrap();
    let file = format!("data.train_file={}", workshop.text("examples.jsonl"));
    workshop.trained(&[NF4[0], "method=sft", &file], &[]);
    let lines = metrics(&workshop.path("run"));
    let (first, last) = (&lines[0], &lines[STEPS - 1]);
    assert!(number(last, "loss") < number(first, "loss"), "{last:?}");
}

/// Scores under the adapter are the run's own on the packed base, others on the full one, and the difference is noted.
#[test]
fn an_adapter_notes_what_its_base_was_packed_as() {
    let workshop = Workshop::new();
    workshop.trained(&[&NF4[..], &["data.shuffle=false"]].concat(), &[]);
    let noted = fs::read(workshop.path("run/adapter/base_quantization.json")).unwrap();
    let noted: Value = serde_json::from_slice(&noted).unwrap();
    let expected = serde_json::json!({"quantization": "nf4", "double_quant": true});
    assert_eq!(noted, expected);

    // The first step's three pairs of batches see the weights before any change.
    let (base, _) = workshop.scores("model", &NF4_FLAGS);
    let first = &metrics(&workshop.path("run"))[0];
    let mean = base[..6].iter().sum::<f64>() / 6.0;
    assert!((mean - number(first, "logps/chosen")).abs() < 1e-3, "{mean}");

    let adapter = workshop.text("run/adapter");
    let adapter = ["--adapter", adapter.as_str()];
    let (trained, stderr) = workshop.scores("model", &[&adapter[..], &NF4_FLAGS].concat());
    assert!(!stderr.contains("note: "), "{stderr}");
    let (on_full, stderr) = workshop.scores("model", &adapter);
    let note = "trained on a base in nf4, and is used on one in full";
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

/// Of a target's line: change of log-probabilities, KL, equal answers, answers, and whether it was written.
fn measured(stderr: &str, target: &str) -> (f64, f64, f64, f64, bool) {
    let line = stderr.lines().find(|line| line.starts_with(target)).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| words[index].parse::<f64>().unwrap();
    let written = words.contains(&"<-");
    (number(1), number(2), number(3), number(5), written)
}

#[test]
fn merging_a_run_on_a_packed_base_says_what_each_target_changes() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    let stderr = workshop.merged("merged", &[]);
    let head = "the base in nf4 with its adapter, on 7 texts of the run";
    assert!(stderr.contains(head), "{stderr}");
    let (log_prob, kl, same, answers, written) = measured(&stderr, "dequantized");
    assert!(log_prob < 1e-5 && kl < 1e-5 && same == answers && written, "{stderr}");
    for target in ["original", "requantized"] {
        let (log_prob, kl, _, of, written) = measured(&stderr, target);
        assert!(log_prob > 1e-3 && kl > 1e-6 && of == answers && !written, "{stderr}");
    }

    // What is written is what was trained.
    let adapter = workshop.text("run/adapter");
    let adapted = [&["--adapter", adapter.as_str()][..], &NF4_FLAGS].concat();
    let (trained, _) = workshop.scores("model", &adapted);
    let (merged, _) = workshop.scores("merged", &[]);
    for (merged, trained) in merged.iter().zip(&trained) {
        assert!((merged - trained).abs() < 1e-3, "{merged} {trained}");
    }
}

#[test]
fn each_target_is_written_where_it_is_asked_for() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    let data = workshop.text("held-out.jsonl");
    let stderr = workshop.merged("again", &["--target", "requantized", "--data", &data]);
    assert!(stderr.contains("texts of --data"), "{stderr}");
    assert!(measured(&stderr, "requantized").4, "{stderr}");
    let config = MistralConfig::load(&workshop.path("again")).unwrap();
    assert!(config.quantization.unwrap().double_quant);
    assert_eq!(workshop.scores("again", &[]).0.len(), 14);

    let stderr = workshop.merged("plain", &["--quantization", "none"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    let stderr = workshop.merged("original", &["--target", "original", "--no-measure"]);
    assert!(!stderr.contains("against the base"), "{stderr}");
    workshop.merged("exact", &["--no-measure"]);
    let bytes = |name: &str| fs::read(workshop.path(name).join("model.safetensors")).unwrap();
    assert_eq!(bytes("plain"), bytes("original"));
    assert_ne!(bytes("plain"), bytes("exact"));
}

#[test]
fn what_packed_weights_cannot_do_is_refused() {
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
    // Scales of nothing, where something is to be packed and where it is said that it was.
    let none = ["--quantization", "none", "--double-quant"];
    let parts = ["--double-quant: has no effect"];
    let generate = ["generate", "--model", &model, "--prompt", "x"];
    run(&[&generate[..], &none].concat()).refused(&parts);
    workshop.merge("model", "merged", &none).refused(&parts);
}

#[test]
fn a_folder_that_is_packed_already_is_used_as_it_is() {
    let workshop = Workshop::new();
    workshop.trained(&NF4, &[]);
    workshop.merged("again", &["--target", "requantized", "--no-measure"]);
    let base = format!("model.model_name_or_path={}", workshop.text("again"));
    let train = |settings: &[&str]| workshop.train(settings, &["--overwrite"]);
    train(&[&base, "model.quantization=fp4"]).refused(&["packed as nf4 with double_quant already"]);
    let (toml, lora) = (workshop.path("run.toml"), "[lora]\nr = 3\nlora_alpha = 6\n");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, text.replace(lora, "")).unwrap();
    train(&[&base, "model.use_peft=false"]).refused(&["packed as nf4", "use_peft"]);
    fs::write(&toml, text).unwrap();

    workshop.trained(&[&base], &["--overwrite"]);
    workshop
        .merge("again", "out", &["--target", "original", "--no-measure"])
        .refused(&["no original ones", "--target dequantized"]);
    workshop
        .merge("again", "out", &["--quantization", "fp4"])
        .refused(&["--quantization", "packed"]);
    let merged = workshop.merge("again", "out", &[]);
    assert_eq!(merged.status, Some(0), "{}", merged.stderr);
    assert!(!merged.stderr.contains("original "), "{}", merged.stderr);
}
