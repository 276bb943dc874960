//! Compares the metrics and the adapter of `arithmo train` with golden runs of TRL and PEFT.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arithmo::model::save::{NamedTensors, load_safetensors_f32};
use serde_json::{Map, Value};

use super::{ProcessOutput, json_lines, number, program};
use crate::support;

/// A golden run, and a temporary folder with its initial adapter.
pub(super) struct Golden {
    pub(super) folder: PathBuf,
    pub(super) config: Map<String, Value>,
    work: tempfile::TempDir,
    /// The largest deviation of each quantity.
    worst: RefCell<BTreeMap<String, f64>>,
}

impl Golden {
    /// Opens the run `GROUP/NAME`.
    pub(super) fn open(path: &str) -> Option<Self> {
        let folder = support::reference(path)?;
        let config: Map<String, Value> =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let work = tempfile::tempdir().unwrap();
        if !config["lora"].is_null() {
            let start = work.path().join("start");
            fs::create_dir(&start).unwrap();
            for (from, to) in [
                ("init_adapter.safetensors", "adapter_model.safetensors"),
                ("adapter_config.json", "adapter_config.json"),
            ] {
                fs::copy(folder.join(from), start.join(to)).unwrap();
            }
        }
        Some(Self { folder, config, work, worst: RefCell::default() })
    }

    /// Returns whether the run trains all weights instead of an adapter.
    fn trains_all(&self) -> bool {
        self.config["lora"].is_null()
    }

    fn model(&self) -> String {
        let name = self.config["model"].as_str().unwrap();
        self.folder.join("../../models").join(name).display().to_string()
    }

    /// Returns the path of a data file.
    fn data(&self, key: &str) -> String {
        let name = self.config[key].as_str().unwrap();
        let file = |name: &str| {
            let [own, common] =
                ["..", "../../trl"].map(|group| self.folder.join(group).join("_data").join(name));
            if own.exists() { own } else { common }
        };
        // `pairs_24` are the first 24 of `pairs`.
        let Some(count) = name.strip_prefix("pairs_").and_then(|count| count.parse().ok()) else {
            return file(&format!("{name}.jsonl")).display().to_string();
        };
        let text = fs::read_to_string(file("pairs.jsonl")).unwrap();
        let first: Vec<&str> = text.lines().take(count).collect();
        fs::write(self.work.path().join("first.jsonl"), first.join("\n") + "\n").unwrap();
        self.path("first.jsonl")
    }

