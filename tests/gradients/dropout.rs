//! LoRA's dropout: the mask itself, and where it acts.

use arithmo::lora::TargetModules;
use arithmo::lora::linear::parameters;
use arithmo::model::linear::{Linear, LowRank, project};
use arithmo::train::learner::Activations;
use burn::module::Param;
use burn::tensor::Tensor;

use super::{B, learner, learner_config, micro_batch, pairs, policy};

/// With weight 0, A and B the identity and input 1, a projection shows its mask.
#[test]
fn the_dropout_mask_keeps_and_scales_as_it_should() {
    const WIDTH: usize = 40;
    const ROWS: usize = 500;
    let device = Default::default();
    let shown = |dropout: f64, site: u64, seed: Option<u64>| -> Vec<f64> {
        let identity = || Param::from_tensor(Tensor::<B, 2>::eye(WIDTH, &device));
        let mut linear = Linear::frozen(Tensor::<B, 2>::zeros([WIDTH, WIDTH], &device));
        linear.lora =
            Some(LowRank { lora_a: identity(), lora_b: identity(), scaling: 1.0, dropout, site });
        let ones = Tensor::<B, 2>::ones([ROWS, WIDTH], &device);
        let shown = project(&[&linear], ones, None, seed);
        shown.into_data().to_vec().unwrap()
    };
    for dropout in [0.05, 0.3, 0.75] {
        let mask = shown(dropout, 3, Some(11));
        let kept = mask.iter().filter(|value| **value != 0.0).count() as f64;
        let (count, keep) = (mask.len() as f64, 1.0 - dropout);
        let deviation = (count * keep * dropout).sqrt();
        assert!(
            (kept - count * keep).abs() < 5.0 * deviation,
            "p = {dropout}: kept {kept} of {count}"
        );
        let scaled = |value: &f64| *value == 0.0 || (value - 1.0 / keep).abs() < 1e-6;
        assert!(mask.iter().all(scaled));
        // Neither whole rows nor whole columns fall out.
        for column in 0..WIDTH {
            let kept = mask.iter().skip(column).step_by(WIDTH).filter(|v| **v != 0.0).count();
            assert!(kept > 0 && kept < ROWS, "column {column}: {kept}");
        }
        assert_eq!(mask, shown(dropout, 3, Some(11)));
        assert_ne!(mask, shown(dropout, 4, Some(11)));
        assert_ne!(mask, shown(dropout, 3, Some(12)));
        assert!(shown(dropout, 3, None).iter().all(|value| *value == 1.0));
    }
}

#[test]
fn dropout_acts_only_when_asked_and_the_same_seed_gives_the_same_run() {
    let pairs = [pairs(2, 7), pairs(2, 8)];
    let batches = pairs.each_ref().map(|pairs| micro_batch(pairs));
    let train = |dropout: f64, dropout_seed: Option<u64>, activations: Activations| {
        let (policy, _) = policy(false, TargetModules::AllLinear, dropout);
        let mut config = learner_config();
        (config.step.dropout_seed, config.step.activations) = (dropout_seed, activations);
        let mut learner = learner(policy, config);
        for step in 0..4 {
            learner.step(step, 0.01, &batches);
        }
        let tensors = parameters(&learner.policy).into_iter();
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
