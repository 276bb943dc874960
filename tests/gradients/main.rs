//! Checks the learner's numbers in f64, on a tiny Mistral of odd shape: forward pass and loss against plain loops,
//! gradients against finite differences, gradient checkpointing, padding, dropout and frozen weights.
//!
//! These tests are a program of their own, because Burn keeps one default float dtype per device and process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "the micro-batches of a pass are ranges")]

mod dora;
mod dropout;
mod families;
#[allow(dead_code, unreachable_pub, reason = "the suite uses the rest")]
#[path = "../suite/families.rs"]
mod families_of_the_suite;
mod full;
mod packed;
#[path = "../fixtures/plain/mod.rs"]
mod plain;
#[allow(dead_code, reason = "other programs use the rest")]
#[path = "../fixtures/tiny/mod.rs"]
mod tiny;

use std::f64::consts::LN_2;

use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::adapter::{LoraConfig, TargetModules};
use arithmo::data::batch::{PackedBatch, TokenRows};
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::load::load;
use arithmo::objective::dpo::ReferenceTiming;
use arithmo::objective::log_probs::{DeviceBatch, score};
use arithmo::objective::losses::PairLogProbs;
use arithmo::objective::preference::{PassLogProbs, PreferenceLoss};
use arithmo::objective::reference::Reference;
use arithmo::train::activations::Activations;
use arithmo::train::gradient::{Loss, gradients};
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::step::{Learner, StepConfig};
use arithmo_backends::LogProbStats;
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Param};
use burn::tensor::{DType, Tensor, TensorData};
use burn_ndarray::NdArray;
use plain::Plain;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

type B = NdArray<f64>;
type A = Autodiff<B>;

const BETA: f64 = 0.7;
const VOCABULARY: usize = 29;

/// Returns a shape with four query heads on two key heads, `head_dim * heads != hidden_size` and a window of 3.
fn config(tied: bool) -> DecoderConfig {
    DecoderConfig {
        vocab_size: VOCABULARY,
        hidden_size: 6,
        intermediate_size: 10,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: Some(4),
        sliding_window: Some(3),
        tie_word_embeddings: tied,
        initializer_range: 0.5,
        max_position_embeddings: 64,
        ..tiny::config()
    }
}

fn lora(targets: TargetModules, dropout: f64) -> LoraConfig {
    LoraConfig {
        r: 2,
        lora_alpha: 3.0,
        lora_dropout: dropout,
        target_modules: targets,
        ..LoraConfig::default()
    }
}

/// Returns a model with a random adapter (`lora_B` included), and the same model in plain loops.
fn policy(tied: bool, targets: TargetModules, dropout: f64) -> (Decoder<A>, Plain) {
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = (folder.path().join("model"), config(tied));
    tiny::write_model(&path, &config, 5);
    let device = Default::default();
    let mut policy = load::<A>(&path, DType::F64, &device).unwrap();
    let lora = lora(targets, dropout);
    attach(&mut policy, &lora, 1, &device).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let random = |(_, tensor): (String, Tensor<A, 2>)| {
        let shape = tensor.dims();
        let values = (0..shape[0] * shape[1]).map(|_| 0.4 * tiny::symmetric(&mut rng));
        Tensor::from_data(TensorData::new(values.collect::<Vec<_>>(), shape), &device)
    };
    let values: Vec<Tensor<B, 2>> = adapter_parameters(&policy).into_iter().map(random).collect();
    set_adapter_parameters(&mut policy, values);
    let adapter = adapter_parameters(&policy).into_iter();
    let adapter = adapter.map(|(name, tensor)| (name, tensor.into_data().to_vec::<f64>().unwrap()));
    let plain = Plain::new(&path, config, adapter.collect(), 3.0 / 2.0);
    (policy, plain)
}

/// Returns `count` pairs of random tokens and lengths.
fn pairs(count: usize, seed: u64) -> Vec<EncodedPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tokens = |from: usize, to: usize| -> Vec<u32> {
        let count = from + rng.next_u32() as usize % (to - from);
        (0..count).map(|_| rng.next_u32() % VOCABULARY as u32).collect()
    };
    let one = |index| {
        let prompt = tokens(2, 6);
        let mut side = || EncodedSequence {
            ids: [prompt.clone(), tokens(1, 7)].concat(),
            completion_start: prompt.len(),
            hidden: Vec::new(),
        };
        EncodedPair { id: format!("pair-{index}"), chosen: side(), rejected: side() }
    };
    (0..count).map(one).collect()
}

fn batch(pairs: &[EncodedPair]) -> PackedBatch {
    PackedBatch::new(&micro_batch(pairs))
}

