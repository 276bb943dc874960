//! Quantized base: compares the adapter's gradients with those on the dequantized base and with finite differences.

use arithmo::adapter::TargetModules;
use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::model::decoder::Decoder;
use arithmo::model::linear::WeightParam;
use arithmo::model::load::load_as;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo_backends::Format;
use burn::module::AutodiffModule;
use burn::tensor::DType;

use super::{A, backward, batch, config, differences, lora, on_device, pairs, policy, sums, tiny};

/// Returns the model of [`policy`] on a quantized base, with the adapter of `like`.
fn packed(tied: bool, to: Quantization, dropout: f64, like: &Decoder<A>) -> Decoder<A> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    tiny::write_model(&path, &config(tied), 5);
    let (device, nowhere) = (Default::default(), Cache::none());
    let mut model = load_as::<A>(&path, DType::F64, Some(to), &nowhere, &device).unwrap();
    attach(&mut model, &lora(TargetModules::AllLinear, dropout), 1, &device).unwrap();
    let values = adapter_parameters(like).into_iter().map(|(_, tensor)| tensor.inner());
    set_adapter_parameters(&mut model, values.collect());
    model
}

#[test]
fn gradients_on_a_quantized_base_equal_those_on_the_dequantized_base() {
    let pairs = pairs(2, 3);
    let batch = batch(&pairs);
    for (tied, format, double_quant) in [
        (false, Format::Nf4, false),
        (true, Format::Nf4, true),
        (false, Format::Fp4, true),
        (false, Format::Int8, false),
    ] {
        let (plain, _) = policy(tied, TargetModules::AllLinear, 0.0);
        let to = Quantization { format, double_quant };
        let packed = packed(tied, to, 0.0, &plain);
        let mut floats = packed.clone();
        for (_, linear) in floats.projections_mut() {
            linear.weight = WeightParam::frozen(linear.weight.floats(DType::F64));
        }
        let (model, float_model) = (packed.valid(), floats.valid());
        let on_device = on_device(&model, &batch);
        let reference = sums(&model.clone().without_adapter(), &on_device);
        let ours = sums(&model, &on_device);
        for (ours, theirs) in ours.iter().zip(&sums(&float_model, &on_device)) {
            assert!((ours - theirs).abs() < 1e-12, "{ours} {theirs}");
        }
        for keep in [0, 2] {
            let grads = backward(&packed, &batch, &on_device, &reference, keep);
            let theirs = backward(&floats, &batch, &on_device, &reference, keep);
            assert_eq!(grads.len(), 2 * 7 * 2);
            for (index, (grad, theirs)) in grads.iter().zip(&theirs).enumerate() {
                let grad = grad.to_vec::<f64>().unwrap();
                let theirs = theirs.to_vec::<f64>().unwrap();
                let largest = theirs.iter().fold(0f64, |max, g| max.max(g.abs()));
                let numeric = differences(&model, &on_device, &reference, index);
                assert!(largest > 1e-5);
                for ((ours, theirs), numeric) in grad.iter().zip(&theirs).zip(&numeric) {
                    assert!((ours - theirs).abs() < 1e-12 * largest, "{to:?} {index}");
                    assert!((ours - numeric).abs() < 1e-6 * largest, "{to:?} {index}");
                }
            }
        }
    }
}
