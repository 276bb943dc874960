//! Replays golden runs of TRL and PEFT. Compares token ids, the metrics and gradient norm of every step, and the final
//! adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arithmo::adapter::{lora::adapter_parameters, peft};
use arithmo::data::encode::{
    Compat, EncodeConfig, EncodedPair, EncodedSequence, TruncationMode, encode_pairs,
};
use arithmo::data::pair::read_pairs;
use arithmo::data::sample::Sample;
use arithmo::data::tokenizer::Tokenizer;
use arithmo::model::load::load_as;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::save::load_safetensors_f32;
use arithmo::objective::Usage;
use arithmo::objective::dpo::ReferenceTiming;
use arithmo::objective::losses::LossType;
use arithmo::objective::metrics::MicroBatchMetrics;
use arithmo::objective::preference::PreferenceLoss;
use arithmo::objective::reference::Reference;
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::sampler::Sampler;
use arithmo::train::schedule::{Schedule, SchedulerKwargs};
use arithmo::train::step::{Learner, StepConfig, StepOutput};
use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use serde_json::Value;

use super::adapters::base_quantization;
use super::golden::{assert_close, ids, json_file, json_lines, reference};
use super::step::activations;

const ACCURACIES: &str = "rewards/accuracies";
const MARGINS: &str = "rewards/margins";

/// A golden run.
struct Run {
    folder: PathBuf,
    model: PathBuf,
    config: Value,
    trace: Vec<Value>,
}

impl Run {
    fn open(name: &str) -> Option<Self> {
        let folder = reference(&format!("trl/{name}"))?;
        let mut run = Self::on_model(folder, PathBuf::new());
        run.model = run.folder.join("../../models").join(run.config["model"].as_str().unwrap());
        Some(run)
    }

    /// Opens the run in `folder`, which trained the model in the folder `model`.
    fn on_model(folder: PathBuf, model: PathBuf) -> Self {
        let config = json_file(&folder.join("config.json"));
        let trace = json_lines(&folder.join("trace.jsonl"));
        Self { folder, model, config, trace }
    }

    fn number(&self, key: &str) -> f64 {
        self.config["dpo"][key].as_f64().unwrap()
    }

    fn text(&self, key: &str) -> &str {
        self.config["dpo"][key].as_str().unwrap()
    }

    /// Returns whether the run needs wider tolerances, because bitsandbytes computed parts of it in bf16.
    fn is_loose(&self) -> bool {
        self.config["base_precision"] == "bnb4"
    }

    /// Encodes the pairs of `dataset` and checks every token id against TRL's.
    fn pairs(&self, dataset: &str, samples: &str) -> Vec<EncodedPair> {
        let file = self.folder.join(format!("../_data/{dataset}.jsonl"));
        let tokenizer = Tokenizer::from_folder(&self.model).unwrap();
        let pairs = read_pairs(&file, tokenizer.chat_template()).unwrap();
        let mut config = EncodeConfig::new(Compat::Trl1);
        config.max_length = Some(self.number("max_length") as usize);
        if self.text("truncation_mode") == "keep_end" {
            config.truncation_mode = TruncationMode::KeepEnd;
        }
        let encoded = encode_pairs(&tokenizer, &pairs, &config).unwrap();
        let encoded = encoded.settle(false, false).unwrap().pairs;
        let theirs = self.config[samples].as_array().unwrap();
        assert_eq!(encoded.len(), theirs.len());
        for (ours, theirs) in encoded.iter().zip(theirs) {
            self.check_ids(&ours.chosen, theirs, "chosen_ids");
            self.check_ids(&ours.rejected, theirs, "rejected_ids");
        }
        encoded
    }

    fn check_ids(&self, ours: &EncodedSequence, theirs: &Value, side: &str) {
        let prompt = ids(&theirs["prompt_ids"]);
        let whole = [prompt.clone(), ids(&theirs[side])].concat();
        let max = self.number("max_length") as usize;
        let cut = whole.len().saturating_sub(max);
        let (expected, start) = match self.text("truncation_mode") {
            "keep_end" => (&whole[cut..], prompt.len().saturating_sub(cut)),
            _ => (&whole[..whole.len() - cut], prompt.len()),
        };
        assert_eq!(ours.ids, expected);
        assert_eq!(ours.completion_start, start);
    }

    fn sampler(&self, samples: usize) -> Sampler {
        Sampler {
            samples,
            batch_size: self.number("per_device_train_batch_size") as usize,
            accumulation: self.number("gradient_accumulation_steps") as usize,
            shuffle_seed: None,
        }
    }

    fn schedule(&self) -> Schedule {
        let kind = serde_json::from_value(self.config["dpo"]["lr_scheduler_type"].clone()).unwrap();
        let warmup = self.config["warmup_steps_resolved"].as_u64().unwrap() as usize;
        let steps = self.config["optimizer_steps"].as_u64().unwrap() as usize;
        Schedule::new(
            kind,
            self.number("learning_rate"),
            warmup,
            steps,
            &SchedulerKwargs::default(),
        )
        .unwrap()
    }

