//! Every hand-written backward against Burn's own autodiff through the reference body, in f64, on odd sizes.

use arithmo_backends::ops::{attention, linear, log_probs, swiglu};
use arithmo_backends::{AttentionConfig, AttentionMask, LogProbStats, graph_lock};
use burn::backend::Autodiff;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};

type Inner = burn_ndarray::NdArray<f64>;
type Train = Autodiff<Inner>;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Train, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn ints<const D: usize>(values: &[i64], shape: [usize; D]) -> Tensor<Train, D, Int> {
    Tensor::<Train, 1, Int>::from_ints(values, &Default::default()).reshape(shape)
}

#[track_caller]
fn assert_close<const D: usize>(a: Tensor<Inner, D>, b: Tensor<Inner, D>) {
    let worst: f64 = (a - b).abs().max().into_scalar();
    assert!(worst < 1e-12, "differ by {worst}");
}

#[test]
fn linear_matches_and_leaves_no_gradient_on_the_weight() {
    let (x, weight, dy) = (random([7, 5]), random([3, 5]), random([7, 3]));
    let run = |fused: bool| {
        let _only_graph = graph_lock();
        let x = x.clone().require_grad();
        let y = if fused {
            linear::linear(x.clone(), weight.clone())
        } else {
            linear::reference(x.clone(), weight.clone())
        };
        let grads = (y.clone() * dy.clone()).sum().backward();
        (y.inner(), x.grad(&grads).unwrap(), weight.grad(&grads))
    };
    let (fused, plain) = (run(true), run(false));
    assert_close(fused.0, plain.0);
    assert_close(fused.1, plain.1);
    assert!(fused.2.is_none());
}

#[test]
#[should_panic(expected = "requires a gradient")]
fn linear_refuses_a_trainable_weight() {
    linear::linear(random([2, 5]), random([3, 5]).require_grad());
}

/// Two rows: one left-padded, one with two segments; a window of three.
fn mask() -> AttentionMask<Train> {
    let segments = ints(&[-1, -1, 0, 0, 0, 0, 0, 0, 1, 1], [2, 5]);
    let positions = ints(&[0, 0, 0, 1, 2, 0, 1, 2, 0, 1], [2, 5]);
    AttentionMask {
        query_segments: segments.clone(),
        query_positions: positions.clone(),
        key_segments: segments,
        key_positions: positions,
    }
}

#[test]
fn swiglu_matches_and_saturates() {
    let (gate, up, dy) = (random([2, 5, 3]), random([2, 5, 3]), random([2, 5, 3]));
    let run = |fused: bool| {
        let _only_graph = graph_lock();
        let [gate, up] = [&gate, &up].map(|t| t.clone().require_grad());
        let f = if fused {
            swiglu::swiglu
        } else {
            swiglu::reference
        };
        let y = f(gate.clone(), up.clone());
        let grads = (y.clone() * dy.clone()).sum().backward();
        (y.inner(), [gate, up].map(|t| t.grad(&grads).unwrap()))
    };
    let (fused, plain) = (run(true), run(false));
    assert_close(fused.0, plain.0);
    for (a, b) in fused.1.into_iter().zip(plain.1) {
        assert_close(a, b);
    }

    // In f32, exp(100) is not finite; the results are.
    type Narrow = burn_ndarray::NdArray<f32>;
    let row = |values: [f32; 3]| {
        // Named, because the default of a device is that of the backend that used it first.
        let options = (&Default::default(), DType::F32);
        Tensor::<Narrow, 3>::from_data(TensorData::from([[values]]), options)
    };
    let (gate, one) = (row([-100.0, 0.0, 100.0]), row([1.0; 3]));
    let numbers = |t: Tensor<Narrow, 3>| t.into_data().to_vec::<f32>().unwrap();
    assert_eq!(
        numbers(swiglu::swiglu(gate.clone(), one.clone())),
        [0.0, 0.0, 100.0]
    );
    let [d_gate, d_up] = swiglu::reference_backward(gate, one.clone(), one);
    assert_eq!(numbers(d_gate), [0.0, 0.5, 1.0]);
    assert_eq!(numbers(d_up), [0.0, 0.0, 100.0]);
}

