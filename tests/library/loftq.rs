//! Checks that LoftQ's initialization of an adapter brings the weights and logits of a quantized model nearer to those
//! of the full model.

use std::path::Path;

use crate::suite::adapters::random_logits;
use crate::suite::tiny::write_model;
use arithmo::adapter::config::LoraInit;
use arithmo::adapter::lora::{adapter_parameters, attach};
use arithmo::adapter::{LoraConfig, TargetModules, loftq};
use arithmo::model::config::DecoderConfig;
use arithmo::model::decoder::Decoder;
use arithmo::model::load::{load, load_as};
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};

type B = burn_ndarray::NdArray<f32>;

/// Returns a shape of odd widths, so that quantization blocks of 64 values begin anywhere in a row.
fn shape() -> DecoderConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 37, "hidden_size": 19, "intermediate_size": 29,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6,
        "max_position_embeddings": 32, "sliding_window": 5}"#;
    DecoderConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Returns a configuration for every projection. Its scaling (13 / 5 or 13 / sqrt(5)) is so large that an
/// initialization without it would be farther from the full weights than no initialization.
fn config(use_rslora: bool) -> LoraConfig {
    LoraConfig {
        r: 5,
        lora_alpha: 13.0,
        target_modules: TargetModules::AllLinear,
        use_rslora,
        init: LoraInit::LoftQ,
        ..LoraConfig::default()
    }
}

/// Loads the model in `folder`, quantizes it and attaches an adapter with LoftQ's initialization.
fn with_loftq(folder: &Path, to: Quantization, config: &LoraConfig) -> Decoder<Autodiff<B>> {
    let (device, nowhere) = (Default::default(), Cache::none());
    let model = load_as::<Autodiff<B>>(folder, DType::F32, Some(to), &nowhere, &device);
    let mut model = model.unwrap();
    attach(&mut model, config, 3, &device).unwrap();
    let files = WeightFiles::open(folder).unwrap();
    loftq::start::<B>(&mut model, config, 3, &files, ProgressMode::Quiet, &device).unwrap();
    model
}

fn dot(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> f64 {
    f64::from((a.clone() * b.clone()).sum().into_scalar())
}

/// Checks, for every projection, that the branch reduces the quantization error, and that it is an orthogonal
/// projection of that error, so that no scaling of the branch could reduce it further.
fn check_projections(full: &Decoder<B>, model: &Decoder<B>, name: &str) {
    assert_eq!(adapter_parameters(model).len(), 2 * 14);
    for ((site, full), (_, linear)) in full.projections().zip(model.projections()) {
        let error = full.weight.floats(DType::F32) - linear.weight.floats(DType::F32);
        let lora = linear.lora.as_ref().unwrap();
        let branch = lora.lora_b.val().matmul(lora.lora_a.val()) * lora.scaling;
        let residual = error.clone() - branch.clone();
        let [before, after] = [&error, &residual].map(|tensor| dot(tensor, tensor));
        assert!(before > 0.0 && after < before, "{name} {site}: {after} of {before}");
        let overlap = dot(&residual, &branch);
        assert!(overlap.abs() < 1e-5 * before, "{name} {site}: {overlap} of {before}");
        assert!((before - dot(&branch, &branch) - after).abs() < 1e-5 * before, "{name} {site}");
    }
}

/// Returns the Euclidean distance of two models' logits.
fn distance(a: &Decoder<B>, b: &Decoder<B>) -> f32 {
    let (a, b) = (random_logits(a), random_logits(b));
    let squares = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f32>().sqrt()
}

#[test]
fn loftq_reduces_the_quantization_error() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &shape(), DType::F32);
    let full = load::<B>(folder.path(), DType::F32, &Default::default()).unwrap();
    for (double_quant, use_rslora) in [(false, false), (true, false), (true, true)] {
        let to = Quantization { format: Format::Nf4, double_quant };
        let name = format!("{to:?}, rslora {use_rslora}");
        let model = with_loftq(folder.path(), to, &config(use_rslora)).valid();
        check_projections(&full, &model, &name);
        let (nowhere, device) = (Cache::none(), Default::default());
        let plain = load_as::<B>(folder.path(), DType::F32, Some(to), &nowhere, &device);
        let (loftq, packed) = (distance(&model, &full), distance(&plain.unwrap(), &full));
        assert!(loftq < packed, "{name}: {loftq} with LoftQ, {packed} without");
    }
}
