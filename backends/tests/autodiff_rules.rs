//! Checks the rules of autodiff in f64: every operation and every reference body against the results that `conformance`
//! computes on the host, and what the rules do beside: weights that are trained, weights that are not.

use arithmo_backends::conformance::{
    AdamW, AdaptedLinear, CachedAttention, Clip, Geglu, HeadNorm, Linear, LogProbs, Operation,
    RmsNorm, Rope, Rule, SelfAttention, Swiglu, Unpack, backpropagate, check, check_gradients,
    check_saturated_gates,
};
use arithmo_backends::ops::{adapted_linear, attention, linear, log_probs, rms_norm};
use arithmo_backends::{
    Adapter, AttentionConfig, AttentionMask, LogProbStats, Projection, backward_from, graph_lock,
};
use burn::backend::Autodiff;
use burn::tensor::{Distribution, Int, Tensor};

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
    let max_difference: f64 = (a - b).abs().max().into_scalar();
    assert!(max_difference < 1e-12, "differ by {max_difference}");
}

/// Compares the default bodies with the host, forward and backward; then the gradients of the hand-written rules; then
/// those that Burn's own autodiff finds, which checks the formulas on the host too.
fn check_in_f64<O: Operation>() {
    let device = Default::default();
    check::<Inner, O>(&device);
    check_gradients::<Inner, O>(Rule::Operation, O::all(), &device);
    check_gradients::<Inner, O>(Rule::Reference, O::all(), &device);
}

#[test]
fn linear_matches() {
    check_in_f64::<Linear>();
}

#[test]
fn adapted_linear_matches() {
    check_in_f64::<AdaptedLinear>();
}

#[test]
fn rms_norm_rope_and_swiglu_match() {
    check_in_f64::<RmsNorm>();
    check_in_f64::<HeadNorm>();
    check_in_f64::<Geglu>();
    check_in_f64::<Rope>();
    check_in_f64::<Swiglu>();
}

#[test]
fn attention_matches() {
    check_in_f64::<SelfAttention>();
    check_in_f64::<CachedAttention>();
}

#[test]
fn log_probs_match() {
    check_in_f64::<LogProbs>();
}

#[test]
fn clip_adamw_and_dequantized_weights_match() {
    check_in_f64::<Clip>();
    check_in_f64::<AdamW>();
    check_in_f64::<Unpack>();
}

/// In f32 exp(100) overflows; the results must not.
#[test]
fn swiglu_saturates() {
    check_saturated_gates::<burn_ndarray::NdArray<f32>>(&Default::default());
}

#[test]
fn linear_leaves_no_gradient_on_the_weight() {
    let _only_graph = graph_lock();
    let (x, weight) = (random([7, 5]).require_grad(), random([3, 5]));
    let grads = linear::linear(x.clone(), weight.clone()).sum().backward();
    assert!(x.grad(&grads).is_some() && weight.grad(&grads).is_none());
}

#[test]
#[should_panic(expected = "requires a gradient")]
fn linear_refuses_a_trainable_weight() {
    linear::linear(random([2, 5]), random([3, 5]).require_grad());
}

/// Two tokens of padding, a prompt of two, a completion of two that shares the prompt, and a separate sequence. Token
/// 7 is hidden.
fn mask() -> AttentionMask<Train> {
    let ranges = [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 2, 3],
        [0, 0, 2, 4],
        [2, 4, 4, 5],
        [3, 4, 4, 6],
        [0, 0, 6, 7],
        [0, 0, 6, 8],
        [0, 0, 7, 9],
    ];
    AttentionMask {
        ranges: ints(&ranges.concat(), [9, 4]),
        hidden: Some(ints(&[0, 0, 0, 0, 0, 0, 0, 1, 0], [9])),
        queries: None,
    }
}

/// Compares with the softmax over the visible keys only, computed by hand.
#[test]
fn attention_is_a_softmax_over_the_visible_keys() {
    let config = AttentionConfig { heads: 1, kv_heads: 1, head_dim: 3, scale: 0.7 };
    let [q, k, v] = [(); 3].map(|()| random([9, 3]));
    let out = attention::attention(q.clone(), k.clone(), v.clone(), &mask(), &config);
    let at = |t: &Tensor<Train, 2>, i: usize| t.clone().narrow(0, i, 1);
    // Token 5 sees token 3 of the prompt, token 4 and itself.
    let score = |i: usize| (at(&q, 5) * at(&k, i) * 0.7).sum_dim(1).exp();
    let weights = [3, 4, 5].map(score);
    let sum = weights.clone().into_iter().reduce(|a, b| a + b).unwrap();
    let seen = [3, 4, 5].into_iter().zip(weights);
    let seen = seen.map(|(i, weight)| at(&v, i) * (weight / sum.clone()));
    let expected = seen.reduce(|a, b| a + b).unwrap();
    assert_close(at(&out, 5).inner(), expected.inner());
    // Padding sees nothing. The range of token 8 contains 7 and 8, but 7 is hidden.
    assert_close(at(&out, 0).inner(), Tensor::zeros([1, 3], &Default::default()));
    assert_close(at(&out, 8).inner(), at(&v, 8).inner());
}

