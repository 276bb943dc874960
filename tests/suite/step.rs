//! Compares training of a random model on a backend with training on the CPU. Its sizes are odd on purpose.

use std::path::Path;

use arithmo::adapter::config::{LoraConfig, TargetModules};
use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::data::batch::TokenRows;
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::input::ModelInput;
use arithmo::model::load::random;
use arithmo::objective::dpo::ReferenceTiming;
use arithmo::objective::preference::PreferenceLoss;
use arithmo::objective::reference::Reference;
use arithmo::train::activations::Activations;
use arithmo::train::gradient::{Loss, gradients};
use arithmo::train::optimizer::{AdamW, Optimizer};
use arithmo::train::step::{Learner, StepConfig, StepOutput};
use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Distribution, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::families;
use super::golden::assert_close;

type Cpu = burn_ndarray::NdArray<f32>;

const VOCABULARY: usize = 131;

/// Returns a shape with grouped queries, `head_dim * heads != hidden_size`, a window shorter than the texts and a tied
/// head.
fn shape() -> DecoderConfig {
    let json = format!(
        r#"{{"model_type": "mistral", "vocab_size": {VOCABULARY}, "hidden_size": 44, "intermediate_size": 75,
            "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
            "max_position_embeddings": 80, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 9,
            "tie_word_embeddings": true, "initializer_range": 0.3, "hidden_act": "silu"}}"#
    );
    DecoderConfig::parse(&json, Path::new("config.json")).unwrap()
}

pub fn activations(recompute: bool) -> Activations {
    if recompute { Activations::Recompute } else { Activations::Keep }
}

/// Returns a random model with a branch on every projection. Every `lora_b` is zero.
fn policy<B: TrainBackend>(
    shape: &DecoderConfig,
    dtype: DType,
    device: &B::Device,
) -> Decoder<Autodiff<B>> {
    let mut model = random::<Autodiff<B>>(shape.clone(), 3, dtype, device).unwrap();
    families::randomize_vectors(&mut model, device);
    let config = LoraConfig {
        r: 5,
        lora_alpha: 12.0,
        target_modules: TargetModules::AllLinear,
        ..LoraConfig::default()
    };
    attach(&mut model, &config, 7, device).unwrap();
    model
}

/// Returns `count` pairs of random ids, of different lengths.
fn pairs(count: usize, seed: u64) -> Vec<EncodedPair> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: usize| rng.next_u32() as usize % n;
    let mut tokens =
        |count: usize| -> Vec<u32> { (0..count).map(|_| below(VOCABULARY) as u32).collect() };
    let pair = |index: usize| {
        let prompt = tokens(3 + 5 * index % 11);
        let mut side = |length: usize| EncodedSequence {
            ids: [prompt.clone(), tokens(length)].concat(),
            completion_start: prompt.len(),
            hidden: Vec::new(),
        };
        EncodedPair {
            id: index.to_string(),
            chosen: side(1 + 7 * index % 23),
            rejected: side(2 + 13 * index % 31),
        }
    };
    (0..count).map(pair).collect()
}

fn learner<B: TrainBackend>(
    shape: &DecoderConfig,
    dtype: DType,
    recompute: bool,
    device: &B::Device,
) -> Learner<B> {
    let policy = policy::<B>(shape, dtype, device);
    let reference = Reference::base(policy.valid());
    let optimizer =
        Optimizer::new(AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 });
    let config = StepConfig {
        max_grad_norm: Some(1.0),
        activations: activations(recompute),
        pass_tokens: 100,
        dropout_seed: None,
    };
    let (loss, timing) = (PreferenceLoss::sigmoid(0.3), ReferenceTiming::EveryStep);
    Learner::dpo(policy, optimizer, loss, reference, timing, config, device)
}

