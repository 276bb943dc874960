//! Tests of LoRA's dropout: its mask, and when it is applied.

use arithmo::adapter::TargetModules;
use arithmo::adapter::lora::adapter_parameters;
use arithmo::model::linear::{Linear, LowRank, project};
use arithmo::train::activations::Activations;
use burn::module::Param;
use burn::tensor::Tensor;

use super::{B, learner, micro_batch, pairs, policy, step_config};

/// Checks the distribution and scale of the mask. With a zero weight, A and B the identity and all inputs 1, the output
/// of a projection is its mask.
#[test]
fn the_dropout_mask_has_the_right_rate_and_scale() {
    const WIDTH: usize = 40;
    const ROWS: usize = 500;
    let device = Default::default();
    let mask = |dropout: f64, site: u64, seed: Option<u64>| -> Vec<f64> {
        let identity = || Param::from_tensor(Tensor::<B, 2>::eye(WIDTH, &device));
        let mut linear = Linear::frozen(Tensor::<B, 2>::zeros([WIDTH, WIDTH], &device));
        linear.lora = Some(LowRank {
            lora_a: identity(),
            lora_b: identity(),
            lora_b_bias: None,
            scaling: 1.0,
            dropout,
            site,
            dora: None,
            initial: None,
        });
        let ones = Tensor::<B, 2>::ones([ROWS, WIDTH], &device);
        project(&[&linear], ones, None, seed).into_data().to_vec().unwrap()
    };
    for dropout in [0.05, 0.3, 0.75] {
        let first = mask(dropout, 3, Some(11));
        let kept = first.iter().filter(|value| **value != 0.0).count() as f64;
        let (count, keep) = (first.len() as f64, 1.0 - dropout);
        let deviation = (count * keep * dropout).sqrt();
        assert!(
            (kept - count * keep).abs() < 5.0 * deviation,
            "p = {dropout}: kept {kept} of {count}"
        );
        let scaled = |value: &f64| *value == 0.0 || (value - 1.0 / keep).abs() < 1e-6;
        assert!(first.iter().all(scaled));
        // No column is dropped or kept as a whole.
        for column in 0..WIDTH {
            let kept = first.iter().skip(column).step_by(WIDTH).filter(|v| **v != 0.0).count();
            assert!(kept > 0 && kept < ROWS, "column {column}: {kept}");
        }
        assert_eq!(first, mask(dropout, 3, Some(11)));
        assert_ne!(first, mask(dropout, 4, Some(11)));
        assert_ne!(first, mask(dropout, 3, Some(12)));
        assert!(mask(dropout, 3, None).iter().all(|value| *value == 1.0));
    }
}

#[test]
fn dropout_needs_a_rate_and_a_seed_and_repeats_with_the_seed() {
    let pairs = [pairs(2, 7), pairs(2, 8)];
    let batches = pairs.each_ref().map(|pairs| micro_batch(pairs));
    let train = |dropout: f64, dropout_seed: Option<u64>, activations: Activations| {
        let (policy, _) = policy(false, TargetModules::AllLinear, dropout);
        let mut config = step_config();
        (config.dropout_seed, config.activations) = (dropout_seed, activations);
        let mut learner = learner(policy, config);
        for step in 0..4 {
            learner.step(step, 0.01, &batches);
        }
        let tensors = adapter_parameters(&learner.policy).into_iter();
        tensors.map(|(_, tensor)| tensor.into_data()).collect::<Vec<_>>()
    };
    let without = train(0.0, None, Activations::Keep);
    assert_eq!(without, train(0.5, None, Activations::Keep));
    assert_eq!(without, train(0.0, Some(1), Activations::Keep));
    let with = train(0.5, Some(1), Activations::Keep);
    assert_ne!(with, without);
    assert_eq!(with, train(0.5, Some(1), Activations::Keep));
    assert_eq!(with, train(0.5, Some(1), Activations::Recompute));
    assert_ne!(with, train(0.5, Some(2), Activations::Keep));
}
