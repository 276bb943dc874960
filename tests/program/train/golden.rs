//! Compares the metrics and the adapter of `arithmo train` with golden runs of TRL and PEFT.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::model::save::{NamedTensors, load_safetensors_f32};
use serde_json::{Map, Value};

use super::{ProcessOutput, json_lines, number, program};
use crate::support;

/// A golden run, and a temporary folder with its initial adapter.
struct Golden {
    folder: PathBuf,
    config: Map<String, Value>,
    work: tempfile::TempDir,
}

impl Golden {
    /// Opens the run `GROUP/NAME`.
    fn open(path: &str) -> Option<Self> {
        let folder = support::reference(path)?;
        let config =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let work = tempfile::tempdir().unwrap();
        let start = work.path().join("start");
        fs::create_dir(&start).unwrap();
        if !folder.join("init_adapter.safetensors").exists() {
            return Some(Self { folder, config, work });
        }
        for (from, to) in [
            ("init_adapter.safetensors", "adapter_model.safetensors"),
            ("adapter_config.json", "adapter_config.json"),
        ] {
            fs::copy(folder.join(from), start.join(to)).unwrap();
        }
        Some(Self { folder, config, work })
    }

    /// Returns whether the run trains all weights instead of an adapter.
    fn trains_all(&self) -> bool {
        self.config["lora"].is_null()
    }

    fn model(&self) -> String {
        let name = self.config["model"].as_str().unwrap();
        self.folder.join("../../models").join(name).display().to_string()
    }

    fn data(&self, key: &str) -> String {
        let name = self.config[key].as_str().unwrap();
        self.folder.join(format!("../../trl/_data/{name}.jsonl")).display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.work.path().join(name).display().to_string()
    }

    /// Returns whether the adapter started with a part of the base. Its signs are free, so the run starts from the
    /// program's own initialization and not from the golden one.
    fn is_residual(&self) -> bool {
        self.config["adapter_init"] == "pissa"
    }

    /// Returns the folder with the final adapter as this program writes it.
    fn final_adapter(&self) -> PathBuf {
        if self.is_residual() { self.folder.join("converted") } else { self.folder.clone() }
    }

    /// Returns the golden run's settings with their keys in `run.toml`.
    fn settings(&self) -> Vec<String> {
        const DPO: [&str; 13] = [
            "beta",
            "loss_type",
            "loss_weights",
            "label_smoothing",
            "f_divergence_type",
            "f_alpha_divergence_coef",
            "discopop_tau",
            "ld_alpha",
            "use_weighting",
            "precompute_ref_log_probs",
            "sync_ref_model",
            "ref_model_mixup_alpha",
            "ref_model_sync_steps",
        ];
        const TRAIN: [&str; 17] = [
            "optim",
            "optim_args",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "max_steps",
            "num_train_epochs",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "eval_steps",
            "disable_dropout",
        ];
        let tables =
            [("dpo", &DPO[..]), ("train", &TRAIN), ("data", &["max_length", "truncation_mode"])];
        // TRL averages held-out metrics over batches.
        let mut settings = vec!["train.eval_means=trl".to_string()];
        for (table, keys) in tables {
            for key in keys {
                if let Some(value) = self.config["dpo"].get(key).filter(|value| !value.is_null()) {
                    settings.push(format!("{table}.{key}={value}"));
                }
            }
        }
        if let Some(Value::Object(kwargs)) = self.config["dpo"].get("lr_scheduler_kwargs") {
            for (key, value) in kwargs {
                settings.push(format!("train.lr_scheduler_kwargs.{key}={value}"));
            }
        }
        match self.config["base_precision"].as_str().unwrap() {
            "nf4dq" => settings
                .extend(["model.quantization=nf4", "model.double_quant=true"].map(String::from)),
            "nf4" => settings.push("model.quantization=nf4".into()),
            _ => {}
        }
        if self.config.contains_key("eval_dataset") {
            settings.push(format!("data.eval_file={}", self.data("eval_dataset")));
        }
        let reference = self.config["reference"].as_str().unwrap();
        let base = reference.starts_with("base") || reference.contains("RESIDUAL base");
        settings.push(format!("dpo.reference={}", if base { "base" } else { "initial" }));
        for table in ["lora", "loraplus"] {
            for (key, value) in
                self.config.get(table).and_then(Value::as_object).into_iter().flatten()
            {
                if !["task_type", "scaling"].contains(&key.as_str()) {
                    settings.push(format!("lora.{key}={}", inline_toml(value)));
                }
            }
        }
        settings
    }

