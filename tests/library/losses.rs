//! Compares losses and their gradients with TRL's, run with given log-probabilities.

#![allow(clippy::single_range_in_vec_init, reason = "the micro-batches of a pass are ranges")]

use arithmo::objective::losses::{LossSettings, LossType, PairLogProbs};
use arithmo::objective::preference::{PassLogProbs, PreferenceLoss};
use arithmo_backends::TrainBackend;
use burn::backend::Autodiff;
use burn::tensor::{Element, Tensor, TensorData};
use serde_json::Value;

use crate::support;

type F32 = burn_ndarray::NdArray<f32>;
type F64 = burn_ndarray::NdArray<f64>;

/// Reads a golden number. Infinity and NaN are text.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// Reads a list of golden numbers, or one.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().map(number).collect(),
        value => vec![number(value)],
    }
}

/// One case: the log-probabilities `[chosen, rejected, reference of chosen, of rejected]` of each pair.
struct Case {
    loss: PreferenceLoss,
    logps: Vec<[f64; 4]>,
    /// Numbers of chosen, then rejected tokens.
    counts: Vec<usize>,
}

impl Case {
    /// Reads a case of loss type `loss_type`.
    fn read(case: &Value, loss_type: LossType) -> Self {
        let setting = |key: &str, default: f64| case.get(key).map_or(default, number);
        let plain = PreferenceLoss::sigmoid(number(&case["beta"]));
        let divergence = case.get("f_divergence_type");
        let loss = PreferenceLoss {
            terms: vec![(loss_type, 1.0)],
            settings: LossSettings {
                label_smoothing: setting("label_smoothing", 0.0),
                discopop_tau: setting("discopop_tau", 0.05),
                ..plain.settings
            },
            f_divergence: divergence
                .map_or(plain.f_divergence, |name| serde_json::from_value(name.clone()).unwrap()),
            f_alpha: setting("f_alpha_divergence_coef", 0.5),
            ..plain
        };
        let rows = case["logps"].as_array().unwrap();
        let logps: Vec<Vec<f64>> = if rows[0].is_array() {
            rows.iter().map(numbers).collect()
        } else {
            vec![numbers(&case["logps"])]
        };
        let logps: Vec<[f64; 4]> = logps.into_iter().map(|row| row.try_into().unwrap()).collect();
        let counts = match case.get("lengths") {
            Some(lengths) => numbers(lengths).iter().map(|length| *length as usize).collect(),
            None => vec![1; 2 * logps.len()],
        };
        Self { loss, logps, counts }
    }

    /// Returns the mean loss, and its gradients with respect to the chosen and the rejected log-probabilities.
    fn compute<B: TrainBackend>(&self) -> [Vec<f64>; 3] {
        let pairs = self.logps.len();
        let column = |column: usize| {
            let values: Vec<f64> = self.logps.iter().map(|row| row[column]).collect();
            let dtype = B::FloatElem::dtype();
            let data = TensorData::new(values, [pairs]).convert_dtype(dtype);
            Tensor::<Autodiff<B>, 1>::from_data(data, (&Default::default(), dtype))
        };
        let [chosen, rejected] = [0, 1].map(|index| column(index).require_grad());
        let chosen_tokens: usize = self.counts[..pairs].iter().sum();
        let loss = self.loss.losses(&PassLogProbs {
            policy: PairLogProbs { chosen: chosen.clone(), rejected: rejected.clone() },
            reference: PairLogProbs { chosen: column(2), rejected: column(3) },
            chosen_sums: chosen.clone(),
            weights: None,
            counts: &self.counts,
            token_weights: &vec![pairs as f64 / chosen_tokens as f64; pairs],
            micro_batches: &[0..pairs],
        });
        let loss = loss.mean();
        let grads = loss.backward();
        let values = |tensor: Tensor<B, 1>| tensor.into_data().iter::<f64>().collect();
        let grad = |side: &Tensor<Autodiff<B>, 1>| match side.grad(&grads) {
            Some(grad) => values(grad),
            None => vec![0.0; pairs],
        };
        [values(loss.clone().inner()), grad(&chosen), grad(&rejected)]
    }

    /// Compares loss and gradients with `case`'s, whose keys end with `suffix`. Where TRL's loss is not finite, ours must not
    /// be either, unless TRL computes 0 times infinity.
    /// Returns how many numbers were compared.
    fn check<B: TrainBackend>(&self, case: &Value, suffix: &str, tolerance: f64) -> usize {
        let Some(expected_loss) = case.get(format!("loss{suffix}")).map(number) else { return 0 };
        let ours = self.compute::<B>();
        if !expected_loss.is_finite() {
            assert!(expected_loss.is_nan() || !ours[0][0].is_finite(), "{ours:?}: {case}");
            return 0;
        }
        let mut compared = 0;
        for (key, ours) in ["loss", "grad_chosen", "grad_rejected"].into_iter().zip(ours) {
            let Some(expected) = case.get(format!("{key}{suffix}")) else { continue };
            let expected = numbers(expected);
            assert_eq!(ours.len(), expected.len());
            for (ours, theirs) in ours.iter().zip(expected) {
                let near = (ours - theirs).abs() <= tolerance * theirs.abs().max(1.0);
                assert!(
                    near || theirs.is_nan(),
                    "{key}{suffix}: {ours}, expected {theirs}: {case}"
                );
                compared += 1;
            }
        }
        compared
    }
}

#[test]
fn losses_and_gradients_equal_those_of_trl() {
    let golden = support::json_file(&support::whole_reference("pure").join("dpo_losses.json"));
    let cases = |key: &str| golden[key].as_array().unwrap().clone();
    let mut compared = 0;
    for case in cases("single").into_iter().chain(cases("batched")) {
        let loss_type: LossType = serde_json::from_value(case["loss_type"].clone()).unwrap();
        let ours = Case::read(&case, loss_type);
        compared += ours.check::<F32>(&case, "", 5e-5);
        // TRL rounds the constants of exo_pair to f32.
        let tolerance = if loss_type == LossType::ExoPair { 1e-6 } else { 1e-10 };
        compared += ours.check::<F64>(&case, "_f64", tolerance);
    }
    assert!(compared > 5 * cases("single").len(), "only {compared} numbers");
    for case in cases("old_trl_sigmoid_with_label_smoothing") {
        Case::read(&case, LossType::Cdpo).check::<F64>(&case, "_f64", 1e-10);
    }
}
