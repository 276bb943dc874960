//! Checks that no command reports a non-finite number, and that the error names the weight or layer it comes from.

use crate::suite::adapters::{attach_random, config, shape, write_base};
use crate::suite::tiny::{write_changed_model, write_not_finite};
use arithmo::data::batch::PackedBatch;
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::generate::{GenerateConfig, generate};
use arithmo::model::decoder::Decoder;
use arithmo::model::load::{load, load_as};
use arithmo::model::quantize::cache::Cache;
use arithmo::objective::Usage;
use arithmo::objective::log_probs::DeviceBatch;
use arithmo::objective::reference::Reference;
use arithmo::objective::score::{ScoreOptions, write_scores};
use arithmo::progress::ProgressMode;
use burn::tensor::{DType, Tensor};

type B = burn_ndarray::NdArray<f32>;

fn pair() -> EncodedPair {
    let sequence = |ids: &[u32]| EncodedSequence {
        ids: ids.to_vec(),
        completion_start: 3,
        hidden: Vec::new(),
    };
    EncodedPair {
        id: "one".to_string(),
        chosen: sequence(&[1, 5, 7, 9, 11, 2]),
        rejected: sequence(&[1, 5, 7, 4, 2]),
    }
}

/// Returns the errors of scoring, of the reference pass and of generation (greedy and sampled) with `model`.
fn errors(model: &Decoder<B>) -> Vec<String> {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let output = folder.path().join("scores.jsonl");
    let options = ScoreOptions { batch_size: 2, per_token: false, progress: ProgressMode::Quiet };
    let scored = write_scores(model, &[pair()], &output, &options, &device);
    assert!(!output.exists());
    let pairs = [&pair()];
    let batch = PackedBatch::new(&pairs);
    let on_device = DeviceBatch::new(&batch, &model.position_table(16, &device), &device);
    let precomputed =
        Reference::initial(model.clone()).precompute(&batch, &on_device, Usage::Training);
    let mut errors = vec![scored.unwrap_err(), precomputed.unwrap_err()];
    for temperature in [0.0, 1.0] {
        let config = GenerateConfig { max_new_tokens: 3, temperature, ..GenerateConfig::default() };
        let generated = generate(model, &[vec![1, 5, 7]], &config, |_| {});
        errors.push(generated.unwrap_err());
    }
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    for name in [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.input_layernorm",
        "model.norm",
        "lm_head",
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_not_finite(folder.path(), &shape(), &format!("{name}.weight"));
        let model = load::<B>(folder.path(), DType::F32, &Default::default()).unwrap();
        for error in errors(&model) {
            let wanted = format!("the weight {name}.weight holds 1 NaN\n  help: ");
            assert!(error.starts_with(&wanted), "{error}");
        }
    }
}

/// Checks a bf16 model, whose weights this backend holds packed in words.
#[test]
fn a_packed_weight_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let name = "model.layers.0.self_attn.o_proj.weight";
    write_changed_model(folder.path(), &shape(), DType::BF16, |tensor, values| {
        if tensor == name {
            values[5] = f32::INFINITY;
        }
    });
    let none = Cache::none();
    let model = load_as::<B>(folder.path(), DType::BF16, None, &none, &Default::default());
    for error in errors(&model.unwrap()) {
        assert!(error.starts_with(&format!("the weight {name} holds 1 infinite")), "{error}");
    }
}

#[test]
fn an_adapter_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_base(folder.path(), DType::F32);
    let mut model = load::<B>(folder.path(), DType::F32, &Default::default()).unwrap();
    attach_random(&mut model, &config(&["q_proj", "v_proj"], false));
    let mut broken = model.clone();
    for (name, linear) in broken.projections_mut() {
        if name == "model.layers.1.self_attn.v_proj" {
            let lora = linear.lora.as_mut().unwrap();
            let dims = lora.lora_b.dims();
            let values = Tensor::full(dims, f32::NAN, &Default::default());
            lora.lora_b = burn::module::Param::from_tensor(values);
        }
    }
    for error in errors(&broken) {
        assert!(error.contains("model.layers.1.self_attn.v_proj.lora_B.weight holds"), "{error}");
        assert!(error.contains("adapter is broken"), "{error}");
    }
}

/// Checks a model of finite weights whose activations overflow.
#[test]
fn the_first_layer_that_overflows_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_changed_model(folder.path(), &shape(), DType::F32, |tensor, values| {
        if tensor.starts_with("model.layers.1.mlp") {
            values.iter_mut().for_each(|value| *value *= 1e30);
        }
    });
    let model = load::<B>(folder.path(), DType::F32, &Default::default()).unwrap();
    for error in errors(&model) {
        assert!(
            error.starts_with("activations are not finite from layer 1 (model.layers.1) on: "),
            "{error}"
        );
    }
}
