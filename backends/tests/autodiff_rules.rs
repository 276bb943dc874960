//! Every hand-written backward against Burn's own autodiff through the reference body, in f64, on odd sizes.

use arithmo_backends::ops::{adapted_linear, attention, linear, log_probs, rms_norm, rope, swiglu};
use arithmo_backends::{
    Adapter, AttentionConfig, AttentionMask, Format, LogProbStats, PackedWeight, Projection,
    RotaryAngles, Scales, TrainBackend, Weight, backward_from, graph_lock,
};
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
            linear::reference(x.clone(), weight.clone().into())
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

#[test]
fn swiglu_matches_and_saturates() {
    let (gate_up, dy) = (random([10, 6]), random([10, 3]));
    let run = |fused: bool| {
        let _only_graph = graph_lock();
        let gate_up = gate_up.clone().require_grad();
        let f = if fused { swiglu::swiglu } else { swiglu::reference };
        let y = f(gate_up.clone());
        let grads = (y.clone() * dy.clone()).sum().backward();
        (y.inner(), gate_up.grad(&grads).unwrap())
    };
    let (fused, plain) = (run(true), run(false));
    assert_close(fused.0, plain.0);
    assert_close(fused.1, plain.1);

    // In f32, exp(100) is not finite; the results are.
    type Narrow = burn_ndarray::NdArray<f32>;
    let row = |values: Vec<f32>| {
        // Named, because the default of a device is that of the backend that used it first.
        let options = (&Default::default(), DType::F32);
        let shape = [1, values.len()];
        Tensor::<Narrow, 2>::from_data(TensorData::new(values, shape), options)
    };
    let gate_up = row(vec![-100.0, 0.0, 100.0, 1.0, 1.0, 1.0]);
    let numbers = |t: Tensor<Narrow, 2>| t.into_data().to_vec::<f32>().unwrap();
    #[track_caller]
    fn assert_near(ours: &[f32], expected: &[f32]) {
        // A sigmoid far below the smallest f32 may come out as the smallest.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-30;
        assert!(ours.iter().zip(expected).all(near), "{ours:?}");
    }
    let gated = numbers(swiglu::swiglu(gate_up.clone()));
    assert_near(&gated, &[0.0, 0.0, 100.0]);
    let of_both = [0.0, 0.5, 1.0, 0.0, 0.0, 100.0];
    let one = row(vec![1.0; 3]);
    let reference = swiglu::reference_backward(gate_up.clone(), one.clone());
    assert_near(&numbers(reference), &of_both);
    assert_near(&numbers(Narrow::swiglu_backward(gate_up, one)), &of_both);
}

/// Two tokens of padding, a prompt of two, a completion of two that shares it, a sequence of its own; token 7 is hidden.
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

