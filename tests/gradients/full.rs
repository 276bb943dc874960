//! Compares the gradient of every weight, and of every part of an adapter, with finite differences.

use arithmo::adapter::lora::attach;
use arithmo::adapter::modules::{ExcludeModules, Patterns};
use arithmo::adapter::{LoraConfig, TargetModules};
use arithmo::data::batch::PackedBatch;
use arithmo::data::encode::{EncodedExample, EncodedSequence};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::load::random;
use arithmo::objective::log_probs::{DeviceBatch, score};
use arithmo::train::gradient::{Loss, gradients};
use arithmo::train::parameters::{set_trained_parameters, train_all, trained_parameters};
use arithmo_backends::LogProbStats;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Distribution, Tensor, TensorData};

use super::{A, B, config};

fn examples() -> Vec<EncodedExample> {
    let example = |(ids, completion_start): (&[u32], usize)| EncodedExample {
        id: String::new(),
        sequence: EncodedSequence { ids: ids.to_vec(), completion_start, hidden: Vec::new() },
        unscored: Vec::new(),
    };
    let all: [(&[u32], usize); 3] = [
        (&[1, 7, 8, 15, 5, 16, 11, 2], 2),
        (&[1, 15, 12, 21, 12, 2], 4),
        (&[1, 9, 22, 6, 17, 16, 28, 17, 2], 0),
    ];
    all.map(example).into()
}

fn loss(model: &Decoder<B>, on_device: &DeviceBatch<B>) -> f64 {
    let sums = score(model, on_device, LogProbStats::None).sums;
    -sums.into_data().iter::<f64>().sum::<f64>()
}

/// Compares three elements of the gradient of every trained tensor with central differences of the loss. The upper
/// `keep` layers keep their activations. Returns the number of tensors.
fn check_gradients(mut model: Decoder<A>, keep: usize) -> usize {
    let device = Default::default();
    let examples = examples();
    let refs: Vec<&EncodedExample> = examples.iter().collect();
    let batch = PackedBatch::new(&refs);
    let table = model.valid().position_table(64, &device);
    let on_device = DeviceBatch::new(&batch, &table, &device);
    let completions = on_device.completions.to_autodiff::<A>();
    let head = model.head();
    let (_, grads) = gradients(&model, &on_device.input, keep, |hidden| Loss {
        loss: completions.score(hidden, head, LogProbStats::All).sums.sum().neg(),
        output: (),
    });
    let all = trained_parameters(&model);
    assert_eq!(all.len(), grads.len());
    for (index, parameter) in all.iter().enumerate() {
        let (name, weight) = (&parameter.name, &parameter.value);
        let grad: Vec<f64> = grads[index].clone().into_data().to_vec().unwrap();
        let count = grad.len();
        for at in [0, count / 3, count - 1] {
            let mut at_distance = |distance: f64| {
                let mut values: Vec<f64> = weight.clone().into_data().to_vec().unwrap();
                values[at] += distance;
                let changed = TensorData::new(values, weight.dims());
                let mut values: Vec<_> = all.iter().map(|other| other.value.clone()).collect();
                values[index] = Tensor::from_data(changed, &device);
                set_trained_parameters(&mut model, values);
                loss(&model.valid(), &on_device)
            };
            let step = 1e-5;
            let slope = (at_distance(step) - at_distance(-step)) / (2.0 * step);
            let near = (grad[at] - slope).abs() < 1e-6 * slope.abs().max(1.0);
            assert!(near, "{name}[{at}]: {} is not {slope}", grad[at]);
        }
    }
    all.len()
}

/// With and without gradient checkpointing.
#[test]
fn gradients_of_all_weights_equal_finite_differences() {
    for (tied, keep) in [(false, usize::MAX), (true, 0), (true, 1)] {
        let model: Decoder<A> = random(config(tied), 5, DType::F64, &Default::default()).unwrap();
        assert_eq!(check_gradients(train_all(model), keep), if tied { 20 } else { 21 });
    }
}

/// Models with biases, norms of heads, norms behind the halves of a layer, and rotations and windows by layer.
#[test]
fn gradients_of_all_weights_of_other_families_equal_finite_differences() {
    for (keys, tensors) in [
        (r#"{"model_type": "llama", "attention_bias": true, "mlp_bias": true}"#, 21 + 2 * 7),
        (r#"{"model_type": "qwen3", "attention_bias": true}"#, 21 + 2 * (4 + 2)),
        (
            r#"{"model_type": "gemma3_text", "sliding_window": 3, "sliding_window_pattern": 2,
                "query_pre_attn_scalar": 3}"#,
            21 + 2 * (2 + 2),
        ),
        (
            r#"{"model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.1}}"#,
            21,
        ),
    ] {
        let mut object = config(false).to_json();
        let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(keys).unwrap();
        object.as_object_mut().unwrap().extend(keys);
        let shape = DecoderConfig::parse(&object.to_string(), "config.json".as_ref()).unwrap();
        let device = Default::default();
        let model: Decoder<A> = random(shape, 5, DType::F64, &device).unwrap();
        let mut model = train_all(model);
        // Biases are zero and norms equal in a random model.
        let values = trained_parameters(&model).into_iter().map(|parameter| {
            let noise = Distribution::Uniform(-0.3, 0.3);
            parameter.value.clone() + Tensor::random(parameter.value.dims(), noise, &device)
        });
        let values = values.collect();
        set_trained_parameters(&mut model, values);
        assert_eq!(check_gradients(model, usize::MAX), tensors);
    }
}

/// An adapter with ranks of its own for single projections, biases, and modules that are trained in full.
#[test]
fn gradients_of_every_part_of_an_adapter_equal_finite_differences() {
    let device = Default::default();
    let options = LoraConfig {
        r: 2,
        lora_alpha: 3.0,
        target_modules: TargetModules::AllLinear,
        exclude_modules: ExcludeModules::Names(vec!["k_proj".into()]),
        rank_pattern: Patterns(vec![("layers.1.self_attn.q_proj".into(), 3)]),
        alpha_pattern: Patterns(vec![("v_proj".into(), 5.0)]),
        lora_bias: true,
        modules_to_save: ["embed_tokens", "lm_head", "norm", "layers.0.mlp.up_proj"]
            .map(String::from)
            .to_vec(),
        ..LoraConfig::default()
    };
    for keep in [usize::MAX, 0, 1] {
        let mut model: Decoder<A> = random(config(false), 5, DType::F64, &device).unwrap();
        attach(&mut model, &options, 1, &device).unwrap();
        let values = trained_parameters(&model).into_iter().map(|parameter| {
            let noise = Distribution::Uniform(-0.3, 0.3);
            parameter.value.clone() + Tensor::random(parameter.value.dims(), noise, &device)
        });
        let values = values.collect();
        set_trained_parameters(&mut model, values);
        // Six branches per layer without that of `up_proj` in layer 0, of three tensors each; embedding, head, five norms
        // and one projection.
        assert_eq!(check_gradients(model, keep), 3 * (2 * 6 - 1) + 2 + 5 + 1);
    }
}
