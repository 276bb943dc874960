//! `silu(gate) * up`, with `silu(x) = x * sigmoid(x)`.

use burn::backend::Autodiff;
use burn::tensor::DType;

use super::{
    Checker, Expected, Gradients, Host, Layout, Operation, Place, Rule, Source, backpropagate,
    numbers,
};
use crate::{TrainBackend, ops};

/// The gated activation.
#[derive(Clone, Debug)]
pub struct Swiglu {
    gate_up: Host,
    dy: Host,
    y: Expected,
    d_gate_up: Expected,
}

impl Swiglu {
    fn of(gate_up: Host, dy: Host, dtype: DType) -> Self {
        let width = dy.shape[1];
        let sigmoid = |gate: f64| 1.0 / (1.0 + (-gate).exp());
        let y = Host::from_fn(dy.shape, |token, i| {
            let (gate, up) = (gate_up.row(token)[i], gate_up.row(token)[width + i]);
            gate * sigmoid(gate) * up
        });
        let d_gate_up = Host::from_fn(gate_up.shape, |token, column| {
            let i = column % width;
            let (gate, up) = (gate_up.row(token)[i], gate_up.row(token)[width + i]);
            let (dy, s) = (dy.row(token)[i], sigmoid(gate));
            if column < width { dy * up * s * (1.0 + gate * (1.0 - s)) } else { dy * gate * s }
        });
        let [y, d_gate_up] = [y, d_gate_up].map(|values| Expected::new(values, dtype));
        Self { gate_up, dy, y, d_gate_up }
    }
}

impl Operation for Swiglu {
    /// `[T, I]`
    type Case = [usize; 2];

    fn quick() -> Vec<Self::Case> {
        vec![[1, 5], [5, 48], [67, 100], [130, 387]]
    }

    fn all() -> Vec<Self::Case> {
        // A single value, every vector width, and more rows than a grid dimension allows.
        let more = [[1, 1], [7, 5], [3, 48], [33, 100], [2, 1000], [5, 4097], [70_000, 3]];
        let odd = [[1, 3], [5, 72], [67, 150], [10, 3]];
        [Self::quick(), more.into(), odd.into()].concat()
    }

    fn new(shape: &Self::Case, dtype: DType) -> Self {
        let [tokens, width] = *shape;
        let mut source = Source::new(tokens + width, dtype);
        let gate_up = source.matrix([tokens, 2 * width]);
        Self::of(gate_up, source.matrix(*shape), dtype)
    }

    fn check<B: TrainBackend>(&self, place: &Place<B::Device>, checker: &mut impl Checker<B>) {
        let (gate_up, dy) = (place.matrix::<B>(&self.gate_up), place.matrix::<B>(&self.dy));
        checker.compare("swiglu", || vec![B::swiglu(gate_up.clone())], &[&self.y]);
        let compute = || vec![B::swiglu_backward(gate_up.clone(), dy.clone())];
        checker.compare("swiglu backward", compute, &[&self.d_gate_up]);
    }

    fn gradients<B: TrainBackend>(&self, place: &Place<B::Device>, rule: Rule) -> Gradients<'_, B> {
        let gate_up = place.leaf::<Autodiff<B>>(&self.gate_up);
        let y = match rule {
            Rule::Operation => ops::swiglu::swiglu(gate_up.clone()),
            Rule::Reference => ops::swiglu::reference(gate_up.clone()),
        };
        (backpropagate(y, place.matrix(&self.dy), &[gate_up]), vec![&self.y, &self.d_gate_up])
    }
}

/// Checks gates so far from zero that the exponential overflows in f32 although the results do not: of the backend's
/// operations, and of the reference bodies on its device.
///
/// # Panics
/// If a value is off by more than a millionth of it. A value below the smallest f32 may be rounded to any such value.
pub fn check_saturated_gates<B: TrainBackend>(device: &B::Device) {
    let gates = [-1e3, -100.0, -90.0, 0.0, 1.0, 90.0, 100.0, 1e3];
    let mut gate_up = Source::new(1, DType::F32).matrix([1, 2 * gates.len()]);
    gate_up.values[..gates.len()].copy_from_slice(&gates);
    let dy = Host::from_fn([1, gates.len()], |_, _| 1.0);
    let exact = Swiglu::of(gate_up, dy, DType::F32);
    let place = Place { device: device.clone(), dtype: DType::F32, layout: Layout::Contiguous };
    let (gate_up, dy) = (place.matrix::<B>(&exact.gate_up), place.matrix::<B>(&exact.dy));
    for (label, ours, exact) in [
        ("swiglu", B::swiglu(gate_up.clone()), &exact.y),
        ("reference", ops::swiglu::reference(gate_up.clone()), &exact.y),
        ("backward", B::swiglu_backward(gate_up.clone(), dy.clone()), &exact.d_gate_up),
        ("reference backward", ops::swiglu::reference_backward(gate_up, dy), &exact.d_gate_up),
    ] {
        for (ours, exact) in numbers(ours).into_iter().zip(&exact.values.values) {
            let tolerance = 1e-6 * exact.abs() + 1e-30;
            assert!((ours - exact).abs() <= tolerance, "{label}: {ours}, not {exact}");
        }
    }
}