/// A given gradient is propagated as it is, and to nothing else.
#[test]
fn backward_from_propagates_the_given_gradient() {
    let _only_graph = graph_lock();
    let (x, dy) = (random([3, 4]).require_grad(), random([3, 4]).inner());
    let grads = backward_from(x.clone() * 3.0, dy.clone());
    assert_close(x.grad(&grads).unwrap(), dy * 3.0);
}

#[test]
fn trained_projections_get_their_gradient() {
    let (x, dy) = (random([7, 5]), random([7, 9]));
    let weights = [random([2, 5]), random([4, 5]), random([3, 5])];
    for residual in [None, Some(random([7, 9]))] {
        let run = |fused: bool| {
            let _only_graph = graph_lock();
            let x = x.clone().require_grad();
            let weights = weights.clone().map(Tensor::require_grad);
            let residual = residual.clone().map(Tensor::require_grad);
            let mut leaves = vec![x.clone()];
            leaves.extend(weights.clone());
            leaves.extend(residual.clone());
            let y = if fused {
                let projections =
                    weights.map(|weight| Projection { weight: weight.into(), adapter: None });
                adapted_linear::adapted_linear(x, &projections, residual)
            } else {
                let y = x.matmul(Tensor::cat(weights.to_vec(), 0).transpose());
                residual.map_or(y.clone(), |residual| y + residual)
            };
            backpropagate(y, dy.clone(), &leaves)
        };
        for (fused, plain) in run(true).into_iter().zip(run(false)) {
            assert_close(fused, plain);
        }
    }
}

/// One of two projections is trained and has a branch. The weight and the branch get their gradients, the frozen
/// weight none.
#[test]
fn a_trained_projection_beside_a_frozen_one_gets_its_gradient() {
    let _only_graph = graph_lock();
    let (x, dy) = (random([7, 5]), random([7, 6]));
    let (trained, frozen) = (random([2, 5]).require_grad(), random([4, 5]));
    let (a, b) = (random([3, 5]).require_grad(), random([2, 3]).require_grad());
    let adapter = Adapter { a: a.clone(), b: b.clone(), scaling: 0.5, dropout_mask: None };
    let projections = [(&trained, Some(adapter)), (&frozen, None)];
    let projections =
        projections.map(|(weight, adapter)| Projection { weight: weight.clone().into(), adapter });
    let y = adapted_linear::adapted_linear(x.clone(), &projections, None);
    let grads = (y * dy.clone()).sum().backward();
    let dy = dy.inner().narrow(1, 0, 2);
    let d_weight = dy.clone().transpose().matmul(x.clone().inner());
    assert_close(trained.grad(&grads).unwrap(), d_weight);
    let low = x.inner().matmul(a.clone().inner().transpose());
    assert_close(b.grad(&grads).unwrap(), dy.transpose().matmul(low) * 0.5);
    assert!(frozen.grad(&grads).is_none() && a.grad(&grads).is_some());
}

#[test]
fn a_trained_norm_and_a_trained_head_get_their_gradient() {
    let (x, dy) = (random([7, 12]), random([7, 12]));
    let weight = random([1, 12]);
    let run = |fused: bool| {
        let _only_graph = graph_lock();
        let (x, weight) = (x.clone().require_grad(), weight.clone().require_grad());
        let flat = weight.clone().squeeze_dim::<1>(0);
        let y = if fused {
            rms_norm::rms_norm(x.clone(), flat, 1e-2)
        } else {
            rms_norm::reference(x.clone(), flat, 1e-2)
        };
        backpropagate(y, dy.clone(), &[x, weight])
    };
    for (fused, plain) in run(true).into_iter().zip(run(false)) {
        assert_close(fused, plain);
    }

    let (hidden, head, dy) = (random([9, 5]), random([11, 5]), random([9, 1]));
    let targets = ints::<1>(&[0, 3, 10, 2, 2, 7, 1, 9, 5], [9]);
    for stats in [LogProbStats::None, LogProbStats::All] {
        let run = |fused: bool| {
            let _only_graph = graph_lock();
            let (hidden, head) = (hidden.clone().require_grad(), head.clone().require_grad());
            let (states, targets) = (hidden.clone(), targets.clone());
            let logps = if fused {
                log_probs::completion_log_probs(states, head.clone(), targets, stats)
                    .narrow(1, 0, 1)
            } else {
                let logits = states.matmul(head.clone().transpose());
                let all = burn::tensor::activation::log_softmax(logits, 1);
                all.gather(1, targets.unsqueeze_dim::<2>(1))
            };
            backpropagate(logps, dy.clone(), &[hidden, head])
        };
        for (fused, plain) in run(true).into_iter().zip(run(false)) {
            assert_close(fused, plain);
        }
    }
}