/// Runs `steps` steps of two micro-batches of three pairs.
fn train<B: TrainBackend>(
    (shape, steps): (&DecoderConfig, usize),
    dtype: DType,
    recompute: bool,
    device: &B::Device,
) -> (Learner<B>, Vec<StepOutput>) {
    let mut learner = learner::<B>(shape, dtype, recompute, device);
    let pairs = pairs(6, 11);
    let batches: Vec<_> = pairs.chunks(3).map(|pairs| pairs.iter().collect::<Vec<_>>()).collect();
    let steps = (0..steps).map(|step| learner.step(step, 2e-3, &batches)).collect();
    (learner, steps)
}

/// Checks that every reward of `step` is exactly 0 and the loss is ln 2, up to the rounding of the device's logarithm.
///
/// This holds for the first step with any dtype, because policy and reference are equal while `lora_b` is zero.
#[track_caller]
fn starts_at_ln_2(step: &StepOutput) {
    for micro in &step.micro_batches {
        let off = micro.loss - std::f64::consts::LN_2;
        assert!(off.abs() < 1e-6, "the loss differs from ln 2 by {off:e}");
        for (key, value) in micro.values() {
            assert!(!key.starts_with("rewards/") || value == 0.0, "{key} is {value}");
        }
    }
}

/// Compares metrics and gradient norms of every step, and the trained adapter, with the CPU.
pub fn training_equals_the_cpu<B: TrainBackend>(recompute: bool, device: &B::Device) {
    let (learner, expected) = compare_steps::<B>((&shape(), 4), recompute, device);
    let expected = adapter_parameters(&expected.policy);
    for ((name, ours), (_, theirs)) in adapter_parameters(&learner.policy).into_iter().zip(expected)
    {
        assert_close(&name, &values(ours), &values(theirs), 2e-4);
    }
}

/// Compares the metrics of two steps, and the gradients, of a model of each family with the CPU. The adapters are not
/// compared: their first update divides each gradient by its own size, and so a gradient near AdamW's epsilon by
/// rounding noise.
pub fn families_equal_the_cpu<B: TrainBackend>(device: &B::Device) {
    for shape in families::shapes() {
        eprintln!("{:?}", shape.family);
        compare_steps::<B>((&shape, 2), false, device);
        compare_gradients::<B>(&shape, false, device);
    }
}

/// Compares the metrics and gradient norms of every step with the CPU, and returns both learners.
fn compare_steps<B: TrainBackend>(
    (shape, steps): (&DecoderConfig, usize),
    recompute: bool,
    device: &B::Device,
) -> (Learner<B>, Learner<Cpu>) {
    let (learner, ours) = train::<B>((shape, steps), DType::F32, recompute, device);
    let (expected, theirs) = train::<Cpu>((shape, steps), DType::F32, false, &Default::default());
    starts_at_ln_2(&ours[0]);
    let last = ours.last().unwrap();
    let moved = (last.micro_batches[0].loss - ours[0].micro_batches[0].loss).abs();
    assert!(moved > 1e-3 * steps as f64, "the loss moved by {moved}");
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert!(ours.applied && theirs.applied);
        let relative = ours.grad_norm / theirs.grad_norm - 1.0;
        assert!(relative.abs() < 1e-4, "step {step}: norm off by {relative:e}");
        for (ours, theirs) in ours.micro_batches.iter().zip(&theirs.micro_batches) {
            let off = (ours.loss - theirs.loss).abs();
            assert!(off < 1e-4, "step {step}: loss off by {off:e}");
            for ((key, ours), theirs) in ours.values().into_iter().zip(theirs.values().values()) {
                let off = (ours - theirs).abs() / theirs.abs().max(1.0);
                assert!(off < 1e-4, "step {step}: {key} is {ours}, expected {theirs}");
            }
        }
    }
    (learner, expected)
}

/// Compares the gradient of every adapter tensor with the CPU. Every `lora_b` is non-zero.
pub fn gradients_equal_the_cpu<B: TrainBackend>(recompute: bool, device: &B::Device) {
    compare_gradients::<B>(&shape(), recompute, device);
}