    fn learner<B: TrainBackend>(&self, recompute: bool, device: &B::Device) -> Learner<B> {
        let to = base_quantization(&self.config);
        let policy = load_as::<Autodiff<B>>(&self.model, DType::F32, to, &Cache::none(), device);
        let mut policy = policy.unwrap();
        let start = tempfile::tempdir().unwrap();
        let copy = |from: &str, to: &str| {
            std::fs::copy(self.folder.join(from), start.path().join(to)).unwrap();
        };
        copy("init_adapter.safetensors", "adapter_model.safetensors");
        copy("adapter_config.json", "adapter_config.json");
        peft::load(&mut policy, start.path(), device).unwrap();
        let reference = if self.config["reference"].as_str().unwrap().starts_with("base") {
            Reference::base(policy.valid())
        } else {
            Reference::initial(policy.valid())
        };
        let losses: Vec<LossType> =
            serde_json::from_value(self.config["dpo"]["loss_type"].clone()).unwrap();
        let terms = losses.into_iter().map(|loss| (loss, 1.0)).collect();
        let max_grad_norm = Some(self.number("max_grad_norm")).filter(|norm| *norm > 0.0);
        let loss = PreferenceLoss { terms, ..PreferenceLoss::sigmoid(self.number("beta")) };
        let config = StepConfig {
            max_grad_norm,
            activations: activations(recompute),
            // So small that passes and micro-batches differ.
            pass_tokens: 500,
            dropout_seed: None,
        };
        let optimizer = Optimizer::new(AdamW {
            beta1: self.number("adam_beta1"),
            beta2: self.number("adam_beta2"),
            epsilon: self.number("adam_epsilon"),
            weight_decay: self.number("weight_decay"),
        });
        let timing = ReferenceTiming::EveryStep;
        Learner::dpo(policy, optimizer, loss, reference, timing, config, device)
    }
}

/// Replays runs in full.
pub fn replay_all<B: TrainBackend>(names: &[&str], device: &B::Device) {
    for name in names {
        replay::<B>(name, usize::MAX, false, device);
    }
}

/// Replays three steps of runs, each with or without recomputed activations.
pub fn first_steps<B: TrainBackend>(runs: &[(&str, bool)], device: &B::Device) {
    for (name, recompute) in runs {
        replay::<B>(name, 3, *recompute, device);
    }
}

/// Replays at most `steps` steps of the run `name`, within the tolerances of reference/README.md.
pub fn replay<B: TrainBackend>(name: &str, steps: usize, recompute: bool, device: &B::Device) {
    let Some(run) = Run::open(name) else { return };
    replay_run::<B>(&run, steps, recompute, device);
}

/// Replays the whole run in `folder`, which trained the model in the folder `model`.
pub fn replay_on_model<B: TrainBackend>(folder: PathBuf, model: PathBuf, device: &B::Device) {
    replay_run::<B>(&Run::on_model(folder, model), usize::MAX, false, device);
}

fn replay_run<B: TrainBackend>(run: &Run, steps: usize, recompute: bool, device: &B::Device) {
    let name = run.config["name"].as_str().unwrap();
    let pairs = run.pairs(run.config["dataset"].as_str().unwrap(), "samples");
    let batch = |indices: &Vec<usize>| indices.iter().map(|i| &pairs[*i]).collect::<Vec<_>>();
    let (sampler, schedule) = (run.sampler(pairs.len()), run.schedule());
    let mut learner = run.learner::<B>(recompute, device);
    let steps = steps.min(run.trace.len());
    if steps > sampler.steps_per_epoch() {
        learner.objective.timing = ReferenceTiming::Once;
    }
    if run.config["dpo"]["precompute_ref_log_probs"] == true {
        for step in 0..sampler.steps_per_epoch() {
            for indices in &sampler.plan(step).micro_batches {
                learner.precompute_batch(&batch(indices), Usage::Training).unwrap();
            }
        }
    }
    let mut attended = 0;
    for (step, expected) in run.trace.iter().take(steps).enumerate() {
        let plan = sampler.plan(step);
        let batches: Vec<_> = plan.micro_batches.iter().map(batch).collect();
        attended += batches.iter().flatten().map(|pair| pair.attended_tokens()).sum::<usize>();
        let rate = schedule.rate(step);
        let output = learner.step(step, rate, &batches);
        let what = format!("{name} step {}", step + 1);
        if run.is_loose() {
            check_loosely(&what, &output, expected)
        } else {
            check_step(&what, &output, expected)
        }
        check("learning_rate", &what, rate, expected, 1e-12);
        check("epoch", &what, plan.epoch, expected, 1e-9);
        check("num_tokens", &what, attended as f64, expected, 0.0);
        evaluate(run, &learner, step + 1);
    }
    if steps == run.trace.len() {
        let tolerance = if run.is_loose() { 1e-2 } else { 2e-4 };
        check_adapter(&run.folder, &learner, tolerance);
    }
}

