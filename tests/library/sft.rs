//! Tests of full supervised fine-tuning: ten steps against torch, and a resumed run from random weights to a model
//! folder. tests/gradients/full.rs compares its gradients with finite differences.

use std::fs;
use std::path::Path;

use arithmo::config::RunConfig;
use arithmo::data::encode::{EncodedExample, EncodedSequence};
use arithmo::model::config::DecoderConfig;
use arithmo::model::load::load;
use arithmo::model::weights::WeightFiles;
use arithmo::objective::sft::Sft;
use arithmo::progress::ProgressMode;
use arithmo::train::activations::Activations;
use arithmo::train::folder::Existing;
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::parameters::{train_all, trained_parameters};
use arithmo::train::run::{RunOptions, run};
use arithmo::train::step::{Learner, StepConfig};
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn_ndarray::NdArray;
use serde_json::Value;

use crate::support::{json_file, json_lines};
use crate::tiny::fixture;

type B = NdArray<f32>;

fn examples(golden: &Value) -> Vec<EncodedExample> {
    let list = golden["examples"].as_array().unwrap().iter().enumerate();
    list.map(|(index, example)| EncodedExample {
        id: index.to_string(),
        sequence: EncodedSequence {
            ids: serde_json::from_value(example["ids"].clone()).unwrap(),
            completion_start: example["completion_start"].as_u64().unwrap() as usize,
            hidden: Vec::new(),
        },
        unscored: Vec::new(),
    })
    .collect()
}

#[track_caller]
fn assert_near(what: &str, ours: f64, theirs: &Value, tolerance: f64) {
    let theirs = theirs.as_f64().unwrap();
    let near = (ours - theirs).abs() <= tolerance * theirs.abs().max(1.0);
    assert!(near, "{what}: {ours}, torch {theirs}");
}

/// Compares loss, gradient norm, metrics and final weights with those of `tests/fixtures/sft/make.py`, which uses f32
/// too.
#[test]
fn ten_steps_equal_torchs() {
    let (golden, device) = (json_file(&fixture("sft/golden.json")), Default::default());
    let examples = examples(&golden);
    for (pass_tokens, activations) in [(4096, Activations::Keep), (24, Activations::Recompute)] {
        let policy = load::<Autodiff<B>>(&fixture("sft/model"), DType::F32, &device).unwrap();
        let setting = |name: &str| golden["settings"][name].as_f64().unwrap();
        let optimizer = Optimizer::new(AdamW {
            beta1: setting("beta1"),
            beta2: setting("beta2"),
            epsilon: setting("epsilon"),
            weight_decay: setting("weight_decay"),
        });
        let config = StepConfig {
            max_grad_norm: Some(setting("max_grad_norm")),
            activations,
            pass_tokens,
            dropout_seed: None,
        };
        let mut learner = Learner::new(train_all(policy), optimizer, Sft, config, &device);
        let micro: Vec<Vec<usize>> =
            serde_json::from_value(golden["micro_batches"].clone()).unwrap();
        let batches: Vec<Vec<&EncodedExample>> = micro
            .iter()
            .map(|batch| batch.iter().map(|index| &examples[*index]).collect())
            .collect();
        for (step, expected) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let output = learner.step(step, setting("learning_rate"), &batches);
            assert!(output.applied);
            let what = format!("step {step}");
            assert_near(&what, output.loss, &expected["loss"], 2e-5);
            assert_near(&what, output.grad_norm, &expected["grad_norm"], 1e-4);
            for (ours, theirs) in
                output.micro_batches.iter().zip(expected["micro_batches"].as_array().unwrap())
            {
                for (key, value) in ours.values() {
                    assert_near(&format!("{what}: {key}"), value, &theirs[&key], 2e-5);
                }
            }
        }
        for parameter in trained_parameters(&learner.policy) {
            let (name, weight) = (parameter.name, parameter.value);
            let theirs = golden["weights_after"][&name].as_array().unwrap();
            let ours: Vec<f32> = weight.into_data().to_vec().unwrap();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert_near(&name, f64::from(*ours), theirs, 2e-4);
            }
        }
    }
}