    fn train(&self) -> Vec<Map<String, Value>> {
        let trained = if self.trains_all() {
            "[model]\nuse_peft = false\n".to_string()
        } else if self.is_residual() {
            "[model]\n".to_string()
        } else {
            format!("[lora]\nadapter = \"{}\"\n[model]\n", self.path("start"))
        };
        let toml = format!(
            "output_dir = \"{}\"\n{trained}model_name_or_path = \"{}\"\n[data]\ntrain_file = \"{}\"\n\
             shuffle = false\n",
            self.path("run"),
            self.model(),
            self.data("dataset"),
        );
        fs::write(self.path("run.toml"), toml).unwrap();
        let mut command = program();
        command.args(["train", "--config", &self.path("run.toml")]);
        for setting in self.settings() {
            command.args(["--set", &setting]);
        }
        let ended = ProcessOutput::new(command.output().unwrap());
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        json_lines(&self.work.path().join("run/metrics.jsonl"))
    }

    /// Compares the weights of which the golden run kept the last values: those of the policy, or their first rows, and
    /// those of a reference that follows it.
    fn check_weights(&self, worst: &mut Worst) {
        let read = |path: &Path| load_safetensors_f32(path).unwrap();
        let policy = read(&self.work.path().join("run/model/model.safetensors"));
        let reference = self.work.path().join("run/checkpoints/step-10/reference.safetensors");
        let reference = reference.exists().then(|| read(&reference));
        for (name, (_, values)) in read(&self.folder.join("final_weights_part.safetensors")) {
            let (model, name) = name.split_once('.').unwrap();
            let ours = match (model, &reference) {
                ("policy", _) => &policy,
                (_, Some(reference)) => reference,
                // The first policy, which is on disk.
                _ => continue,
            };
            let ours = &ours[name.split('[').next().unwrap()].1;
            let off = check_values(name, &ours[..values.len()], &values, 2e-4);
            worst.add("weights", f64::from(off));
        }
    }

    fn check_adapter(&self, worst: &mut Worst) {
        let read = |path: &Path| load_safetensors_f32(path).unwrap();
        let ours = read(&self.work.path().join("run/adapter/adapter_model.safetensors"));
        let theirs = read(&self.final_adapter().join("adapter_model.safetensors"));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        let [ours, theirs] = [ours, theirs]
            .map(|tensors| if self.is_residual() { with_equal_signs(tensors) } else { tensors });
        // A state in 8 bits is rounded to another code now and then.
        let optim = self.config["dpo"]["optim"].as_str().unwrap_or_default();
        let tolerance = if optim.ends_with("8bit") { 1e-3 } else { 2e-4 };
        for (name, (shape, values)) in &theirs {
            let (our_shape, our_values) = &ours[name];
            assert_eq!(our_shape, shape, "{name}");
            let off = check_values(name, our_values, values, tolerance);
            worst.add("adapter", f64::from(off));
        }
        let config = |path: PathBuf| -> Map<String, Value> {
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        let ours = config(self.work.path().join("run/adapter/adapter_config.json"));
        let theirs = config(self.final_adapter().join("adapter_config.json"));
        for key in [
            "peft_type",
            "task_type",
            "r",
            "lora_alpha",
            "lora_dropout",
            "bias",
            "use_rslora",
            "use_dora",
            "fan_in_fan_out",
        ] {
            assert_eq!(ours[key].as_bool(), theirs[key].as_bool(), "{key}");
            assert_eq!(ours[key].as_f64(), theirs[key].as_f64(), "{key}");
            assert_eq!(ours[key].as_str(), theirs[key].as_str(), "{key}");
        }
        // Keys that are absent have no effect.
        for key in [
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "lora_bias",
        ] {
            let value = |config: &Map<String, Value>| {
                let mut value = config.get(key).cloned().unwrap_or_default();
                if let Some(list) = value.as_array_mut() {
                    list.sort_by_key(Value::to_string);
                }
                if value == false { Value::Null } else { value }
            };
            assert_eq!(value(&ours), value(&theirs), "{key}");
        }
    }
}

/// Checks that two tensors differ by at most `tolerance`, and returns the largest difference.
fn check_values(name: &str, ours: &[f32], theirs: &[f32], tolerance: f32) -> f32 {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= tolerance, "{name}: off by {worst}");
    worst
}