fn check(key: &str, what: &str, ours: f64, expected: &Value, tolerance: f64) {
    let theirs = expected[key].as_f64().unwrap_or_else(|| panic!("{what}: no {key}"));
    let difference = (ours - theirs).abs();
    assert!(
        difference <= tolerance,
        "{what} {key}: got {ours}, expected {theirs} (off by {difference:e})"
    );
}

fn check_loosely(what: &str, output: &StepOutput, expected: &Value) {
    assert!(output.applied);
    let (loss, values) = MicroBatchMetrics::mean(&output.micro_batches);
    check("loss", what, loss, expected, 5e-3 * loss.abs().max(1.0));
    let norm = expected["grad_norm"].as_f64().unwrap();
    check("grad_norm", what, output.grad_norm, expected, 4e-2 * norm.abs());
    for (key, value) in values {
        if key.starts_with("logps/") {
            check(&key, what, value, expected, 0.1);
        }
    }
}

fn check_step(what: &str, output: &StepOutput, expected: &Value) {
    assert!(output.applied);
    let (loss, mut values) = MicroBatchMetrics::mean(&output.micro_batches);
    let accuracy = without_ties(values[ACCURACIES], output, expected);
    values.insert(ACCURACIES.to_string(), accuracy);
    check_metrics(what, "", loss, &values, expected);
    let norm = expected["grad_norm"].as_f64().unwrap();
    check("grad_norm", what, output.grad_norm, expected, 2e-4 * norm.abs());
    for (index, micro) in output.micro_batches.iter().enumerate() {
        let at = |key: &str| {
            let mut one = serde_json::Map::new();
            one.insert(key.to_string(), expected["micro"][key][index].clone());
            Value::Object(one)
        };
        check("loss", what, micro.loss, &at("loss"), 5e-5 * micro.loss.abs().max(1.0));
        let margin = micro.value(MARGINS).unwrap();
        check(MARGINS, what, margin, &at(MARGINS), 2e-4);
    }
}

/// Returns TRL's accuracy if it differs from `accuracy` only by pairs whose margin is zero up to rounding, else
/// `accuracy`.
///
/// There are such pairs in the first steps at a low learning rate. The noise of rewards in reference/README.md is 3e-5.
fn without_ties(accuracy: f64, output: &StepOutput, expected: &Value) -> f64 {
    let theirs = expected[ACCURACIES].as_f64().unwrap();
    let micro = &output.micro_batches;
    let ties = micro.iter().filter(|m| m.pairs == 1 && m.value(MARGINS).unwrap().abs() < 3e-5);
    if (accuracy - theirs).abs() <= ties.count() as f64 / micro.len() as f64 + 1e-9 {
        theirs
    } else {
        accuracy
    }
}

fn check_metrics(
    what: &str,
    prefix: &str,
    loss: f64,
    values: &BTreeMap<String, f64>,
    expected: &Value,
) {
    check(&format!("{prefix}loss"), what, loss, expected, 5e-5 * loss.abs().max(1.0));
    for (key, value) in values {
        let tolerance = match key.as_str() {
            key if key.starts_with("rewards/") => 2e-4,
            key if key.starts_with("logps/") => 2e-3,
            // Logits are about 0.1 in tiny models and 7 in a real one, in which those of transformers differ by 7e-5 between two
            // kinds of attention.
            key if key.starts_with("logits/") => 1e-5 * value.abs().max(1.0),
            "entropy" => 1e-4,
            _ => 1e-6,
        };
        check(&format!("{prefix}{key}"), what, *value, expected, tolerance);
    }
}

fn evaluate<B: TrainBackend>(run: &Run, learner: &Learner<B>, step: usize) {
    if run.config["dpo"]["eval_steps"]
        .as_u64()
        .is_none_or(|every| !(step as u64).is_multiple_of(every))
    {
        return;
    }
    let expected = json_lines(&run.folder.join("eval.jsonl"));
    let expected = expected.iter().find(|line| line["step"] == step).unwrap();
    let pairs = run.pairs(run.config["eval_dataset"].as_str().unwrap(), "eval_samples");
    let size = run.number("per_device_eval_batch_size") as usize;
    let metrics: Vec<_> = pairs
        .chunks(size)
        .map(|pairs| learner.evaluate(&pairs.iter().collect::<Vec<_>>()))
        .collect();
    let (_, values) = MicroBatchMetrics::mean(&metrics);
    let loss = MicroBatchMetrics::loss_by_pairs(&metrics);
    check_metrics(&format!("eval at {step}"), "eval_", loss, &values, expected);
}

fn check_adapter<B: TrainBackend>(folder: &Path, learner: &Learner<B>, tolerance: f32) {
    // Low-precision runs saved their adapter in bf16.
    let golden = load_safetensors_f32(&folder.join("adapter_model.safetensors")).unwrap();
    let ours = adapter_parameters(&learner.policy);
    assert_eq!(golden.len(), ours.len());
    for (name, tensor) in ours {
        let values = tensor.into_data().to_vec::<f32>().unwrap();
        let (_, theirs) = &golden[&format!("base_model.model.{name}")];
        assert_close(&name, &values, theirs, tolerance);
    }
}