/// Writes a model's configuration and tokenizer and a training file. Returns the text of `run.toml`.
fn write_inputs(folder: &Path) -> String {
    let model = folder.join("model");
    fs::create_dir_all(&model).unwrap();
    let shape = DecoderConfig::load(&fixture("sft/model")).unwrap();
    let shape = DecoderConfig { vocab_size: 512, max_position_embeddings: 128, ..shape };
    shape.save(&model).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tokenizer/byte-level").join(name), model.join(name)).unwrap();
    }
    let line =
        |n: usize| format!("{{\"prompt\": \"{n} + 1 =\", \"completion\": \" {}\"}}\n", n + 1);
    fs::write(folder.join("train.jsonl"), (0..20).map(line).collect::<String>()).unwrap();
    let path = |name: &str| toml::Value::String(folder.join(name).display().to_string());
    format!(
        "output_dir = {}\nmethod = \"sft\"\n[model]\nmodel_name_or_path = {}\nuse_peft = false\nfrom_scratch = true\n\
         [data]\ntrain_file = {}\neval_file = {}\n[train]\nper_device_train_batch_size = 3\n\
         gradient_accumulation_steps = 2\nlearning_rate = 0.02\nwarmup_steps = 2\nmax_steps = 9\nsave_steps = 4\n\
         save_total_limit = 0\nweight_decay = 0.1\n",
        path("run"),
        path("model"),
        path("train.jsonl"),
        path("train.jsonl"),
    )
}

fn start(folder: &Path, existing: Existing) -> arithmo::Result<()> {
    let config = RunConfig::load(&folder.join("run.toml"), &[])?;
    let options = RunOptions { existing, dry_run: false, progress: ProgressMode::Quiet };
    let summary = run::<B>(&config, &options, &Default::default())?;
    assert_eq!(summary.output, Some(folder.join("run/model")));
    Ok(())
}

#[test]
fn a_run_from_random_weights_learns_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("run.toml"), write_inputs(folder)).unwrap();
    start(folder, Existing::Refuse).unwrap();
    let metrics = || json_lines(&folder.join("run/metrics.jsonl"));
    let lines = metrics();
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 9);
    assert!((losses[0] - 512f64.ln()).abs() < 0.5, "{losses:?}");
    assert!(losses[8] < losses[0] - 1.0, "{losses:?}");
    let last = lines.last().unwrap();
    assert!(last["eval_loss"].as_f64().unwrap() < losses[0], "{last}");
    for key in ["mean_token_accuracy", "entropy", "num_tokens", "grad_norm", "learning_rate"] {
        assert!(lines[0][key].is_number(), "{key}: {}", lines[0]);
    }
    // The model's folder is complete and has the tokenizer.
    let model = folder.join("run/model");
    let files = WeightFiles::open(&model).unwrap();
    files.check(&DecoderConfig::load(&model).unwrap().tensors()).unwrap();
    assert!(model.join("tokenizer.json").is_file());
    let weights = fs::read(model.join("model.safetensors")).unwrap();

    // Restore the state of a run that was killed after step 4.
    for name in ["checkpoints/step-8", "checkpoints/step-9", "model"] {
        fs::remove_dir_all(folder.join("run").join(name)).unwrap();
    }
    start(folder, Existing::Resume).unwrap();
    assert!(fs::read(model.join("model.safetensors")).unwrap() == weights);
    let again: Vec<f64> = metrics().iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(again, losses);
}

#[test]
fn contradictory_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = write_inputs(folder);
    for (change, message) in [
        ("[lora]\nr = 8\n", "use_peft is false"),
        ("[dpo]\nbeta = 0.2\n", "method is \"sft\""),
        ("[data]\ncompat = \"trl-0.7.4\"\n", "data.compat"),
        ("[model]\ndtype = \"bf16\"\n", "model.dtype"),
        ("[model]\nuse_peft = true\n", "model.from_scratch"),
    ] {
        let (header, key) = change.split_once('\n').unwrap();
        let name = key.split(' ').next().unwrap();
        let kept = text.lines().filter(|line| !line.starts_with(&format!("{name} =")));
        let mut lines: Vec<String> = kept.map(String::from).collect();
        match lines.iter().position(|line| line == header) {
            Some(at) => lines.insert(at + 1, key.to_string()),
            None => lines.push(change.to_string()),
        }
        fs::write(folder.join("run.toml"), lines.join("\n")).unwrap();
        let error = start(folder, Existing::Refuse).unwrap_err().to_string();
        assert!(error.contains(message), "{change}: {error}");
    }
}
