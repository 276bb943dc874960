//! Tests of the gradients of DoRA: magnitudes, A and B, with the row norms as constants, with and without dropout.

use arithmo::adapter::lora::{adapter_parameters, attach, set_adapter_parameters};
use arithmo::adapter::{LoraConfig, TargetModules};
use arithmo::model::decoder::Decoder;
use arithmo::model::load::load_as;
use arithmo::model::quantize::Quantization;
use arithmo::model::quantize::cache::Cache;
use arithmo_backends::Format;
use burn::module::{AutodiffModule, Param};
use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{A, B, backward, batch, config, dpo, lora, on_device, pairs, sums, tiny};

/// Returns a model whose adapter is random, with magnitudes that differ from the row norms, on a base quantized as `to`.
fn policy(targets: TargetModules, dropout: f64, to: Option<Quantization>) -> Decoder<A> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    tiny::write_model(&path, &config(false), 5);
    let device = Default::default();
    let mut policy = load_as::<A>(&path, DType::F64, to, &Cache::none(), &device).unwrap();
    let lora = LoraConfig { use_dora: true, ..lora(targets, dropout) };
    attach(&mut policy, &lora, 1, &device).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let values = adapter_parameters(&policy).into_iter().map(|(name, tensor)| {
        let shape = tensor.dims();
        let random = (0..shape[0] * shape[1]).map(|_| 0.4 * tiny::symmetric(&mut rng));
        let random = TensorData::new(random.collect::<Vec<_>>(), shape);
        let random = Tensor::<B, 2>::from_data(random, &device);
        let is_magnitude = name.ends_with("lora_magnitude_vector");
        if is_magnitude { tensor.inner() * (random + 1.0) } else { random }
    });
    let values = values.collect();
    set_adapter_parameters(&mut policy, values);
    policy
}

/// Replaces tensor number `index` of the adapter and leaves the row norms as they are.
fn replace(model: &mut Decoder<B>, index: usize, values: &[f64]) {
    let branches = model.projections_mut().filter_map(|(_, linear)| linear.lora.as_mut());
    let lora = { branches }.nth(index / 3).unwrap();
    let data = TensorData::new(values.to_vec(), [values.len()]);
    let vector = Tensor::<B, 1>::from_data(data, &Default::default());
    match index % 3 {
        0 => lora.lora_a = Param::from_tensor(vector.reshape(lora.lora_a.dims())),
        1 => lora.lora_b = Param::from_tensor(vector.reshape(lora.lora_b.dims())),
        _ => lora.dora.as_mut().unwrap().magnitude = Param::from_tensor(vector),
    }
}

#[test]
fn gradients_equal_finite_differences_with_constant_norms() {
    const H: f64 = 5e-5;
    let some = TargetModules::Names(vec!["q_proj".into(), "down_proj".into()]);
    let nf4 = Quantization { format: Format::Nf4, double_quant: true };
    let int8 = Quantization { format: Format::Int8, double_quant: false };
    for (targets, branches, dropout_seed, to) in [
        (TargetModules::AllLinear, 14, None, None),
        (TargetModules::AllLinear, 14, Some(17), None),
        (some.clone(), 4, None, None),
        (TargetModules::AllLinear, 14, Some(17), Some(nf4)),
        (some, 4, None, Some(int8)),
    ] {
        let policy = policy(targets, 0.4, to);
        let (model, batch) = (policy.valid(), batch(&pairs(2, 3)));
        let mut on_device = on_device(&model, &batch);
        let reference = sums(&model.clone().without_adapter(), &on_device);
        on_device.input.context.dropout_seed = dropout_seed;
        let grads = backward(&policy, &batch, &on_device, &reference, 2);
        assert_eq!(grads.len(), 3 * branches);
        assert_eq!(grads, backward(&policy, &batch, &on_device, &reference, 0), "recomputed");
        let parameters = adapter_parameters(&policy);
        for (index, ((name, tensor), grad)) in parameters.into_iter().zip(grads).enumerate() {
            let grad = grad.to_vec::<f64>().unwrap();
            let values = tensor.into_data().to_vec::<f64>().unwrap();
            let largest = grad.iter().fold(0f64, |max, g| max.max(g.abs()));
            assert!(largest > 1e-5, "{name}: the gradient is {largest}");
            let mut moved = model.clone();
            let mut loss = |element: usize, by: f64| {
                let mut values = values.clone();
                values[element] += by;
                replace(&mut moved, index, &values);
                dpo(&sums(&moved, &on_device), &reference)
            };
            for (element, ours) in grad.iter().enumerate() {
                // The five-point difference: the losses bend more than the central difference allows.
                let [near, far] =
                    [H, 2.0 * H].map(|h| (loss(element, h) - loss(element, -h)) / (2.0 * h));
                let theirs = (4.0 * near - far) / 3.0;
                let relative = (ours - theirs).abs() / largest;
                assert!(relative < 1e-6, "{name}: {ours} {theirs} ({relative:e})");
            }
        }
    }
}

/// The norms follow A and B, and are those of `W + scaling * B A` summed on the host.
#[test]
fn norms_are_those_of_the_rows() {
    let model = policy(TargetModules::AllLinear, 0.0, None).valid();
    for (name, linear) in model.projections() {
        let lora = linear.lora.as_ref().unwrap();
        let host = |tensor: Tensor<B, 2>| tensor.into_data().to_vec::<f64>().unwrap();
        let ([d_out, d_in], rank) = (linear.weight.dims(), lora.lora_a.dims()[0]);
        let weight = host(linear.weight.floats(DType::F64));
        let (a, b) = (host(lora.lora_a.val()), host(lora.lora_b.val()));
        let norms = lora.dora.as_ref().unwrap().norms.val().into_data().to_vec::<f64>().unwrap();
        assert_eq!(norms.len(), d_out);
        for (row, norm) in norms.into_iter().enumerate() {
            let squares = (0..d_in).map(|column| {
                let terms = (0..rank).map(|k| b[row * rank + k] * a[k * d_in + column]);
                (weight[row * d_in + column] + 1.5 * terms.sum::<f64>()).powi(2)
            });
            let expected = squares.sum::<f64>().sqrt();
            assert!((norm - expected).abs() < 1e-12, "{name} {row}: {norm} {expected}");
        }
    }
}