/// Formats a value as TOML on one line. Only its tables differ from JSON.
fn inline_toml(value: &Value) -> String {
    let Value::Object(entries) = value else {
        return value.to_string();
    };
    let entries =
        entries.iter().map(|(key, value)| format!("{} = {value}", Value::from(key.as_str())));
    format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
}

/// Makes the largest value of each row of every `lora_A` positive, and changes the signs of `lora_B` to match.
fn with_equal_signs(mut tensors: NamedTensors) -> NamedTensors {
    let names: Vec<String> =
        tensors.keys().filter(|name| name.contains("lora_A")).cloned().collect();
    for name in names {
        let (shape, a) = tensors.get_mut(&name).unwrap();
        let negative = |row: &&mut [f32]| {
            let largest = row.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs()));
            largest.unwrap() < 0.0
        };
        let signs = a.chunks_mut(shape[1]).map(|row| {
            let sign = if negative(&row) { -1.0 } else { 1.0 };
            row.iter_mut().for_each(|value| *value *= sign);
            sign
        });
        let signs: Vec<f32> = signs.collect();
        let (_, b) = tensors.get_mut(&name.replace("lora_A", "lora_B")).unwrap();
        for row in b.chunks_mut(signs.len()) {
            row.iter_mut().zip(&signs).for_each(|(value, sign)| *value *= sign);
        }
    }
    tensors
}

/// The largest deviation of each quantity, relative to its tolerance where that is relative.
#[derive(Default)]
struct Worst(BTreeMap<String, f64>);

impl Worst {
    fn add(&mut self, quantity: &str, deviation: f64) {
        let worst = self.0.entry(quantity.to_string()).or_default();
        *worst = worst.max(deviation);
    }

    fn print(&self, run: &str) {
        let parts = self.0.iter().map(|(quantity, worst)| format!("{quantity} {worst:.1e}"));
        eprintln!("{run}: worst deviations: {}", parts.collect::<Vec<_>>().join(", "));
    }
}

/// Compares every key of `theirs`, within the tolerances of reference/README.md, or of README-2.md for runs of other
/// groups than `trl`, and adds the deviations to `worst`.
fn check_line(
    [group, run]: [&str; 2],
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
    worst: &mut Worst,
) {
    let step = &theirs["step"];
    let loose_loss = ["loss_sppo_hard", "fdiv_forward_kl", "fdiv_alpha0.5"].contains(&run);
    let loss_tolerance = if loose_loss { 3e-4 } else { 5e-5 };
    let (norm_tolerance, reward_tolerance) = match group {
        "trl" if loose_loss || run == "loss_discopop" => (1e-3, 2e-4),
        "trl" => (2e-4, 2e-4),
        _ => (3e-4, 5e-4),
    };
    for (key, value) in theirs.iter().filter(|(key, _)| *key != "micro") {
        let (ours, theirs) = (number(ours, key), value.as_f64().unwrap());
        let tolerance = match key.strip_prefix("eval_").unwrap_or(key) {
            "loss" => loss_tolerance * theirs.abs().max(1.0),
            "grad_norm" => norm_tolerance * theirs.abs(),
            "learning_rate" => 1e-12,
            "step" | "num_tokens" => 0.0,
            "epoch" => 1e-12,
            "entropy" => 1e-4,
            key if key.starts_with("rewards/") => reward_tolerance,
            key if key.starts_with("logps/") && run == "trdpo_sync_ref" => 1e-2,
            key if key.starts_with("logps/") => 2e-3,
            key if key.starts_with("logits/") => 1e-5,
            "mean_token_accuracy" => 1e-6,
            other => panic!("no tolerance for {other}"),
        };
        let off = (ours - theirs).abs();
        let scale = match key.as_str() {
            "loss" | "eval_loss" => theirs.abs().max(1.0),
            "grad_norm" => theirs.abs(),
            _ => 1.0,
        };
        worst.add(key.split('/').next().unwrap(), off / scale);
        assert!(
            off <= tolerance,
            "{run} step {step} {key}: got {ours}, expected {theirs} (off by {off:e})"
        );
    }
}