    /// Returns the method of the run; its settings have the key of this name.
    pub(super) fn method(&self) -> &str {
        self.config.get("trainer").map_or("dpo", |trainer| trainer.as_str().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> String {
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
        const METHOD: [&str; 18] = [
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
            "desirable_weight",
            "undesirable_weight",
            "cpo_alpha",
            "simpo_gamma",
            "alpha",
        ];
        const TRAIN: [&str; 25] = [
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
            "eval_strategy",
            "eval_steps",
            "eval_on_start",
            "eval_delay",
            "save_strategy",
            "save_steps",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "disable_dropout",
        ];
        let (method, given) = (self.method(), &self.config[self.method()]);
        let tables = [
            (method, &METHOD[..]),
            ("train", &TRAIN),
            ("data", &["max_length", "truncation_mode"]),
        ];
        // TRL averages held-out metrics over batches.
        let mut settings = vec!["train.eval_means=trl".to_string(), format!("method={method}")];
        // A number of steps has no effect on other strategies, which is an error here.
        let unused = |key: &str| {
            let strategy = key.strip_suffix("_steps").map(|name| format!("{name}_strategy"));
            let strategy = strategy.and_then(|name| given.get(&name));
            strategy.is_some_and(|strategy| strategy != "steps")
        };
        for (table, keys) in tables {
            for key in keys {
                let value = given.get(key).filter(|value| !value.is_null());
                if let Some(value) = value.filter(|_| !unused(key)) {
                    settings.push(format!("{table}.{key}={value}"));
                }
            }
        }
        if let Some(Value::Object(kwargs)) = given.get("lr_scheduler_kwargs") {
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
        // 0 keeps all checkpoints.
        let limit = given.get("save_total_limit").and_then(Value::as_u64);
        settings.push(format!("train.save_total_limit={}", limit.unwrap_or(0)));
        if let Some(Value::Object(stopping)) = self.config.get("early_stopping") {
            for (key, value) in stopping {
                settings.push(format!("train.{key}={value}"));
            }
        }
        if self.config["lora"].is_null() {
            settings.push("model.use_peft=false".into());
            return settings;
        }
        if !self.is_residual() {
            settings.push(format!("lora.adapter={}", self.path("start")));
        }
        let reference = self.config["reference"].as_str().unwrap();
        if !reference.starts_with("none") {
            let base = reference.starts_with("base") || reference.contains("RESIDUAL base");
            let reference = if base { "base" } else { "initial" };
            settings.push(format!("{method}.reference={reference}"));
        }
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

    /// Trains like the golden run, with these settings in addition, and returns the logged lines.
    pub(super) fn train(&self, further: &[&str]) -> Vec<Map<String, Value>> {
        let toml = format!(
            "output_dir = \"{}\"\n[model]\nmodel_name_or_path = \"{}\"\n[data]\ntrain_file = \"{}\"\n\
             shuffle = false\n",
            self.path("run"),
            self.model(),
            self.data("dataset"),
        );
        fs::write(self.path("run.toml"), toml).unwrap();
        let mut command = program();
        command.args(["train", "--config", &self.path("run.toml")]);
        for setting in self.settings().iter().map(String::as_str).chain(further.iter().copied()) {
            command.args(["--set", setting]);
        }
        let ended = ProcessOutput::new(command.output().unwrap());
        assert_eq!(ended.status, Some(0), "{}", ended.stderr);
        assert!(!ended.stderr.contains("alarm:"), "{}", ended.stderr);
        json_lines(&self.work.path().join("run/metrics.jsonl"))
    }

    /// Records the deviation of a quantity.
    fn add(&self, quantity: &str, deviation: f64) {
        let mut worst = self.worst.borrow_mut();
        let worst = worst.entry(quantity.to_string()).or_default();
        *worst = worst.max(deviation);
    }

    /// Returns the largest deviation of a quantity.
    pub(super) fn worst(&self, quantity: &str) -> f64 {
        self.worst.borrow().get(quantity).copied().unwrap_or_default()
    }

    /// Prints the largest deviation of each quantity, relative to its tolerance where that is relative.
    pub(super) fn print_worst(&self) {
        let worst = self.worst.borrow();
        let parts = worst.iter().map(|(quantity, worst)| format!("{quantity} {worst:.1e}"));
        let name = self.config["name"].as_str().unwrap();
        eprintln!("{name}: worst deviations: {}", parts.collect::<Vec<_>>().join(", "));
    }

    /// Compares the weights of which the golden run kept the last values: those of the policy, or their first rows, and
    /// those of a reference that follows it.
    pub(super) fn check_weights(&self) {
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
            self.add("weights", f64::from(off));
        }
    }

    /// Trains and compares every line of the log.
    pub(super) fn check_metrics(&self, tolerances: Tolerances) {
        let name = self.config["name"].as_str().unwrap();
        let lines = self.train(&[]);
        let (evaluations, steps): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.contains_key("eval_loss"));
        for (ours, file) in [(steps, "trace.jsonl"), (evaluations, "eval.jsonl")] {
            let file = self.folder.join(file);
            let theirs = if file.is_file() { json_lines(&file) } else { Vec::new() };
            assert_eq!(ours.len(), theirs.len(), "{name}: {}", file.display());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                for (key, off) in check_line(name, ours, theirs, tolerances) {
                    self.add(&key, off);
                }
            }
        }
    }

    /// Compares the tensors of a file in the run's folder with a golden one, of which the run may have more.
    pub(super) fn check_tensors(&self, ours: &str, theirs: &str, tolerance: f32) {
        let read = |path: &Path| load_safetensors_f32(path).unwrap();
        let ours = read(&self.work.path().join("run").join(ours));
        let theirs = read(&self.folder.join(theirs));
        let [ours, theirs] = [ours, theirs]
            .map(|tensors| if self.is_residual() { with_equal_signs(tensors) } else { tensors });
        for (name, (shape, values)) in &theirs {
            let (our_shape, our_values) = &ours[name];
            assert_eq!(our_shape, shape, "{name}");
            self.add("weights", f64::from(check_values(name, our_values, values, tolerance)));
        }
    }

    /// Compares the adapter with the golden one: every weight and the configuration.
    pub(super) fn check_adapter(&self, tolerance: f32) {
        let file = "adapter_model.safetensors";
        let folder = if self.is_residual() { "converted/" } else { "" };
        self.check_tensors(&format!("adapter/{file}"), &format!("{folder}{file}"), tolerance);
        let keys = |path: &Path| load_safetensors_f32(path).unwrap().into_keys();
        let ours: Vec<String> = keys(&self.work.path().join("run/adapter").join(file)).collect();
        assert!(ours.into_iter().eq(keys(&self.final_adapter().join(file))), "other tensors");
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

/// The largest deviations that are allowed. Those of logits, entropy and accuracy are the same for all runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerances {
    /// Of the loss, times max(1, loss).
    pub(super) loss: f64,
    /// Of the gradient norm, relative.
    pub(super) grad_norm: f64,
    /// Of rewards and margins.
    pub(super) rewards: f64,
    /// Of log-probabilities. `None` if they, logits, entropy and accuracy are not compared.
    pub(super) logps: Option<f64>,
}

impl Tolerances {
    /// Returns the tolerances of the run `group/run`: those of reference/README.md for `trl`, of README-2.md for others.
    fn of(group: &str, run: &str) -> Self {
        let is_trl = group.ends_with("trl");
        let loose_loss = ["loss_sppo_hard", "fdiv_forward_kl", "fdiv_alpha0.5"].contains(&run);
        Self {
            loss: if loose_loss { 3e-4 } else { 5e-5 },
            grad_norm: match run {
                _ if !is_trl => 3e-4,
                "loss_discopop" => 1e-3,
                _ if loose_loss => 1e-3,
                _ => 2e-4,
            },
            rewards: if is_trl { 2e-4 } else { 5e-4 },
            logps: Some(if run == "trdpo_sync_ref" { 1e-2 } else { 2e-3 }),
        }
    }
}

/// Returns the fraction of micro-batches of a golden line whose margin is at most `tolerance`, and so zero up to rounding. Their
/// accuracy may be another one.
fn ties(line: &Map<String, Value>, tolerance: f64) -> f64 {
    let margins = line.get("micro").and_then(|micro| micro["rewards/margins"].as_array());
    let margins: Vec<f64> = margins.into_iter().flatten().filter_map(Value::as_f64).collect();
    let ties = margins.iter().filter(|margin| margin.abs() <= tolerance).count();
    ties as f64 / margins.len().max(1) as f64
}

/// Compares every key of `theirs`, within the tolerances of reference/README.md. Returns the deviation of each key, relative to
/// its tolerance where that is relative.
pub(super) fn check_line(
    run: &str,
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
    tolerances: Tolerances,
) -> Vec<(String, f64)> {
    let (step, mut deviations) = (&theirs["step"], Vec::new());
    let line = theirs;
    for (key, value) in theirs.iter().filter(|(key, _)| *key != "micro") {
        let (ours, theirs) = (number(ours, key), value.as_f64().unwrap());
        let name = key.strip_prefix("eval_").unwrap_or(key);
        let (tolerance, unit) = match name {
            "loss" => (tolerances.loss, theirs.abs().max(1.0)),
            "grad_norm" => (tolerances.grad_norm, theirs.abs()),
            "learning_rate" | "epoch" => (1e-12, 1.0),
            "step" | "num_tokens" => (0.0, 1.0),
            "rewards/accuracies" => (ties(line, tolerances.rewards).max(tolerances.rewards), 1.0),
            name if name.starts_with("rewards/") => (tolerances.rewards, 1.0),
            _ if tolerances.logps.is_none() => continue,
            "entropy" => (1e-4, 1.0),
            name if name.starts_with("logps/") => (tolerances.logps.unwrap(), 1.0),
            name if name.starts_with("logits/") => (1e-5, 1.0),
            "mean_token_accuracy" => (1e-6, 1.0),
            other => panic!("no tolerance for {other}"),
        };
        let off = (ours - theirs).abs();
        assert!(
            off <= tolerance * unit,
            "{run} step {step} {key}: got {ours}, expected {theirs} (off by {off:e})"
        );
        let group = name.split('/').next().unwrap();
        if name == "rewards/accuracies" {
            continue;
        }
        deviations.push((group.to_string(), if unit > 0.0 { off / unit } else { off }));
    }
    deviations
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
    let loose = golden.config[golden.method()]["optim"]
        .as_str()
        .is_some_and(|optim| optim.ends_with("8bit"));
    golden.check_metrics(Tolerances::of(group, name));
    if golden.trains_all() {
        golden.check_weights();
    } else {
        // A state in 8 bits is rounded to another code now and then.
        golden.check_adapter(if loose { 1e-3 } else { 2e-4 });
    }
    golden.print_worst();
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

/// Learning rates, batches, truncation, target modules, clipping and decay.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn plain_settings() {
    for name in [
        "a_sigmoid_lr5e-3",
        "a_sigmoid_lr5e-3_nonzero_b",
        "a_sigmoid_lr5e-5",
        "b_all_linear_lr5e-5",
        "b_sigmoid_lr5e-3",
        "b_sigmoid_lr5e-3_nonzero_b",
        "b_sigmoid_lr5e-5",
        "batch2_accum2",
        "batch4_accum1",
        "keep_end_truncation",
        "lora_all_linear",
        "lora_attention_r4",
        "lora_dropout0.5_is_disabled",
        "max_length96",
        "optim_constant_with_warmup",
        "optim_no_clip_linear",
        "optim_wd_betas_clip",
        "precompute_ref_batch4",
    ] {
        replay(name);
    }
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
        "adamw_torch_wd_norm_saved",
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

/// A LoRA on every projection of a model with biases, which are frozen.
#[test]
fn a_model_of_another_family() {
    replay_run("families/trl", "qwen2");
}

/// Norms behind the halves of layers alone, and of all heads together.
#[test]
fn norms_behind_attention_and_feed_forward_blocks() {
    replay_run("families/trl", "olmo2");
}

/// One LoRA branch on queries, keys and values, and one on gate and up.
#[test]
fn fused_projections() {
    replay_run("families/trl", "phi3");
}

/// PEFT's `bias`: all biases of the model, or those of the projections with a branch.
#[test]
fn biases_of_the_model() {
    replay_run("families/sft", "bias_all");
    replay_run("families/sft", "bias_lora_only");
}

/// A LoRA on every projection of a model of each family.
#[test]
#[ignore = "compares with data that are not in the tree"]
fn models_of_every_family() {
    let Some(folder) = support::shared("reference/families/trl") else { return };
    let names = support::file_names(&folder).into_iter();
    let names: Vec<String> =
        names.filter(|name| folder.join(name).join("trace.jsonl").exists()).collect();
    assert!(names.len() >= 14, "only {names:?}");
    names.iter().for_each(|name| replay_run("families/trl", name));
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