fn compare_gradients<B: TrainBackend>(shape: &DecoderConfig, recompute: bool, device: &B::Device) {
    let ours = adapter_gradients::<B>(shape, recompute, device);
    let theirs = adapter_gradients::<Cpu>(shape, false, &Default::default());
    for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let scale = theirs.iter().fold(0f32, |max, v| max.max(v.abs()));
        assert!(scale > 1e-4, "tensor {index} has no gradient to compare");
        assert_close(&format!("tensor {index}"), ours, theirs, 1e-4 * scale);
    }
}

fn adapter_gradients<B: TrainBackend>(
    shape: &DecoderConfig,
    recompute: bool,
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let mut policy = policy::<B>(shape, DType::F32, device);
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let mut random = |shape: [usize; 2]| {
        let mut unit = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| 0.2 * unit()).collect();
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), device)
    };
    let values = adapter_parameters(&policy);
    let values = values.iter().map(|(_, tensor)| random(tensor.dims()));
    set_adapter_parameters(&mut policy, values.collect());

    let pairs = pairs(5, 29);
    let sequences: Vec<&[u32]> = pairs.iter().map(|pair| pair.rejected.ids.as_slice()).collect();
    let rows = TokenRows::left_padded(&sequences, 0);
    let input = ModelInput::new(&rows, &policy.valid().position_table(80, device), device);
    let keep = if recompute { 0 } else { usize::MAX };
    let (_, grads) = gradients(&policy, &input, keep, |hidden| Loss {
        loss: hidden.powi_scalar(3).mean(),
        output: (),
    });
    grads.into_iter().map(self::values).collect()
}

/// Trains with base weights in a 16-bit type, if the device computes in it.
///
/// The adapter stays f32, the first loss is ln 2, and later losses stay near those of training in f32.
pub fn half_precision<B: TrainBackend>(dtype: DType, device: &B::Device) {
    if !B::supports_dtype(device, dtype) {
        eprintln!("SKIPPED: this device does not compute in {}", dtype.name());
        return;
    }
    let (learner, half) = train::<B>((&shape(), 4), dtype, true, device);
    let (_, full) = train::<B>((&shape(), 4), DType::F32, false, device);
    starts_at_ln_2(&half[0]);
    for (half, full) in half.iter().zip(&full) {
        assert!(half.applied);
        // This is the rounding to 11 bits (8 in bf16) in three layers, summed over the log-probabilities of about ten tokens.
        let off = (half.micro_batches[0].loss - full.micro_batches[0].loss).abs();
        assert!(off < 0.05, "loss off by {off}");
    }
    for (name, tensor) in adapter_parameters(&learner.policy) {
        assert_eq!(tensor.dtype(), DType::F32, "{name}");
    }
    assert!(learner.policy.head().fits(dtype));
}

/// Checks that the reported peak covers an allocated tensor, does not fall after it is freed, and is plausible.
pub fn peak_memory_covers_tensors<B: TrainBackend>(device: &B::Device) {
    let before = B::peak_memory_bytes(device).unwrap();
    let mebibytes = 24;
    let tensor = Tensor::<B, 2>::random([mebibytes << 8, 1 << 10], Distribution::Default, device);
    let sum: f64 = tensor.clone().mean().into_data().iter::<f64>().sum();
    assert!(sum > 0.0);
    let with = B::peak_memory_bytes(device).unwrap();
    let least = (mebibytes << 20) as u64;
    assert!(with >= least, "{with} bytes with a tensor of {least}");
    drop(tensor);
    let after = B::peak_memory_bytes(device).unwrap();
    assert!(after >= with, "the peak falls from {with} to {after}");
    // Memory pools grow by pages, which are smaller than this.
    assert!(with - before < 1 << 30, "{before} bytes before, {with} after");
}

fn values<B: TrainBackend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