fn micro_batch(pairs: &[EncodedPair]) -> Vec<&EncodedPair> {
    pairs.iter().collect()
}

fn on_device(model: &Decoder<B>, batch: &PackedBatch) -> DeviceBatch<B> {
    let device = Default::default();
    DeviceBatch::new(batch, &model.position_table(64, &device), &device)
}

fn sums(model: &Decoder<B>, on_device: &DeviceBatch<B>) -> Vec<f64> {
    score(model, on_device, LogProbStats::None).sums.into_data().to_vec().unwrap()
}

/// Returns the DPO loss `mean(log(1 + exp(-beta * delta)))` of summed log-probabilities, all chosen ones first.
fn dpo(policy: &[f64], reference: &[f64]) -> f64 {
    let pairs = policy.len() / 2;
    let ratio = |row: usize| policy[row] - reference[row];
    let loss = |pair| (-BETA * (ratio(pair) - ratio(pairs + pair))).exp().ln_1p();
    (0..pairs).map(loss).sum::<f64>() / pairs as f64
}

fn learner(policy: Decoder<A>, config: StepConfig) -> Learner<B> {
    let reference = Reference::base(policy.valid());
    let optimizer =
        Optimizer::new(AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01 });
    let (loss, timing) = (PreferenceLoss::sigmoid(BETA), ReferenceTiming::EveryStep);
    Learner::dpo(policy, optimizer, loss, reference, timing, config, &Default::default())
}

fn step_config() -> StepConfig {
    StepConfig {
        max_grad_norm: Some(1.0),
        activations: Activations::Keep,
        pass_tokens: 1000,
        dropout_seed: None,
    }
}

/// Returns the gradient of the DPO loss with respect to every adapter tensor. The activations of `keep` layers are
/// kept, those of the others are recomputed.
fn backward(
    policy: &Decoder<A>,
    batch: &PackedBatch,
    on_device: &DeviceBatch<B>,
    reference: &[f64],
    keep: usize,
) -> Vec<TensorData> {
    let reference = TensorData::new(reference.to_vec(), [reference.len()]);
    let reference = PairLogProbs::split(Tensor::<A, 1>::from_data(reference, &Default::default()));
    let completions = on_device.completions.to_autodiff::<A>();
    let (_, grads) = gradients(policy, &on_device.input, keep, |hidden| {
        let scored = completions.score(hidden, policy.head(), LogProbStats::All);
        let policy_logps = PairLogProbs::split(scored.sums);
        let pairs = batch.samples();
        let losses = PreferenceLoss::sigmoid(BETA).losses(&PassLogProbs {
            chosen_sums: policy_logps.chosen.clone(),
            policy: policy_logps,
            reference: reference.clone(),
            weights: None,
            counts: &batch.counts,
            token_weights: &vec![1.0; pairs],
            micro_batches: &[0..pairs],
        });
        let loss = losses.mean();
        Loss { loss, output: () }
    });
    grads.into_iter().map(Tensor::into_data).collect()
}

fn adapter_tensor(model: &mut Decoder<B>, index: usize) -> &mut Param<Tensor<B, 2>> {
    let branches = model.projections_mut().filter_map(|(_, linear)| linear.lora.as_mut());
    let mut tensors = branches.flat_map(|lora| [&mut lora.lora_a, &mut lora.lora_b]);
    tensors.nth(index).unwrap()
}

/// Returns the central difference of the loss for every element of adapter tensor number `index`.
fn differences(
    model: &Decoder<B>,
    on_device: &DeviceBatch<B>,
    reference: &[f64],
    index: usize,
) -> Vec<f64> {
    const H: f64 = 3e-5;
    let mut model = model.clone();
    let param = adapter_tensor(&mut model, index);
    let (id, value) = (param.id, param.val());
    let (shape, values) = (value.dims(), value.into_data().to_vec::<f64>().unwrap());
    let mut loss = |values: Vec<f64>| {
        let tensor = Tensor::from_data(TensorData::new(values, shape), &Default::default());
        *adapter_tensor(&mut model, index) = Param::initialized(id, tensor);
        dpo(&sums(&model, on_device), reference)
    };
    let mut moved = |element: usize, by: f64| {
        let mut values = values.clone();
        values[element] += by;
        loss(values)
    };
    (0..values.len()).map(|at| (moved(at, H) - moved(at, -H)) / (2.0 * H)).collect()
}

