//! Tests of a reference that follows the policy (TR-DPO) as a second adapter on the same base.

use arithmo::adapter::LoraConfig;
use arithmo::adapter::lora::attach;
use arithmo::data::batch::PackedBatch;
use arithmo::data::encode::{EncodedPair, EncodedSequence};
use arithmo::model::decoder::Decoder;
use arithmo::model::load::load;
use arithmo::objective::log_probs::DeviceBatch;
use arithmo::objective::reference::{Reference, ReferenceSync};
use arithmo::train::parameters::{set_trained_parameters, trained_parameters};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{DType, Tensor, TensorData};
use burn_ndarray::NdArray;

use crate::suite::adapters::{config, write_base};
use crate::suite::tiny::uniform;

type B = NdArray<f32>;

/// Replaces the adapter by random values and returns them.
fn set_random(policy: &mut Decoder<Autodiff<B>>, seed: u64) -> Vec<Vec<f32>> {
    let (mut values, mut tensors) = (Vec::new(), Vec::new());
    for (index, parameter) in trained_parameters(policy).into_iter().enumerate() {
        let shape = parameter.value.dims();
        let random = uniform(seed + index as u64, shape[0] * shape[1], 0.5);
        tensors.push(matrix(&random, shape));
        values.push(random);
    }
    set_trained_parameters(policy, tensors);
    values
}

fn matrix(values: &[f32], shape: [usize; 2]) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

fn log_probs(reference: &Reference<B>, policy: &Decoder<Autodiff<B>>) -> Vec<f32> {
    let sequence = |ids: &[u32]| EncodedSequence {
        ids: ids.to_vec(),
        completion_start: 2,
        hidden: Vec::new(),
    };
    let pair = EncodedPair {
        id: "one".to_string(),
        chosen: sequence(&[1, 5, 7, 9, 11, 2]),
        rejected: sequence(&[1, 5, 8, 4, 2]),
    };
    let (batch, device) = (PackedBatch::new(&[&pair]), Default::default());
    let table = policy.valid().position_table(16, &device);
    let on_device = DeviceBatch::new(&batch, &table, &device);
    reference.compute(&on_device).into_data().to_vec().unwrap()
}

#[test]
fn a_reference_that_follows_is_the_average_of_adapters() {
    check_average(&config(&["q_proj", "down_proj"], false));
}

/// The row norms of the reference are those of its own averaged weights.
#[test]
fn a_reference_with_magnitudes_follows_too() {
    check_average(&LoraConfig { use_dora: true, ..config(&["q_proj", "down_proj"], false) });
}

fn check_average(config: &LoraConfig) {
    let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
    write_base(folder.path(), DType::F32);
    let mut policy = load::<Autodiff<B>>(folder.path(), DType::F32, &device).unwrap();
    attach(&mut policy, config, 3, &device).unwrap();
    let start = set_random(&mut policy, 100);
    let sync = ReferenceSync { alpha: 0.25, steps: 2 };
    let mut reference = Reference::following(&policy, sync);
    let at_start = log_probs(&reference, &policy);

    let now = set_random(&mut policy, 200);
    reference.after_update(1, &policy);
    assert_eq!(log_probs(&reference, &policy), at_start);
    reference.after_update(2, &policy);
    let moved = log_probs(&reference, &policy);

    // The same average, computed here and set as a policy of its own.
    let averages = trained_parameters(&policy).into_iter().zip(start.iter().zip(&now));
    let averages = averages.map(|(parameter, (start, now))| {
        let average: Vec<f32> =
            start.iter().zip(now).map(|(start, now)| now * 0.25 + start * 0.75).collect();
        matrix(&average, parameter.value.dims())
    });
    let averages: Vec<_> = averages.collect();
    set_trained_parameters(&mut policy, averages);
    let expected = log_probs(&Reference::initial(policy.valid()), &policy);
    let near = moved.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(near, "{moved:?} {expected:?}");
    let differs = moved.iter().zip(&at_start).any(|(a, b)| (a - b).abs() > 0.01);
    assert!(differs, "{moved:?} {at_start:?}");
}