/// Replays the run `trl/NAME`.
fn replay(name: &str) {
    replay_run("trl", name);
}

/// Replays the run `GROUP/NAME`.
fn replay_run(group: &str, name: &str) {
    let Some(golden) = Golden::open(&format!("{group}/{name}")) else {
        return;
    };
    let lines = golden.train();
    let (evaluations, steps): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|line| line.contains_key("eval_loss"));
    let trace = json_lines(&golden.folder.join("trace.jsonl"));
    assert_eq!(steps.len(), trace.len(), "{name}");
    let mut worst = Worst::default();
    for (ours, theirs) in steps.iter().zip(&trace) {
        check_line([group, name], ours, theirs, &mut worst);
    }
    let expected = golden.folder.join("eval.jsonl");
    let expected = if expected.is_file() { json_lines(&expected) } else { Vec::new() };
    assert_eq!(evaluations.len(), expected.len(), "{name}");
    for (ours, theirs) in evaluations.iter().zip(&expected) {
        check_line([group, name], ours, theirs, &mut worst);
    }
    if golden.trains_all() {
        golden.check_weights(&mut worst);
    } else {
        golden.check_adapter(&mut worst);
    }
    worst.print(name);
}

#[test]
fn sigmoid() {
    replay("loss_sigmoid");
}