#[test]
fn attention_matches() {
    let config = AttentionConfig {
        scale: 0.7,
        window: Some(3),
    };
    let (q, dy) = (random([2, 5, 6, 4]), random([2, 5, 6, 4]));
    let (k, v) = (random([2, 5, 2, 4]), random([2, 5, 2, 4]));
    let run = |fused: bool| {
        let _only_graph = graph_lock();
        let [q, k, v] = [&q, &k, &v].map(|t| t.clone().require_grad());
        let f = if fused {
            attention::attention
        } else {
            attention::reference
        };
        let y = f(q.clone(), k.clone(), v.clone(), &mask(), &config);
        let grads = (y.clone() * dy.clone()).sum().backward();
        (y.inner(), [q, k, v].map(|t| t.grad(&grads).unwrap()))
    };
    let (fused, plain) = (run(true), run(false));
    assert_close(fused.0, plain.0);
    for (a, b) in fused.1.into_iter().zip(plain.1) {
        assert_close(a, b);
    }
}

/// Softmax over the visible keys only, computed by hand for one query.
#[test]
fn attention_sees_segment_position_and_window() {
    let config = AttentionConfig {
        scale: 1.0,
        window: Some(2),
    };
    let (q, k, v) = (
        random([2, 5, 1, 3]),
        random([2, 5, 1, 3]),
        random([2, 5, 1, 3]),
    );
    let out = attention::attention(q.clone(), k.clone(), v.clone(), &mask(), &config);
    // Row 0, index 4 is position 2: it sees positions 1 and 2 (indices 3 and 4), not position 0.
    let at = |t: &Tensor<Train, 4>, i: usize| t.clone().slice([0..1, i..i + 1]).reshape([1, 3]);
    let score = |i: usize| (at(&q, 4) * at(&k, i)).sum().exp().reshape([1, 1]);
    let (a, b) = (score(3), score(4));
    let expected = (at(&v, 3) * a.clone() + at(&v, 4) * b.clone()) / (a + b);
    assert_close(at(&out, 4).inner(), expected.inner());
    // Row 1, index 3 starts segment 1: it sees itself alone.
    let first = out.slice([1..2, 3..4]).reshape([1, 3]);
    assert_close(first.inner(), v.slice([1..2, 3..4]).reshape([1, 3]).inner());
}

#[test]
fn log_probs_match_and_only_the_first_column_has_a_gradient() {
    let (hidden, head, dy) = (random([9, 5]), random([11, 5]), random([9, 1]));
    let targets = ints(&[0, 3, 10, 2, 2, 7, 1, 9, 5], [9]);
    let run = |fused: bool, stats| {
        let _only_graph = graph_lock();
        let hidden = hidden.clone().require_grad();
        let f = if fused {
            log_probs::completion_log_probs
        } else {
            log_probs::reference
        };
        let all = f(hidden.clone(), head.clone(), targets.clone(), stats);
        let grads = (all.clone().narrow(1, 0, 1) * dy.clone()).sum().backward();
        (all.inner(), hidden.grad(&grads).unwrap())
    };
    let (fused, plain) = (run(true, LogProbStats::All), run(false, LogProbStats::All));
    assert_close(fused.0.clone(), plain.0);
    assert_close(fused.1, plain.1);
    let alone = run(true, LogProbStats::None).0;
    assert_close(alone, fused.0.clone().narrow(1, 0, 1));

    // The definitions, from the full logits.
    let logits = hidden.inner().matmul(head.inner().transpose());
    let logps = burn::tensor::activation::log_softmax(logits.clone(), 1);
    let entropy = (logps.clone().exp() * logps.clone()).sum_dim(1).neg();
    let targets = targets.inner().unsqueeze_dim::<2>(1);
    let correct = logits
        .clone()
        .argmax(1)
        .equal(targets.clone())
        .int()
        .float();
    let expected = Tensor::cat(
        vec![
            logps.gather(1, targets),
            entropy,
            correct,
            logits.mean_dim(1),
        ],
        1,
    );
    assert_close(fused.0, expected);
}