/// Compares logits of a left-padded batch, summed log-probabilities of pairs with a shared prompt, and the loss with
/// plain loops, which compute chosen and rejected sequences separately.
#[test]
fn forward_pass_and_loss_equal_plain_loops() {
    for tied in [false, true] {
        let (policy, plain) = policy(tied, TargetModules::AllLinear, 0.0);
        let (model, pairs) = (policy.valid(), pairs(3, 1));
        let sides = sides(&pairs);
        let sequences: Vec<&[u32]> = sides.iter().map(|side| &side.ids[..]).collect();
        let rows = TokenRows::left_padded(&sequences, 4);
        let device = Default::default();
        let input = ModelInput::new(&rows, &model.position_table(64, &device), &device);
        let logits = model.forward(&input).into_data().to_vec::<f64>().unwrap();
        let logits: Vec<&[f64]> = logits.chunks(VOCABULARY).collect();
        let mut expected_sums = Vec::new();
        for (row, side) in sides.iter().enumerate() {
            let expected = plain.logits(&side.ids);
            let padding = rows.length - side.ids.len();
            for (at, expected) in expected.iter().enumerate() {
                let ours = logits[row * rows.length + padding + at];
                for (ours, theirs) in ours.iter().zip(expected) {
                    assert!(
                        (ours - theirs).abs() < 1e-10,
                        "tied {tied} row {row} {at}: {ours} {theirs}"
                    );
                }
            }
            expected_sums.push(plain::summed(&expected, &side.ids, side.completion_start));
        }
        let on_device = on_device(&model, &batch(&pairs));
        for (ours, theirs) in sums(&model, &on_device).iter().zip(&expected_sums) {
            assert!((ours - theirs).abs() < 1e-10, "tied {tied}: {ours} {theirs}");
        }
        check_loss(policy, &plain, &pairs, &expected_sums);
    }
}

/// Returns all chosen sequences, then all rejected ones.
fn sides(pairs: &[EncodedPair]) -> Vec<EncodedSequence> {
    let chosen = pairs.iter().map(|pair| pair.chosen.clone());
    chosen.chain(pairs.iter().map(|pair| pair.rejected.clone())).collect()
}

/// Compares the learner's loss and chosen reward with plain loops. `sums` are the policy's summed log-probabilities.
fn check_loss(policy: Decoder<A>, plain: &Plain, pairs: &[EncodedPair], sums: &[f64]) {
    let base = plain.without_adapter();
    let base_logps = |side: &EncodedSequence| {
        plain::summed(&base.logits(&side.ids), &side.ids, side.completion_start)
    };
    let reference: Vec<f64> = sides(pairs).iter().map(base_logps).collect();
    let output = learner(policy, step_config()).step(0, 0.0, &[micro_batch(pairs)]);
    let micro = &output.micro_batches[0];
    assert!((micro.loss - dpo(sums, &reference)).abs() < 1e-10);
    let reward = |row: usize| BETA * (sums[row] - reference[row]);
    let chosen = (reward(0) + reward(1) + reward(2)) / 3.0;
    assert!((micro.value("rewards/chosen").unwrap() - chosen).abs() < 1e-10);
    assert!((micro.loss - LN_2).abs() > 1e-3, "the adapter has no effect");
}

#[test]
fn adapter_gradients_equal_finite_differences() {
    for (tied, dropout) in [(false, None), (true, Some(17))] {
        let (policy, _) = policy(tied, TargetModules::AllLinear, 0.4);
        let (model, batch) = (policy.valid(), batch(&pairs(2, 3)));
        let mut on_device = on_device(&model, &batch);
        let reference = sums(&model.clone().without_adapter(), &on_device);
        on_device.input.context.dropout_seed = dropout;
        let grads = backward(&policy, &batch, &on_device, &reference, 2);
        assert_eq!(grads.len(), 2 * 7 * 2);
        for (index, ((name, _), grad)) in adapter_parameters(&policy).iter().zip(&grads).enumerate()
        {
            let grad = grad.to_vec::<f64>().unwrap();
            let numeric = differences(&model, &on_device, &reference, index);
            let largest = grad.iter().fold(0f64, |max, g| max.max(g.abs()));
            assert!(largest > 1e-5, "{name}: the gradient is {largest}");
            for (ours, theirs) in grad.iter().zip(&numeric) {
                let relative = (ours - theirs).abs() / largest;
                assert!(relative < 1e-6, "tied {tied} {name}: {ours} {theirs} ({relative:e})");
            }
        }
    }
}