#[test]
fn evaluation() {
    replay("with_eval");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn dropped_pairs_and_partial_accumulation() {
    replay("dropped_and_partial_accum");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn continued_adapter() {
    replay("a_continue_adapter");
}

/// Replays golden runs of the full set whose names begin with `prefix`, and returns how many there are.
fn replay_all(prefix: &str) -> usize {
    let Some(folder) = support::shared("reference/trl") else { return 0 };
    let names = support::file_names(&folder).into_iter().filter(|name| name.starts_with(prefix));
    let names: Vec<String> = names.collect();
    names.iter().for_each(|name| replay(name));
    names.len()
}

/// Every loss type of TRL 1.16, alone and in a weighted list.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn losses() {
    assert!([0, 22].contains(&replay_all("loss_")));
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn divergences() {
    assert!([0, 5].contains(&replay_all("fdiv_")));
}

/// The optimizers of torch and bitsandbytes, with weight decay and with arguments.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn optimizers() {
    for name in [
        "adafactor",
        "adagrad",
        "adamw_32bit_r64_control",
        "adamw_8bit",
        "adamw_bnb_8bit",
        "adamw_torch_fused",
        "adamw_torch_wd",
        "ademamix",
        "lion_32bit",
        "lion_8bit",
        "paged_adamw_32bit",
        "rmsprop",
        "rmsprop_args",
        "sgd",
        "sgd_momentum",
    ] {
        replay_run("optim", name);
    }
}

#[test]
fn ranks_and_alphas_of_single_projections() {
    replay_run("adapter", "rank_alpha_pattern");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn ranks_and_alphas_with_rslora() {
    replay_run("adapter", "rank_alpha_pattern_rslora");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn lora_plus() {
    replay_run("adapter", "loraplus_ratio16");
    // With magnitudes, which have the faster rate and decay.
    replay_run("adapter", "loraplus_ratio4_wd");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn modules_trained_in_full() {
    replay_run("adapter", "modules_to_save_layernorms_embed");
    replay_run("adapter", "modules_to_save_lm_head");
}

#[test]
fn norms_trained_in_full() {
    replay_run("adapter", "modules_to_save_norm");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn biases_of_lora_b() {
    replay_run("adapter", "lora_bias");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn choices_of_modules_and_layers() {
    for name in [
        "exclude_modules_b",
        "exclude_modules_list",
        "layers_to_transform_b",
        "target_regex_b",
        "bias_lora_only",
    ] {
        replay_run("adapter", name);
    }
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn schedules() {
    for name in
        ["sched_cosine_warmup_with_min_lr", "sched_cosine_with_min_lr", "sched_warmup_stable_decay"]
    {
        replay_run("optim", name);
    }
}

/// All weights are trained; in the second run the reference follows the policy.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn all_weights_and_a_reference_that_follows() {
    replay_run("control", "full_finetune");
    replay_run("control", "trdpo_sync_ref");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn weighted_tokens_and_pairs() {
    replay("ld_alpha0.5");
    replay("wpo_weighting");
}

#[test]
fn batches_and_a_sliding_window() {
    replay("b_batch4_accum1");
}

#[test]
fn rank_stabilized_lora() {
    replay("lora_rslora");
}

#[test]
fn weight_decomposed_lora() {
    replay("lora_dora");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn weight_decomposed_lora_on_all_projections_and_continued() {
    replay("lora_dora_all_linear_b");
    replay_run("adapter", "dora_all_linear_r4");
    replay_run("adapter", "dora_continue");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn weight_decomposed_lora_with_ranks_of_single_projections() {
    replay_run("adapter", "dora_rslora_pattern_b");
}

#[test]
fn principal_singular_values() {
    replay_run("adapter", "pissa");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn initializations_that_take_a_part_of_the_base() {
    replay_run("adapter", "pissa_all_linear_b_rslora");
    replay_run("adapter", "init_olora");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn gaussian_initialization() {
    replay_run("adapter", "init_gaussian");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn precomputed_reference() {
    replay("precompute_ref");
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn quantized_base() {
    replay("nf4_dequantised_base");
    replay("nf4_double_quant_base");
}

/// Compares the scores of eight pairs, with and without the initial adapter, with the first two steps of a golden run.
/// With warmup, these steps use the initial weights.
#[test]
fn scores() {
    let Some(golden) = Golden::open("trl/loss_sigmoid") else {
        return;
    };
    let score = |output: &str, further: &[&str]| {
        let (model, data, output) = (golden.model(), golden.data("dataset"), golden.path(output));
        let fixed = [
            "score",
            "--model",
            &model,
            "--data",
            &data,
            "--output",
            &output,
            "--max-length",
            "192",
        ];
        let ended = ProcessOutput::new(program().args(fixed).args(further).output().unwrap());
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        json_lines(Path::new(&output))
    };
    let policy = score("policy.jsonl", &["--adapter", &golden.path("start"), "--per-token"]);
    let base = score("base.jsonl", &["--batch-size", "7"]);
    let trace = json_lines(&golden.folder.join("trace.jsonl"));
    assert_eq!(policy.len(), 48);
    for pair in 0..8 {
        let micro = &trace[pair / 4]["micro"];
        for side in ["chosen", "rejected"] {
            let at = |key: &str| micro[&format!("{key}/{side}")][pair % 4].as_f64().unwrap();
            let key = format!("logps/{side}");
            let policy_logp = number(&policy[pair], &key);
            assert!((policy_logp - at("logps")).abs() < 2e-3, "{pair} {side}");
            let base_logp = at("logps") - at("rewards") / 0.1;
            assert!((number(&base[pair], &key) - base_logp).abs() < 4e-3, "{pair} {side}");
            // Golden ids are not truncated to max_length, which TRL's collator does later.
            let whole = &golden.config["samples"][pair][&format!("{side}_ids")];
            let ours = policy[pair][&format!("token_ids/{side}")].as_array().unwrap();
            assert_eq!(ours[..], whole.as_array().unwrap()[..ours.len()], "{pair} {side}");
        }
    }
}
