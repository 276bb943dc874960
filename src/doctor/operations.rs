//! Every operation of [`TrainBackend`], forward and backward, on inputs of odd sizes.

use arithmo_backends::ops::{
    adamw, adapted_linear, linear, log_probs, packed, rms_norm, rope, swiglu,
};
use arithmo_backends::{
    AdamWFactors, AdamWTensor, AdamWUpdate, Adapter, Format, LogProbStats, LogProbs, Projection,
    RotaryAngles, TrainBackend, Turn,
};
use burn::tensor::{DType, Tensor};

use super::attention::of_attention;
use super::checks::{Checker, Family};
use crate::error::Result;

/// Large enough to matter in the norm of rows of size one.
const EPSILON: f64 = 1e-3;

/// What checks the operations, by name.
pub(super) fn families<B: TrainBackend>() -> [(&'static str, Family<B>); 9] {
    [
        ("frozen_linear", of_linear),
        ("frozen_linear packed", of_packed),
        ("adapted_linear", of_adapted),
        ("rms_norm", of_rms_norm),
        ("rope", of_rope),
        ("swiglu", of_swiglu),
        ("self_attention", of_attention),
        ("completion_log_probs", of_log_probs),
        ("adamw", of_adamw),
    ]
}

/// The families whose products a library may compute.
pub(super) const WITH_PRODUCTS: [&str; 4] =
    ["frozen_linear", "frozen_linear packed", "adapted_linear", "completion_log_probs"];

/// Odd sizes, and one whose rows are of whole 16 bytes: libraries take no others.
fn of_linear<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for [tokens, d_in, d_out] in
        [[7, 5, 3], [33, 48, 100], [1, 129, 65], [130, 257, 48], [67, 96, 160]]
    {
        let [x, x32] = checker.matrix([tokens, d_in]);
        let [weight, weight32] = checker.matrix([d_out, d_in]);
        let [dy, dy32] = checker.matrix([tokens, d_out]);
        checker.compare(
            "frozen_linear",
            || vec![B::frozen_linear(x.clone(), weight.clone().into())],
            || vec![linear::reference(x32.clone(), weight32.clone().into())],
        )?;
        checker.compare(
            "frozen_linear backward",
            || vec![B::frozen_linear_backward(dy.clone(), weight.clone().into())],
            || vec![linear::reference_backward(dy32.clone(), weight32.clone().into())],
        )?;
    }
    Ok(())
}

/// Rows as decoding has them and as training has them. The exact products are those of what the reference unpacks.
fn of_packed<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for format in [Format::Nf4, Format::Fp4, Format::Int8] {
        for [tokens, d_in, d_out] in [[1, 96, 65], [5, 72, 100], [8, 129, 33], [130, 192, 48]] {
            let [x, x32] = checker.matrix([tokens, d_in]);
            let weight = checker.packed(format, [d_out, d_in]);
            checker.compare(
                "frozen_linear packed",
                || vec![B::frozen_linear(x.clone(), weight.clone().into())],
                || {
                    let weight = packed::reference(&weight, 0..d_out, DType::F32);
                    vec![linear::reference(x32.clone(), weight.into())]
                },
            )?;
        }
    }
    Ok(())
}

/// Tokens and width, then the width and rank of up to three projections (rank 0: without a branch).
type Adapted = ([usize; 2], &'static [[usize; 2]]);

fn of_adapted<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    const CASES: [Adapted; 5] = [
        ([7, 5], &[[3, 2], [4, 0], [6, 5]]),
        ([45, 64], &[[96, 16], [32, 0], [32, 16]]),
        ([33, 48], &[[100, 16]]),
        ([65, 100], &[[48, 7], [31, 4]]),
        ([70, 129], &[[64, 0], [33, 0]]),
    ];
    for ([tokens, d_in], shapes) in CASES {
        let width = shapes.iter().map(|[d_out, _]| d_out).sum();
        let [x, x32] = checker.matrix([tokens, d_in]);
        let [residual, residual32] = checker.matrix([tokens, width]);
        let [dy, dy32] = checker.matrix([tokens, width]);
        let with_dropout = tokens == 65;
        let sides = projections(checker, shapes, d_in, with_dropout.then_some(tokens));
        let [tested, exact] = &sides;
        checker.compare(
            "adapted_linear",
            || {
                let y = B::adapted_linear(x.clone(), tested, Some(residual.clone()));
                std::iter::once(y.output).chain(y.low).collect()
            },
            || {
                let y = adapted_linear::reference(x32.clone(), exact, Some(residual32.clone()));
                std::iter::once(y.output).chain(y.low).collect()
            },
        )?;
        let low = B::adapted_linear(x.clone(), tested, None).low;
        let low32 = adapted_linear::reference(x32.clone(), exact, None).low;
        let flat = |d: arithmo_backends::AdaptedGrads<B>| {
            d.x.into_iter().chain(d.adapters.into_iter().flatten()).collect()
        };
        checker.compare(
            "adapted_linear backward",
            || {
                let low = low.clone();
                let (x, dy) = (Some(x.clone()), dy.clone());
                flat(B::adapted_linear_backward(x, tested, low, dy, true))
            },
            || {
                let (x, low, dy) = (Some(x32.clone()), low32.clone(), dy32.clone());
                flat(adapted_linear::reference_backward(x, exact, low, dy, true))
            },
        )?;
    }
    Ok(())
}