/// Checks that the learner's gradient norm is the norm of the mean gradient of two micro-batches.
#[test]
fn the_learner_averages_gradients_over_micro_batches() {
    let (policy, _) = policy(false, TargetModules::AllLinear, 0.0);
    let model = policy.valid();
    let micro_batches = [pairs(2, 3), pairs(3, 4)];
    let mut sum = Vec::new();
    for pairs in &micro_batches {
        let batch = batch(pairs);
        let on_device = on_device(&model, &batch);
        let reference = sums(&model.clone().without_adapter(), &on_device);
        let grads = backward(&policy, &batch, &on_device, &reference, 2);
        let flat = grads.iter().flat_map(|grad| grad.to_vec::<f64>().unwrap());
        let flat: Vec<f64> = flat.collect();
        sum.resize(flat.len(), 0.0);
        sum.iter_mut().zip(flat).for_each(|(sum, grad)| *sum += grad / 2.0);
    }
    let norm = sum.iter().map(|grad| grad * grad).sum::<f64>().sqrt();
    // The norm does not depend on the passes: one for all pairs, passes across micro-batches, one per pair.
    for pass_tokens in [1000, 25, 1] {
        let mut config = step_config();
        config.pass_tokens = pass_tokens;
        let micro_batches = micro_batches.each_ref().map(|pairs| micro_batch(pairs));
        let output = learner(policy.clone(), config).step(0, 0.0, &micro_batches);
        let ours = output.grad_norm;
        assert!((ours - norm).abs() < 1e-12 * norm, "{ours} {norm}");
    }
}

/// Compares gradients with and without recomputed activations, for adapters on every projection, and for adapters on
/// the last layer only, where the layers below need no gradient.
#[test]
fn recomputing_activations_changes_no_bit() {
    let last_layer =
        TargetModules::Pattern(r"model\.layers\.1\.(mlp\.up_proj|self_attn\.k_proj)".into());
    for targets in [TargetModules::AllLinear, last_layer] {
        let (policy, _) = policy(false, targets, 0.4);
        let (model, batch) = (policy.valid(), batch(&pairs(3, 5)));
        let mut on_device = on_device(&model, &batch);
        let reference = sums(&model.without_adapter(), &on_device);
        for dropout in [None, Some(3)] {
            on_device.input.context.dropout_seed = dropout;
            let kept = backward(&policy, &batch, &on_device, &reference, 2);
            for keep in [0, 1] {
                let recomputed = backward(&policy, &batch, &on_device, &reference, keep);
                assert_eq!(kept, recomputed);
            }
        }
    }
}

#[test]
fn log_probs_do_not_depend_on_the_batch() {
    let (policy, _) = policy(false, TargetModules::AllLinear, 0.0);
    let (model, pairs) = (policy.valid(), pairs(4, 6));
    let together = sums(&model, &on_device(&model, &batch(&pairs)));
    for (index, pair) in pairs.iter().enumerate() {
        let alone = batch(std::slice::from_ref(pair));
        let alone = sums(&model, &on_device(&model, &alone));
        assert!((alone[0] - together[index]).abs() < 1e-12);
        assert!((alone[1] - together[4 + index]).abs() < 1e-12);
    }
}

#[test]
fn training_learns_the_pairs_and_leaves_frozen_weights_alone() {
    let (policy, _) = policy(false, TargetModules::AllLinear, 0.0);
    let before = frozen(&policy);
    let start: Vec<_> =
        adapter_parameters(&policy).into_iter().map(|(_, t)| t.into_data()).collect();
    let pairs = pairs(4, 7);
    let batches = [micro_batch(&pairs)];
    let mut learner = learner(policy, step_config());
    let first = learner.step(0, 0.02, &batches).micro_batches.remove(0);
    for step in 1..60 {
        learner.step(step, 0.02, &batches);
    }
    let last = learner.evaluate(&batches[0]);
    assert_eq!(last.value("rewards/accuracies"), Some(1.0), "accuracy");
    assert!(last.loss < 0.2 && last.loss < first.loss, "{} {}", first.loss, last.loss);
    assert_eq!(frozen(&learner.policy), before);
    for ((name, tensor), start) in adapter_parameters(&learner.policy).into_iter().zip(start) {
        assert_ne!(tensor.into_data(), start, "{name} was not trained");
    }
}

/// Returns all weights except the adapter's.
fn frozen(policy: &Decoder<A>) -> Vec<TensorData> {
    let mut all = vec![
        policy.embed_tokens.floats(DType::F64).into_data(),
        policy.head().floats(DType::F64).into_data(),
    ];
    all.extend(
        policy.projections().map(|(_, linear)| linear.weight.floats(DType::F64).into_data()),
    );
    let norms = |layer: &arithmo::model::decoder::DecoderLayer<A>| {
        let before = layer.input_layernorm.as_ref().unwrap();
        let norms = [before, &layer.post_attention_layernorm];
        norms.map(|norm| norm.weight.val().into_data())
    };
    all.extend(policy.layers.iter().flat_map(norms));
    all.push(policy.norm.weight.val().into_data());
    all
}