fn config(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionConfig {
    AttentionConfig { heads, kv_heads, head_dim, scale: 0.7 }
}

#[test]
fn attention_matches() {
    let config = config(6, 2, 4);
    let qkv = random([9, config.packed_width()]);
    for queries in [None, Some(vec![1i64, 3, 5, 8])] {
        let mut mask = mask();
        if let Some(queries) = queries {
            let queries = ints(&queries, [queries.len()]);
            mask.ranges = mask.ranges.select(0, queries.clone());
            mask.queries = Some(queries);
        }
        let dy = random([mask.ranges.dims()[0], 24]);
        let run = |fused: bool| {
            let _only_graph = graph_lock();
            let qkv = qkv.clone().require_grad();
            let y = match fused {
                true => attention::self_attention(qkv.clone(), &mask, &config),
                false => {
                    let [q, k, v] = attention::split(qkv.clone(), &mask, &config);
                    attention::reference(q, k, v, &mask, &config).output
                }
            };
            let grads = (y.clone() * dy.clone()).sum().backward();
            (y.inner(), qkv.grad(&grads).unwrap())
        };
        let (fused, plain) = (run(true), run(false));
        assert_close(fused.0, plain.0);
        assert_close(fused.1, plain.1);
    }
}

/// Softmax over the visible keys only, computed by hand.
#[test]
fn attention_sees_what_the_ranges_say() {
    let config = config(1, 1, 3);
    let [q, k, v] = [(); 3].map(|()| random([9, 3]));
    let out = attention::attention(q.clone(), k.clone(), v.clone(), &mask(), &config);
    let at = |t: &Tensor<Train, 2>, i: usize| t.clone().narrow(0, i, 1);
    // Token 5 sees 3 of the prompt, 4 and itself.
    let score = |i: usize| (at(&q, 5) * at(&k, i) * 0.7).sum_dim(1).exp();
    let weights = [3, 4, 5].map(score);
    let sum = weights.clone().into_iter().reduce(|a, b| a + b).unwrap();
    let seen = [3, 4, 5].into_iter().zip(weights);
    let seen = seen.map(|(i, weight)| at(&v, i) * (weight / sum.clone()));
    let expected = seen.reduce(|a, b| a + b).unwrap();
    assert_close(at(&out, 5).inner(), expected.inner());
    // Padding sees nothing; of 7 and 8, which token 8 may see, 7 is hidden.
    assert_close(at(&out, 0).inner(), Tensor::zeros([1, 3], &Default::default()));
    assert_close(at(&out, 8).inner(), at(&v, 8).inner());
}

/// Three projections of which one has no branch; then one with dropout and a residual.
#[test]
fn adapted_linear_matches() {
    let branch = |d_out: usize, rank: usize, dropout: bool| Adapter {
        a: random([rank, 5]),
        b: random([d_out, rank]),
        scaling: 1.3,
        dropout_mask: dropout.then(|| random([7, 5])),
    };
    let frozen = |d_out, adapter| Projection { weight: random([d_out, 5]).into(), adapter };
    let several = vec![
        frozen(3, Some(branch(3, 2, false))),
        frozen(4, None),
        frozen(6, Some(branch(6, 4, false))),
    ];
    let one = vec![frozen(13, Some(branch(13, 3, true)))];
    for (projections, residual) in [(several, None), (one, Some(random([7, 13])))] {
        let (x, dy) = (random([7, 5]), random([7, 13]));
        let run = |fused: bool| {
            let _only_graph = graph_lock();
            let mut projections = projections.clone();
            let x = x.clone().require_grad();
            let residual = residual.clone().map(Tensor::require_grad);
            let mut leaves = vec![x.clone()];
            leaves.extend(residual.clone());
            for adapter in projections.iter_mut().filter_map(|p| p.adapter.as_mut()) {
                adapter.a = adapter.a.clone().require_grad();
                adapter.b = adapter.b.clone().require_grad();
                leaves.extend([adapter.a.clone(), adapter.b.clone()]);
            }
            let y = match fused {
                true => adapted_linear::adapted_linear(x, &projections, residual),
                false => adapted_linear::reference(x, &projections, residual).output,
            };
            let grads = (y.clone() * dy.clone()).sum().backward();
            let grads = leaves.iter().map(|leaf| leaf.grad(&grads).unwrap());
            std::iter::once(y.inner()).chain(grads).collect::<Vec<_>>()
        };
        for (fused, plain) in run(true).into_iter().zip(run(false)) {
            assert_close(fused, plain);
        }
    }
}

#[test]
fn rms_norm_and_rope_match() {
    let (x, dy, weight) = (random([7, 12]), random([7, 12]), random([12]));
    let angles = RotaryAngles { cos: random([7, 2]), sin: random([7, 2]) };
    type Op<'a> = &'a dyn Fn(Tensor<Train, 2>) -> Tensor<Train, 2>;
    let norm: [Op<'_>; 2] = [&|x| rms_norm::rms_norm(x, weight.clone(), 1e-2), &|x| {
        rms_norm::reference(x, weight.clone(), 1e-2)
    }];
    // Beside a residual, whose gradient the norm's rule adds to its own.
    let residual: [Op<'_>; 2] =
        [&|x| rms_norm::rms_norm(x.clone(), weight.clone(), 1e-2) + x * 3.0, &|x| {
            rms_norm::reference(x.clone(), weight.clone(), 1e-2) + x * 3.0
        }];
    let turn: [Op<'_>; 2] =
        [&|x| rope::rope(x, &angles, 2), &|x| rope::reference(x, &angles, 2, rope::Turn::Forward)];
    for ops in [norm, residual, turn] {
        let [fused, plain] = ops.map(|op| {
            let _only_graph = graph_lock();
            let x = x.clone().require_grad();
            let y = op(x.clone());
            let grads = (y.clone() * dy.clone()).sum().backward();
            (y.inner(), x.grad(&grads).unwrap())
        });
        assert_close(fused.0, plain.0);
        assert_close(fused.1, plain.1);
    }
}

/// Packed projections, one beside a trained one, and a packed head: gradients pass through as through the unpacked values.
#[test]
fn packed_weights_pass_gradients_on() {
    let packed = |rows: usize| {
        let words: Vec<u32> =
            (0..rows as u32).map(|row| 0x1357_9bdf_u32.rotate_left(row)).collect();
        let words = TensorData::new(words, [rows]);
        PackedWeight::<Train> {
            format: Format::Nf4,
            dims: [rows, 8],
            words: Tensor::from_data(words, (&Default::default(), DType::U32)),
            scales: Some(Scales::Plain(Tensor::from_data(
                TensorData::new(vec![1.5f32], [1]),
                (&Default::default(), DType::F32),
            ))),
        }
    };
    let floats = |packed: PackedWeight<Train>| {
        Weight::Float(Train::unpack(&packed, 0..packed.dims[0], DType::F64))
    };
    let (x, dy, trained) = (random([7, 8]), random([7, 9]), random([2, 8]));
    let (a, b) = (random([3, 8]), random([4, 3]));
    let targets = ints::<1>(&[0, 3, 2, 2, 4, 1, 0], [7]);
    let run = |weight: &dyn Fn(PackedWeight<Train>) -> Weight<Train>| {
        let _only_graph = graph_lock();
        let leaves = [&x, &a, &b, &trained].map(|leaf| leaf.clone().require_grad());
        let [x, a, b, trained] = leaves.clone();
        let adapter = Adapter { a, b, scaling: 1.3, dropout_mask: None };
        let projections =
            [(weight(packed(4)), Some(adapter)), (trained.into(), None), (weight(packed(3)), None)];
        let projections = projections.map(|(weight, adapter)| Projection { weight, adapter });
        let y = adapted_linear::adapted_linear(x.clone(), &projections, None);
        let z = linear::linear(x.clone(), weight(packed(5)));
        let logps = log_probs::completion_log_probs(
            x,
            weight(packed(6)),
            targets.clone(),
            LogProbStats::All,
        );
        let logps = logps.narrow(1, 0, 1);
        with_gradients(
            Tensor::cat(vec![y * dy.clone(), z, logps], 1),
            &Tensor::ones([7, 15], &Default::default()),
            &leaves,
        )
    };
    let (ours, expected) = (run(&Weight::Packed), run(&floats));
    for (ours, expected) in ours.into_iter().zip(expected) {
        assert_close(ours, expected);
    }
}

/// A gradient given from outside goes on as it is, and to nothing else.
#[test]
fn backward_from_passes_the_gradient_on() {
    let _only_graph = graph_lock();
    let (x, dy) = (random([3, 4]).require_grad(), random([3, 4]).inner());
    let grads = backward_from(x.clone() * 3.0, dy.clone());
    assert_close(x.grad(&grads).unwrap(), dy * 3.0);
}

#[test]
fn log_probs_match_and_only_the_first_column_has_a_gradient() {
    let (hidden, head, dy) = (random([9, 5]), random([11, 5]), random([9, 1]));
    let targets = ints(&[0, 3, 10, 2, 2, 7, 1, 9, 5], [9]);
    let run = |fused: bool, stats| {
        let _only_graph = graph_lock();
        let hidden = hidden.clone().require_grad();
        let (hidden_, head, targets) = (hidden.clone(), head.clone(), targets.clone());
        let all = match fused {
            true => log_probs::completion_log_probs(hidden_, head, targets, stats),
            false => log_probs::reference(hidden_, head.into(), targets, stats, false).columns,
        };
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
    let correct = logits.clone().argmax(1).equal(targets.clone()).int().float();
    let expected =
        Tensor::cat(vec![logps.gather(1, targets), entropy, correct, logits.mean_dim(1)], 1);
    assert_close(fused.0, expected);
}

/// The gradients of `leaves` under a loss that weighs `y` with `dy`, after `y` itself.
fn with_gradients(
    y: Tensor<Train, 2>,
    dy: &Tensor<Train, 2>,
    leaves: &[Tensor<Train, 2>],
) -> Vec<Tensor<Inner, 2>> {
    let grads = (y.clone() * dy.clone()).sum().backward();
    let grads =
        leaves.iter().map(|leaf| leaf.grad(&grads).unwrap_or_else(|| panic!("no gradient")));
    std::iter::once(y.inner()).chain(grads).collect()
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
            let y = match fused {
                true => {
                    let projections =
                        weights.map(|weight| Projection { weight: weight.into(), adapter: None });
                    adapted_linear::adapted_linear(x, &projections, residual)
                }
                false => {
                    let y = x.matmul(Tensor::cat(weights.to_vec(), 0).transpose());
                    residual.map_or(y.clone(), |residual| y + residual)
                }
            };
            with_gradients(y, &dy, &leaves)
        };
        for (fused, plain) in run(true).into_iter().zip(run(false)) {
            assert_close(fused, plain);
        }
    }
}

/// One of two projections is trained, and has a branch beside: each gets its gradient, the frozen one none.
#[test]
fn a_trained_projection_may_stand_beside_a_frozen_one() {
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
        let y = match fused {
            true => rms_norm::rms_norm(x.clone(), flat, 1e-2),
            false => rms_norm::reference(x.clone(), flat, 1e-2),
        };
        with_gradients(y, &dy, &[x, weight])
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
            let logps = match fused {
                true => log_probs::completion_log_probs(states, head.clone(), targets, stats)
                    .narrow(1, 0, 1),
                false => {
                    let logits = states.matmul(head.clone().transpose());
                    let all = burn::tensor::activation::log_softmax(logits, 1);
                    all.gather(1, targets.unsqueeze_dim::<2>(1))
                }
            };
            with_gradients(logps, &dy, &[hidden, head])
        };
        for (fused, plain) in run(true).into_iter().zip(run(false)) {
            assert_close(fused, plain);
        }
    }
}