/// The projections under test and the exact ones, with the same branches; `dropped`: with dropout, for that many tokens.
fn projections<B: TrainBackend>(
    checker: &mut Checker<B>,
    shapes: &[[usize; 2]],
    d_in: usize,
    dropped: Option<usize>,
) -> [Vec<Projection<B>>; 2] {
    let mut sides = [Vec::new(), Vec::new()];
    for [d_out, rank] in shapes {
        let weights = checker.matrix([*d_out, d_in]);
        let adapter = (*rank > 0).then(|| Adapter {
            a: checker.exact([*rank, d_in]),
            b: checker.exact([*d_out, *rank]),
            scaling: 1.75,
            // Every third element falls out.
            dropout_mask: dropped.map(|tokens| {
                let kept = (0..tokens * d_in).map(|at| i64::from(at % 3 > 0));
                let kept = checker.ints(kept.collect(), [tokens, d_in]);
                kept.float() * 1.5
            }),
        });
        for (side, weight) in sides.iter_mut().zip(weights) {
            let adapter = adapter.clone();
            side.push(Projection { weight: weight.into(), adapter });
        }
    }
    sides
}

fn of_rms_norm<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for [tokens, width] in [[1, 5], [5, 48], [67, 100], [130, 774]] {
        let [x, x32] = checker.matrix([tokens, width]);
        let [weight, weight32] = checker.vector(width);
        let [dy, dy32] = checker.matrix([tokens, width]);
        checker.compare(
            "rms_norm",
            || vec![B::rms_norm(x.clone(), weight.clone(), EPSILON)],
            || vec![rms_norm::reference(x32.clone(), weight32.clone(), EPSILON)],
        )?;
        checker.compare(
            "rms_norm backward",
            || {
                let (x, weight) = (x.clone(), weight.clone());
                vec![B::rms_norm_backward(x, weight, EPSILON, dy.clone())]
            },
            || {
                let (x, weight, dy) = (x32.clone(), weight32.clone(), dy32.clone());
                vec![rms_norm::reference_backward(x, weight, EPSILON, dy)]
            },
        )?;
    }
    Ok(())
}

/// Three heads, two of which turn.
fn of_rope<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for [tokens, half] in [[1, 5], [5, 24], [67, 50], [130, 129]] {
        let [x, x32] = checker.matrix([tokens, 6 * half]);
        let [cos, sin] = [(); 2].map(|()| checker.exact([tokens, half]));
        let angles = RotaryAngles { cos, sin };
        for (name, turn) in [("rope", Turn::Forward), ("rope backward", Turn::Back)] {
            checker.compare(
                name,
                || vec![B::rope(x.clone(), &angles, 2, turn)],
                || vec![rope::reference(x32.clone(), &angles, 2, turn)],
            )?;
        }
    }
    Ok(())
}

fn of_swiglu<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for [tokens, width] in [[1, 5], [5, 48], [67, 100], [130, 387]] {
        let [gate_up, gate_up32] = checker.matrix([tokens, 2 * width]);
        let [dy, dy32] = checker.matrix([tokens, width]);
        checker.compare(
            "swiglu",
            || vec![B::swiglu(gate_up.clone())],
            || vec![swiglu::reference(gate_up32.clone())],
        )?;
        checker.compare(
            "swiglu backward",
            || vec![B::swiglu_backward(gate_up.clone(), dy.clone())],
            || vec![swiglu::reference_backward(gate_up32.clone(), dy32.clone())],
        )?;
    }
    Ok(())
}

fn of_log_probs<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    for [tokens, width, vocabulary] in [[9, 5, 11], [77, 48, 301], [130, 100, 1003], [50, 96, 512]]
    {
        let [hidden, hidden32] = checker.matrix([tokens, width]);
        let [head, head32] = checker.matrix([vocabulary, width]);
        let targets = checker.ids(tokens, vocabulary);
        for (name, stats, slopes) in [
            ("completion_log_probs", LogProbStats::None, false),
            ("completion_log_probs slopes", LogProbStats::All, true),
        ] {
            checker.compare(
                name,
                || {
                    let (hidden, head, targets) = (hidden.clone(), head.clone(), targets.clone());
                    certain(B::completion_log_probs(hidden, head.into(), targets, stats, slopes))
                },
                || {
                    let (hidden, head) = (hidden32.clone(), head32.clone());
                    let targets = targets.clone();
                    certain(log_probs::reference(hidden, head.into(), targets, stats, slopes))
                },
            )?;
        }
    }
    Ok(())
}

/// All but the third column, the most likely token: rounding may decide it.
fn certain<B: TrainBackend>(result: LogProbs<B>) -> Vec<Tensor<B, 2>> {
    let LogProbs { columns, slopes } = result;
    let width = columns.dims()[1];
    let certain = [0, 1, 3].into_iter().filter(|column| *column < width);
    let certain = certain.map(|column| columns.clone().narrow(1, column, 1));
    certain.chain(slopes).collect()
}

/// Two tensors in their fifth step. They are f32 whatever the weights are.
fn of_adamw<B: TrainBackend>(checker: &mut Checker<B>) -> Result<()> {
    if checker.dtype() != DType::F32 {
        return Ok(());
    }
    let tensors = [[16, 48], [101, 5]].map(|shape| AdamWTensor {
        param: checker.exact(shape),
        grad: checker.exact(shape),
        exp_avg: checker.exact(shape),
        exp_avg_sq: checker.exact(shape).square(),
        factors: AdamWFactors {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            shrink: 1.0 - 1e-3,
            step_size: 1e-2 / (1.0 - 0.9f64.powi(5)),
            root_correction: (1.0 - 0.999f64.powi(5)).sqrt(),
        },
    });
    let flat = |updates: Vec<AdamWUpdate<B>>| -> Vec<Tensor<B, 2>> {
        let flat = updates.into_iter();
        flat.flat_map(|u| [u.param, u.exp_avg, u.exp_avg_sq]).collect()
    };
    checker.compare(
        "adamw",
        || flat(B::adamw(tensors.to_vec())),
        || flat(adamw::reference(tensors.to_vec())),
    )
}
