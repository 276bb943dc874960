//! LoftQ's start of an adapter on a whole model: nearer to the full weights, projection by projection, and so are its logits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "other tests take the rest of the suite")]

mod suite;

use std::path::Path;

use arithmo::lora::config::LoraInit;
use arithmo::lora::linear::{attach, parameters};
use arithmo::lora::{LoraConfig, TargetModules, loftq};
use arithmo::model::config::MistralConfig;
use arithmo::model::load::{load, load_as};
use arithmo::model::mistral::Mistral;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo::model::weights::WeightFiles;
use arithmo::progress::ProgressMode;
use arithmo_backends::Format;
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor};
use suite::adapters::random_logits;
use suite::tiny::write_model;

type B = burn_ndarray::NdArray<f32>;

/// Odd widths, so that blocks of 64 values begin anywhere in a row.
fn shape() -> MistralConfig {
    let text = r#"{"model_type": "mistral", "vocab_size": 37, "hidden_size": 19, "intermediate_size": 29,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6,
        "max_position_embeddings": 32, "sliding_window": 5}"#;
    MistralConfig::parse(text, "config.json".as_ref()).unwrap()
}

/// Every projection, scaled so much (13 / 5, 13 / sqrt 5) that a start which forgot the scaling would be farther from the
/// full weights than none.
fn config(use_rslora: bool) -> LoraConfig {
    LoraConfig {
        r: 5,
        lora_alpha: 13.0,
        lora_dropout: 0.0,
        target_modules: TargetModules::AllLinear,
        use_rslora,
        init: LoraInit::LoftQ,
    }
}

/// The model in `folder` packed as `to`, with the adapter's start.
fn started(folder: &Path, to: Quantization, config: &LoraConfig) -> Mistral<Autodiff<B>> {
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

/// What the branch adds is what it takes from the distance of packed to full weights: an orthogonal projection, so that
/// neither its directions nor its length could be better by scaling.
fn check_projections(full: &Mistral<B>, model: &Mistral<B>, name: &str) {
    assert_eq!(parameters(model).len(), 2 * 14);
    for ((site, of_full), (_, linear)) in full.projections().zip(model.projections()) {
        let lost = of_full.weight.floats(DType::F32) - linear.weight.floats(DType::F32);
        let lora = linear.lora.as_ref().unwrap();
        let added = lora.lora_b.val().matmul(lora.lora_a.val()) * lora.scaling;
        let left = lost.clone() - added.clone();
        let [before, after] = [&lost, &left].map(|tensor| dot(tensor, tensor));
        assert!(before > 0.0 && after < before, "{name} {site}: {after} of {before}");
        let overlap = dot(&left, &added);
        assert!(overlap.abs() < 1e-5 * before, "{name} {site}: {overlap} of {before}");
        assert!((before - dot(&added, &added) - after).abs() < 1e-5 * before, "{name} {site}");
    }
}

/// Root of the sum of squares of what two models' logits differ by.
fn distance(a: &Mistral<B>, b: &Mistral<B>) -> f32 {
    let (a, b) = (random_logits(a), random_logits(b));
    let squares = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b));
    squares.sum::<f32>().sqrt()
}

#[test]
fn a_model_starts_nearer_to_its_full_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), &shape(), DType::F32);
    let full = load::<B>(folder.path(), DType::F32, &Default::default()).unwrap();
    for (double_quant, use_rslora) in [(false, false), (true, false), (true, true)] {
        let to = Quantization { format: Format::Nf4, double_quant };
        let name = format!("{to:?}, rslora {use_rslora}");
        let model = started(folder.path(), to, &config(use_rslora)).valid();
        check_projections(&full, &model, &name);
        let (nowhere, device) = (Cache::none(), Default::default());
        let plain = load_as::<B>(folder.path(), DType::F32, Some(to), &nowhere, &device);
        let (started, packed) = (distance(&model, &full), distance(&plain.unwrap(), &full));
        assert!(started < packed, "{name}: {started} for {packed}");
    }
}
